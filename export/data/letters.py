"""`letters`: the letters A to Z and a to z, drawn here, for networks to learn strokes from.

They come from the 22 text fonts that matplotlib carries (DejaVu, STIX and Computer Modern, in their weights and
italics), each image in a font, weight, slant, width, size and place of its own: light ink on a dark ground, 32×32
pixels, grey. Nothing is fetched, and the same call always draws the same images: `letters:500` begins with those of
`letters:100`. As sizes are drawn, some classes are hardly told apart, such as O and o: accuracies stay well below 1.

A network trained on them has seen no digit, so its features can be judged by how well they serve to tell digits.
"""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from export.data.base import Dataset, encoded, stratified
from export.errors import DataError

PER_CLASS = 300
FEWEST = 5  # images of each class, so that none of train, validation and test lacks one
SEED = 1998
SIDE = 32  # pixels
NAMES = tuple(string.ascii_uppercase + string.ascii_lowercase)

# matplotlib's other fonts hold symbols, and cmsy10 and cmex10 have those where letters should be.
FONTS = (
    *(
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

DRAWN_SIZE = 48  # of the font, in pixels; scaled down from there
BOLDER = 2.0  # pixels of that size by which strokes may grow on either side
SLANT = 0.3  # of the height
WIDTHS = (0.75, 1.5)  # factors
SHARES = (0.85, 1.0)  # of the image that a letter's longer side takes


def load() -> Dataset:
    """The usual number of letters."""
    return load_of(str(PER_CLASS))


def load_of(argument: str) -> Dataset:
    """Letters in any number.

    Args:
        argument: Images of each class.

    Raises:
        DataError: That is no number or too low, or matplotlib came without its fonts.
    """
    if not argument.isdecimal() or int(argument) < FEWEST:
        raise DataError(
            f"letters:{argument}: give the images of each class, {FEWEST} or more, as in letters:{PER_CLASS}"
        )
    return _load(int(argument))


@cache
def _load(count: int) -> Dataset:
    found = fonts()
    images = tuple(
        encoded(_drawn(name, found, amounts))
        for label, name in enumerate(NAMES)
        for amounts in np.random.default_rng([SEED, label]).random((count, 7))
    )
    labels = np.repeat(np.arange(len(NAMES), dtype=np.int64), count)
    name = "letters" if count == PER_CLASS else f"letters:{count}"
    return Dataset(name, images, labels, NAMES, stratified(images, labels), drawn=True)


def fonts() -> list[ImageFont.FreeTypeFont]:
    """Those of `FONTS`.

    Raises:
        DataError: matplotlib came without them.
    """
    import matplotlib  # half a second, and only this needs it

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    try:
        return [ImageFont.truetype(folder / f"{name}.ttf", DRAWN_SIZE) for name in FONTS]
    except OSError as error:
        raise DataError(f"a font is missing in {folder}: install matplotlib from its wheel") from error


def _drawn(letter: str, typefaces: list[ImageFont.FreeTypeFont], amounts: NDArray[np.float64]) -> Image.Image:
    """One letter; what varies is by seven numbers from 0 to 1."""
    font, bolder, slant, width, size, right, down = map(float, amounts)
    middle = DRAWN_SIZE
    large = Image.new("L", (2 * middle, 2 * middle))
    ImageDraw.Draw(large).text(
        (middle, middle), letter, 255, typefaces[int(font * len(typefaces))], anchor="mm", stroke_width=bolder * BOLDER
    )
    shear = (2 * slant - 1) * SLANT
    shift = (1, shear, -shear * middle, 0, 1, 0)
    large = large.transform(large.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
    left, top, end, bottom = large.getbbox() or (0, 0, *large.size)
    wide, high = (end - left) * WIDTHS[0] * (WIDTHS[1] / WIDTHS[0]) ** width, bottom - top
    scale = SIDE * (SHARES[0] + (SHARES[1] - SHARES[0]) * size) / max(wide, high)
    shape = (max(1, round(wide * scale)), max(1, round(high * scale)))
    small = large.resize(shape, Image.Resampling.BICUBIC, (left, top, end, bottom))
    image = Image.new("L", (SIDE, SIDE))
    image.paste(small, (round(right * (SIDE - shape[0])), round(down * (SIDE - shape[1]))))
    return image
