"""The plots of `export.compare`, each as PNG and SVG.

Every model has one colour in all of them, and its name stands beside its mark: no legend to look things up in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from export.comparison import Comparison, Entry, amount, conditions
from export.figures import COLOURS, STYLE
from export.measure import SLOWEST, Batch

DASHES = ("-", "--", ":", "-.")  # once around the colours, the next
SIZE = (8.0, 5.2)  # inches
DOTS = 160  # per inch
LARGEST = 2200.0  # area of the largest bubble, in square points
SMALLEST = 16.0
GAP = 0.045  # between names at the margin, of the height
BY_BATCH = ("latency", "throughput", "memory")
FAR = 8  # times: values that far apart want a logarithmic scale
SIDES = (  # of a bubble, where its name may stand: in radii to the right and up, and how the text lies to that point
    (1, 0, "left", "center"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
)


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Draw what there is to draw.

    Args:
        comparison: At least one model.
        out: An existing folder.

    Returns:
        The files.
    """
    models = comparison.models
    known = [entry for entry in models if entry.accuracy is not None]
    figures = {}
    with mpl.rc_context(STYLE):
        if known:
            figures["accuracy"] = _accuracy(known, _colours(models))
        figures["latency"] = _lines(models, "Latency of a batch", "milliseconds", lambda _, batch: batch.latency_ms)
        figures["throughput"] = _lines(models, "Throughput", "images/s", lambda _, batch: batch.images_per_second)
        figures["memory"] = _lines(
            models,
            "Memory that a model adds to an empty process",
            "MiB",
            lambda entry, batch: (batch.memory_bytes - entry.measured.empty_bytes) / 2**20,
        )
        if any(entry.measured.watts is not None for entry in models):
            figures["power"] = _power(models)
        files = []
        caption = conditions(comparison)
        early = len({entry.measured.batches[-1].images for entry in models}) > 1
        for name, figure in figures.items():
            end = f"; a line ends where a batch takes over {SLOWEST:g} s" if early and name in BY_BATCH else ""
            figure.supxlabel(caption + end, fontsize=8, color="#666666", x=0.01, ha="left")
            for suffix, options in ((".png", {"dpi": DOTS}), (".svg", {"metadata": {"Date": None}})):
                files.append(out / f"{name}{suffix}")
                figure.savefig(files[-1], **options)
    return files


def _accuracy(models: Sequence[Entry], colours: dict[str, tuple[str, str]]) -> Figure:
    """Top-1 accuracy against multiply-accumulates; the area of a bubble is its parameters."""
    figure, axes = _figure("Accuracy against arithmetic")
    most = max(entry.parameters for entry in models)

    def area(parameters: float) -> float:
        return max(SMALLEST, LARGEST * parameters / most)

    for entry in models:
        place = entry.macs, entry.accuracy or 0
        axes.scatter(*place, area(entry.parameters), colours[entry.name][0], alpha=0.65, lw=0)
        axes.plot(*place, "k.", ms=2)  # where exactly
    if max(entry.macs for entry in models) > FAR * min(entry.macs for entry in models):
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
        axes.margins(x=0.16)
    else:
        axes.set_xlim(0, 1.25 * max(entry.macs for entry in models))
    axes.set_xlabel("multiply-accumulates per image")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.set_ylabel("top-1 accuracy")
    shares = [entry.accuracy or 0 for entry in models]
    margin = max(0.02, 0.25 * (max(shares) - min(shares)))
    low, high = min(shares) - margin, max(shares) + margin
    ticks = MaxNLocator(steps=(1, 2, 5, 10)).tick_values(low, high)
    axes.set_yticks([tick for tick in ticks if 0 <= tick <= 1])
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.05 else 1))
    data = sorted({entry.accuracy_data for entry in models if entry.accuracy_data})
    axes.set_title("; ".join(data), loc="left", fontsize=9, color="#666666")
    largest = _round(most)
    for parameters in (largest, largest / 4):
        axes.scatter([], [], area(parameters), "#999999", alpha=0.65, lw=0, label=amount(parameters))
    axes.legend(
        title="parameters",
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        labelspacing=1.5 * _radius(area(largest)) / 10,
        handletextpad=0.5 + _radius(area(largest)) / 10,
        borderpad=1.2,
    )
    _name_bubbles(figure, axes, models, area)
    return figure


def _name_bubbles(figure: Figure, axes: Axes, models: Sequence[Entry], area: Callable[[float], float]) -> None:
    """Put every name beside its bubble, on the side where it covers the least of what else is there."""
    figure.draw_without_rendering()  # fixes where everything is
    points = figure.dpi / 72
    bubbles = {}
    for entry in models:
        x, y = axes.transData.transform((entry.macs, entry.accuracy or 0))
        radius = _radius(area(entry.parameters)) * points
        bubbles[entry.name] = Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
    names: list[Bbox] = []
    for entry in sorted(models, key=lambda each: -each.parameters):
        radius = _radius(area(entry.parameters)) + 3
        others = [bubble for name, bubble in bubbles.items() if name != entry.name]
        candidates = []
        for away, along, horizontal, vertical in SIDES:
            name = axes.annotate(
                entry.name,
                (entry.macs, entry.accuracy or 0),
                (away * radius, along * radius),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                annotation_clip=False,
                in_layout=False,
            )
            box = name.get_window_extent()
            cost = sum(_common(box, other) for other in others) + 5 * sum(_common(box, other) for other in names)
            cost += 5 * (box.width * box.height - _common(box, axes.bbox))
            candidates.append((cost, name, box))
        chosen = min(candidates, key=lambda candidate: candidate[0])
        for candidate in candidates:
            if candidate is not chosen:
                candidate[1].remove()
        names.append(chosen[2])


def _common(one: Bbox, other: Bbox) -> float:
    """The area that two boxes share, in pixels."""
    shared = Bbox.intersection(one, other)
    return float(shared.width * shared.height) if shared is not None else 0.0


def _radius(area: float) -> float:
    return float((area / math.pi) ** 0.5)


def _round(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20 … up to a value."""
    power = 10 ** math.floor(math.log10(max(1, value)))
    return float(max(step * power for step in (1, 2, 5) if step * power <= max(1, value)))


def _log_ticks(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of every power of ten, and nothing between."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())


def _lines(models: Sequence[Entry], title: str, unit: str, value: Callable[[Entry, Batch], float]) -> Figure:
    """Something of every model against batch size; names at the right margin, where each line ends."""
    figure, axes = _figure(title)
    colours = _colours(models)
    lasts = {}
    seen: list[float] = []
    for entry in models:
        colour, dashes = colours[entry.name]
        sizes = [batch.images for batch in entry.measured.batches]
        values = [value(entry, batch) for batch in entry.measured.batches]
        axes.plot(sizes, values, dashes, color=colour, marker="o", ms=4, lw=1.6)
        lasts[entry.name] = (sizes[-1], values[-1])
        seen += values
    axes.set_xscale("log", base=2)
    ticks = sorted({batch.images for entry in models for batch in entry.measured.batches})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("images in a batch")
    axes.set_ylabel(unit)
    if min(seen) > 0 and max(seen) > FAR * min(seen):
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda each, _: f"{each:,g}"))
    else:
        axes.set_ylim(bottom=0)
    _name_lines(axes, lasts, colours)
    return figure


def _name_lines(axes: Axes, lasts: dict[str, tuple[int, float]], colours: dict[str, tuple[str, str]]) -> None:
    to_display, to_axes = axes.transData, axes.transAxes.inverted()
    heights = {name: to_axes.transform(to_display.transform(last))[1] for name, last in lasts.items()}
    names = sorted(heights, key=lambda name: heights[name])
    for name, height in zip(names, spread([heights[name] for name in names], GAP), strict=True):
        axes.annotate(
            name,
            lasts[name],
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colours[name][0],
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colours[name][0], "lw": 0.5, "alpha": 0.6, "shrinkB": 3},
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as it takes for every two to be a gap apart.

    Args:
        heights: Ascending.
        gap: The least distance.
    """
    groups: list[list[float]] = []  # of neighbours that touch: the mean of where they would be, and how many
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (above, more), (below, fewer) = groups.pop(), groups.pop()
            groups.append([(above * more + below * fewer) / (more + fewer), more + fewer])
    return [mean + gap * (index - (number - 1) / 2) for mean, number in groups for index in range(int(number))]


def _power(models: Sequence[Entry]) -> Figure:
    figure, axes = _figure("Power of the GPU at the largest batch")
    colours = _colours(models)
    known = [entry for entry in models if entry.measured.watts is not None]
    axes.barh(
        [entry.name for entry in known],
        [entry.measured.watts or 0 for entry in known],
        color=[colours[entry.name][0] for entry in known],
    )
    axes.set_xlabel("watts")
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure, figure.add_subplot()


def _colours(models: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """A colour and a dash pattern per name."""
    return {
        entry.name: (COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])
        for index, entry in enumerate(models)
    }
