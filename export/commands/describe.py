"""`python -m export describe`: see `export.describe`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rich.table import Table

from export.commands.console import output

if TYPE_CHECKING:
    from export.commands import Parsers
    from export.describe import Description


def add_parser(subparsers: Parsers) -> None:
    """Add `describe`."""
    parser = subparsers.add_parser(
        "describe",
        help="show a network layer by layer",
        description="Volumes, parameters, multiply-accumulates, activation memory and receptive fields of each layer.",
    )
    parser.add_argument("arch", metavar="ARCH", help="the network")
    parser.add_argument("--input-size", type=size, metavar="N|HxW", help="pixels of the input (default: as published)")
    parser.add_argument("--classes", type=positive, metavar="K", help="number of classes (default: as published)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def size(text: str) -> tuple[int, int]:
    """`224` or `192x256`, height first."""
    height, _, width = text.replace("×", "x").partition("x")
    return positive(height), positive(width or height)


def run(arguments: argparse.Namespace) -> int:
    """Describe and print."""
    from export import architectures
    from export.describe import describe_architecture

    architecture = architectures.get(arguments.arch)
    description = describe_architecture(architecture, arguments.classes, arguments.input_size)
    console = output()
    if arguments.json:
        found = {"architecture": architecture.name, "paper": architecture.paper, "year": architecture.year or None}
        console.out(json.dumps(found | description.as_json(), ensure_ascii=False), highlight=False)
        return 0
    console.print(f"{architecture.name}: {architecture.paper}", highlight=False)
    console.print(table(description))
    if description.training_only_parameters:
        console.print(f"beside {description.training_only_parameters:,} parameters that only training uses")
    return 0


def table(description: Description) -> Table:
    """For people."""
    totals = description.as_json()["totals"]
    rows = Table(box=None, header_style="bold", pad_edge=False, show_footer=True)
    rows.add_column("layer", f"{totals['layers']} layers", overflow="fold")
    rows.add_column("kind", overflow="fold")
    for heading, footer in (
        ("output", ""),
        ("parameters", f"{totals['parameters']:,}"),
        ("multiply-\naccumulates", f"{totals['macs']:,}"),
        ("activations", memory(totals["activation_bytes"])),
        ("receptive\nfield", ""),
    ):
        rows.add_column(heading, footer, justify="right", no_wrap=True)
    rows.add_row("input", "", "×".join(map(str, description.input)), "", "", "", "1")
    for layer in description.layers:
        rows.add_row(
            layer.name,
            layer.kind,
            "×".join(map(str, layer.output)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            memory(layer.activation_bytes),
            str(layer.receptive_field) if layer.receptive_field is not None else "?",
        )
    return rows


def memory(size_in_bytes: int) -> str:
    """In KiB or MiB."""
    kib = size_in_bytes / 1024
    return f"{kib:.1f} KiB" if kib < 1024 else f"{kib / 1024:.1f} MiB"
