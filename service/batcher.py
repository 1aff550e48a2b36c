"""Dynamic batching: bounded, work-conserving, aware of deadlines and of clients gone.

All state belongs to the event loop's thread, so there are no locks. Whenever nothing runs, all that waits does, up to
the largest batch, once a few turns of the event loop have brought nothing more: nothing ever waits for a timer. Under
load the next batch gathers while the last one runs.

`Batcher` is in front of a blocking function, which has a thread of its own, but for batches that are over sooner than
a thread could be woken. `service.remote_batcher` is in front of a server.

Admission comes before decoding. `admit` predicts, from batch times measured on this machine, when an image arriving
now would be answered, and refuses at once what could not be answered in time. Refusing costs microseconds; answering
late costs a whole inference that nobody waits for.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Batch, Outputs, Row, Share
from service.batch_times import BatchTimes
from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, FoveaError, Overloaded
from service.tracing.trace import Waiting, current

Run = Callable[[NDArray[np.uint8], frozenset[str]], Outputs]

SWEEP_SECONDS = 0.01  # how late, at most, a waiting request learns that its deadline has passed
# A batch shorter than this runs on the event loop: handing it to another thread and back would take as long. What slows
# the one down, slows the other, too.
INLINE_SECONDS = 0.001
# Requests that come together arrive in one turn of the event loop, or in the next. So many turns without another one
# end the waiting; an empty turn takes some microseconds.
QUIET_TURNS = 2
LATE_WEIGHT = 0.05  # of one answer in the average of how late answers are
# Mean deviations above that average that an answer is expected to be late (as TCP's retransmission timeout; Jacobson,
# Congestion Avoidance and Control, 1988). Under overload all that is let in is let in at the last moment, so that half
# of it would come too late by the average alone, computed for nobody.
LATE_DEVIATIONS = 4.0
STUCK_SECONDS = 10.0  # a batch that runs this long beyond its prediction makes the batcher unhealthy


@dataclass(slots=True, eq=False)
class Entry:
    """An image that waits, or runs."""

    sample: NDArray[np.uint8]
    outputs: frozenset[str]
    deadline: float
    promised: float
    future: asyncio.Future[Row]
    enqueued: float
    traced: Waiting | None


@dataclass(slots=True, eq=False)
class Running:
    """A batch under way."""

    entries: list[Entry]
    started: float
    predicted: float  # seconds
    load: int = 0  # images under way when it started, its own among them
    failed: bool = False

    @property
    def deadline(self) -> float:
        """Of the most patient image in it."""
        return max(entry.deadline for entry in self.entries)


class Observer:
    """What the batcher reports; the metrics listen."""

    def batch(self, size: int, seconds: float) -> None:
        """A batch has run."""

    def queued(self, depth: int) -> None:
        """The number of waiting images has changed."""


class Ticket:
    """A place kept in the queue while an image is decoded. Close it in any case; closing twice does no harm."""

    __slots__ = ("_batcher", "_deadline", "_held", "_promised")

    def __init__(self, batcher: Batching, deadline: float, promised: float) -> None:
        self._batcher = batcher
        self._deadline = deadline
        self._promised = promised
        self._held = True

    async def infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row:
        """Wait for the sample's row.

        Args:
            sample: `[H, W, C]`.
            outputs: Names of the outputs wanted.

        Raises:
            DeadlineExceeded: The deadline passed first.
            BackendFailed: The backend failed on this very sample.
            BackendUnavailable: The batcher was closed.
        """
        future = self._batcher.enqueue(sample, outputs, self._deadline, self._promised)
        self.close()
        return await future

    def close(self) -> None:
        if self._held:
            self._held = False
            self._batcher.give_back()


class Batching(ABC):
    """Gathers samples into batches for one model version.

    Args:
        name: For messages.
        max_batch: Images in a batch at most.
        max_queue: Images admitted but not yet running, at most.
        observer: Told of every batch.
        instances: Batches that run at once.
        ahead: Batches that may be under way for each of them.
        pieces: In which one of them may be.
    """

    def __init__(
        self,
        name: str,
        *,
        max_batch: int,
        max_queue: int,
        observer: Observer,
        instances: int = 1,
        ahead: int = 1,
        pieces: int = 1,
    ) -> None:
        self.name = name
        self.times = BatchTimes()
        self._instances = instances
        self._max_running = instances * ahead * pieces
        self._max_under_way = instances * ahead * max_batch  # images
        self._under_way = 0
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observer = observer
        self._waiting: deque[Entry] = deque()
        self._tickets = 0  # admitted, being decoded
        self._running: list[Running] = []  # the oldest first
        self._dispatching = False
        self._gathered = 0  # images that waited when last looked at
        self._quiet_turns = 0  # since then
        self._late = 0.0  # seconds by which answers of late came after what batch times alone had promised
        self._late_deviation = 0.0  # of single answers from that, on average
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Be ready for work; call on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._idle.set()

    def admit(self, deadline: float, images: int = 1) -> list[Ticket]:
        """Keep places for images that arrive now.

        Args:
            deadline: On the clock of `time.monotonic`, seconds.
            images: How many belong together: all are admitted or none.

        Raises:
            Overloaded: The queue is full, or the last of them could not be answered in time.
            BackendUnavailable: The batcher was closed.
        """
        if self._closed:
            raise BackendUnavailable(f"{self.name} is being unloaded", retry_after=1.0)
        waiting = len(self._waiting) + self._tickets
        if waiting + images > self._max_queue:
            raise Overloaded(
                f"the queue of {self.name} is full ({self._max_queue} images)", retry_after=self.wait(waiting)
            )
        now = time.monotonic()
        batches = self.wait(waiting + images)
        if deadline != math.inf:
            wait = batches + self._late + LATE_DEVIATIONS * self._late_deviation
            if waiting == 0 and not self._running:
                # Trying costs nobody anything; and with nobody let in, a prediction that is too high would stay so.
                wait = min(wait, self.times.at_best(images))
            if now + wait > deadline:
                raise Overloaded(
                    f"an answer would take about {wait * 1000:.0f} ms and the deadline is in"
                    f" {max(0.0, deadline - now) * 1000:.0f} ms; retry later or allow more time",
                    retry_after=self.wait(waiting),
                )
        self._tickets += images
        self._idle.clear()
        return [Ticket(self, deadline, now + batches) for _ in range(images)]

    def wait(self, images: int) -> float:
        """Seconds that batches will take until the last of `images` waiting images is answered."""
        if not self._running:
            return self._seconds(images)
        oldest = self._running[0]
        left = oldest.predicted - (time.monotonic() - oldest.started)
        # A batch overdue by x is expected to take another x: a stuck backend soon looks as bad as it is.
        return abs(left) + self._seconds(self._under_way - len(oldest.entries) + images)

    def _seconds(self, images: int) -> float:
        """What that many images take, in batches as large as they may be."""
        full, rest = divmod(images, self._max_batch)
        return full / self._instances * self.times.predict(self._max_batch) + (
            self.times.predict(rest) if rest else 0.0
        )

    def _has_room(self) -> bool:
        """Whether a full batch may start, or all that waits."""
        next_size = min(len(self._waiting), self._max_batch)
        return len(self._running) < self._max_running and self._under_way + next_size <= self._max_under_way

    def problem(self) -> str | None:
        """Why the batcher should not get new work, or None."""
        if self._running:
            overdue = time.monotonic() - self._running[0].started - self._running[0].predicted
            if overdue > STUCK_SECONDS:
                return f"{self.name}: a batch has been running {overdue:.0f} s longer than expected"
        return None

    async def close(self) -> None:
        """Take no new work, finish what was admitted."""
        self._closed = True
        await self._idle.wait()

    @abstractmethod
    def _launch(self, batch: Running) -> None:
        """Run a batch, then call `_finished`."""

    @abstractmethod
    def _abandon(self, batch: Running) -> None:
        """Nobody waits for this running batch any more."""

    # What tickets call.

    def give_back(self) -> None:
        self._tickets -= 1
        self._note_idle()

    def enqueue(
        self, sample: NDArray[np.uint8], outputs: frozenset[str], deadline: float, promised: float
    ) -> asyncio.Future[Row]:
        now = time.monotonic()
        future: asyncio.Future[Row] = self._loop.create_future()
        if now >= deadline:
            self._note_late(now - promised)
            future.set_exception(DeadlineExceeded("the deadline passed while the image was decoded"))
            return future
        traced = None if (trace := current.get()) is None else Waiting(trace, future, now)
        self._waiting.append(Entry(sample, outputs, deadline, promised, future, now, traced))
        self._observer.queued(len(self._waiting))
        self._dispatch_soon()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return future

    # On the event loop.

    def _dispatch_soon(self) -> None:
        """Some turns of the loop later, so that what arrives together runs together."""
        if self._waiting and not self._dispatching and self._has_room():
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        waiting = len(self._waiting)
        if waiting != self._gathered:
            self._gathered, self._quiet_turns = waiting, 0
        if waiting < self._max_batch and self._quiet_turns < QUIET_TURNS:
            self._quiet_turns += 1
            self._loop.call_soon(self._dispatch)
            return
        self._gathered = self._quiet_turns = 0
        self._dispatching = False
        if not self._has_room():  # more has come meanwhile
            return
        now = time.monotonic()
        entries: list[Entry] = []
        while self._waiting and len(entries) < self._max_batch:
            entry = self._waiting.popleft()
            if entry.future.done():  # its client has gone, or its deadline was swept
                continue
            if now >= entry.deadline:
                self._note_late(now - entry.promised)
                entry.future.set_exception(DeadlineExceeded("the deadline passed in the queue"))
                continue
            if entry.traced is not None:
                entry.traced.begun = now
            entries.append(entry)
        self._observer.queued(len(self._waiting))
        if not entries:
            self._note_idle()
            return
        self._under_way += len(entries)
        batch = Running(entries, now, self._seconds(self._under_way), self._under_way)
        self._running.append(batch)
        self._launch(batch)
        self._dispatch_soon()

    def _sweep(self) -> None:
        self._sweeper = None
        now = time.monotonic()
        for entry in (*self._waiting, *(entry for batch in self._running for entry in batch.entries)):
            if now >= entry.deadline and not entry.future.done():
                self._note_late(now - entry.promised)
                entry.future.set_exception(DeadlineExceeded("the deadline passed before the answer was ready"))
        if any(entry.future.done() for entry in self._waiting):
            # The dead hold no places: neither those just swept nor those whose clients have gone.
            self._waiting = deque(entry for entry in self._waiting if not entry.future.done())
            self._observer.queued(len(self._waiting))
        for batch in self._running:
            if all(entry.future.done() for entry in batch.entries):
                self._abandon(batch)
        if self._waiting or self._running:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _finished(self, batch: Running, rows: list[Row | FoveaError], seconds: float) -> None:
        self._running.remove(batch)
        self._under_way -= len(batch.entries)
        if not batch.failed:  # what its retries took says nothing about the next batch
            size = len(batch.entries)
            alone = self.times.predict(size) / (self._seconds(batch.load) or 1.0)
            self.times.observe(size, seconds * alone)
        self._observer.batch(len(batch.entries), seconds)
        now = time.monotonic()
        for entry, row in zip(batch.entries, rows, strict=True):
            if entry.future.done():
                continue
            self._note_late(now - entry.promised)
            if isinstance(row, FoveaError):
                entry.future.set_exception(row)
            else:
                entry.future.set_result(row)
        self._dispatch_soon()
        self._note_idle()

    def _note_late(self, seconds: float) -> None:
        """Learn from one answer how much decoding and a busy event loop add to what batches take."""
        difference = max(0.0, seconds) - self._late
        self._late += LATE_WEIGHT * difference
        self._late_deviation += LATE_WEIGHT * (abs(difference) - self._late_deviation)

    def _note_idle(self) -> None:
        if not self._running and not self._waiting and self._tickets == 0:
            self._idle.set()


class Batcher(Batching):
    """In front of a blocking function.

    Args:
        name: For the thread and for messages.
        run: `[N, H, W, C]` and output names to outputs `[N, ...]`. Never called twice at once.
        max_batch: Images in a batch at most.
        max_queue: Images admitted but not yet running, at most.
        observer: Told of every batch.
    """

    def __init__(self, name: str, run: Run, *, max_batch: int, max_queue: int, observer: Observer) -> None:
        super().__init__(name, max_batch=max_batch, max_queue=max_queue, observer=observer)
        self._run = run
        self._work: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"infer-{name}", daemon=True)

    def start(self) -> None:
        super().start()
        self._thread.start()

    async def close(self) -> None:
        await super().close()
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)

    def _launch(self, batch: Running) -> None:
        if self.times.undisturbed(len(batch.entries)) > INLINE_SECONDS:
            self._work.put(batch)
        else:
            rows = self._execute(batch, batch.started)
            self._finished(batch, rows, time.monotonic() - batch.started)

    def _abandon(self, batch: Running) -> None:
        """It runs to its end: a thread cannot be stopped."""

    # On the inference thread, or inline.

    def _serve(self) -> None:
        while (batch := self._work.get()) is not None:
            started = time.monotonic()
            rows = self._execute(batch, started)
            seconds = time.monotonic() - started
            self._loop.call_soon_threadsafe(self._finished, batch, rows, seconds)

    def _execute(self, batch: Running, started: float) -> list[Row | FoveaError]:
        entries = batch.entries
        try:
            return self._rows(entries, started)
        except Exception as error:  # noqa: BLE001 - whatever the backend raises must not end the thread
            batch.failed = True
            if len(entries) == 1:
                return [failure(error)]
            # One image may have failed the batch: run each alone, so that only the culprit pays.
            return [self._execute(Running([entry], batch.started, 0.0), time.monotonic())[0] for entry in entries]

    def _rows(self, entries: list[Entry], started: float) -> list[Row | FoveaError]:
        samples = [entry.sample for entry in entries]
        outputs = self._run(samples[0][None] if len(samples) == 1 else np.stack(samples), wanted(entries))
        return rows_of(per_image(outputs, len(entries)), entries, started, time.monotonic() - started)


def wanted(entries: list[Entry]) -> frozenset[str]:
    """The outputs that any of them wants."""
    return entries[0].outputs if len(entries) == 1 else frozenset().union(*(entry.outputs for entry in entries))


def per_image(outputs: Outputs, size: int) -> list[Outputs]:
    """The outputs of each image of a batch.

    Raises:
        ValueError: There are not that many.
    """
    if any(len(values) != size for values in outputs.values()):
        raise ValueError(f"a batch of {size} gave outputs of {[len(values) for values in outputs.values()]} rows")
    batch = Batch(outputs)
    return [Share(batch, index) for index in range(size)]


def rows_of(
    answers: Sequence[Outputs | FoveaError], entries: list[Entry], started: float, seconds: float
) -> list[Row | FoveaError]:
    return [
        answer if isinstance(answer, FoveaError) else Row(answer, started - entry.enqueued, seconds, len(entries))
        for answer, entry in zip(answers, entries, strict=True)
    ]


def failure(error: Exception) -> FoveaError:
    if isinstance(error, FoveaError):
        return error
    failure = BackendFailed("the backend failed on this image; the server's log says more")
    failure.__cause__ = error
    return failure
