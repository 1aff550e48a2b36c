"""`mnist`, `fashion-mnist` and `cifar10`: data sets that torchvision fetches once and keeps.

| name            | images                                   | source                                        |
| --------------- | ---------------------------------------- | --------------------------------------------- |
| `mnist`         | 70,000 handwritten digits, 28×28, grey   | LeCun, Bottou, Bengio and Haffner 1998        |
| `fashion-mnist` | 70,000 articles of clothing, 28×28, grey | Xiao, Rasul and Vollgraf, arXiv:1708.07747    |
| `cifar10`       | 60,000 photographs, 32×32, colour        | Krizhevsky 2009, technical report, Toronto    |

They lie in `$FOVEA_DATA`, or `~/.cache/fovea/data`, as torchvision lays them out, so that its files can be put there by
hand. The 10,000 official test images are the test split, all of them. A sixth of the others is for validation;
those that a test image equals, or that lie in two classes, are left out. Pixels are kept, and encoded on access.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data.base import Dataset, OnAccess, Skipped, clashes, completed, encoded
from export.errors import DataError

PATIENCE = 30  # seconds for a server to answer


@dataclass(frozen=True)
class _Source:
    kind: str  # torchvision's class
    folder: str  # where it looks for the files that can be put there by hand
    files: str  # which these are
    drawn: bool = False
    label_names: tuple[str, ...] = ()  # where torchvision's are too long


_IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
_SOURCES = {
    "mnist": _Source("MNIST", "MNIST/raw", _IDX, drawn=True, label_names=tuple("0123456789")),
    "fashion-mnist": _Source("FashionMNIST", "FashionMNIST/raw", _IDX),
    "cifar10": _Source("CIFAR10", ".", "cifar-10-python.tar.gz"),
}


def cache() -> Path:
    """Where the files are kept."""
    return Path(os.environ.get("FOVEA_DATA") or Path.home() / ".cache" / "fovea" / "data")


def load(name: str) -> Dataset:
    """A data set, fetched if it is not here.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10".

    Raises:
        DataError: It is not here and cannot be fetched.
        ExportError: torchvision is not installed.
    """
    source = _SOURCES[name]
    parts = _fetched(name, source)
    pixels = np.concatenate([np.asarray(part.data) for part in parts])
    labels = np.concatenate([np.asarray(part.targets) for part in parts]).astype(np.int64)
    names = source.label_names or tuple(parts[0].classes)
    contents = [hashlib.sha256(each.tobytes()).digest() for each in pixels]
    train, skipped = _clean(contents, labels, len(parts[0].data), names)
    test = np.arange(len(parts[0].data), len(labels))
    return Dataset(
        name=name,
        images=OnAccess(len(pixels), partial(_png, pixels)),
        labels=labels,
        label_names=names,
        split=completed(contents, labels, {"train": train, "test": test}),
        drawn=source.drawn,
        skipped=skipped,
    )


LOADERS: dict[str, Callable[[], Dataset]] = {name: partial(load, name) for name in _SOURCES}


def _png(pixels: NDArray[np.uint8], index: int) -> bytes:
    return encoded(Image.fromarray(pixels[index]))


def _clean(
    contents: Sequence[bytes], labels: NDArray[np.int64], count: int, names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[Skipped, ...]]:
    """Of the first `count` images those to train on and validate with, and the others."""
    clashing = clashes(contents, labels)
    test = {content: index for index, content in enumerate(contents[count:])}
    kept, skipped = [], []
    for index, content in enumerate(contents[:count]):
        if content in test:
            skipped.append(Skipped(f"training image {index}", f"also test image {test[content]}"))
        elif index in clashing:
            reason = f"also under class {names[labels[clashing[index]]]}"
            skipped.append(Skipped(f"training image {index}", reason))
        else:
            kept.append(index)
    return np.array(kept, np.int64), tuple(skipped)


def _fetched(name: str, source: _Source) -> tuple[Any, Any]:
    """torchvision's data sets of the training and the test images."""
    from export.torchvision_shim import import_torchvision  # seconds, and PyTorch

    import_torchvision()
    from torchvision import datasets

    kind, root = getattr(datasets, source.kind), cache()
    try:
        with _alone(root), _patience():
            if issubclass(kind, datasets.MNIST):
                _remove_cut_off(root / source.folder)
            return kind(root, train=True, download=True), kind(root, train=False)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DataError(
            f"{name} is not here and cannot be fetched ({reason[0]}): connect to the internet, or put "
            f"{source.files} into {root / source.folder}"
        ) from error


def _remove_cut_off(folder: Path) -> None:
    """Remove what was being unpacked when a process ended.

    torchvision checks what it downloads and, for CIFAR-10, what it unpacks. It takes any unpacked MNIST for whole.
    """
    for path in folder.glob("*-ubyte"):
        with path.open("rb") as file:
            head = file.read(16)
        sizes = struct.unpack_from(f">{head[3]}I", head, 4) if len(head) >= 8 and len(head) >= 4 + 4 * head[3] else ()
        if not sizes or path.stat().st_size != 4 + 4 * len(sizes) + math.prod(sizes):
            path.unlink()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process fetches; the others of a distributed training wait."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _patience() -> Iterator[None]:
    """A server that never answers is an error; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
