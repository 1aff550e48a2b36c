"""A few real photographs, offline: what a network is verified on when no data set of its own is at hand.

They come inside packages that are installed anyway: two with scikit-learn, one with matplotlib. Nothing is
claimed about accuracy on them; they show that two runtimes agree on real images, from encoded bytes to probabilities.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import matplotlib
import sklearn.datasets
from PIL import Image

# In per cent of the photograph's sides: left, top, right, bottom.
WINDOWS = {
    "whole": (0, 0, 100, 100),
    "left": (0, 0, 60, 100),
    "right": (40, 0, 100, 100),
    "top": (0, 0, 100, 60),
    "middle": (25, 25, 75, 75),
}
SIDE = 320  # of a window at most, in pixels
QUALITY = 80
SHARE = 9_000  # bytes of one golden image: a spec takes 100,000 in all, and ten images
GOLDEN = ("whole",)  # the windows small enough together for a spec


@cache
def photographs() -> dict[str, bytes]:
    """JPEG files by name, of 10 to 25 KB each: several windows of each photograph."""
    files = {}
    for path in _sources():
        with Image.open(path) as photograph:
            rgb = photograph.convert("RGB")
        for window, (left, top, right, bottom) in WINDOWS.items():
            width, height = rgb.size
            cut = rgb.crop((left * width // 100, top * height // 100, right * width // 100, bottom * height // 100))
            cut.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            cut.save(buffer, "JPEG", quality=QUALITY)
            files[f"{path.stem}-{window}.jpg"] = buffer.getvalue()
    return files


def golden() -> dict[str, bytes]:
    """Those of `photographs` that go into a spec."""
    return {name: data for name, data in photographs().items() if name.rsplit("-", 1)[1].removesuffix(".jpg") in GOLDEN}


def small(file: bytes) -> bytes:
    """An encoded image as it is, or as a smaller JPEG if it takes more than its share of a spec."""
    if len(file) <= SHARE:
        return file
    with Image.open(io.BytesIO(file)) as opened:
        picture = opened.convert("L" if opened.mode == "L" else "RGB")
    for side in (SIDE, SIDE // 2, SIDE // 4):
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        if buffer.tell() <= SHARE:
            break
    return buffer.getvalue()


def _sources() -> tuple[Path, ...]:
    images = Path(sklearn.datasets.__file__).parent / "images"
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return images / "china.jpg", images / "flower.jpg", portrait
