"""From the rounds of a benchmark to a table, ratios, JSON and a plot; see `load_tests.bench`."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load_tests import contestants, figures

ALONE = "ONNX Runtime alone"
OURS = "fovea"  # begins the names of all that is ours
INT8 = "fovea, int8"
TRITON = "Triton driven directly"
COLUMNS = ("", "right answers/s", "ours ÷ it", "p50 ms", "p99 ms", "ours ÷ it", "µs of processor each", "failed")
BAR, GREY = 0.36, "#999999"  # inches a contestant


@dataclass(frozen=True)
class Measurement:
    """One round of one contestant.

    Attributes:
        rate: Right answers per second.
        p50, p99: Latency, milliseconds; of ONNX Runtime alone, of a batch.
        failed: Answers that were not right.
        cpu: Microseconds of processor time of the server and its children per request.
    """

    rate: float
    p50: float
    p99: float
    failed: int
    cpu: float


Rounds = Mapping[str, Sequence[Measurement]]


def median(rounds: Rounds, name: str, field: str) -> float:
    """Of a contestant's rounds."""
    return statistics.median(getattr(one, field) for one in rounds[name])


def ratio(rounds: Rounds, name: str, other: str, field: str = "rate") -> float:
    """Median over the rounds of one contestant's figure ÷ another's in the same round."""
    pairs = zip(rounds[name], rounds[other], strict=True)
    return statistics.median(getattr(mine, field) / (getattr(its, field) or 1e-9) for mine, its in pairs)


def best_rival(rounds: Rounds) -> str | None:
    """The fastest server that others have written, of those that get the encoded image; None if there is none."""
    rivals = [name for name in rounds if not name.startswith(OURS) and name not in (ALONE, TRITON)]
    return max(rivals, key=lambda name: median(rounds, name, "rate"), default=None)


def ratios(rounds: Rounds) -> dict[str, float]:
    """What the project's aims are about."""
    found = {f"{OURS} ÷ {ALONE}": ratio(rounds, OURS, ALONE)}
    if rival := best_rival(rounds):
        found[f"{OURS} ÷ {rival}, the best rival"] = ratio(rounds, OURS, rival)
        found[f"{rival}, the best rival ÷ {ALONE}"] = ratio(rounds, rival, ALONE)
        if INT8 in rounds:
            found[f"{INT8} ÷ {rival}, the best rival in fp32"] = ratio(rounds, INT8, rival)
    if "fovea, gRPC" in rounds:
        found["fovea, gRPC ÷ fovea"] = ratio(rounds, "fovea, gRPC", OURS)
    if "fovea with Triton" in rounds and TRITON in rounds:
        found[f"fovea with Triton ÷ {TRITON}"] = ratio(rounds, "fovea with Triton", TRITON)
    return found


def report(rounds: Rounds) -> str:
    """Markdown: medians, how the first contestant compares with each, and the ratios that matter."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    for name, measured in rounds.items():
        rate = median(rounds, name, "rate")
        cells = [name, f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}", f"{ratio(rounds, OURS, name):.2f}"]
        if name == ALONE:
            cells += [""] * 3
        else:
            cells += [f"{median(rounds, name, field):.2f}" for field in ("p50", "p99")]
            cells.append(f"{ratio(rounds, OURS, name, 'p99'):.2f}")
        cells += [f"{median(rounds, name, 'cpu'):,.0f}", str(sum(one.failed for one in measured))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| ratio of right answers a second | median of the rounds |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {value:.3f} |" for name, value in ratios(rounds).items())])


def save(rounds: Rounds, caption: str, path: Path) -> None:
    """Write all rounds as JSON, and a plot beside it."""
    machine = figures.machine()
    machine["versions"] |= contestants.versions()
    document = {
        "command": f"python -m load_tests.bench {shlex.join(sys.argv[1:])}",
        "what": caption,
        **machine,
        "ratios": {name: round(value, 4) for name, value in ratios(rounds).items()},
        "rounds": {name: [asdict(one) for one in measured] for name, measured in rounds.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    draw(rounds, f"{caption}; {machine['cpu']}, {machine['cores']} cores", path.with_suffix(".png"))


def draw(rounds: Rounds, caption: str, path: Path) -> None:
    """Rates as bars, the fastest on top, with a dot for each round; PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = sorted(rounds, key=lambda name: median(rounds, name, "rate"))
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(figures.SIZE[0], 1.2 + BAR * len(names)), layout="constrained")
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#666666")
        axes: Any = figure.subplots()
        for height, name in enumerate(names):
            rate, ours = median(rounds, name, "rate"), name.startswith(OURS)
            axes.barh(height, rate, 0.7, color=figures.COLOURS[0] if ours else GREY, alpha=0.5 if name == ALONE else 1)
            dots = [one.rate for one in rounds[name]]
            axes.scatter(dots, [height] * len(dots), s=10, color="black", zorder=3)
            axes.annotate(
                f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
                (max(dots), height),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set(title="Right answers a second, median of the rounds; a dot is a round", xlim=(0, None))
        axes.margins(x=0.08)
        figure.savefig(path, format="png", dpi=figures.DOTS, metadata={"Software": None})
