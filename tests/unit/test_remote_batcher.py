"""Batches for a server that works on some while it gets the next, in pieces that it puts together itself."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.base import Outputs, Row
from service.batcher import Observer
from service.errors import FoveaError, InvalidImage
from service.remote_batcher import AHEAD, PIECES, RemoteBatcher
from tests.batching import LOGITS, POISON, sample, until, value_of

BATCH = 4


class Remote:
    """A server that answers one image after the other, each in so many seconds, and refuses `POISON`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[list[int]] = []
        self.most = 0
        self._under_way = 0
        self._seconds = seconds
        self._one = asyncio.Lock()
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(
        self, samples: Sequence[NDArray[np.uint8]], outputs: frozenset[str], deadline: float
    ) -> Sequence[Outputs | FoveaError]:
        values = [int(each[0, 0, 0]) for each in samples]
        self.asked.append(values)
        self._under_way += len(values)
        self.most = max(self.most, self._under_way)
        try:
            await self.free.wait()
            async with self._one:
                await asyncio.sleep(self._seconds * len(values))
        finally:
            self._under_way -= len(values)
        return [InvalidImage("poison") if value == POISON else {"logits": np.array([value])} for value in values]


@asynccontextmanager
async def remote_batching(remote: Remote, instances: int = 1, seconds: float = 0.01) -> AsyncIterator[RemoteBatcher]:
    batcher = RemoteBatcher("fake:1", remote, max_batch=BATCH, max_queue=200, observer=Observer(), instances=instances)
    batcher.times.calibrate(seconds, BATCH * seconds, BATCH)
    batcher.start()
    try:
        yield batcher
    finally:
        remote.free.set()
        await asyncio.wait_for(batcher.close(), 10)


def ask(batcher: RemoteBatcher, value: int) -> asyncio.Task[Row]:
    async def one() -> Row:
        (ticket,) = batcher.admit(math.inf)
        return await ticket.infer(sample(value), LOGITS)

    return asyncio.create_task(one())


@pytest.mark.parametrize("instances", [1, 2])
async def test_what_comes_goes_at_once_up_to_a_bound(instances: int) -> None:
    remote = Remote()
    remote.free.clear()
    async with remote_batching(remote, instances) as batcher:
        tasks = []
        for number in range(5):
            tasks.append(ask(batcher, number))
            await until(lambda: len(remote.asked) == len(tasks))
        tasks += [ask(batcher, number) for number in range(5, 100)]
        await asyncio.sleep(0.05)
        assert remote.most <= instances * AHEAD * BATCH
        assert len(remote.asked) <= instances * AHEAD * PIECES
        remote.free.set()
        assert [value_of(row) for row in await asyncio.gather(*tasks)] == list(range(100))
    assert max(map(len, remote.asked)) == BATCH  # whatever it was asked first, it gets full batches where many wait


async def test_a_refused_image_costs_the_others_nothing() -> None:
    remote = Remote()
    async with remote_batching(remote) as batcher:
        rows = await asyncio.gather(*(ask(batcher, value) for value in (1, POISON, 2)), return_exceptions=True)
    assert isinstance(rows[1], InvalidImage)
    assert [value_of(row) for row in (rows[0], rows[2]) if isinstance(row, Row)] == [1, 2]
    assert remote.asked == [[1, POISON, 2]]


async def test_waits_are_predicted_right_whatever_the_pieces() -> None:
    """One by one, images go in pieces of one that wait in the server; they do not make it look slow."""
    seconds = 0.01
    remote = Remote(seconds)
    async with remote_batching(remote, seconds=seconds) as batcher:
        tasks = []
        for number in range(40):
            tasks.append(ask(batcher, number % POISON))
            await asyncio.sleep(0.7 * seconds)  # somewhat faster than the server answers
        predicted, started = batcher.wait(BATCH + 1), time.monotonic()
        last = [ask(batcher, number) for number in range(BATCH + 1)][-1]
        await last
        taken = time.monotonic() - started
        await asyncio.gather(*tasks)
    assert taken / 4 < predicted < taken * 2
