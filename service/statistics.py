"""What each version of a model has done since the server started: its requests, and where their time went.

The meaning is that of Triton's statistics. A model counts twice: once for requests with encoded images, whichever call
brought them, and once for requests with tensors. Of a request with several images, the time in the queue and in a
batch is that of the one that waited longest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.backends.base import Row, Ticket
from service.errors import FoveaError
from service.spec import Contract

MAX_ENTRIES = 20_000  # versions come and go; beyond this those unused for longest are forgotten


@dataclass(slots=True)
class Duration:
    """How often something took place, and the nanoseconds that it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class Counts:
    """Of one version.

    Attributes:
        success: Requests of which every image was answered.
        fail: Requests that were refused, or failed on an image.
        queue: Waiting for a batch.
        compute_input: From admission to the queue: decoding.
        compute_infer: The batch's own time.
        compute_output: From the last image's row to the answer.
        inferences: Images answered.
        answered: When the last one was, on the clock of `time.monotonic`.
        batches: By size: how many of their images were these requests', and the time of the batches, an image's share
            of it for each.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inferences: int = 0
    answered: float = 0.0
    batches: dict[int, Duration] = field(default_factory=dict)

    @property
    def last_inference(self) -> int:
        """When the last one was, in milliseconds since 1970; 0 if there was none."""
        return int((time.time() - time.monotonic() + self.answered) * 1000) if self.inferences else 0

    def add(self, other: dict[str, Any]) -> None:
        """Count what another worker has counted, as `Statistics.dump` writes it."""
        for name, duration in self.durations().items():
            duration.count += other[name]["count"]
            duration.ns += other[name]["ns"]
        for size, shares in other["batches"].items():
            mine = self.batches.setdefault(int(size), Duration())
            mine.count += shares["count"]
            mine.ns += shares["ns"]
        self.inferences += other["inferences"]
        self.answered = max(self.answered, other["answered"])

    def durations(self) -> dict[str, Duration]:
        """Of requests, by what took place."""
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {name: getattr(self, name) for name in names}

    def executions(self) -> dict[int, Duration]:
        """The batches of each size. One with other requests' images in it counts by its share, rounded up."""
        return {size: Duration(-(-shares.count // size), shares.ns) for size, shares in sorted(self.batches.items())}


class Statistics:
    """The counts of all versions."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, bool], Counts] = {}

    def of(self, name: str, version: str, encoded: bool) -> Counts:
        """What a version has done with encoded images, or else with tensors."""
        return self._counts.get((name, version, encoded)) or Counts()

    def dump(self) -> bytes:
        """All of them, for `with_others`."""
        return orjson.dumps([(key, counts) for key, counts in self._counts.items()], option=orjson.OPT_NON_STR_KEYS)

    def with_others(self, dumped: Sequence[bytes]) -> Statistics:
        """These, and what other workers have counted."""
        whole = Statistics()
        for dump in (self.dump(), *dumped):
            for (name, version, encoded), counts in orjson.loads(dump):
                whole._counts.setdefault((name, version, encoded), Counts()).add(counts)
        return whole

    def request(self, spec: Contract, encoded: bool) -> Tally:
        """Count one request, which lasts as long as the context that this is."""
        key = (spec.name, spec.version, encoded)
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= MAX_ENTRIES:
                del self._counts[min(self._counts, key=lambda known: self._counts[known].answered)]
            counts = self._counts[key] = Counts()
        return Tally(counts)


class Tally:
    """One request being answered. One that its client gave up is not counted."""

    __slots__ = ("_answered", "_began", "_counts", "_input_seconds", "_last", "_row", "_wanted")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._began = time.monotonic()
        self._wanted = 0
        self._answered = 0
        self._row: Row | None = None  # the one that waited longest
        self._input_seconds = 0.0  # of that one
        self._last = 0.0  # when the last row came

    def __enter__(self) -> Tally:
        return self

    def watch(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """The tickets of the request's images, whose rows count from now on."""
        self._wanted = len(tickets)
        return [_Watched(ticket, self) for ticket in tickets]

    def note(self, started: float, row: Row) -> None:
        """An image was handed to the queue at some time, and this became of it."""
        self._answered += 1
        self._last = time.monotonic()
        if self._row is None or row.queue_seconds >= self._row.queue_seconds:
            self._row, self._input_seconds = row, started - self._began
        shares = self._counts.batches.get(row.batch_size)
        if shares is None:
            shares = self._counts.batches[row.batch_size] = Duration()
        shares.add(row.infer_seconds / row.batch_size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, FoveaError):
            return
        now = time.monotonic()
        counts = self._counts
        if row := self._row:
            counts.inferences += self._answered
            counts.answered = now
            counts.queue.add(row.queue_seconds)
            counts.compute_input.add(self._input_seconds)
            counts.compute_infer.add(row.infer_seconds)
            counts.compute_output.add(now - self._last)
        whole = error is None and self._answered == self._wanted
        (counts.success if whole else counts.fail).add(now - self._began)


class _Watched:
    """A ticket whose row is counted."""

    __slots__ = ("_tally", "_ticket")

    def __init__(self, ticket: Ticket, tally: Tally) -> None:
        self._ticket = ticket
        self._tally = tally

    async def infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row:
        started = time.monotonic()
        row = await self._ticket.infer(sample, outputs)
        self._tally.note(started, row)
        return row

    def close(self) -> None:
        self._ticket.close()
