"""Train a network, or fine-tune a pretrained one, into a run's folder.

    python -m export train --arch lenet5 --data digits --out runs/lenet5-digits

The same command goes on where a killed one stood, and gives the same checkpoint, bit for bit, on the CPU of
one machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from export import architectures, augment, data, linear, report, run, strategies, weights
from export.architectures.base import Architecture, Network
from export.data import Dataset
from export.errors import ExportError
from export.evaluate import Evaluation, evaluate
from export.fit import fit, world
from service.calibration import probabilities
from service.files import write_whole
from service.spec import ImageSpec

NAMED = 10  # images that are left out


@dataclass(frozen=True)
class Task:
    """What is to be trained on what.

    Attributes:
        architecture: Name of the network.
        data: Name of the data set.
        options: How.
        shots: Training images of each class; None: all.
        weights: To start from, as `export.weights` takes them; None: random ones.
        strategy: `strategies.SCRATCH` or one for pretrained networks, but not `AUTO`.
    """

    architecture: str
    data: str
    options: run.Options
    shots: int | None = None
    weights: str | None = None
    strategy: str = strategies.SCRATCH


@dataclass(frozen=True)
class Subject:
    """A task's network and images, ready.

    Attributes:
        module: The network with its initial weights.
        network: The same, cut.
        image: Its image contract.
        dataset: Its images.
    """

    module: nn.Module
    network: Network
    image: ImageSpec
    dataset: Dataset


@dataclass(frozen=True)
class Learned:
    """What came of the training itself.

    Attributes:
        epochs: Figures of each; none if nothing was trained step by step.
        best_epoch: Whose parameters the checkpoint holds.
        seconds: Spent on it.
        why: It is as it is; for people.
    """

    epochs: tuple[run.Epoch, ...]
    best_epoch: int
    seconds: float
    why: str = ""


def train(
    task: Task,
    folder: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    console: Console | None = None,
    dataset: Dataset | None = None,
) -> run.Metrics | None:
    """Train, keep the parameters that read most of the validation images, test them once, write the run's folder.

    A run that is whole already is left as it is.

    Args:
        task: What on what, and how.
        folder: Of the run.
        device: "auto", "cpu" or "gpu".
        threads: Of PyTorch.
        console: Where progress goes; nowhere if None.
        dataset: The task's, if it is loaded already.

    Returns:
        The figures; None in all processes of a distributed training but the first.

    Raises:
        UnknownName: No such architecture, data set, optimiser, schedule or augmentation.
        ExportError: The data or the weights cannot be had, or the folder holds another run.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(task.options.seed)
    architecture = architectures.get(task.architecture)
    subject = _subject(architecture, task, dataset or load(task, console))
    recipe = augment.named(task.options.augment, drawn=subject.dataset.drawn)
    task = replace(task, options=task.options.model_copy(update={"augment": recipe}))
    if world()[0] > 0:
        _learn(task, subject, folder, device, None)
        return None
    record = run.Run(
        architecture=task.architecture,
        data=task.data,
        shots=task.shots,
        weights=task.weights,
        strategy=task.strategy,
        options=task.options,
        image=subject.image,
        labels=subject.dataset.label_names,
    )
    with run.writer(folder):
        done = run.begin(folder, record)
        if done is not None:
            return done
        learned = _learn(task, subject, folder, device, console)
        started = time.monotonic()
        subject.module.load_state_dict(torch.load(folder / run.CHECKPOINT, weights_only=True))
        found = evaluate(subject.module.cpu(), subject.dataset, subject.image)
        before, after = found.calibration_errors()
        split = subject.dataset.split
        metrics = run.Metrics(
            epochs=learned.epochs,
            best_epoch=learned.best_epoch,
            train_images=len(split.train),
            validation_images=len(split.validation),
            validation_accuracy=found.validation_accuracy,
            test_images=len(split.test),
            test_accuracy=found.renderings[data.AS_SUCH],
            renderings=found.renderings,
            confusion=tuple(tuple(map(int, row)) for row in found.confusion),
            temperature=found.temperature,
            ece_before=before,
            ece_after=after,
            seconds=round(learned.seconds + time.monotonic() - started, 1),
            why=learned.why,
        )
        report.write(folder, _results(record, metrics, found, subject))
        run.finish(folder, metrics)
    return metrics


def load(task: Task, console: Console | None) -> Dataset:
    """A task's images; those that had to be left out are named."""
    dataset = data.load(task.data, task.shots, task.options.seed, console)
    if dataset.skipped and console is not None:
        console.print(f"{len(dataset.skipped)} images of {dataset.name} are left out:")
        for each in dataset.skipped[:NAMED]:
            console.print(f"  {each.path}: {each.reason}", markup=False, soft_wrap=True)
        if len(dataset.skipped) > NAMED:
            console.print(f"  … and {len(dataset.skipped) - NAMED} more")
    return dataset


def _subject(architecture: Architecture, task: Task, dataset: Dataset) -> Subject:
    loaded = weights.load(architecture, task.weights, len(dataset.label_names), seed=task.options.seed)
    if task.options.dropout is not None:
        _set_dropout(loaded.module, task.options.dropout, architecture.name)
    return Subject(loaded.module, architecture.cut(loaded.module), loaded.image, dataset)


def _set_dropout(module: nn.Module, share: float, name: str) -> None:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    if not layers:
        raise ExportError(f"{name} has no dropout layers: leave --dropout out, or choose another network")
    for layer in layers:
        layer.p = share


def _learn(task: Task, subject: Subject, folder: Path, device: str, console: Console | None) -> Learned:
    """Write the checkpoint."""
    if task.strategy == strategies.LINEAR:
        started = time.monotonic()
        how = linear.fit(subject.network, subject.dataset, subject.image)
        write_whole(folder / run.CHECKPOINT, weights.dump(subject.module))
        return Learned((), 0, time.monotonic() - started, f"logistic regression on the features, {how}")
    plan = strategies.plan(subject.module, subject.network, subject.image, task.strategy, task.options.learning_rate)
    keeper = fit(
        subject.module, plan, subject.dataset, subject.image, task.options, folder, device=device, console=console
    )
    return Learned(tuple(keeper.epochs), keeper.best_epoch, keeper.seconds)


def _results(record: run.Run, metrics: run.Metrics, found: Evaluation, subject: Subject) -> report.Results:
    dataset = subject.dataset
    worst = min(metrics.renderings, key=lambda name: metrics.renderings[name])
    accuracy = {
        f"accuracy on {metrics.test_images:,} test images": metrics.test_accuracy,
        f"accuracy on {metrics.validation_images:,} validation images as such": metrics.validation_accuracy,
    }
    if len(metrics.renderings) > 1:
        accuracy[f"worst rendering of the test images ({worst})"] = metrics.renderings[worst]
    facts = {
        "architecture": record.architecture,
        "data": dataset.name,
        "training images": f"{metrics.train_images:,}",
        "initial weights": record.weights or "random",
        "strategy": record.strategy,
        "classifier": metrics.why,
        "seconds": f"{metrics.seconds:,.0f}",
    }
    if metrics.epochs:
        facts |= {name.replace("_", " "): str(value) for name, value in record.options if value not in (None, "")}
    return report.Results(
        title=f"{record.architecture} on {dataset.name}",
        facts={name: value for name, value in facts.items() if value},
        epochs=metrics.epochs,
        best_epoch=metrics.best_epoch,
        label_names=record.labels,
        labels=found.labels,
        probabilities=probabilities(found.logits),
        calibrated=probabilities(found.logits, metrics.temperature),
        temperature=metrics.temperature,
        pixels=found.pixels,
        filters=_filters(subject),
        accuracy=accuracy,
    )


def _filters(subject: Subject) -> NDArray[np.float32] | None:
    """The weights of the first layer as pictures `[F, C, h, w]`, where they are some."""
    image = subject.image
    for layer in subject.network.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.weight.detach().numpy()
        if isinstance(layer, nn.Linear):
            if layer.in_features != image.channels * image.height * image.width:
                return None
            return layer.weight.detach().reshape(-1, image.channels, image.height, image.width).numpy()
    return None
