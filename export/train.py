"""Train a network from scratch.

    python -m export train --arch lenet5 --data digits --out runs/lenet5-digits

takes about a minute on two cores and reads 99 % of the test digits. The same command gives the same checkpoint, bit for
bit, on the same machine.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from export import architectures, augment, data, run
from export.data import Dataset
from service.spec import ImageSpec

TRAIN_SIDES = (32, 96)  # of enlarged drawings, in pixels; from larger ones they come back the same


@dataclass(frozen=True)
class Options:
    """What the command line can change; the defaults suit small images."""

    architecture: str
    data: str
    epochs: int = 120
    batch_size: int = 64
    learning_rate: float = 6e-3  # the peak of one cycle
    weight_decay: float = 0.1
    seed: int = 0
    threads: int = 1  # small networks gain nothing from more, and on a busy machine lose tenfold


def normalised(images: Tensor, image: ImageSpec) -> Tensor:
    """What the exported graph does first: `[N, C, H, W]` in [0, 255] to the network's own scale."""
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in (image.mean, image.std))
    return (images / 255 - mean) / std


def train(options: Options, out: Path, console: Console | None = None) -> run.Metrics:
    """Train, keep the parameters that read most of the validation images, test them once, write the run's folder.

    Args:
        options: What to train on what, and how.
        out: The run's folder.
        console: Where the progress bar goes; none if None.

    Raises:
        UnknownName: No such architecture or data set.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()

    architecture = architectures.get(options.architecture)
    dataset = data.load(options.data)
    image = architecture.image
    network = architecture.build(len(dataset.label_names))
    epochs, best_epoch, checkpoint = _fit(network, dataset, image, options, random, console)
    network.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    accuracy, confusion = test(network, dataset, image)
    metrics = run.Metrics(
        epochs=tuple(epochs),
        best_epoch=best_epoch,
        test_images=len(dataset.split.test),
        test_accuracy=accuracy[data.AS_SUCH],
        renderings=accuracy,
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        seconds=round(time.monotonic() - started, 1),
    )
    record = run.Run(
        architecture=options.architecture,
        data=options.data,
        seed=options.seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        image=image,
        labels=dataset.label_names,
    )
    run.save(out, record, metrics, checkpoint)
    return metrics


def _fit(
    network: nn.Module,
    dataset: Dataset,
    image: ImageSpec,
    options: Options,
    random: torch.Generator,
    console: Console | None,
) -> tuple[list[run.Epoch], int, bytes]:
    """The loop: figures per epoch, the last epoch that read most of the validation images, and its state dict."""
    split = dataset.split
    guises = dataset.rendered(split.train, image, TRAIN_SIDES, polarities=(False,))
    images = torch.stack([_planes(each) for each in guises.values()])  # [guises, N, C, H, W]
    labels = torch.from_numpy(dataset.labels[split.train])
    guises = dataset.rendered(split.validation, image, sides=())
    validation = torch.cat([_planes(each) for each in guises.values()])
    validation_labels = torch.from_numpy(dataset.labels[split.validation]).repeat(len(guises))

    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    steps = -(-len(labels) // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
    inverted = 0.5 if dataset.drawn else 0.0

    epochs: list[run.Epoch] = []
    best, best_epoch, checkpoint = -1.0, 0, b""
    with _progress(console) as progress:
        task = progress.add_task("train", total=options.epochs, loss=float("nan"), accuracy=float("nan"))
        for epoch in range(options.epochs):
            losses = 0.0
            network.train()
            for chosen in torch.split(torch.randperm(len(labels), generator=random), options.batch_size):
                guise = torch.randint(len(images), (len(chosen),), generator=random)
                batch = augment.affine(images[guise, chosen].float(), random)
                batch = augment.exposure(batch, random, inverted=inverted)
                loss = F.cross_entropy(network(normalised(batch, image)), labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                losses += loss.item() * len(chosen)
            mean_loss = losses / len(labels)
            accuracy = (predict(network, validation, image) == validation_labels).double().mean().item()
            if accuracy >= best:  # of equals the last: its learning rate was the lowest
                best, best_epoch, checkpoint = accuracy, epoch, _state(network)
            epochs.append(
                run.Epoch(loss=mean_loss, validation_accuracy=accuracy, learning_rate=schedule.get_last_lr()[0])
            )
            progress.update(task, advance=1, loss=mean_loss, accuracy=accuracy)
    return epochs, best_epoch, checkpoint


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, image: ImageSpec) -> Tensor:
    """Classes of uint8 `[N, C, H, W]`, int64 `[N]`."""
    network.eval()
    return torch.cat([network(normalised(batch.float(), image)).argmax(dim=1) for batch in torch.split(images, 256)])


def test(network: nn.Module, dataset: Dataset, image: ImageSpec) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Accuracy on the test images in every guise, and the confusion matrix `[K, K]` of the images as such."""
    labels = torch.from_numpy(dataset.labels[dataset.split.test])
    found = {
        name: predict(network, _planes(pixels), image)
        for name, pixels in dataset.rendered(dataset.split.test, image).items()
    }
    classes = len(dataset.label_names)
    confusion = torch.bincount(labels * classes + found[data.AS_SUCH], minlength=classes**2)
    accuracy = {name: (each == labels).double().mean().item() for name, each in found.items()}
    return accuracy, confusion.reshape(classes, classes).numpy()


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 `[N, H, W, C]` to uint8 `[N, C, H, W]`."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _state(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  validation {task.fields[accuracy]:.2%}"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
