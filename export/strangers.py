"""Images that show nothing of what a model knows: noise, blank ones, other domains. Offline, and always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export import data, samples
from export.data.base import encoded
from service.spec import ImageSpec

COUNT = 300  # of each kind of noise
MOST = 600  # of another data set
COARSE = 4  # times: how much larger coarse noise is than the network's pixels
SEED = 1998
SETS = ("textures", "digits", "letters")  # come with the package
ALIKE = {"mnist": ("digits",)}  # what else shows the same


def strangers(known: str, image: ImageSpec) -> dict[str, Sequence[bytes]]:
    """Encoded images by what they are.

    Args:
        known: The data set that the model was trained on.
        image: The model's image contract: noise is as fine as its input, and has its colours.
    """
    random = np.random.default_rng(SEED)
    size, channels = (image.height, image.width), image.channels
    shape = (*size, channels)
    small = (max(1, size[0] // COARSE), max(1, size[1] // COARSE), channels)
    name, _, _ = known.partition(":")
    found: dict[str, Sequence[bytes]] = {
        "uniform noise": [_encoded(random.integers(0, 256, shape)) for _ in range(COUNT)],
        "normal noise": [_encoded(random.normal(128, 64, shape).clip(0, 255)) for _ in range(COUNT)],
        "coarse noise": [_encoded(random.integers(0, 256, small)) for _ in range(COUNT)],
        "blank": [_encoded(np.full(shape, grey)) for grey in range(256)],
        "photographs": list(samples.photographs().values()),
    }
    for other in SETS:
        if other != name and other not in ALIKE.get(name, ()):
            dataset = data.load(other)
            chosen = random.permutation(dataset.split.test)[:MOST]
            found[other] = [dataset.images[index] for index in chosen]
    return found


def _encoded(pixels: NDArray[np.generic]) -> bytes:
    """`[H, W, C]`, from 0 to 255, as a PNG."""
    levels = pixels.astype(np.uint8)
    return encoded(Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]))
