"""`python -m export train`: see `export.train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from export.commands import Parsers


def add_parser(subparsers: Parsers) -> None:
    """Add `train`."""
    parser = subparsers.add_parser(
        "train", help="train a network from scratch", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--arch", required=True, help="the network")
    parser.add_argument("--data", required=True, help="the data set")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the results")
    parser.add_argument("--epochs", type=int, default=120, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--lr", type=float, default=6e-3, help="peak of the learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="as in AdamW")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order and augmentation")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; small networks gain nothing from more")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train and print what came of it."""
    from export.train import Options, train

    options = Options(
        architecture=arguments.arch,
        data=arguments.data,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.lr,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
        threads=arguments.threads,
    )
    metrics = train(options, arguments.out, Console(stderr=True))
    output = Console()
    if arguments.json:
        output.out(metrics.model_dump_json(), highlight=False)
        return 0
    worst = min(metrics.renderings, key=lambda name: metrics.renderings[name])
    output.print(
        f"{arguments.arch} reads {metrics.test_accuracy:.2%} of {metrics.test_images} test images of {arguments.data}, "
        f"and {metrics.renderings[worst]:.2%} at worst ({worst}); {metrics.seconds:.0f} s → {arguments.out}",
        soft_wrap=True,
    )
    return 0
