"""Batches for a server that is asked over the network: it gets the next ones while it works on one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Outputs, Row
from service.batcher import Batching, Observer, Running, failure, rows_of, wanted
from service.errors import BackendUnavailable, DeadlineExceeded, FoveaError
from service.tracing.trace import asking

RunRemote = Callable[[Sequence[NDArray[np.uint8]], frozenset[str], float], Awaitable[Sequence[Outputs | FoveaError]]]

AHEAD = 2  # batches at a server per instance: one that it works on, one that waits there
PIECES = 4  # that such a batch may come in: the server puts them together, so that nothing has to wait for others here


class RemoteBatcher(Batching):
    """In front of a server that is asked over the network.

    Args:
        name: For messages.
        run: Samples, output names and a deadline to the outputs of each sample, or what is wrong with it.
        max_batch: Images in a batch at most.
        max_queue: Images admitted but not yet sent, at most.
        observer: Told of every batch.
        instances: Batches that the server runs at once.
    """

    def __init__(
        self, name: str, run: RunRemote, *, max_batch: int, max_queue: int, observer: Observer, instances: int
    ) -> None:
        super().__init__(
            name,
            max_batch=max_batch,
            max_queue=max_queue,
            observer=observer,
            instances=instances,
            ahead=AHEAD,
            pieces=PIECES,
        )
        self._run = run
        self._tasks: dict[Running, asyncio.Task[None]] = {}

    def fail(self, error: FoveaError) -> None:
        """Answer all that waits or runs with an error: the server is gone."""
        for entry in (*self._waiting, *(entry for batch in self._running for entry in batch.entries)):
            if not entry.future.done():
                entry.future.set_exception(error)
        self._waiting.clear()
        self._observer.queued(0)
        for task in self._tasks.values():
            task.cancel()
        self._note_idle()

    def _launch(self, batch: Running) -> None:
        self._tasks[batch] = self._loop.create_task(self._ask(batch))

    def _abandon(self, batch: Running) -> None:
        self._tasks[batch].cancel()

    async def _ask(self, batch: Running) -> None:
        rows: list[Row | FoveaError] = [BackendUnavailable("nobody waits any more", retry_after=1.0)] * len(
            batch.entries
        )
        try:
            rows = await self._execute(batch, batch.started)
        except asyncio.CancelledError:
            batch.failed = True  # by `_abandon` or `fail`: nobody waits
        finally:
            del self._tasks[batch]
            self._finished(batch, rows, time.monotonic() - batch.started)

    async def _execute(self, batch: Running, started: float) -> list[Row | FoveaError]:
        entries = batch.entries
        try:
            with asking([entry.traced for entry in entries]):
                answers = await self._run([entry.sample for entry in entries], wanted(entries), batch.deadline)
            return rows_of(answers, entries, started, time.monotonic() - started)
        except (BackendUnavailable, DeadlineExceeded) as error:  # whatever the images are
            batch.failed = True
            return [error] * len(entries)
        except Exception as error:  # noqa: BLE001 - whatever the backend raises, these images get an answer
            batch.failed = True
            if len(entries) == 1:
                return [failure(error)]
            # One image may have failed the batch: run each alone, so that only the culprit pays.
            alone = [Running([entry], batch.started, 0.0) for entry in entries]
            return [(await self._execute(each, time.monotonic()))[0] for each in alone]
