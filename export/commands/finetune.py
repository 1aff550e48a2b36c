"""`python -m export finetune`: see `export.finetune`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console

from export.commands.train import add_options, folder, options, show

if TYPE_CHECKING:
    from export.commands import Parsers


def add_parser(subparsers: Parsers) -> None:
    """Add `finetune`."""
    parser = subparsers.add_parser(
        "finetune",
        help="fit a pretrained network to images of your own",
        description="Takes a pretrained network, gives it a classifier for the classes of a data set, and trains as "
        "much of it as the data can support. Killed at any time, the same command goes on where it stood.",
    )
    parser.add_argument("--arch", metavar="A", help="the network, see `list` (default: that of a published model)")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="to start from: published ones by name, a .pth or .safetensors file, or a model's folder such as "
        "model_repository/letters",
    )
    parser.add_argument(
        "--strategy",
        choices=("auto", "linear", "last", "full"),
        default="auto",
        help="linear: a linear classifier on the features; last: the last stages too, lower rates below; full: all of "
        "it; auto: tries what the data can support and says why it keeps which (default)",
    )
    add_options(parser, epochs=30, learning_rate=2e-3, weight_decay=0.05)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune, and print what came of it."""
    from export import weights
    from export.finetune import finetune
    from export.train import Task

    architecture = arguments.arch or weights.architecture_of(arguments.weights)
    task = Task(
        architecture, arguments.data, options(arguments), arguments.shots, arguments.weights, arguments.strategy
    )
    metrics = finetune(
        task,
        folder(arguments),
        device=arguments.device,
        threads=arguments.threads,
        console=Console(stderr=True),
    )
    show(metrics, arguments, architecture)
    return 0
