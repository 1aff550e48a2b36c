"""`python -m export list`: see `export.listing`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.table import Table

from export.commands.console import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.commands import Parsers
    from export.data import About


def add_parser(subparsers: Parsers) -> None:
    """Add `list`."""
    parser = subparsers.add_parser("list", help="list networks, their weights, and data sets")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print everything that can be asked for by name."""
    from export import listing
    from export.data import ABOUT

    console = output()
    if arguments.json:
        console.out(json.dumps(listing.as_json(), ensure_ascii=False), highlight=False)
        return 0
    table = Table("network", "year", "input", box=None, header_style="bold", pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("multiply-accumulates", justify="right")
    table.add_column("weights")
    table.add_column("paper", ratio=1)
    for entry in listing.entries():
        table.add_row(
            entry.name,
            str(entry.year),
            "×".join(map(str, entry.input)),
            f"{entry.parameters:,}",
            f"{entry.macs:,}",
            f"{entry.origin}: {' '.join(entry.weights)}" if entry.weights else "train it",
            entry.paper,
        )
    console.print(table)
    console.print("\ntimm:NAME, timm:NAME.TAG   any of timm's convolutional networks\n", highlight=False)
    console.print(datasets(ABOUT))
    return 0


def datasets(found: Sequence[About]) -> Table:
    """A line for each data set."""
    table = Table("data set", box=None, header_style="bold", pad_edge=False)
    table.add_column("classes", justify="right")
    table.add_column("images", justify="right")
    table.add_column("what")
    for each in found:
        counts = ("" if count is None else f"{count:,}" for count in (each.classes, each.images))
        table.add_row(each.name, *counts, each.what)
    return table
