"""`python -m export compare`: see `export.compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from export.commands.console import output

if TYPE_CHECKING:
    from export.commands import Parsers


def add_parser(subparsers: Parsers) -> None:
    """Add `compare`."""
    parser = subparsers.add_parser(
        "compare",
        help="run the models of a repository side by side: a table and plots",
        description="Runs the newest version of every model in a repository through ONNX Runtime, each in a process of "
        "its own, and writes accuracy, multiply-accumulates, parameters, latency, throughput and memory, on a GPU also "
        "power: as JSON, as a table, and as plots.",
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="default: model_repository"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--batch-sizes", type=sizes, metavar="N,N,...", help="images in a batch (default: 1,2,4,8,16,32,64)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime on a CPU (default: 2)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def sizes(text: str) -> tuple[int, ...]:
    """`1,2,4`."""
    found = tuple(sorted({int(each) for each in text.split(",")}))
    if found[0] < 1:
        raise ValueError(text)
    return found


def run(arguments: argparse.Namespace) -> int:
    """Compare and print the table."""
    from export.compare import BATCH_SIZES, compare, rows
    from export.comparison import conditions

    comparison = compare(
        arguments.repository,
        arguments.out,
        arguments.batch_sizes or BATCH_SIZES,
        arguments.threads,
        Console(stderr=True),
    )
    console = output()
    if arguments.json:
        console.out(comparison.model_dump_json(), highlight=False)
        return 0
    header, *body = rows(comparison)
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for index, title in enumerate(header):
        table.add_column(title, justify="left" if index < 2 else "right")
    for row in body:
        table.add_row(*row)
    console.print(table)
    console.print(f"{conditions(comparison)} → {arguments.out}", style="dim", soft_wrap=True)
    for name, reason in sorted(comparison.failed.items()):
        console.print(f"not run: {name}: {reason}", soft_wrap=True)
    return 0
