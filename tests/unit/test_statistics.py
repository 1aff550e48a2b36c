"""Statistics of requests: what counts, what does not, and as how much."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from service import statistics
from service.backends.base import Row
from service.errors import InvalidImage, Overloaded
from service.statistics import Counts, Duration, Statistics
from tests.models import tiny_spec

SPEC = tiny_spec()
NOTHING = np.zeros((8, 8, 3), np.uint8)


class Answered:
    """A ticket whose row is known."""

    def __init__(self, row: Row | Exception) -> None:
        self._row = row

    async def infer(self, sample: Any, outputs: Any) -> Row:
        if isinstance(self._row, Exception):
            raise self._row
        return self._row

    def close(self) -> None:
        """Nothing is held."""


def row(queue: float = 0.0, infer: float = 0.0, batch: int = 1) -> Row:
    return Row({}, queue, infer, batch)


async def request(found: Statistics, *rows: Row | Exception, encoded: bool = True) -> None:
    with found.request(SPEC, encoded) as tally:
        tickets = tally.watch([Answered(one) for one in rows])
        await asyncio.gather(*(ticket.infer(NOTHING, frozenset()) for ticket in tickets), return_exceptions=True)


def figures(counts: Counts) -> dict[str, int]:
    return {name: duration.count for name, duration in counts.durations().items() if duration.count}


async def test_the_image_that_waited_longest_speaks_for_its_request() -> None:
    found = Statistics()
    await request(found, row(0.1, 0.5, 3), row(0.3, 0.25, 1), row(0.1, 0.5, 3))
    counts = found.of("tiny", "1", True)
    assert (counts.queue, counts.compute_infer) == (Duration(1, 300_000_000), Duration(1, 250_000_000))
    assert (counts.inferences, figures(counts)["success"]) == (3, 1)
    assert found.of("tiny", "1", False) == Counts()


async def test_a_shared_batch_counts_by_its_share() -> None:
    found = Statistics()
    await request(found, row(infer=0.3, batch=3))
    await request(found, row(infer=0.3, batch=3), row(infer=0.3, batch=3), encoded=False)
    for encoded, ns in ((True, 100_000_000), (False, 200_000_000)):
        executions = found.of("tiny", "1", encoded).executions()
        assert executions == {3: Duration(1, pytest.approx(ns))}  # type: ignore[arg-type]
    for _ in range(3):
        await request(found, row(batch=3))
    assert found.of("tiny", "1", True).executions()[3].count == 2  # four thirds


async def test_what_fails_and_what_is_given_up() -> None:
    found = Statistics()
    await request(found, row(), InvalidImage("broken"))
    counts = found.of("tiny", "1", True)
    assert (figures(counts)["fail"], counts.success.count, counts.inferences) == (1, 0, 1)
    with pytest.raises(Overloaded), found.request(SPEC, True):
        raise Overloaded("too busy")
    assert (counts.fail.count, counts.queue.count) == (2, 1)
    with pytest.raises(asyncio.CancelledError), found.request(SPEC, True):
        raise asyncio.CancelledError
    assert (counts.fail.count, counts.success.count) == (2, 0)


async def test_those_unused_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_ENTRIES", 2)
    found = Statistics()
    for version in ("1", "2", "1", "3"):
        with found.request(SPEC.model_copy(update={"version": version}), True) as tally:
            (ticket,) = tally.watch([Answered(row())])
            await ticket.infer(NOTHING, frozenset())
    assert [found.of("tiny", version, True).inferences for version in ("1", "2", "3")] == [2, 0, 1]
    assert found.of("tiny", "2", True).last_inference == 0 < found.of("tiny", "3", True).last_inference
