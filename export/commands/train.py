"""`python -m export train`: see `export.train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from export.commands import Parsers
    from export.run import Metrics, Options


def add_parser(subparsers: Parsers) -> None:
    """Add `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a network from scratch",
        description="Trains a network with random initial weights. Killed at any time, the same command goes on where "
        "it stood. Under torchrun it is distributed: torchrun --nproc-per-node 2 -m export train …",
    )
    parser.add_argument("--arch", required=True, metavar="A", help="the network, see `list`")
    add_options(parser, epochs=120, learning_rate=6e-3, weight_decay=0.1)
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="PNG",
        help="draw a picture of augmented training images to this file, and train nothing",
    )
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser, *, epochs: int, learning_rate: float, weight_decay: float) -> None:
    """Add what `train` and `finetune` have in common.

    Args:
        parser: To this parser.
        epochs: Default.
        learning_rate: Default.
        weight_decay: Default.
    """
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", required=True, metavar="D", help="data set: see `list`; folder:PATH for your own images"
    )
    data.add_argument("--shots", type=positive, metavar="N", help="use N training images of each class (default: all)")
    data.add_argument("--augment", metavar="RECIPE", help="e.g. rotation=15,noise; none; default: what suits the data")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder for the results")
    loop = parser.add_argument_group("optimisation")
    loop.add_argument("--epochs", type=positive, default=epochs, metavar="N", help=f"default: {epochs}")
    loop.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="of all processes together (default: 64)"
    )
    loop.add_argument("--optimizer", choices=("adam", "adamw", "sgd"), default="adamw", help="default: adamw")
    loop.add_argument(
        "--lr",
        type=float,
        default=learning_rate,
        metavar="R",
        help=f"peak of the learning rate (default: {learning_rate:g})",
    )
    loop.add_argument(
        "--schedule",
        choices=("constant", "cosine", "one-cycle", "step", "warm-restarts"),
        help="of the learning rate (default: one-cycle; warm-restarts with --snapshots)",
    )
    loop.add_argument(
        "--weight-decay", type=float, default=weight_decay, metavar="D", help=f"default: {weight_decay:g}"
    )
    loop.add_argument("--dropout", type=float, metavar="P", help="of the network's dropout layers (default: their own)")
    loop.add_argument("--label-smoothing", type=float, default=0.0, metavar="E", help="default: 0")
    loop.add_argument("--clip", type=float, metavar="NORM", help="largest norm of the gradient (default: any)")
    loop.add_argument(
        "--patience", type=positive, metavar="N", help="end after N epochs without a better validation accuracy"
    )
    loop.add_argument(
        "--snapshots", type=int, default=0, metavar="N", help="N cycles, each leaving a member for `publish --ensemble`"
    )
    loop.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation and shots (default: 0)")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--precision", choices=("32-true", "16-mixed", "bf16-mixed"), default="32-true", help="default: 32-true"
    )
    machine.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: auto")
    machine.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="of PyTorch; small networks gain nothing from more (default: 1)",
    )
    machine.add_argument("--json", action="store_true", help="print the metrics as JSON")


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def options(arguments: argparse.Namespace) -> Options:
    """The options of a run."""
    from export.run import Options

    return Options(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        learning_rate=arguments.lr,
        schedule=arguments.schedule or ("warm-restarts" if arguments.snapshots else "one-cycle"),
        weight_decay=arguments.weight_decay,
        dropout=arguments.dropout,
        label_smoothing=arguments.label_smoothing,
        clip=arguments.clip,
        patience=arguments.patience,
        augment=arguments.augment,
        precision=arguments.precision,
        snapshots=arguments.snapshots,
        seed=arguments.seed,
    )


def folder(arguments: argparse.Namespace) -> Path:
    """The run's folder.

    Raises:
        ExportError: None was named.
    """
    from export.errors import ExportError

    if arguments.out is None:
        raise ExportError("--out says where the run goes, e.g. --out runs/first")
    path: Path = arguments.out
    return path


def show(metrics: Metrics | None, arguments: argparse.Namespace, name: str) -> None:
    """Print what came of a run."""
    if metrics is None:  # another process of the same training does
        return
    output = Console()
    if arguments.json:
        output.out(metrics.model_dump_json(), highlight=False)
        return
    if metrics.why:
        output.print(metrics.why, soft_wrap=True)
    worst = min(metrics.renderings, key=lambda each: metrics.renderings[each])
    at_worst = f", and {metrics.renderings[worst]:.2%} at worst ({worst})" if len(metrics.renderings) > 1 else ""
    output.print(
        f"{name} recognises {metrics.test_accuracy:.2%} of {metrics.test_images:,} test images of {arguments.data}"
        f"{at_worst}; {metrics.seconds:,.0f} s → {arguments.out}/report.html",
        soft_wrap=True,
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and print what came of it."""
    from export.preview import preview
    from export.train import Task, train

    task = Task(arguments.arch, arguments.data, options(arguments), arguments.shots)
    if arguments.preview is not None:
        preview(task, arguments.preview)
        Console().print(f"augmented images → {arguments.preview}", soft_wrap=True)
        return 0
    out = folder(arguments)
    metrics = train(task, out, device=arguments.device, threads=arguments.threads, console=Console(stderr=True))
    show(metrics, arguments, arguments.arch)
    return 0
