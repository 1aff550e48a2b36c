"""A batcher over a fake blocking function that can be held, slowed down and poisoned."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Outputs, Row
from service.batcher import INLINE_SECONDS, Batcher, Observer

POISON = 255
LOGITS = frozenset({"logits"})


def sample(value: int) -> NDArray[np.uint8]:
    return np.full((1, 1, 1), value, np.uint8)


def value_of(row: Row) -> int:
    return int(row.outputs["logits"][0])


class Model:
    """A blocking `run` that can be held, fails on `POISON` and keeps a record of its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.outputs: list[frozenset[str]] = []
        self.fault: Callable[[list[int]], Outputs | None] = lambda values: None
        self._free = threading.Event()
        self._free.set()
        self._entered = threading.Event()

    def __call__(self, batch: NDArray[np.uint8], outputs: frozenset[str]) -> Outputs:
        values = [int(value) for value in batch[:, 0, 0, 0]]
        self.batches.append(values)
        self.outputs.append(outputs)
        self._entered.set()
        assert self._free.wait(20), "held for ever"
        if POISON in values:
            raise ValueError("secret words of a backend")
        own = self.fault(values)
        return own if own is not None else {name: np.array([[value] for value in values]) for name in outputs}

    def hold(self) -> None:
        self._free.clear()
        self._entered.clear()

    def release(self) -> None:
        self._free.set()

    async def entered(self) -> None:
        """Wait until a batch is inside `run`."""
        assert await asyncio.to_thread(self._entered.wait, 5)


class Record(Observer):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.depth = 0

    def batch(self, size: int, seconds: float) -> None:
        self.sizes.append(size)

    def queued(self, depth: int) -> None:
        self.depth = depth


@asynccontextmanager
async def batching(
    run: Model,
    *,
    max_batch: int = 4,
    max_queue: int = 64,
    observer: Observer | None = None,
    seconds: float = 2 * INLINE_SECONDS,  # long enough to run on the batcher's thread
) -> AsyncIterator[Batcher]:
    batcher = Batcher("fake:1", run, max_batch=max_batch, max_queue=max_queue, observer=observer or Observer())
    batcher.times.calibrate(seconds, seconds, max_batch)
    batcher.start()
    try:
        yield batcher
    finally:
        run.release()
        await asyncio.wait_for(batcher.close(), 10)


async def infer(batcher: Batcher, value: int, within: float = math.inf, outputs: frozenset[str] = LOGITS) -> Row:
    """The way of one image: admitted, decoded in no time, inferred."""
    (ticket,) = batcher.admit(time.monotonic() + within)
    try:
        return await ticket.infer(sample(value), outputs)
    finally:
        ticket.close()


def spawn(*work: Coroutine[Any, Any, Row]) -> list[asyncio.Task[Row]]:
    return [asyncio.create_task(one) for one in work]


async def settle(tasks: Sequence[asyncio.Task[Row]]) -> list[Row | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)


async def queued(batcher: Batcher, *values: int, within: float = math.inf) -> list[asyncio.Task[Row]]:
    """Requests that wait in the queue by the time this returns."""
    tasks = spawn(*(infer(batcher, value, within) for value in values))
    await asyncio.sleep(0.001)
    return tasks


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        await asyncio.sleep(0.002)
