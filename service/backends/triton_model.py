"""One version of a model that runs in Triton."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from service.backends import triton_wire as wire
from service.backends.base import Outputs
from service.backends.catalogue import LoadFailed
from service.batcher import Observer, Ticket, per_image
from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, FoveaError
from service.golden import Drifted, golden_difference, golden_samples, misshapen
from service.preprocess import Limits, Preprocessor, Undecoded
from service.remote_batcher import RemoteBatcher
from service.spec import ModelSpec
from service.tracing.trace import outgoing

log = logging.getLogger(__name__)

GOLDEN_SECONDS = 60.0  # for a replay of the golden images: the first may have to build an engine
RETRY_AFTER = 1.0
LOST = "Triton cannot be reached"

Samples = Sequence[NDArray[np.uint8]]
Call = Callable[..., Awaitable[pb.ModelInferResponse]]


@dataclass(frozen=True, slots=True)
class Connection:
    """The way to Triton.

    Attributes:
        calls: Inference, one for each TCP connection.
        suspect: Set when Triton could not be reached.
        limits: How large an image may be.
        decodes: Triton decodes: it gets files.
    """

    calls: Sequence[Call]
    suspect: asyncio.Event
    limits: Limits
    decodes: bool


class TritonModel:
    """One version that Triton serves. Satisfies `ServedModel`.

    Args:
        spec: Its spec.
        connection: To Triton.
        max_batch: Images in a batch at most.
        max_queue: Images that may wait here.
        instances: Batches that Triton runs at once.
        observer: Told of every batch.
    """

    def __init__(
        self,
        spec: ModelSpec,
        connection: Connection,
        *,
        max_batch: int,
        max_queue: int,
        instances: int,
        observer: Observer,
    ) -> None:
        self.spec = spec
        self.preprocess = (Undecoded if connection.decodes else Preprocessor)(spec.image, connection.limits)
        self.golden_difference = 0.0
        self._connection = connection
        self._calls = cycle(connection.calls)
        self._decoding = {  # what the decode model has to know
            "model": spec.name,
            "version": spec.version,
            "image": spec.image.model_dump_json(),
            "max_pixels": str(connection.limits.max_pixels),
        }
        self._max_batch = max_batch
        self._open: str | None = None  # why the breaker is
        self._batcher = RemoteBatcher(
            f"{spec.name}:{spec.version}",
            self._run,
            max_batch=max_batch,
            max_queue=max_queue,
            observer=observer,
            instances=instances,
        )

    async def verify(self) -> None:
        """Replay the golden images through Triton and measure batch times.

        Raises:
            LoadFailed: Triton fails on them, or its outputs are not those of the spec.
            BackendUnavailable: It cannot be reached.
            DeadlineExceeded: It takes too long.
        """
        deadline = time.monotonic() + GOLDEN_SECONDS
        try:
            samples = golden_samples(self.spec, self.preprocess)
            self.golden_difference = golden_difference(self.spec, await self._replayed(samples, deadline))
        except Drifted as error:
            raise LoadFailed("drift", str(error)) from error
        one = await self._seconds(samples[:1], deadline)
        most = samples[: self._max_batch]
        self._batcher.times.calibrate(one, await self._seconds(most, deadline) if len(most) > 1 else one, len(most))

    def start(self) -> None:
        self._batcher.start()

    def admit(self, deadline: float, images: int = 1) -> list[Ticket]:
        if self._open is not None:
            raise BackendUnavailable(f"{self.spec.name} is not ready: {self._open}", retry_after=RETRY_AFTER)
        return self._batcher.admit(deadline, images)

    def problem(self) -> str | None:
        return self._open or self._batcher.problem()

    def open(self, problem: str) -> None:
        """Take no requests, and answer those that wait."""
        self._open = problem
        self._batcher.fail(BackendUnavailable(f"{self.spec.name} is not ready: {problem}", retry_after=RETRY_AFTER))

    def shut(self) -> None:
        """Take requests again."""
        self._open = None

    @property
    def opened(self) -> bool:
        """Whether the breaker is open."""
        return self._open is not None

    async def close(self) -> None:
        await self._batcher.close()

    async def _run(self, samples: Samples, outputs: frozenset[str], deadline: float) -> Sequence[Outputs | FoveaError]:
        """The outputs of each image, or what is wrong with it."""
        found: dict[int, Outputs | FoveaError] = {}
        for places in _kinds(samples):
            answers = await self._ask([samples[place] for place in places], outputs, deadline)
            found.update(zip(places, answers, strict=True))
        return [found[place] for place in range(len(samples))]

    async def _ask(self, samples: Samples, outputs: frozenset[str], deadline: float) -> list[Outputs | FoveaError]:
        count = len(samples)
        if samples[0].ndim > 1:
            message = wire.pixels_request(self.spec.name, self.spec.version, samples, outputs)
            return [*per_image(wire.tensors(await self._call(message, deadline), count), count)]
        response = await self._call(wire.files_request(self._decoding, samples, outputs), deadline)
        refused = wire.refusals(response, count)
        decoded = refused.count(None)
        answers = iter(per_image(wire.tensors(response, decoded), decoded))
        return [refusal or next(answers) for refusal in refused]

    async def _call(self, message: bytes, deadline: float) -> pb.ModelInferResponse:
        timeout = None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
        try:
            return await next(self._calls)(message, timeout=timeout, metadata=outgoing.get())
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: grpc.aio.AioRpcError) -> FoveaError:
        label = {"model": self.spec.name, "version": self.spec.version}
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the deadline passed before Triton answered")
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):  # a model on its way out, too
            if self._open is None:
                log.warning("Triton is not available: %s", error.details(), extra=label)
                self._open = LOST
                self._connection.suspect.set()
            return BackendUnavailable(f"{self.spec.name} is not ready: {self._open}", retry_after=RETRY_AFTER)
        log.error("Triton failed: %s: %s", error.code().name, error.details(), extra=label)
        return BackendFailed(wire.FAILED)

    async def _replayed(self, samples: Samples, deadline: float) -> NDArray[np.float32]:
        """Logits of golden images; all outputs must have the shapes that the spec promises."""
        rows: list[Outputs] = []
        names = frozenset(self.spec.output_shapes)
        for start in range(0, len(samples), self._max_batch):
            try:
                answers = await self._run(samples[start : start + self._max_batch], names, deadline)
            except (BackendFailed, ValueError) as error:
                raise LoadFailed("graph", "it fails on the golden images; the log says more") from error
            for golden, answer in zip(self.spec.golden[start:], answers, strict=False):
                if isinstance(answer, FoveaError):
                    raise Drifted(f"golden image {golden.name!r} is refused: {answer.message}")
                rows.append(answer)
        outputs = {name: np.stack([row[name] for row in rows]) for name in names}
        if problem := misshapen(self.spec, outputs, len(rows)):
            raise LoadFailed("graph", problem)
        return np.asarray(outputs["logits"], np.float32)

    async def _seconds(self, samples: Samples, deadline: float) -> float:
        times = []
        for _ in range(3):
            started = time.monotonic()
            await self._run(samples, frozenset({"logits"}), deadline)
            times.append(time.monotonic() - started)
        return min(times)


def _kinds(samples: Samples) -> Iterator[list[int]]:
    """The places of files, and those of pixels, which a client may have sent as tensors; each if there are any."""
    files = [place for place, sample in enumerate(samples) if sample.ndim == 1]
    pixels = [place for place, sample in enumerate(samples) if sample.ndim > 1]
    yield from filter(None, (files, pixels))
