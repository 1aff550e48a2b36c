"""What a data set is to the rest of `export`: encoded images, which take the same way through preprocessing as an image
that is served.

Drawings reach the service in many guises: as they are, or enlarged by whatever the sender's viewer or script used, as
ink on paper or as light on a screen. Data sets of drawings are trained on, calibrated and tested in all of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.preprocess import Preprocessor
from service.spec import ImageSpec

SHARES = (0.6, 0.2, 0.2)  # train, validation, test
SPLIT_SEED = 1998  # of every split, whatever the seed of a training: the test images stay the same

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIDES = (32, 280)  # of enlarged drawings, in pixels
AS_SUCH = "as such"


@dataclass(frozen=True)
class Split:
    """Indices into a data set, sorted, disjoint, and with no image in two of them under different indices."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


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
    """

    name: str
    images: tuple[bytes, ...]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    split: Split
    drawn: bool = False

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
    images: Sequence[bytes],
    labels: NDArray[np.int64],
    shares: tuple[float, float, float] = SHARES,
    seed: int = SPLIT_SEED,
) -> Split:
    """Split every class by the same shares; copies of an image stay together.

    Args:
        images: Encoded files; equal bytes are copies.
        labels: `[N]`.
        shares: Of train, validation and test; they sum to 1.
        seed: Of the shuffling.
    """
    random = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in np.unique(labels):
        copies: dict[bytes, list[int]] = {}
        for index in map(int, np.flatnonzero(labels == label)):
            copies.setdefault(hashlib.sha256(images[index]).digest(), []).append(index)
        groups = list(copies.values())
        order = random.permutation(len(groups))
        ends = np.rint(np.cumsum(shares) * len(groups)).astype(int)
        for part, chosen in zip(parts, np.split(order, ends[:2]), strict=True):
            part.extend(index for group in chosen for index in groups[group])
    return Split(*(np.sort(np.array(part, np.int64)) for part in parts))
