"""`python -m export challenge`: see `export.challenge`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from export.commands.console import output

if TYPE_CHECKING:
    from export.challenged import Challenged
    from export.commands import Parsers


def add_parser(subparsers: Parsers) -> None:
    """Add `challenge`."""
    parser = subparsers.add_parser(
        "challenge",
        help="show models held-out images and strangers: do they know what they do not know?",
        description="Shows the newest version of models the held-out images of the data set that they were trained on, "
        "and images of other things: noise, blank ones, photographs, other data sets. Prints how many prediction sets "
        "hold the true class, and from what share of which images the models abstain.",
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="default: model_repository"
    )
    parser.add_argument("--model", nargs="+", default=(), metavar="NAME", help="only these (default: all)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the shares to this file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Challenge, and print the tables."""
    from export.challenge import challenge

    found, failed = challenge(arguments.repository, arguments.model, arguments.plot, Console(stderr=True))
    console = output()
    if arguments.json:
        models = [each.model_dump() for each in found]
        console.out(json.dumps({"models": models, "failed": failed}, ensure_ascii=False), highlight=False)
        return 0
    console.print(table(found))
    if arguments.plot is not None:
        console.print(f"picture → {arguments.plot}", style="dim", soft_wrap=True)
    for name, reason in sorted(failed.items()):
        console.print(f"not shown anything: {name}: {reason}", soft_wrap=True)
    return 0


def table(models: Sequence[Challenged]) -> Table:
    """For people."""
    rows = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for column in ("model", "images"):
        rows.add_column(column)
    for column in ("number", "covered", "asked", "classes in a set", "abstained", "by energy"):
        rows.add_column(column, justify="right")
    for model in models:
        for place, each in enumerate(model.shown):
            sets = each.covered is not None and each.set_size is not None
            rows.add_row(
                model.model if place == 0 else "",
                each.what,
                f"{each.images:,}",
                f"{each.covered:.1%}" if sets else "",
                f"{model.coverage:.0%}" if sets else "",
                f"{each.set_size:.2f}" if sets else "",
                f"{each.abstained:.1%}",
                f"{each.by_energy:.1%}",
            )
    return rows
