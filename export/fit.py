"""Lightning's loop over a run: checkpoints, precision, devices, processes.

Started as it is, a training is one process. Started by `torchrun`, it is as many as that says, on one machine or
several, each with its share of every batch (distributed data parallel); they write through the first of them.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from export import augment, run
from export.data import Dataset
from export.errors import ExportError
from export.learner import Keeper, Learner
from export.loader import Images, Shares, loader
from export.strategies import Plan
from export.torchvision_shim import import_torchvision
from service.files import write_whole
from service.spec import ImageSpec

import_torchvision()  # as in export.learner

import lightning.pytorch as lightning  # noqa: E402

TRAIN_SIDES = (32, 96)  # of enlarged drawings, in pixels; from larger ones they come back the same
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
DEVICES = ("auto", "cpu", "gpu")


class _AtomicIO(lightning.plugins.TorchCheckpointIO):
    """Writes checkpoints as a whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())


def world() -> tuple[int, int]:
    """This process's rank, and how many there are, as `torchrun` says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def fit(
    module: nn.Module,
    plan: Plan,
    dataset: Dataset,
    image: ImageSpec,
    options: run.Options,
    folder: Path,
    *,
    device: str = "auto",
    console: Console | None = None,
) -> Keeper:
    """Train, or go on where a killed training stood; the best checkpoint and the snapshots are written to the folder.

    Args:
        module: The network, with its initial weights.
        plan: What of it is trained.
        dataset: On what.
        image: The image contract.
        options: How.
        folder: Of the run.
        device: One of `DEVICES`.
        console: Where the progress bar goes; none if None.

    Returns:
        What is known of the epochs.
    """
    rank, processes = world()
    if options.batch_size < processes:
        raise ExportError(f"a batch of {options.batch_size} is too small for {processes} processes: pass --batch-size")
    split = dataset.split
    training = Images(dataset, split.train, image, TRAIN_SIDES, (False,), every=False)
    recipe = augment.parse(options.augment or "")
    # Who is never shown dark and light swapped is not judged by it.
    polarities = (False, True) if "inversion" in recipe.strengths else (False,)
    held_out = Images(dataset, dataset.sample(split.validation), image, (), polarities, every=True)
    batches = Shares(len(training), options.batch_size, options.seed, rank, processes, shuffle=True)
    judged = Shares(len(held_out), max(256, options.batch_size), options.seed, rank, processes, shuffle=False)
    if options.snapshots and options.epochs % options.snapshots:
        raise ExportError(
            f"{options.epochs} epochs make no {options.snapshots} equal cycles: change --epochs or --snapshots"
        )
    steps = options.epochs * len(batches)
    learner = Learner(module, len(dataset.label_names), plan.groups, plan.frozen, image, recipe, options, steps)
    keeper = Keeper(folder, options, console)
    # The file is always the newest epoch's; what is best is the keeper's business.
    newest = lightning.callbacks.ModelCheckpoint(
        folder, Path(run.RESUME).stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    _quieten()
    trainer = lightning.Trainer(
        accelerator=device,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=processes // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if processes > 1 else "auto",
        sync_batchnorm=processes > 1 and device != "cpu" and torch.cuda.is_available(),
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=options.epochs,
        gradient_clip_val=options.clip,
        callbacks=[keeper, newest],
        plugins=[_AtomicIO()],
        use_distributed_sampler=False,  # `Shares` deals the images out
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    resume = folder / run.RESUME
    newest_state = resume if resume.is_file() else None
    try:
        trainer.fit(learner, loader(training, batches), loader(held_out, judged), ckpt_path=newest_state)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    return keeper


def _quieten() -> None:
    """Lightning's advice is for people who write their own loops."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")
