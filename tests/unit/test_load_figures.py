"""Figures of a load: latency counts from when a request was due, and only right answers in time are goodput."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from load_tests.arrivals import Level
from load_tests.figures import draw, summarised, table

LEVELS = [Level(5, 1, counted=False), Level(2, 10), Level(4, 10)]


def record(
    due: float, took: float, outcome: str = "right", *, waited: float = 0.0, timed: bool = True
) -> dict[str, Any]:
    name = {"transport": "HTTP", "name": "classify", "images": 2, "timed": timed, "outcome": outcome}
    return {**name, "due": due, "sent": due + waited, "done": due + waited + took}


def test_a_request_that_waited_to_be_sent_was_slow() -> None:
    """Its answer came at once, but five seconds after somebody wanted it."""
    first, second = summarised([record(2, 0.01), record(3, 0.01, waited=5)], LEVELS, patience=1)
    assert (first.offered, first.good, first.images, first.late, first.failed) == (0.2, 0.1, 0.2, 0.1, 0)
    assert first.p50 is not None
    assert 2000 < first.p50 < 3000
    assert first.waited > 4000
    assert (second.offered, second.p99) == (0, None)


def test_each_outcome_counts_once_in_the_level_in_which_it_was_due() -> None:
    records = [
        record(0.5, 0.1),  # the warm-up
        record(10.9, 3.0),  # answered in the next level, too late
        record(11.1, 0.5),
        record(12, 0.1, "refused"),
        record(13, 1.0, "late"),
        record(14, 0.1, "failed"),
        record(15, 3.0, timed=False),  # a fit takes what it takes
    ]
    first, second = summarised(records, LEVELS, patience=1)
    assert (first.offered, first.good, first.late) == (0.1, 0, 0.1)
    assert (second.offered, second.good, second.refused, second.late, second.failed) == (0.5, 0.2, 0.1, 0.1, 0.1)
    assert (second.p50, second.p99) == (500, 500)  # classifications alone


@pytest.mark.parametrize("records", [[record(2, 0.01), record(12, 0.1, "refused")], [record(2, 0.01, "failed")]])
def test_levels_without_answers_are_drawn_too(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    draw(summarised(records, LEVELS, patience=1), "nothing", tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_line_for_each_level() -> None:
    lines = table(summarised([record(2, 0.01), record(12, 0.1, "refused")], LEVELS, patience=1)).splitlines()
    assert lines[2:] == [
        "| 0.1 | 0.1 | 0.2 | 0.0 | 0.0 | 0.0 | 10 | 10 | 10 | 0 |",
        "| 0.1 | 0.0 | 0.0 | 0.1 | 0.0 | 0.0 |  |  |  | 0 |",
    ]
