"""The folder of a training run: what was trained, the parameters, the figures. Readable without torch.

| file            | holds                                                                              |
| --------------- | ---------------------------------------------------------------------------------- |
| `run.json`      | `Run`: what is trained on what, and how; written first                             |
| `resume.ckpt`   | where the training stands, after each epoch; gone when it has ended                |
| `checkpoint.pt` | the state dict of the best epoch, for `torch.load(..., weights_only=True)`         |
| `snapshot-N.pt` | the same at the end of each cycle of `--snapshots`                                 |
| `metrics.json`  | `Metrics`: figures per epoch and of the test; written last, it marks a whole run   |
| `report.html`   | the figures with their pictures                                                    |
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from export.errors import RunError
from service.files import write_whole
from service.spec import ImageSpec

CHECKPOINT = "checkpoint.pt"
SNAPSHOT = "snapshot-{}.pt"
RESUME = "resume.ckpt"
RUN = "run.json"
METRICS = "metrics.json"
LOCK = ".lock"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=_Frozen)


class Options(_Frozen):
    """How to train; the defaults suit small images."""

    epochs: int = 120
    batch_size: int = 64  # of all processes together
    optimizer: str = "adamw"
    learning_rate: float = 6e-3  # the peak
    schedule: str = "one-cycle"
    weight_decay: float = 0.1
    dropout: float | None = None  # of the network's dropout layers; None: as they are
    label_smoothing: float = 0.0
    clip: float | None = None  # largest norm of the gradient
    patience: int | None = None  # epochs without a better validation accuracy before it ends
    augment: str | None = None  # see `export.augment`; None: what suits the data
    precision: str = "32-true"  # in Lightning's words
    snapshots: int = 0  # cycles of the schedule, each with a checkpoint at its end
    seed: int = 0  # of initial weights, order and augmentation


class Run(_Frozen):
    """What makes a run what it is: the same again gives the same checkpoint on the same machine."""

    architecture: str
    data: str
    shots: int | None = None  # training images of each class; None: all
    weights: str | None = None  # that it started from; None: random ones
    strategy: str = "scratch"  # see `export.strategies`
    options: Options
    image: ImageSpec
    labels: tuple[str, ...]


class Epoch(_Frozen):
    """Figures of one epoch."""

    loss: float  # mean training loss, of augmented images
    validation_loss: float
    validation_accuracy: float
    learning_rate: float  # at its end


class Metrics(_Frozen):
    """Figures of a run."""

    epochs: tuple[Epoch, ...]  # none if nothing was trained step by step
    best_epoch: int  # from 0; the checkpoint is of its end
    train_images: int
    validation_images: int
    validation_accuracy: float  # of the checkpoint
    test_images: int
    test_accuracy: float
    renderings: dict[str, float]  # test accuracy per rendering of the test images
    confusion: tuple[tuple[int, ...], ...]  # of the test: rows are true labels, columns predicted ones
    temperature: float  # fitted on the validation images
    ece_before: float  # expected calibration error on the test images
    ece_after: float
    seconds: float  # of work, interruptions left out
    why: str = ""  # this strategy was chosen


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Be the only one who writes into a run's folder; the lock dies with its process.

    Raises:
        RunError: Another process is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another training writes to {folder}: wait for it, or choose another --out") from error
        yield


def begin(folder: Path, record: Run) -> Metrics | None:
    """Start a run or go on with it.

    Args:
        folder: Of the run.
        record: What is to be trained.

    Returns:
        None if there is something to train; the figures if the run is whole already.

    Raises:
        RunError: The folder holds another run.
    """
    # A run that failed or was killed before its first epoch had ended has nothing to go on with, and nothing to lose.
    trained = any((folder / name).is_file() for name in (RESUME, CHECKPOINT, METRICS))
    if not trained or not (folder / RUN).is_file():
        write_whole(folder / RUN, record.model_dump_json(indent=2).encode() + b"\n")
    known = _read(folder, Run, RUN)
    if known != record:
        ours, theirs = ({**each.model_dump(), **each.options.model_dump()} for each in (record, known))
        differing = [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]]
        differing = [each for each in differing if not each.startswith("options")]
        raise RunError(f"{folder} holds another run ({'; '.join(differing)}): remove it, or choose another --out")
    return _read(folder, Metrics, METRICS) if (folder / METRICS).is_file() else None


def finish(folder: Path, metrics: Metrics) -> None:
    """Mark a run as whole: its figures are written, what it would resume from goes."""
    write_whole(folder / METRICS, metrics.model_dump_json(indent=2).encode() + b"\n")
    (folder / RESUME).unlink(missing_ok=True)


def load(folder: Path) -> tuple[Run, Metrics]:
    """Read a run's folder.

    Raises:
        RunError: It is not one, or the training has not finished.
    """
    missing = [name for name in (CHECKPOINT, RUN, METRICS) if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder} holds no finished run ({', '.join(missing)} missing): train it first")
    return _read(folder, Run, RUN), _read(folder, Metrics, METRICS)


def members(folder: Path) -> tuple[Path, ...]:
    """The checkpoints that an ensemble takes from a run: its snapshots if it has any, else its best one."""
    snapshots = sorted(folder.glob(SNAPSHOT.format("*")), key=lambda path: int(path.stem.split("-")[1]))
    return tuple(snapshots) or (folder / CHECKPOINT,)


def _read(folder: Path, kind: type[Record], name: str) -> Record:
    try:
        return kind.model_validate_json((folder / name).read_bytes())
    except ValidationError as error:
        raise RunError(
            f"{folder / name} was not written by this version of export: {error}; remove the folder and train again"
        ) from error
