"""The folder of a training run: what was trained, the parameters, the figures. Readable without torch.

| file            | holds                                                                            |
| --------------- | -------------------------------------------------------------------------------- |
| `checkpoint.pt` | the state dict of the best epoch, for `torch.load(..., weights_only=True)`       |
| `run.json`      | `Run`: architecture, data, seed, hyperparameters, image contract, labels         |
| `metrics.json`  | `Metrics`: figures per epoch and of the test; written last, it marks a whole run |
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from export.errors import RunError
from service.spec import ImageSpec

CHECKPOINT = "checkpoint.pt"
RUN = "run.json"
METRICS = "metrics.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Frozen):
    """What makes a run what it is: the same again gives the same checkpoint on the same machine."""

    architecture: str
    data: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float  # the peak
    weight_decay: float
    image: ImageSpec
    labels: tuple[str, ...]


class Epoch(_Frozen):
    """Figures of one epoch."""

    loss: float  # mean training loss
    validation_accuracy: float
    learning_rate: float  # at its end


class Metrics(_Frozen):
    """Figures of a run."""

    epochs: tuple[Epoch, ...]
    best_epoch: int  # from 0; the checkpoint is of its end
    test_images: int
    test_accuracy: float
    renderings: dict[str, float]  # test accuracy per rendering of the test images
    confusion: tuple[tuple[int, ...], ...]  # of the test: rows are true labels, columns predicted ones
    seconds: float


def write(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save(folder: Path, run: Run, metrics: Metrics, checkpoint: bytes) -> None:
    """Write a run's folder; until the last file is there it does not count as a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS).unlink(missing_ok=True)
    write(folder / CHECKPOINT, checkpoint)
    write(folder / RUN, run.model_dump_json(indent=2).encode() + b"\n")
    write(folder / METRICS, metrics.model_dump_json(indent=2).encode() + b"\n")


def load(folder: Path) -> tuple[Run, Metrics]:
    """Read a run's folder.

    Raises:
        RunError: It is not one, or the training has not finished.
    """
    missing = [name for name in (CHECKPOINT, RUN, METRICS) if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder} holds no finished run ({', '.join(missing)} missing): train it first")
    try:
        return (
            Run.model_validate_json((folder / RUN).read_bytes()),
            Metrics.model_validate_json((folder / METRICS).read_bytes()),
        )
    except ValidationError as error:
        raise RunError(f"{folder} was not written by this version of export: {error}; train it again") from error
