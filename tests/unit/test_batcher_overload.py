"""Goodput of the batcher under overload, on a clock of its own: nothing else that runs here moves a figure."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.backends.base import Outputs
from service.batcher import SWEEP_SECONDS, Observer
from service.errors import DeadlineExceeded, Overloaded
from service.remote_batcher import RemoteBatcher
from tests.batching import LOGITS, sample

FIXED, EACH, LARGEST = 0.002, 0.0025, 32  # seconds of a batch, of an image in it, and images
CAPACITY = LARGEST / (FIXED + EACH * LARGEST)  # images a second
DECODE_SECONDS = 0.003  # on average
SECONDS = 8.0
DEADLINE = 0.25


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time, and nothing else does either."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def complete(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.run_until_complete(work)
        finally:
            self.close()


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now += timeout or 0.0
        return super().select(0)


@dataclass
class Seen:
    """Of all requests: when the accepted ones were answered, and by how much after their deadline."""

    right: int = 0
    late: list[float] = field(default_factory=list)
    refused: int = 0
    depth: int = 0


class Depth(Observer):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def queued(self, depth: int) -> None:
        self._seen.depth = max(self._seen.depth, depth)


def offered(factor: float, spread: float, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Poisson arrivals of so many times the capacity, in front of a server whose batch times vary."""
    loop, draws, seen = VirtualLoop(), random.Random(1), Seen()
    for module in ("batcher", "batch_times", "remote_batcher"):
        monkeypatch.setattr(f"service.{module}.time", SimpleNamespace(monotonic=loop.time))
    server = asyncio.Lock()

    async def run(samples: Sequence[NDArray[np.uint8]], outputs: frozenset[str], deadline: float) -> list[Outputs]:
        async with server:
            scale = math.exp(draws.gauss(-spread * spread / 2, spread))
            await asyncio.sleep(scale * (FIXED + EACH * len(samples)))
        return [{} for _ in samples]

    async def ask(batcher: RemoteBatcher) -> None:
        deadline = loop.now + DEADLINE
        try:
            (ticket,) = batcher.admit(deadline)
        except Overloaded:
            seen.refused += 1
            return
        await asyncio.sleep(draws.expovariate(1 / DECODE_SECONDS))
        try:
            await ticket.infer(sample(0), LOGITS)
            seen.right += 1
        except DeadlineExceeded:
            seen.late.append(loop.now - deadline)
        finally:
            ticket.close()

    async def load() -> None:
        batcher = RemoteBatcher("fake:1", run, max_batch=LARGEST, max_queue=1024, observer=Depth(seen), instances=1)
        batcher.times.calibrate(FIXED + EACH, FIXED + EACH * LARGEST, LARGEST)
        batcher.start()
        tasks = []
        while loop.now < SECONDS:
            await asyncio.sleep(draws.expovariate(factor * CAPACITY))
            tasks.append(asyncio.create_task(ask(batcher)))
        await asyncio.gather(*tasks)
        await batcher.close()

    loop.complete(load())
    return seen


@pytest.mark.parametrize(("spread", "held"), [(0.0, 0.95), (0.05, 0.95), (0.15, 0.85)])
def test_goodput_holds_however_much_is_offered(spread: float, held: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the peak, for so large a standard deviation of the logarithm of batch times."""
    found = {factor: offered(factor, spread, monkeypatch) for factor in (0.8, 1.0, 2.0, 5.0)}
    peak = max(seen.right for seen in found.values())
    assert peak > 0.9 * CAPACITY * SECONDS
    for factor in (2.0, 5.0):
        assert found[factor].right >= held * peak, factor
        assert found[factor].refused > 0
    assert found[0.8].right >= 0.98 * (found[0.8].right + found[0.8].refused + len(found[0.8].late))
    for seen in found.values():
        assert max(seen.late, default=0.0) < SWEEP_SECONDS + FIXED + EACH * LARGEST
        assert seen.depth <= CAPACITY * DEADLINE  # what can be answered in time, and no more
