"""Shadows: a second model classifies what the primary has classified, when nobody would notice.

A comparison begins after the answer has gone out, one image at a time, and only in a moment in which no request
arrives and nothing waits. Where requests arrive while it runs, the next one waits for nine times as long as it took.
What finds no quiet moment in time is dropped; so is what finds the queue full. Shadows thus compare a sample of the
requests on a busy machine, and all of them on one that has time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.backends.base import InferenceBackend, ServedModel
from service.errors import FoveaError
from service.routes.table import LiveRoute

log = logging.getLogger(__name__)

MAX_WAITING = 32  # images, of all routes
PATIENCE_SECONDS = 1.0  # until an image that found no quiet moment is dropped
INFER_SECONDS = 1.0  # for an image that found one
RETRY_SECONDS = 0.005  # between two looks for a quiet moment
TURNS = 3  # of the event loop, in which no request may arrive
REST = 9.0  # times what a comparison took: on a busy machine a tenth of the time is the shadows'

LOGITS = frozenset({"logits"})


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that the primary has classified.

    Attributes:
        encoded: As it came.
        sample: As the primary saw it, uint8 `[H, W, C]`.
        label: Its top class.
    """

    encoded: bytes
    sample: NDArray[np.uint8]
    label: str


@dataclass(slots=True)
class Traffic:
    """Images that clients wait for.

    Attributes:
        asked: All that were ever admitted.
        answering: Those without an answer yet.
    """

    asked: int = 0
    answering: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    route: LiveRoute
    primary: ServedModel
    seen: Seen
    patience: float


class Shadows:
    """Runs the shadows of all routes.

    Args:
        backend: Has the models.

    Attributes:
        traffic: Kept up to date by whoever answers clients.
    """

    def __init__(self, backend: InferenceBackend) -> None:
        self.traffic = Traffic()
        self._backend = backend
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode-shadow")

    def offer(self, route: LiveRoute, primary: ServedModel, images: Sequence[Seen]) -> None:
        """Have a route's shadow classify some images, if that delays nobody."""
        free = MAX_WAITING - len(self._waiting)
        patience = time.monotonic() + PATIENCE_SECONDS
        self._waiting.extend(_Waiting(route, primary, seen, patience) for seen in images[:free])
        if len(images) > free:
            route.count_dropped(len(images) - free)
        if self._waiting and self._worker is None:
            # In a context of its own: it is no part of the request that happens to begin it.
            self._worker = asyncio.create_task(self._work(), name="shadow", context=Context())

    async def close(self) -> None:
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._waiting[0].patience < time.monotonic():
                    self._waiting.popleft().route.count_dropped(1)
                elif not await self._quiet():
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    asked, started = self.traffic.asked, time.monotonic()
                    await self._compare(self._waiting.popleft())
                    if self.traffic.asked != asked:
                        await asyncio.sleep(REST * (time.monotonic() - started))
        finally:
            self._worker = None

    async def _quiet(self) -> bool:
        """Whether no request arrives while the event loop turns, and none would be delayed."""
        asked = self.traffic.asked
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if self.traffic.asked != asked:
                return False
        return not self._backend.busy(self.traffic.answering)

    async def _compare(self, waiting: _Waiting) -> None:
        try:
            label = await self._label(waiting)
        except FoveaError as error:
            log.debug("the shadow of %s failed: %s", waiting.route.name, error.message)
            label = None
        except Exception:
            log.exception("the shadow of %s failed", waiting.route.name)
            label = None
        if label is None:
            waiting.route.count_dropped(1)
        else:
            waiting.route.count_compared(label == waiting.seen.label)

    async def _label(self, waiting: _Waiting) -> str | None:
        """The shadow's top class; None if it does not serve."""
        target = waiting.route.route.shadow
        shadow = waiting.route.ready(target) if target else None
        if shadow is None:
            return None
        sample = waiting.seen.sample
        if shadow.spec.image != waiting.primary.spec.image:
            loop = asyncio.get_running_loop()
            sample = await loop.run_in_executor(self._decoder, shadow.preprocess, waiting.seen.encoded)
        (ticket,) = shadow.admit(time.monotonic() + INFER_SECONDS)
        try:
            row = await ticket.infer(sample, LOGITS)
        finally:
            ticket.close()
        return shadow.spec.labels[int(np.argmax(row.outputs["logits"]))]
