"""What the figures of all reports share: colours, a style, words that a font can draw, and the way to PNG."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow, which nobody sees on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "fovea",  # the same figures give the same file
}
FONT = "DejaVu Sans"  # matplotlib brings it along
LARGE: dict[Any, Any] = {
    **STYLE,
    "font.family": FONT,
    "font.size": 12,  # on a width of `WIDTH`, still ten pixels on a phone
    "text.parse_math": False,  # a class may be called "$5"
}
WIDTH = 6.8  # inches
DOTS = 128  # per inch
MARGIN = 0.12  # inches
HEAD = 0.66  # inches: title and caption of a `sheet`

Arguments = ParamSpec("Arguments")


def png(draw: Callable[Arguments, Figure]) -> Callable[Arguments, bytes]:
    """Make a function that draws a figure give it as PNG instead, in the large style; always the same bytes."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(LARGE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)  # they show as boxes
            draw(*args, **kwargs).savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None, "Date": None})
        return buffer.getvalue()

    return drawn


def plot(title: str, caption: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure with a title above and a grey line below, which lays itself out.

    Args:
        title: What it shows.
        caption: Of what; one line.
        height: Inches.
        width: Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(short(caption, round(12 * width)), x=0.01, ha="left", fontsize=9.5, color=GREY)
    return figure


def sheet(title: str, caption: str, height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure to put images on: axes in inches from its upper left corner, free below `HEAD`.

    Args:
        title: What it shows.
        caption: Of what; one line.
        height: Inches.
        width: Inches.
    """
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_autoscale_on(False)
    axes.text(MARGIN, MARGIN, title, fontweight="bold", fontsize=14, va="top")
    axes.text(MARGIN, MARGIN + 0.27, short(caption, round(12 * width)), fontsize=9.5, color=GREY, va="top")
    return figure, axes


def tile(axes: Axes, pixels: NDArray[Any], left: float, top: float, side: float) -> None:
    """Put an image onto a sheet, as large as fits a square; small ones show their pixels.

    Args:
        axes: Of a `sheet`.
        pixels: `[H, W, 3]` or grey `[H, W, 1]`, uint8 or floats in [0, 1].
        left: Inches.
        top: Inches.
        side: Of the square, in inches.
    """
    height, width = pixels.shape[:2]
    high, wide = side * height / max(height, width), side * width / max(height, width)
    left, top = left + (side - wide) / 2, top + (side - high) / 2
    axes.imshow(
        pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2),
        extent=(left, left + wide, top + high, top),
        aspect="auto",
        interpolation="nearest" if max(height, width) < side * DOTS else "antialiased",
    )


def short(text: str, most: int) -> str:
    """Text on one line, of so many characters at most."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def legible(names: Sequence[str], noun: str) -> list[str]:
    """Names as a figure can show them: what the font has no glyphs for becomes a number, as in "class 3"."""
    font = font_manager.get_font(font_manager.findfont(FONT))

    def drawable(name: str) -> bool:
        return bool(name.strip()) and all(font.get_char_index(ord(each)) for each in name if not each.isspace())

    return [name if drawable(name) else f"{noun} {index}" for index, name in enumerate(names)]
