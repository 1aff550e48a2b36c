"""From what became of each request to figures for each level of the load, a table and a plot."""

from __future__ import annotations

import csv
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from load_tests.arrivals import Level

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fovea", "onnxruntime", "uvicorn", "grpcio", "locust", "gevent")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito: the colour-blind tell them apart
PERCENTILES = (50, 95, 99)
COLUMNS = ("offered/s", "right in time/s", "images/s", "refused/s", "late/s", "failed/s")
COLUMNS += ("p50 ms", "p95 ms", "p99 ms", "waited to be sent, p99 ms")
BEHIND = 100.0  # milliseconds
SIZE, DOTS = (9.0, 4.2), 128  # inches, and dots in each


@dataclass(frozen=True)
class Row:
    """What one level of the load came to; rates are per second of it.

    Attributes:
        rate: That was asked for.
        seconds: Of the level.
        offered: Requests that arrived.
        good: Right answers in time; those that need not be in time, of teaching and to bad input, whenever they came.
        images: In those.
        refused: Refusals for too much load, with a time to wait.
        late: Right answers and refusals that came when the answer was of no use any more.
        failed: Everything else.
        p50, p95, p99: Milliseconds from when a classification was due to its right answer, late ones included; None
            where there were none.
        waited: 99th percentile of the milliseconds from when a classification was due to when it was sent: how far the
            load generator itself was behind.
    """

    rate: float
    seconds: float
    offered: float
    good: float
    images: float
    refused: float
    late: float
    failed: float
    p50: float | None
    p95: float | None
    p99: float | None
    waited: float


def read(journal: Path) -> list[dict[str, Any]]:
    """The records that the users wrote."""
    with journal.open(newline="") as file:
        return [
            each
            | {"images": int(each["images"]), "timed": each["timed"] == "True"}
            | {name: float(each[name]) for name in ("due", "sent", "done")}
            for each in csv.DictReader(file)
        ]


def summarised(records: Sequence[dict[str, Any]], levels: Sequence[Level], patience: float) -> list[Row]:
    """A row for each level that counts, of the requests that arrived in it.

    Args:
        records: As `read` gives them.
        levels: The load.
        patience: Seconds after which the answer of a classification is of no use.
    """
    rows, began = [], 0.0
    for level in levels:
        end = began + level.seconds
        if level.counted:
            rows.append(_row([each for each in records if began <= each["due"] < end], level, patience))
        began = end
    return rows


def _row(records: Sequence[dict[str, Any]], level: Level, patience: float) -> Row:
    right = [each for each in records if each["outcome"] == "right"]
    good = [each for each in right if not each["timed"] or each["done"] - each["due"] <= patience]
    outcomes = [each["outcome"] for each in records]
    latencies = [1000 * (each["done"] - each["due"]) for each in right if each["timed"]]
    waits = [1000 * (each["sent"] - each["due"]) for each in records if each["timed"]]
    percentiles = np.percentile(latencies, PERCENTILES).round(2).tolist() if latencies else [None] * 3
    counts = {
        "offered": len(records),
        "good": len(good),
        "images": sum(each["images"] for each in good),
        "refused": outcomes.count("refused"),
        "late": outcomes.count("late") + len(right) - len(good),
        "failed": outcomes.count("failed"),
    }
    rates = {name: round(count / level.seconds, 2) for name, count in counts.items()}
    named = dict(zip(("p50", "p95", "p99"), percentiles, strict=True))
    waited = round(float(np.percentile(waits, 99)), 2) if waits else 0.0
    return Row(rate=level.rate, seconds=level.seconds, **rates, **named, waited=waited)


def by_name(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of request what became of it, and the milliseconds that right answers took."""
    found = []
    for transport, name in sorted({(each["transport"], each["name"]) for each in records}):
        mine = [each for each in records if (each["transport"], each["name"]) == (transport, name)]
        took = [1000 * (each["done"] - each["due"]) for each in mine if each["outcome"] == "right"]
        outcomes = [each["outcome"] for each in mine]
        found.append(
            {"transport": transport, "name": name, "requests": len(mine)}
            | {outcome: outcomes.count(outcome) for outcome in ("right", "refused", "late", "failed")}
            | {f"p{each}": round(float(np.percentile(took, each)), 2) if took else None for each in PERCENTILES}
        )
    return found


def machine() -> dict[str, Any]:
    """What the figures are from, without saying whose: processor, cores, commit, versions."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **installed},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of this checkout, marked if files differ from it; None outside one."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=, changed", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    for row in rows:
        rates = [row.offered, row.good, row.images, row.refused, row.late, row.failed]
        times = ["" if each is None else f"{each:.0f}" for each in (row.p50, row.p95, row.p99, row.waited)]
        lines.append("| " + " | ".join([*(f"{each:.1f}" for each in rates), *times]) + " |")
    return "\n".join(lines)


def document(rows: Sequence[Row], records: Sequence[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """All there is to know of a run, for JSON."""
    return {**run, **machine(), "levels": [asdict(row) for row in rows], "requests": by_name(records)}


def draw(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Latency and goodput against offered load, as PNG.

    Args:
        rows: Of the levels; in the plot they stand in the order of what was offered.
        caption: One line: of what, on what.
        path: Of the file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    rows = sorted(rows, key=lambda row: row.offered)
    hollow = [row.waited > BEHIND for row in rows]
    offered = [row.offered for row in rows]
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd"}
    with mpl.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        note = f"\nHollow: the load generator itself was more than {BEHIND:g} ms behind (p99)." if any(hollow) else ""
        figure.supxlabel(caption + note, x=0.01, ha="left", fontsize=8.5, color="#666666")
        latency, goodput = figure.subplots(1, 2)
        for name, colour in zip(("p99", "p95", "p50"), COLOURS, strict=False):
            values = [math.nan if getattr(row, name) is None else getattr(row, name) for row in rows]
            _line(latency, offered, values, hollow, colour, name)
        latency.set(title="Latency of right classifications, ms", xlabel="requests offered a second")
        if any(row.p50 is not None for row in rows):
            latency.set_yscale("log")
            latency.yaxis.set_major_formatter(ScalarFormatter())
        goodput.plot(offered, offered, ":", color="#999999", label="as offered")
        for name, label, colour in (("good", "right, in time", 2), ("refused", "refused", 4), ("late", "late", 3)):
            _line(goodput, offered, [getattr(row, name) for row in rows], hollow, COLOURS[colour], label)
        goodput.set(title="Answers a second", xlabel="requests offered a second")
        for axes in (latency, goodput):
            axes.set_xlim(left=0)
            axes.legend(frameon=False)
        goodput.set_ylim(bottom=0)
        figure.savefig(path, format="png", dpi=DOTS, metadata={"Software": None})


def _line(axes: Any, x: list[float], y: list[float], hollow: list[bool], colour: str, label: str) -> None:
    axes.plot(x, y, color=colour, label=label)
    axes.scatter(x, y, s=18, edgecolors=colour, c=["white" if each else colour for each in hollow], zorder=3)
