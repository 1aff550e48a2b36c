"""The picture of `export.challenge`: what share of which images models abstain from."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from export import figures
from export.challenged import Challenged
from export.figures import COLOURS, GREY

BAR = 0.3  # inches for each


@figures.png
def draw(models: Sequence[Challenged]) -> Figure:
    """A bar for every kind of images, models below each other, as PNG.

    Args:
        models: At least one.
    """
    counts = [len(model.shown) for model in models]
    figure = figures.plot(
        "Abstained from",
        "held-out images green, strangers blue; | by energy instead",
        height=BAR * sum(counts) + 0.75 * len(models) + 0.9,
    )
    rows = figure.subplots(len(models), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for axes, model in zip(rows, models, strict=True):
        _bars(axes, model)
    rows[-1].set_xlabel("share of the images")
    return figure


def _bars(axes: Axes, model: Challenged) -> None:
    places = range(len(model.shown))
    shares = [each.abstained for each in model.shown]
    axes.barh(places, shares, 0.62, color=[COLOURS[2] if each.known else COLOURS[0] for each in model.shown])
    axes.plot([each.by_energy for each in model.shown], places, "|", color=COLOURS[1], ms=15, mew=2.5, clip_on=False)
    for place, share in zip(places, shares, strict=True):
        axes.text(1.03, place, f"{share:.1%}", va="center", fontsize=10.5, color=GREY)
    axes.set_yticks(places, [each.what for each in model.shown])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"{model.model}, trained on {model.data}", loc="left", fontsize=12)
