"""A picture of what an augmentation makes of images: the look that catches a recipe which goes too far."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from export import figures
from service.files import write_whole

TITLE = "Augmentation"
NAMES = 1.05  # inches, for the labels on the left
LETTERS = 11  # of a label
GAP = 0.06  # inches, between images
APART = 0.16  # inches, between the originals and the variants
SIDES = (0.6, 1.5)  # inches: of the smallest and of the largest image
HEADING = 0.24  # inches, above the images
LINE = 0.19  # inches, of the recipe


def preview(
    pixels: NDArray[np.uint8], labels: Sequence[str], augmented: NDArray[np.uint8], recipe: str, path: Path
) -> None:
    """Draw a row for each image: its label, the original, its variants; small images are enlarged pixel by pixel.

    Args:
        pixels: `[N, H, W, C]`, N at least 1; C is 1 or 3.
        labels: `[N]`.
        augmented: `[N, V, H, W, C]`.
        recipe: What was done to them; stands below.
        path: The PNG; its folder must exist.
    """
    write_whole(path, _draw(pixels, labels, augmented, recipe))


@figures.png
def _draw(pixels: NDArray[np.uint8], labels: Sequence[str], augmented: NDArray[np.uint8], recipe: str) -> Figure:
    variants = augmented.shape[1]
    originals = figures.MARGIN + NAMES
    room = figures.WIDTH - originals - APART - figures.MARGIN
    side = min(max((room + GAP) / (1 + variants) - GAP, SIDES[0]), SIDES[1])
    step = side + GAP
    first = originals + step + APART  # left edge of the variants
    width = max(first + variants * step - GAP + figures.MARGIN, 0.7 * figures.WIDTH)
    top = figures.HEAD - 0.27 + HEADING
    lines = textwrap.wrap(recipe, round(12 * width))
    bottom = top + len(pixels) * step
    figure, axes = figures.sheet(TITLE, "", bottom + LINE * len(lines) + figures.MARGIN, width)
    for left, heading in ((originals, "original"), (first, "variants")):
        axes.text(left, top - 0.06, heading, fontsize=10.5, color=figures.GREY)
    for row, label in enumerate(figures.legible(labels, "image")):
        above = top + row * step
        axes.text(
            originals - 0.1, above + side / 2, figures.short(label, LETTERS), fontsize=11, ha="right", va="center"
        )
        figures.tile(axes, pixels[row], originals, above, side)
        for column, variant in enumerate(augmented[row]):
            figures.tile(axes, variant, first + column * step, above, side)
    for number, line in enumerate(lines):
        axes.text(figures.MARGIN, bottom + 0.04 + LINE * number, line, fontsize=9.5, color=figures.GREY, va="top")
    return figure
