"""Images whose right answer is known, of many sizes, made at the start.

They come from a folder, MODEL/LABEL/FILE: what is in it must be classified as LABEL by MODEL, at every size and under a
little noise. The one that is used unless another is named, `load_tests/images`, knows the bundled models.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

FOLDER = Path(__file__).resolve().parent.parent / "images"
SMALL = 32  # pixels a side
SIDES = {SMALL: 0.45, 256: 0.3, 640: 0.17, 1920: 0.06, 3464: 0.02}  # with their shares; the last has 12 megapixels
LARGE = 1000  # pixels a side; above, one image of each model is enough, since making them takes long
GRAIN = 10  # of the noise, which gives JPEGs about the size that photographs have


class Unusable(Exception):
    """The load cannot be sent as it was asked for; the message says why, and what to do."""


@dataclass(frozen=True)
class Known:
    """An encoded image and what is known of it.

    Attributes:
        data: PNG if it is small, else JPEG.
        side: Pixels; it is square.
        model: That knows it.
        label: Of its right class.
    """

    data: bytes
    side: int
    model: str
    label: str

    @property
    def media(self) -> str:
        return "image/png" if self.side == SMALL else "image/jpeg"


class Album:
    """All known images of some models.

    Args:
        folder: With the originals.
        models: That are served; folders of others are left alone.

    Raises:
        Unusable: There are no images for any of the models.
    """

    def __init__(self, folder: Path, models: Iterable[str]) -> None:
        names = sorted(models)
        self._originals = {name: found for name in names if (found := _originals(folder / name))}
        if not self._originals:
            raise Unusable(f"{folder} has images of none of the models {', '.join(names)}; name another with --images")
        self._by_side: dict[int, list[Known]] = {}
        for side in SIDES:
            grain = _grain(side, 0)
            self._by_side[side] = [
                Known(_encoded(image, side, grain), side, model, label)
                for model, labelled in self._originals.items()
                for label, images in list(labelled.items())[: None if side <= LARGE else 1]
                for image in images[: None if side <= LARGE else 1]
            ]
        self.models = list(self._originals)

    def any(self, random: random.Random, most: int = max(SIDES)) -> Known:
        """One of the images, of a size drawn by the sizes' shares, at most so many pixels a side."""
        sides = [side for side in SIDES if side <= most]
        (side,) = random.choices(sides, [SIDES[side] for side in sides])
        return random.choice(self._by_side[side])

    def several(self, random: random.Random, number: int, most: int) -> list[Known]:
        """So many images of one model, at most so many pixels a side."""
        first = self.any(random, most)
        return [first, *(random.choice(self._like(first, most, random)) for _ in range(number - 1))]

    def lessons(self, random: random.Random, examples: int) -> dict[str, list[bytes]]:
        """Images of two labels of one model, small and each with a noise of its own, by label.

        Raises:
            Unusable: No model has images of two labels.
        """
        able = [labelled for labelled in self._originals.values() if len(labelled) > 1]
        if not able:
            raise Unusable("to teach, a model needs known images of two labels; add them, or leave the Teacher out")
        labelled = random.choice(able)
        return {
            label: [
                _encoded(labelled[label][0], SMALL, _grain(SMALL, random.randrange(2**32))) for _ in range(examples)
            ]
            for label in random.sample(list(labelled), 2)
        }

    def _like(self, image: Known, most: int, random: random.Random) -> list[Known]:
        side = random.choice([side for side in SIDES if side <= most])
        return [each for each in self._by_side[side] if each.model == image.model]


def _originals(folder: Path) -> dict[str, list[Image.Image]]:
    """By label."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file() and not path.name.startswith("."))
    found: dict[str, list[Image.Image]] = {}
    for path in files:
        with Image.open(path) as image:
            found.setdefault(path.parent.name, []).append(image.convert("RGB"))
    return found


def _grain(side: int, seed: int) -> Image.Image:
    """Noise around GRAIN; large ones repeat a tile."""
    tile = np.random.default_rng(seed).integers(0, 2 * GRAIN + 1, (min(side, 256),) * 2, np.uint8)
    times = -(-side // 256)
    return Image.fromarray(np.tile(tile, (times, times))[:side, :side]).convert("RGB")


def _encoded(image: Image.Image, side: int, grain: Image.Image) -> bytes:
    large = image.resize((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    kind = {"format": "PNG"} if side == SMALL else {"format": "JPEG", "quality": 90}
    ImageChops.add(large, grain, offset=-GRAIN).save(file, **kind)
    return file.getvalue()
