"""What Lightning's loop calls: one step of training, one of validation, and what is kept after each epoch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from export import optimise, run, weights
from export.augment import Recipe
from export.draws import seed_of
from export.loader import AUGMENTATION, Batch
from export.torchvision_shim import import_torchvision
from service.files import write_whole
from service.spec import ImageSpec

import_torchvision()  # torchmetrics, which Lightning needs, imports it and cannot beside a CPU build of PyTorch

import lightning.pytorch as lightning  # noqa: E402

AUXILIARY = 0.3  # weight of the loss of each auxiliary head (Szegedy et al. 2014, arXiv:1409.4842)


def normalised(images: Tensor, image: ImageSpec) -> Tensor:
    """What the exported graph does first: `[N, C, H, W]` in [0, 255] to the network's own scale."""
    mean, std = (torch.tensor(each, device=images.device).reshape(1, -1, 1, 1) for each in (image.mean, image.std))
    return (images / 255 - mean) / std


class Learner(lightning.LightningModule):
    """A network that is trained by cross-entropy.

    Args:
        network: To logits `[N, classes]`; while training it may return those of auxiliary heads after them.
        classes: How many.
        groups: Its parameters that are trained, each group with its peak rate `lr`.
        frozen: Parts of it that stay as they are, their statistics included.
        image: Its image contract.
        recipe: Of augmentation.
        options: The run's.
        steps: Of the whole training.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        groups: optimise.Groups,
        frozen: list[nn.Module],
        image: ImageSpec,
        recipe: Recipe,
        options: run.Options,
        steps: int,
    ) -> None:
        super().__init__()
        # Channels last: a wide residual network trains half as fast again on a CPU, and GPUs' matrix units want it.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classes = classes
        self._groups, self._frozen, self._image = groups, frozen, image
        self._recipe, self._options, self._steps = recipe, options, steps
        self.sums = {"train": torch.zeros(3), "validation": torch.zeros(3)}  # of losses, of right answers, of images

    def configure_optimizers(self) -> Any:
        optimizer = optimise.optimizer(self._options.optimizer, self._groups, self._options.weight_decay)
        schedule = optimise.schedule(self._options.schedule, optimizer, self._steps, self._options.snapshots)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        return Batch(batch.images.to(device), batch.labels.to(device), batch.share)

    def on_train_epoch_start(self) -> None:
        for module in self._frozen:  # Lightning has just put all in training mode
            module.eval()
        self.sums["train"] = torch.zeros(3, device=self.device)

    def on_validation_epoch_start(self) -> None:
        self.sums["validation"] = torch.zeros(3, device=self.device)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        # What the network itself draws, for dropout, depends on the batch alone: a resumed training draws it again.
        torch.manual_seed(seed_of(batch.share.seed, self.global_rank))
        draws = batch.share.draws(AUGMENTATION, self.device)
        images = self._recipe(batch.images.float(), draws)
        images, targets = self._recipe.mix(images, F.one_hot(batch.labels, self._classes).float(), draws)
        images = normalised(images, self._image).contiguous(memory_format=torch.channels_last)
        answers: Tensor | tuple[Tensor, ...] = self.network(images)
        logits, *auxiliary = answers if isinstance(answers, tuple) else (answers,)
        loss = self._loss(logits, targets)
        for each in auxiliary:
            loss = loss + AUXILIARY * self._loss(each, targets)
        self._count("train", loss.detach(), logits.argmax(dim=1) == batch.labels)
        # Gradients are averaged over processes, whose shares may differ by an image.
        return loss * self.trainer.world_size / batch.share.total

    def validation_step(self, batch: Batch, _index: int) -> None:
        images = normalised(batch.images.float(), self._image).contiguous(memory_format=torch.channels_last)
        logits = self.network(images)
        self._count(
            "validation",
            F.cross_entropy(logits, batch.labels, reduction="sum"),
            logits.argmax(dim=1) == batch.labels,
        )

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self._options.label_smoothing)

    def _count(self, stage: str, loss: Tensor, right: Tensor) -> None:
        # On the device: reading a number from a GPU waits until all that was asked of it is done.
        images = torch.tensor(len(right), device=loss.device)
        self.sums[stage] += torch.stack([loss.float(), right.sum(), images])

    def means(self, stage: str) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch so far, over all processes."""
        sums: Any = self.trainer.strategy.reduce(self.sums[stage], reduce_op="sum")
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])


class Keeper(lightning.Callback):
    """Keeps the figures of the epochs, the best checkpoint, the snapshots; its own state goes into Lightning's.

    Args:
        folder: Of the run.
        options: The run's.
        console: Where the progress bar goes; none if None.
    """

    def __init__(self, folder: Path, options: run.Options, console: Console | None) -> None:
        self._folder, self._options, self._console = folder, options, console
        self.epochs: list[run.Epoch] = []
        self.best_epoch = -1
        self.seconds = 0.0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": [epoch.model_dump() for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [run.Epoch(**each) for each in state_dict["epochs"]]
        self.best_epoch, self.seconds = state_dict["best_epoch"], state_dict["seconds"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        self._since = time.monotonic()
        trainer.should_stop = self._exhausted()  # killed after the last epoch
        if self._console is not None and trainer.is_global_zero:
            self._progress = _progress(self._console)
            self._task = self._progress.add_task(
                "train", total=self._options.epochs, loss=math.nan, accuracy=math.nan, best=math.nan
            )
            self._progress.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._progress is not None:
            done = trainer.current_epoch + (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches
            self._progress.update(self._task, completed=done)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        loss, _ = pl_module.means("train")
        validation_loss, accuracy = pl_module.means("validation")
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        epoch = run.Epoch(loss=loss, validation_loss=validation_loss, validation_accuracy=accuracy, learning_rate=rate)
        self.epochs.append(epoch)
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        best = -1.0 if self.best_epoch < 0 else self.epochs[self.best_epoch].validation_accuracy
        if accuracy >= best:  # of equals the last: its learning rate was the lowest
            self.best_epoch, best = trainer.current_epoch, accuracy
            self._write(trainer, pl_module.network, run.CHECKPOINT)
        if self._options.snapshots:
            cycle, rest = divmod(trainer.current_epoch + 1, self._options.epochs // self._options.snapshots)
            if rest == 0:
                self._write(trainer, pl_module.network, run.SNAPSHOT.format(cycle))
        if self._exhausted():
            trainer.should_stop = True
        if self._progress is not None:
            self._progress.update(self._task, loss=loss, accuracy=accuracy, best=best)

    def _exhausted(self) -> bool:
        if self._options.patience is None or not self.epochs:
            return False
        accuracies = [epoch.validation_accuracy for epoch in self.epochs]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= self._options.patience

    def on_exception(self, *_: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        if self._progress is not None:
            self._progress.stop()

    def _write(self, trainer: lightning.Trainer, network: nn.Module, name: str) -> None:
        if trainer.is_global_zero:
            write_whole(self._folder / name, weights.dump(network))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed:.0f}/{task.total}  loss {task.fields[loss]:.3f}"),
        TextColumn("validation {task.fields[accuracy]:.2%}, best {task.fields[best]:.2%}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
