"""The pictures of a training run's report, each as the bytes of a PNG.

They are as wide as a phone needs for their text to be read, and keep to colours that the colour-blind tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, PercentFormatter

from export import figures, run
from export.figures import COLOURS, GREY
from service import calibration
from service.calibration import BINS, Floats, Ints

COUNTED = 20  # classes at most whose confusion matrix has its counts printed
NAMED = 40  # and whose axes name them
CELLS = 125  # of a row that are still to be seen each
FILTERS = 64  # shown at most
MISTAKES = 24  # shown at most
FEW = 30  # epochs that are few enough to have a dot each
FAR = 8  # times: losses that far apart want a logarithmic scale
LETTERS = 14  # of a class's name beside an axis


@figures.png
def learning_curves(epochs: Sequence[run.Epoch], best_epoch: int, caption: str) -> Figure:
    """Loss and validation accuracy per epoch, the learning rate below, the best epoch marked.

    Args:
        epochs: At least one.
        best_epoch: From 0; shown from 1, as all epochs.
        caption: Of what.
    """
    figure = figures.plot("Learning curves", caption, height=6.8)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1.3))
    numbers = range(1, len(epochs) + 1)
    dot = "o" if len(epochs) <= FEW else ""
    curves = {"training": [each.loss for each in epochs], "validation": [each.validation_loss for each in epochs]}
    for (name, losses), colour, dash in zip(curves.items(), COLOURS, ("-", "--"), strict=False):
        loss.plot(numbers, losses, dash, color=colour, marker=dot, ms=4, lw=1.8, label=name)
    _scale_losses(loss, [each for losses in curves.values() for each in losses])
    loss.legend(frameon=False, fontsize=11)
    loss.set_title("loss", loc="left", fontsize=12)

    accuracies = [each.validation_accuracy for each in epochs]
    best = accuracies[best_epoch]
    accuracy.plot(numbers, accuracies, color=COLOURS[2], marker=dot, ms=4, lw=1.8)
    accuracy.plot(best_epoch + 1, best, "o", ms=9, mfc="none", mec="black", mew=1.6, clip_on=False)
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    accuracy.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10), min_n_ticks=2))
    low, high = min(accuracies), max(accuracies)
    margin = max(0.05 * (high - low), 0.005)
    accuracy.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    accuracy.set_title("validation accuracy", loc="left", fontsize=12, pad=9)
    accuracy.set_title(f"○ best: {best:.2%}, epoch {best_epoch + 1}", loc="right", fontsize=11, pad=9)

    rates = [each.learning_rate for each in epochs]
    rate.fill_between(numbers, rates, color="#dddddd")
    rate.plot(numbers, rates, color="#999999", marker=dot, ms=3, lw=1.2)
    rate.set_ylim(0, 1.15 * max(rates) or 1)
    rate.set_yticks([0, max(rates)], ["0", f"{max(rates):.2g}"], color=GREY)
    rate.set_title("learning rate", loc="left", fontsize=10.5, color=GREY)
    rate.set_xlabel("epoch")
    rate.set_xlim(0.5, len(epochs) + 0.5)
    rate.xaxis.set_major_locator(MaxNLocator(10, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    for axes in (loss, accuracy, rate):
        axes.axvline(best_epoch + 1, color="black", lw=1, ls=":", zorder=0.5)
    return figure


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    seen = [each for each in losses if math.isfinite(each)]
    if seen and min(seen) > 0 and max(seen) > FAR * min(seen):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
        axes.grid(which="minor", color="#eeeeee", lw=0.4)
    elif seen:
        axes.set_ylim(0, 1.08 * max(seen) or 1)


@figures.png
def confusion_matrix(confusion: Ints, label_names: Sequence[str], caption: str) -> Figure:
    """Where the images of each class went; a class without images has a hatched row.

    Args:
        confusion: Counts `[K, K]`: rows are true classes, columns predicted ones.
        label_names: `[K]`.
        caption: Of what.
    """
    classes = len(label_names)
    side = figures.WIDTH if classes <= COUNTED else 8.4
    figure = figures.plot("Confusion matrix", caption, height=0.97 * side, width=side)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    support = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(np.broadcast_to(support == 0, confusion.shape), confusion / np.maximum(support, 1))
    axes.patch.set(facecolor="#f2f2f2", edgecolor="#cccccc", hatch="///")
    several = math.ceil(classes / CELLS)
    squares = _highest(shares, several)
    end = several * len(squares) - 0.5  # the last squares may reach beyond the last class
    image = axes.imshow(
        squares,
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),  # the root shows single mistakes
        extent=(-0.5, end, end, -0.5),
    )
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=(0, 0.01, 0.05, 0.2, 0.5, 1))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=9)
    bar.set_label("of the true class's images", fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= NAMED:
        _name_classes(axes, label_names)
    else:
        note = f" (each square: the highest of {several} × {several})" if several > 1 else ""
        axes.set_xlabel(f"predicted class, by number{note}")
        axes.set_ylabel("true class, by number")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, steps=(1, 2, 5, 10), integer=True))
    if classes <= COUNTED:
        cell = 72 * 0.7 * side / classes  # points
        for row, column in np.argwhere(confusion):
            count = f"{confusion[row, column]:,}"
            dark = shares[row, column] > 0.35
            size = min(14.0, 0.5 * cell, cell / (0.7 * len(count)))
            axes.text(column, row, count, ha="center", va="center", color="w" if dark else "k", fontsize=size)
    return figure


def _highest(shares: np.ma.MaskedArray[Any, Any], several: int) -> np.ma.MaskedArray[Any, Any]:
    """The highest of every `several` × `several` cells: single mistakes among a thousand classes would fade away."""
    starts = np.arange(0, len(shares), several)
    filled = np.maximum.reduceat(np.maximum.reduceat(shares.filled(-1), starts, axis=0), starts, axis=1)
    return np.ma.masked_less(filled, 0)


def _name_classes(axes: Axes, label_names: Sequence[str]) -> None:
    names = [figures.short(name, LETTERS) for name in figures.legible(label_names, "class")]
    size = 12 if len(names) <= 12 else 10 if len(names) <= COUNTED else 8
    room = 72 * 0.7 * figures.WIDTH / len(names)  # points
    upright = max(map(len, names)) * 0.62 * size > room
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), names, fontsize=size)


@figures.png
def reliability_diagram(before: Floats, after: Floats, labels: Ints, caption: str) -> Figure:
    """Whether what is said with 80 % confidence is right in 80 % of the cases.

    Args:
        before: Probabilities `[M, K]` as trained.
        after: The same after temperature scaling.
        labels: `[M]`.
        caption: Of what.
    """
    figure = figures.plot("Reliability diagram", caption, height=7.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    upper.plot((0, 1), (0, 1), color="#999999", lw=1.2, ls=":")
    upper.text(
        0.09,
        0.035,
        "confidence = accuracy",
        color=GREY,
        fontsize=10,
        rotation=45,
        rotation_mode="anchor",
        transform_rotates_text=True,
    )
    series = (("before", before, COLOURS[1], "s", "--"), ("after", after, COLOURS[0], "o", "-"))
    most = 1
    for index, (name, probabilities, colour, mark, dash) in enumerate(series):
        bins = calibration.reliability(probabilities, labels)
        confidence, accuracy, counts = (np.array(each) for each in zip(*bins, strict=True))
        error = calibration.expected_calibration_error(probabilities, labels)
        upper.plot(
            confidence,
            accuracy,
            dash,
            color=colour,
            lw=1.6,
            label=f"{name} temperature scaling: ECE {error:.2%}",
        )
        sizes = 25 + 120 * np.sqrt(counts / counts.max())
        upper.scatter(confidence, accuracy, s=sizes, c=colour, marker=mark, alpha=0.85, lw=0, clip_on=False)
        centres = (np.minimum(confidence * BINS, BINS - 1).astype(int) + 0.3 + 0.4 * index) / BINS
        lower.bar(centres, counts, 0.4 / BINS, color=colour)
        for centre, count in zip(centres, counts, strict=True):
            lower.annotate(
                f"{count}",
                (centre, count),
                (0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                fontsize=9.5,
                color=colour,
            )
        most = max(most, int(counts.max()))
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy in each bin")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=11, borderaxespad=0.1)
    lower.set_ylim(0, (1.05 + 0.07 * len(str(most))) * most)
    lower.set_yticks([])
    lower.grid(visible=False)
    lower.set_title("images in each bin", loc="left", fontsize=12)
    lower.set_xlabel("confidence: probability of the predicted class")
    for axes in (upper, lower):
        axes.xaxis.set_major_locator(MultipleLocator(0.2))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@figures.png
def filters(weights: Floats, caption: str) -> Figure:
    """The first layer's filters, each scaled for itself with mid-grey at zero.

    Args:
        weights: `[F, C, h, w]`; in colour if C is 3, else summed over the channels: the answer to a grey image.
        caption: Of what.
    """
    number = min(len(weights), FILTERS)
    shown = weights[:number] if weights.shape[1] == 3 else weights[:number].sum(axis=1, keepdims=True)
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.moveaxis(0.5 + shown / (2 * np.where(largest > 0, largest, 1)), 1, -1)
    columns = min(8, max(4, math.ceil(math.sqrt(number))))
    gap = 0.08
    side = (figures.WIDTH - 2 * figures.MARGIN + gap) / columns - gap
    height = figures.HEAD + math.ceil(number / columns) * (side + gap) + figures.MARGIN - gap
    some = f" ({number} of {len(weights)})" if number < len(weights) else ""
    figure, axes = figures.sheet(f"Filters of the first layer{some}", caption, height)
    for index, each in enumerate(pixels):
        row, column = divmod(index, columns)
        figures.tile(axes, each, figures.MARGIN + column * (side + gap), figures.HEAD + row * (side + gap), side)
    return figure


def mistaken(probabilities: Floats, labels: Ints) -> Ints:
    """Indices of the images with the wrong predicted class, the most confident first.

    Args:
        probabilities: `[M, K]`.
        labels: `[M]`.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return np.asarray(wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")])


@figures.png
def mistakes(
    pixels: Ints, probabilities: Floats, labels: Ints, label_names: Sequence[str], chosen: Ints, caption: str
) -> Figure:
    """Images with what they are and what they were taken for.

    Args:
        pixels: uint8 `[M, H, W, C]`.
        probabilities: `[M, K]`.
        labels: `[M]`.
        label_names: `[K]`.
        chosen: Indices of images, at least one; the first `MISTAKES` are shown.
        caption: Of what.
    """
    columns, gap, text = 4, 0.16, 0.68
    side = (figures.WIDTH - 2 * figures.MARGIN + gap) / columns - gap
    rows = math.ceil(min(len(chosen), MISTAKES) / columns)
    some = f" ({MISTAKES} of {len(chosen)})" if len(chosen) > MISTAKES else ""
    title = f"Most confident mistakes{some}"
    figure, axes = figures.sheet(
        title, f"true class → predicted class; {caption}", figures.HEAD + rows * (side + text) + figures.MARGIN
    )
    names = figures.legible(label_names, "class")
    for place, index in enumerate(chosen[:MISTAKES]):
        row, column = divmod(place, columns)
        left, top = figures.MARGIN + column * (side + gap), figures.HEAD + row * (side + text)
        figures.tile(axes, pixels[index], left, top, side)
        predicted = int(probabilities[index].argmax())
        lines = (
            (figures.short(names[labels[index]], LETTERS + 2), "black"),
            (f"→ {figures.short(names[predicted], LETTERS)}", COLOURS[1]),
            (f"    {probabilities[index, predicted]:.1%}", COLOURS[1]),
        )
        for number, (line, colour) in enumerate(lines):
            axes.text(left, top + side + 0.05 + 0.185 * number, line, fontsize=11, color=colour, va="top")
    return figure
