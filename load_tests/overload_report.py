"""From what became of each request under overload to rows, a table and a plot."""

from __future__ import annotations

import collections
import contextlib
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from load_tests.figures import COLOURS, DOTS, SIZE
from load_tests.gateway import family
from load_tests.sender import Outcome

FACTORS = (0.8, 1.0, 2.0, 5.0)  # offered, of the capacity


@dataclass(frozen=True)
class Row:
    """What one level of one round came to; times in milliseconds, None where there was nothing to measure.

    Attributes:
        factor: Offered, of the capacity.
        offered: Requests a second.
        goodput: Right answers in time, a second.
        refused, expired, late, failed: Share of the requests; late are right answers after the deadline, and requests
            that got none at all or were not sent.
        failures: Kinds of what failed.
        p50, p99: Of right answers.
        refusal_p50, refusal_p99: Of refusals.
        latest: By which the latest answer to an accepted request, right or expired, came after its deadline.
        batch: That the longest batch took; None where answers do not tell.
        waited: By which requests were sent too late, p99.
        starved: Processes of the server that were ready to run while others, this client among them, had the cores.
        sender: Cores that this client kept busy.
        resident, growth: Megabytes of the server's memory afterwards, and how many more than before.
    """

    factor: float
    offered: float
    goodput: float
    refused: float
    expired: float
    late: float
    failed: float
    failures: tuple[str, ...]
    p50: float | None
    p99: float | None
    refusal_p50: float | None
    refusal_p99: float | None
    latest: float | None
    batch: float | None
    waited: float
    starved: float = 0.0
    sender: float = 0.0
    resident: float = 0.0
    growth: float = 0.0

    @property
    def batches_late(self) -> float | None:
        """`latest` in units of the longest batch; 0 if nothing was late."""
        return max(0.0, self.latest) / self.batch if self.latest is not None and self.batch else None


def resident(pid: int) -> float:
    """Megabytes that a process and its children take, pages that they share counted once."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(OSError, TypeError):  # it may have ended
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total * 1024 / 1e6


def starved(pid: int) -> float:
    """Seconds so far that the first threads of a process and its children, which run the event loops, waited for a
    core."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{each}/schedstat").read_text().split()[1]) / 1e9
    return total


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def summarised(outcomes: Sequence[Outcome], factor: float, seconds: float, deadline: float) -> Row:
    """Figures of one level of so many seconds, with a deadline in milliseconds."""
    taken: dict[str, list[float]] = collections.defaultdict(list)
    for each in outcomes:
        taken[each.kind.partition(":")[0]].append(each.taken)
    right, count = taken["right"], max(1, len(outcomes))
    accepted = right + taken["expired"]
    in_time = sum(each <= deadline for each in right)
    none = len(taken["silent"]) + len(taken["unsent"])
    return Row(
        factor=factor,
        offered=len(outcomes) / seconds,
        goodput=in_time / seconds,
        refused=len(taken["refused"]) / count,
        expired=len(taken["expired"]) / count,
        late=(len(right) - in_time + none) / count,
        failed=len(taken["failed"]) / count,
        failures=tuple({each.kind for each in outcomes if each.kind.startswith(("failed", "silent"))}),
        p50=_percentile(right, 50),
        p99=_percentile(right, 99),
        refusal_p50=_percentile(taken["refused"], 50),
        refusal_p99=_percentile(taken["refused"], 99),
        latest=max(accepted) - deadline if accepted else None,
        batch=max((each.infer for each in outcomes), default=0.0) or None,
        waited=_percentile([each.waited for each in outcomes], 99) or 0.0,
    )


def held(rounds: Sequence[Sequence[Row]], place: int) -> float:
    """Goodput of a level, of the best of its round; the median over the rounds."""
    return statistics.median(rows[place].goodput / max(1e-9, *(each.goodput for each in rows)) for rows in rounds)


def table(rounds: Sequence[Sequence[Row]]) -> str:
    """Markdown; medians over the rounds, but of what is late and of growth the worst."""
    lines = [
        "| offered ÷ capacity | offered/s | right in time/s | ÷ peak | refused | expired | late | failed | p50 ms"
        " | p99 ms | refusals p50 ms | p99 ms | latest after deadline, ms | in batches | waited to be sent, p99 ms"
        " | starved | sender | MB | grown |",
        "| --- " * 19 + "|",
    ]
    for place, factor in enumerate(FACTORS):

        def figure(name: str, pattern: str, worst: bool = False, place: int = place) -> str:
            values = [value for rows in rounds if (value := getattr(rows[place], name)) is not None]
            return pattern.format((max if worst else statistics.median)(values)) if values else "–"

        cells = [f"{factor:g}", figure("offered", "{:.0f}"), figure("goodput", "{:.0f}"), f"{held(rounds, place):.2f}"]
        cells += [figure(name, "{:.1%}") for name in ("refused", "expired", "late", "failed")]
        cells += [figure(name, "{:.1f}") for name in ("p50", "p99", "refusal_p50", "refusal_p99")]
        cells += [figure("latest", "{:.1f}", worst=True), figure("batches_late", "{:.1f}", worst=True)]
        cells += [figure("waited", "{:.1f}"), figure("starved", "{:.0%}"), figure("sender", "{:.0%}")]
        cells += [figure("resident", "{:.0f}"), figure("growth", "{:.1f}", worst=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rounds: Mapping[str, Sequence[Sequence[Row]]], caption: str, path: Path) -> None:
    """Goodput and refusals' latency of each server against the load, as PNG.

    Args:
        rounds: Of each server by its name.
        caption: One line: of what.
        path: Of the file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd"}
    with mpl.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#666666")
        goodput, refused = figure.subplots(1, 2)
        for number, (name, each) in enumerate(rounds.items()):
            colour, line = COLOURS[number % len(COLOURS)], ("-", "--")[number // len(COLOURS) % 2]
            goodput.plot(
                FACTORS,
                [held(each, place) for place in range(len(FACTORS))],
                line,
                color=colour,
                marker="o",
                label=name,
            )
            points = [
                (factor, statistics.median(values))
                for place, factor in enumerate(FACTORS)
                if (values := [rows[place].p99 for rows in each if rows[place].p99 is not None])
            ]
            refused.plot(*zip(*points, strict=True) if points else ([], []), line, color=colour, marker="o", label=name)
        goodput.set(title="Right answers in time ÷ the server's own peak", xlabel="offered ÷ capacity", ylim=(0, 1.05))
        refused.set(title="Latency of right answers, p99 ms", xlabel="offered ÷ capacity", yscale="log")
        goodput.legend(frameon=False, fontsize=8)
        figure.savefig(path, format="png", dpi=DOTS, metadata={"Software": None})
