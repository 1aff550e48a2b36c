"""Data sets by name.

`LOADERS` holds those that a bare name means; `PREFIXES` those that take an argument, as in `folder:PATH`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from export.data import digits
from export.data.base import AS_SUCH, SHARES, Dataset, Split, stratified
from export.errors import UnknownName

__all__ = ["AS_SUCH", "LOADERS", "PREFIXES", "SHARES", "Dataset", "Split", "few", "load", "stratified"]

LOADERS: dict[str, Callable[[], Dataset]] = {"digits": digits.load}
PREFIXES: dict[str, Callable[[str], Dataset]] = {}


def load(name: str, shots: int | None = None, seed: int = 0) -> Dataset:
    """The data set of that name.

    Args:
        name: One of `LOADERS`, or one of `PREFIXES` with a colon and its argument.
        shots: Training images to keep of each class, drawn at random; None: all.
        seed: Of that drawing.

    Raises:
        UnknownName: There is none.
        DataError: It cannot be had.
    """
    prefix, colon, argument = name.partition(":")
    if colon and prefix in PREFIXES:
        dataset = PREFIXES[prefix](argument)
    elif name in LOADERS:
        dataset = LOADERS[name]()
    else:
        raise UnknownName.among("data set", name, [*LOADERS, *(f"{each}:…" for each in PREFIXES)])
    return dataset if shots is None else few(dataset, shots, seed)


def few(dataset: Dataset, shots: int, seed: int = 0) -> Dataset:
    """The same data set with at most `shots` training images of each class; validation and test stay as they are."""
    random = np.random.default_rng(seed)
    train = dataset.split.train
    labels = dataset.labels[train]
    kept = [random.permutation(train[labels == label])[:shots] for label in np.unique(labels)]
    return replace(dataset, split=replace(dataset.split, train=np.sort(np.concatenate(kept))))
