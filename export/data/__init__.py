"""Data sets by name.

`LOADERS` holds those that a bare name means; `PREFIXES` those that take an argument, as in `folder:PATH`; `ABOUT` says
what they are. Nothing heavy is imported, and nothing fetched, before one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console

from export.data import digits, downloads, folder, letters, textures
from export.data.base import AS_SUCH, SHARES, Dataset, Skipped, Split, stratified
from export.errors import DataError, UnknownName

__all__ = [
    "ABOUT",
    "AS_SUCH",
    "LOADERS",
    "PREFIXES",
    "SHARES",
    "About",
    "Dataset",
    "Skipped",
    "Split",
    "few",
    "load",
    "stratified",
]

LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": digits.load,
    "letters": letters.load,
    "textures": textures.load,
    **downloads.LOADERS,
}
# What follows the colon, and where progress goes.
PREFIXES: dict[str, Callable[[str, Console | None], Dataset]] = {
    "folder": folder.load,
    "letters": lambda argument, _: letters.load_of(argument),
}


@dataclass(frozen=True)
class About:
    """A line about a data set.

    Attributes:
        name: How to ask for it; capitals stand for what is to be filled in.
        what: What its images show.
        classes: How many; None: as many as there are.
        images: How many in all; None: as many as there are.
    """

    name: str
    what: str
    classes: int | None = None
    images: int | None = None


ABOUT = (
    About("cifar10", "photographs of animals and vehicles, 32×32, colour; 170 MB are fetched", 10, 60_000),
    About("digits", "handwritten digits, 8×8, grey; come with scikit-learn", 10, 1_797),
    About("fashion-mnist", "articles of clothing, 28×28, grey; 31 MB are fetched", 10, 70_000),
    About("folder:PATH", "your own images: PATH/CLASS/…, or PATH/train/CLASS/… and PATH/test/CLASS/…"),
    About("letters", "letters A to Z and a to z in many fonts, 32×32, grey; drawn here", 52, 52 * letters.PER_CLASS),
    About("letters:N", f"the same, N of each class; {letters.FEWEST} or more", 52),
    About("mnist", "handwritten digits, 28×28, grey; 12 MB are fetched", 10, 70_000),
    About(
        "textures",
        "patches of photographs: which surface?, 32×32, grey; come with scikit-image and scikit-learn",
        len(textures.SURFACES),
        len(textures.SURFACES) * sum(textures.COUNTS.values()),
    ),
)


def load(name: str, shots: int | None = None, seed: int = 0, console: Console | None = None) -> Dataset:
    """The data set of that name.

    Args:
        name: One of `LOADERS`, or one of `PREFIXES` with a colon and its argument.
        shots: Training images to keep of each class, drawn at random; None: all.
        seed: Of that drawing.
        console: Where progress goes; nowhere if None.

    Raises:
        UnknownName: There is none.
        DataError: It cannot be had.
    """
    prefix, colon, argument = name.partition(":")
    if colon and prefix in PREFIXES:
        dataset = PREFIXES[prefix](argument, console)
    elif name in LOADERS:
        dataset = LOADERS[name]()
    else:
        raise UnknownName.among("data set", name, [*LOADERS, *(f"{each}:…" for each in PREFIXES)])
    return dataset if shots is None else few(dataset, shots, seed)


def few(dataset: Dataset, shots: int, seed: int = 0) -> Dataset:
    """The same data set with at most `shots` training images of each class; validation and test stay as they are.

    Raises:
        DataError: `shots` is not positive.
    """
    if shots < 1:
        raise DataError(f"{shots} shots leave nothing to train on: take 1 or more")
    random = np.random.default_rng(seed)
    train = dataset.split.train
    labels = dataset.labels[train]
    kept = [random.permutation(train[labels == label])[:shots] for label in np.unique(labels)]
    return replace(dataset, split=replace(dataset.split, train=np.sort(np.concatenate(kept))))
