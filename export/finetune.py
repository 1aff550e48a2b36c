"""Choose how to fine-tune a pretrained network: try what the data can support, and let the validation images decide.

python -m export finetune --arch resnet18 --weights IMAGENET1K_V1 --data folder:photos --out runs/photos
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from export import run, strategies
from export.errors import ExportError, StrategyError
from export.fit import world
from export.train import Task, load, train
from service.files import write_whole

# Training images of the smallest class from which a strategy is worth trying: fewer cannot settle what it trains.
NEEDED: Mapping[str, int] = {strategies.LINEAR: 1, strategies.LAST_STAGES: 5, strategies.FULL: 20}


def supported(images_per_class: int) -> tuple[str, ...]:
    """The strategies that so many training images of the smallest class can support, the cheapest first."""
    return tuple(name for name, needed in NEEDED.items() if images_per_class >= needed)


def choose(accuracies: Mapping[str, float], images: int) -> tuple[str, str]:
    """The strategy to keep, and why.

    Args:
        accuracies: On the validation images, of the strategies tried, the cheapest first.
        images: How many validation images there are.

    Returns:
        The cheapest that is within one standard error of the best; and a sentence for people.
    """
    best = max(accuracies, key=lambda name: accuracies[name])
    error = math.sqrt(max(accuracies[best] * (1 - accuracies[best]), 1 / images) / images)
    chosen = next(name for name in accuracies if accuracies[name] >= accuracies[best] - error)
    figures = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in accuracies.items())
    by_cost = f"is the cheapest within one standard error ({error:.2%}) of {best}"
    reason = "is the best" if chosen == best else by_cost
    return chosen, f"{chosen} {reason} on {images} validation images: {figures}"


def finetune(
    task: Task,
    folder: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    console: Console | None = None,
) -> run.Metrics | None:
    """Try the strategies that the data can support, and keep one; each has a run of its own in the folder.

    Arguments, result and errors are those of `export.train.train`; the task's strategy may be `AUTO`.
    """
    if task.strategy != strategies.AUTO:
        return train(task, folder, device=device, threads=threads, console=console)
    if world()[1] > 1:
        raise ExportError("auto tries strategies one after the other in one process: name one with --strategy")
    dataset = load(task, console)
    smallest = int(np.bincount(dataset.labels[dataset.split.train], minlength=len(dataset.label_names)).min())
    found: dict[str, run.Metrics] = {}
    problems: list[str] = []
    for strategy in supported(smallest):
        if console is not None:
            console.print(f"trying {strategy}")
        try:
            metrics = train(
                replace(task, strategy=strategy),
                folder / strategy,
                device=device,
                threads=threads,
                console=console,
                dataset=dataset,
            )
        except StrategyError as error:
            problems.append(f"{strategy} left out: {error}")
            continue
        if metrics is not None:
            found[strategy] = metrics
    if not found:
        raise ExportError("; ".join(problems))
    chosen, why = choose(
        {name: metrics.validation_accuracy for name, metrics in found.items()}, len(dataset.split.validation)
    )
    untried = [f"{name} wants {needed} images of each class" for name, needed in NEEDED.items() if smallest < needed]
    why = "; ".join([why, *problems, *untried])
    return _keep(folder, chosen, found[chosen].model_copy(update={"why": why}))


def _keep(folder: Path, chosen: str, metrics: run.Metrics) -> run.Metrics:
    """Make the run of the chosen strategy the folder's own."""
    record, _ = run.load(folder / chosen)
    with run.writer(folder):
        run.begin(folder, record.model_copy(update={"strategy": strategies.AUTO}))
        for path in (folder / chosen).iterdir():
            if path.suffix in (".png", ".html", ".pt"):
                write_whole(folder / path.name, path.read_bytes())
        run.finish(folder, metrics)
    return metrics
