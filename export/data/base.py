"""What a data set is to the rest of `export`: encoded images, which take the same way through preprocessing as an image
that is served.

Drawings reach the service in many guises: as they are, or enlarged by whatever the sender's viewer or script used, as
ink on paper or as light on a screen. Data sets of drawings are trained on, calibrated and tested in all of them.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.preprocess import Preprocessor
from service.spec import ImageSpec

SHARES = (0.6, 0.2, 0.2)  # train, validation, test
CARVED = 1 / 6  # of given training images, for each of validation and test that is not given
SPLIT_SEED = 1998  # of every split, whatever the seed of a training: the test images stay the same

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SAMPLE = 1000  # images: each comes in 18 guises
SIDES = (32, 280)  # of enlarged drawings, in pixels
AS_SUCH = "as such"

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """Indices into a data set, sorted, disjoint, and with no image in two of them under different indices."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Skipped:
    """What a data set leaves out.

    Attributes:
        path: Of the file, or what names the image where it has none.
        reason: Why, e.g. "the JPEG is truncated or damaged; send the whole file".
    """

    path: str
    reason: str


class OnAccess(Sequence[bytes]):
    """Encoded images that are made or read when they are asked for, and not kept.

    Args:
        count: How many there are, N.
        make: Gives the image of an index from 0 to N - 1.
    """

    def __init__(self, count: int, make: Callable[[int], bytes]) -> None:
        self._places, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self._make(place) for place in self._places[index]]
        return self._make(self._places[index])


@dataclass(frozen=True)
class Answers:
    """What a network gives for some of a data set's images.

    Attributes:
        pixels: The M images as the network sees them, uint8 `[M, H, W, C]`.
        as_such: Logits `[M, K]`.
        sample: Indices of those that were also looked at in every guise, `[S]`.
        guises: Their logits by guise, `[S, K]`, `AS_SUCH` among them.
    """

    pixels: NDArray[np.uint8]
    as_such: Logits
    sample: NDArray[np.int64]
    guises: dict[str, Logits]


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        name: What the command line calls it.
        images: Encoded files.
        labels: int64 `[N]`, indices into `label_names`.
        label_names: `[K]`.
        split: Into train, validation and test.
        drawn: Ink on a ground, which mean the same when dark and light are swapped or all is enlarged; no photographs.
        skipped: What was found and left out.
    """

    name: str
    images: Sequence[bytes]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    split: Split
    drawn: bool = False
    skipped: tuple[Skipped, ...] = ()

    def sample(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """So many of some images, drawn at random, as are worth looking at in all guises; all if they are fewer."""
        if not self.drawn or len(indices) <= SAMPLE:
            return indices
        return np.sort(np.random.default_rng(SPLIT_SEED).permutation(indices)[:SAMPLE])

    def answers(
        self, indices: NDArray[np.int64], image: ImageSpec, network: Callable[[NDArray[np.uint8]], Logits]
    ) -> Answers:
        """What a network gives for images as such, and for a sample of them in every guise."""
        pixels = self.pixels(indices, image)
        as_such = network(pixels)
        sample = self.sample(indices)
        rendered = self.rendered(sample, image) if self.drawn else {}
        guises = {name: network(each) for name, each in rendered.items() if name != AS_SUCH}
        return Answers(pixels, as_such, sample, {AS_SUCH: as_such[np.isin(indices, sample)], **guises})

    def pixels(self, indices: NDArray[np.int64], image: ImageSpec) -> NDArray[np.uint8]:
        """Images as the service would see them: uint8 `[len(indices), H, W, C]`."""
        preprocess = Preprocessor(image)
        return np.stack([preprocess(self.images[index]) for index in indices])

    def rendered(
        self,
        indices: NDArray[np.int64],
        image: ImageSpec,
        sides: Sequence[int] = SIDES,
        polarities: Sequence[bool] = (False, True),
    ) -> dict[str, NDArray[np.uint8]]:
        """Images as the service would see them in every guise that they may take.

        Args:
            indices: Of the images.
            image: The image contract.
            sides: To which drawings are enlarged.
            polarities: Whether to swap dark and light of drawings; both by default.

        Returns:
            Per guise, e.g. "as such" or "280x280 lanczos, inverted", uint8 `[len(indices), H, W, C]`.
        """
        if not self.drawn:
            return {AS_SUCH: self.pixels(indices, image)}
        preprocess = Preprocessor(image)
        found: dict[str, list[NDArray[np.uint8]]] = {}
        for index in indices:
            for inverted in polarities:
                for name, file in renderings(self.images[index], sides, inverted).items():
                    found.setdefault(name, []).append(preprocess(file))
        return {name: np.stack(each) for name, each in found.items()}


def renderings(image: bytes, sides: Sequence[int] = SIDES, inverted: bool = False) -> dict[str, bytes]:
    """A drawing as such and enlarged to squares by every filter.

    Args:
        image: An encoded image, grey or RGB.
        sides: Of the squares, in pixels.
        inverted: Swap dark and light.

    Returns:
        BMP files (quick, and as exact as any) by what was done, e.g. "280x280 lanczos" or "as such, inverted".
    """
    suffix = ", inverted" if inverted else ""
    with Image.open(io.BytesIO(image)) as opened:
        picture = ImageOps.invert(opened) if inverted else opened
        found = {AS_SUCH + suffix: encoded(picture, "BMP")}
        for side in sides:
            for name, resampling in FILTERS.items():
                found[f"{side}x{side} {name}{suffix}"] = encoded(picture.resize((side, side), resampling), "BMP")
    return found


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """An image as a file of a kind that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def stratified(
    contents: Sequence[bytes],
    labels: NDArray[np.int64],
    shares: tuple[float, float, float] = SHARES,
    seed: int = SPLIT_SEED,
) -> Split:
    """Split every class by the same shares; copies of an image stay together.

    Every part gets an image of each class that has three different ones. What lies in two classes is in no part.

    Args:
        contents: What tells images apart, `[N]`: the encoded files or hashes of them; equal bytes are copies.
        labels: `[N]`.
        shares: Of train, validation and test; they sum to 1.
        seed: Of the shuffling.
    """
    dropped = clashes(contents, labels)
    kept = np.array([index for index in range(len(labels)) if index not in dropped], np.int64)
    return Split(*_dealt(contents, labels, kept, shares, seed))


def completed(
    contents: Sequence[bytes],
    labels: NDArray[np.int64],
    given: dict[str, NDArray[np.int64]],
    seed: int = SPLIT_SEED,
) -> Split:
    """A split that was given, with what it lacks carved out of its training images; copies stay together.

    Args:
        contents: As for `stratified`.
        labels: `[N]`.
        given: Indices of "train" and of "validation", "test" or both.
        seed: Of the shuffling.
    """
    missing = [name for name in ("validation", "test") if name not in given]
    shares = (1 - CARVED * len(missing), *(CARVED for _ in missing))
    dealt = _dealt(contents, labels, given["train"], shares, seed)
    parts = given | dict(zip(("train", *missing), dealt, strict=True))
    return Split(*(np.sort(parts[name]) for name in ("train", "validation", "test")))


def clashes(contents: Sequence[bytes], labels: NDArray[np.int64]) -> dict[int, int]:
    """Images whose copies lie in another class: nobody can say which class is right.

    Returns:
        Index of each such image: that of a copy in another class.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        groups[content].append(index)
    found = {}
    for group in groups.values():
        for index in group:
            other = next((each for each in group if labels[each] != labels[index]), None)
            if other is not None:
                found[index] = other
    return found


def _dealt(
    contents: Sequence[bytes], labels: NDArray[np.int64], indices: NDArray[np.int64], shares: Sequence[float], seed: int
) -> list[NDArray[np.int64]]:
    """Some of the images, in as many parts as there are shares."""
    random = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in shares]
    for label in np.unique(labels[indices]):
        copies: dict[bytes, list[int]] = defaultdict(list)
        for index in map(int, indices[labels[indices] == label]):
            copies[contents[index]].append(index)
        groups = list(copies.values())
        order = random.permutation(len(groups))
        for part, chosen in zip(parts, np.split(order, _ends(len(groups), shares)), strict=True):
            part.extend(index for group in chosen for index in groups[group])
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _ends(count: int, shares: Sequence[float]) -> list[int]:
    """Where all parts but the last end; none is empty if there is enough."""
    ends: list[int] = np.rint(np.cumsum(shares) * count).astype(int).tolist()[:-1]
    if count >= len(shares):
        for place in range(len(ends)):
            earliest, latest = (ends[place - 1] if place else 0) + 1, count - (len(ends) - place)
            ends[place] = min(max(ends[place], earliest), latest)
    return ends
