"""`textures`: which surface is this a patch of? For networks that are to learn from photographs, offline.

Grey patches of 32×32 pixels from ten photographs that come inside scikit-image and scikit-learn, whose own they are
(their licences say what may be done with them). Each photograph is cut into five bands with gaps between them: the
first, third and fifth are for training, the second for validation, the fourth for testing, so that no two of these
share a pixel. Patches lie anywhere in their band, turned and mirrored at random. Brightness and contrast are drawn
anew for each, so only the texture tells: logistic regression on the pixels recognises 14 % of the test patches, a
network of three convolutions 96 %. The same patches come out every time.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data.base import Dataset, Split, encoded
from export.errors import DataError

SIDE = 32  # pixels
GAP = 8  # pixels between bands; a JPEG's blocks have 8
COUNTS = {"train": 300, "validation": 100, "test": 100}  # patches of each class
BANDS = ("train", "validation", "train", "test", "train")
TRIES = 4  # places drawn for a patch, of which the one with most contrast is taken: moons and pages are mostly empty
MEANS, DEVIATIONS = (90, 165), (25, 50)  # of a patch's 256 levels
SEED = 1998

SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"


class Surface(NamedTuple):
    """Where a class comes from.

    Attributes:
        file: Package, folder and name.
        box: Left, top, right and bottom of the part that shows the surface, in pixels; None: all.
        reduce: The part is made smaller by this factor.
    """

    file: str
    box: tuple[int, int, int, int] | None = None
    reduce: int = 1


SURFACES = {
    "brick": Surface(f"{SKIMAGE}/brick.png"),
    "coins": Surface(f"{SKIMAGE}/coins.png"),
    "galaxies": Surface(f"{SKIMAGE}/hubble_deep_field.jpg"),
    "grass": Surface(f"{SKIMAGE}/grass.png"),
    "gravel": Surface(f"{SKIMAGE}/gravel.png"),
    "moon": Surface(f"{SKIMAGE}/moon.png"),
    "petals": Surface(f"{SKLEARN}/flower.jpg", (195, 60, 425, 270)),
    "print": Surface(f"{SKIMAGE}/page.png"),
    "tissue": Surface(f"{SKIMAGE}/ihc.png"),
    "vessels": Surface(f"{SKIMAGE}/retina.jpg", (206, 206, 1206, 1206), 2),
}


@cache
def load() -> Dataset:
    """The patches.

    Raises:
        DataError: A package came without its photographs.
    """
    images: list[bytes] = []
    labels: list[int] = []
    parts: dict[str, list[int]] = {part: [] for part in COUNTS}
    for label, surface in enumerate(SURFACES.values()):
        random = np.random.default_rng([SEED, label])
        strips = bands(_photograph(surface))
        for part, count in COUNTS.items():
            mine = [band for band, of in zip(strips, BANDS, strict=True) if of == part]
            for number in range(count):
                parts[part].append(len(images))
                images.append(encoded(Image.fromarray(_patch(mine[number % len(mine)], random))))
                labels.append(label)
    split = Split(**{part: np.array(indices, np.int64) for part, indices in parts.items()})
    return Dataset("textures", tuple(images), np.array(labels, np.int64), tuple(SURFACES), split)


def _photograph(surface: Surface) -> NDArray[np.uint8]:
    """The part that shows the surface: uint8 `[H, W]`."""
    package, _, inside = surface.file.partition("/")
    found = importlib.util.find_spec(package)  # without importing it
    if found is None or found.origin is None:
        raise DataError(f"textures needs the photographs of {package}: pip install 'fovea[export]'")
    path = Path(found.origin).parent / inside
    try:
        with Image.open(path) as opened:
            image = opened.convert("L").crop(surface.box or (0, 0, *opened.size))
    except OSError as error:
        raise DataError(f"{path} cannot be read: install {package} from its wheel") from error
    return np.asarray(image.reduce(surface.reduce))


def bands(photograph: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The bands of a photograph, as many as `BANDS`, in their order.

    Args:
        photograph: uint8 `[H, W]`.

    Returns:
        uint8 `[h, w]` each: views across the longer side, with `GAP` rows between them that none has.
    """
    upright = photograph if photograph.shape[0] >= photograph.shape[1] else photograph.T
    ends = np.linspace(0, len(upright) + GAP, len(BANDS) + 1).astype(int)
    return [upright[start : end - GAP] for start, end in pairwise(ends)]


def _patch(band: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Somewhere in a band: uint8 `[SIDE, SIDE]`."""
    height, width = band.shape
    tops = random.integers(height - SIDE + 1, size=TRIES)
    lefts = random.integers(width - SIDE + 1, size=TRIES)
    tries = [band[top : top + SIDE, left : left + SIDE] for top, left in zip(tops, lefts, strict=True)]
    patch = max(tries, key=lambda each: float(each.std())).astype(np.float32)
    patch = np.rot90(patch, int(random.integers(4)))
    if random.integers(2):
        patch = patch.T
    standard = (patch - patch.mean()) / max(1.0, float(patch.std()))
    exposed = np.rint(standard * random.uniform(*DEVIATIONS) + random.uniform(*MEANS))
    levels: NDArray[np.uint8] = exposed.clip(0, 255).astype(np.uint8)
    return levels
