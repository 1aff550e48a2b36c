"""The Triton backend: models run in NVIDIA Triton Inference Server, asked over gRPC.

Triton alone says which models there are and, in their configs, carries their specs: no disk is shared. A version
serves when Triton has it ready and its golden images, sent through Triton, come back as they were published.

Triton may go away at any time. A failed call opens the version's breaker: from then on requests are refused at once,
and only the watcher asks Triton, once per look, until the golden images come back right again. What was in flight when
Triton stopped answering is answered as unavailable. Triton's own words go to the log, never to a client.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.backends.base import ModelStatus, Outputs
from service.backends.catalogue import Catalogue, LoadFailed, Model, VersionObserver
from service.batcher import Observer, RemoteBatcher, Ticket
from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, FoveaError
from service.golden import Drifted, golden_batch, golden_difference, misshapen
from service.metrics import Metrics
from service.preprocess import Limits, Preprocessor
from service.spec import OUTPUTS, ModelSpec, RepositoryModel, parse_config

log = logging.getLogger(__name__)

CHANNELS = 2  # TCP connections; one carries some hundred megabytes a second
LANES = 2  # batches at Triton per instance: one that it works on, one that waits there
PROBE_SECONDS = 2.0  # without an answer to a health check, Triton is taken for dead
GOLDEN_SECONDS = 60.0  # for a batch of golden images: the first may have to build an engine
LOAD_SECONDS = 120.0  # for Triton to load or unload a model
RETRY_AFTER = 1.0
RETRY_LOOKS = 10  # between two tries of a version that failed: Triton's files may be mended without its spec changing
LOST = "Triton cannot be reached"
# Without these a channel waits up to two minutes before it tries a server again that was away.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or all channels would share one connection
)
OUTPUT_TYPE = "FP32"

Stub: TypeAlias = Any  # pb_grpc.GRPCInferenceServiceStub, which has no types


class TritonModel:
    """One version that Triton serves. Satisfies `ServedModel`.

    Args:
        spec: Its spec.
        stubs: To Triton, one per connection.
        max_batch: Images in a batch at most.
        max_queue: Images that may wait here.
        lanes: Batches that may be at Triton at once.
        limits: How large an image may be.
        observer: Told of every batch.
        suspect: Called when Triton could not be reached.
    """

    def __init__(
        self,
        spec: ModelSpec,
        stubs: Sequence[Stub],
        *,
        max_batch: int,
        max_queue: int,
        lanes: int,
        limits: Limits,
        observer: Observer,
        suspect: asyncio.Event,
    ) -> None:
        self.spec = spec
        self.preprocess = Preprocessor(spec.image, limits)
        self.golden_difference = 0.0
        self._stubs = cycle(stubs)
        self._max_batch = max_batch
        self._suspect = suspect
        self._open: str | None = None  # why the breaker is
        self._batcher = RemoteBatcher(
            f"{spec.name}:{spec.version}",
            self._run,
            max_batch=max_batch,
            max_queue=max_queue,
            observer=observer,
            lanes=lanes,
        )

    async def verify(self) -> None:
        """Replay the golden images through Triton and measure batch times.

        Raises:
            LoadFailed: Triton fails on them, or its outputs are not those of the spec.
            BackendUnavailable: It cannot be reached.
            DeadlineExceeded: It takes too long.
        """
        try:
            batch = golden_batch(self.spec, self.preprocess)
        except Drifted as error:
            raise LoadFailed("drift", str(error)) from error
        parts = [
            await self._replayed(batch[start : start + self._max_batch])
            for start in range(0, len(batch), self._max_batch)
        ]
        try:
            self.golden_difference = golden_difference(self.spec, np.concatenate(parts))
        except Drifted as error:
            raise LoadFailed("drift", str(error)) from error
        one = await self._seconds(batch[:1])
        size = min(len(batch), self._max_batch)
        self._batcher.times.calibrate(one, await self._seconds(batch[:size]) if size > 1 else one, size)

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

    async def _run(self, batch: NDArray[np.uint8], outputs: frozenset[str], deadline: float) -> Outputs:
        request = pb.ModelInferRequest(model_name=self.spec.name, model_version=self.spec.version)
        request.inputs.add(name="image", datatype="UINT8", shape=batch.shape)
        request.raw_input_contents.append(batch.tobytes())
        for name in outputs:
            request.outputs.add(name=name)
        timeout = None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
        try:
            response = await next(self._stubs).ModelInfer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return _tensors(response, len(batch))

    def _failure(self, error: grpc.aio.AioRpcError) -> FoveaError:
        label = {"model": self.spec.name, "version": self.spec.version}
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the deadline passed before Triton answered")
        if error.code() is grpc.StatusCode.UNAVAILABLE:  # Triton's answer too when it is unloading this version
            if self._open is None:
                log.warning("Triton is not available: %s", error.details(), extra=label)
                self._open = LOST
                self._suspect.set()
            return BackendUnavailable(f"{self.spec.name} is not ready: {self._open}", retry_after=RETRY_AFTER)
        log.error("Triton failed: %s: %s", error.code().name, error.details(), extra=label)
        return BackendFailed("the backend failed on this image; the server's log says more")

    async def _replayed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of golden images; all outputs must have the shapes that the spec promises."""
        try:
            outputs = await self._run(batch, frozenset(OUTPUTS), time.monotonic() + GOLDEN_SECONDS)
        except (BackendFailed, ValueError) as error:
            raise LoadFailed("graph", "it fails on the golden images; the log says more") from error
        if problem := misshapen(self.spec, outputs, len(batch)):
            raise LoadFailed("graph", problem)
        return np.asarray(outputs["logits"], np.float32)

    async def _seconds(self, batch: NDArray[np.uint8]) -> float:
        times = []
        for _ in range(3):
            started = time.monotonic()
            await self._run(batch, frozenset({"logits"}), time.monotonic() + GOLDEN_SECONDS)
            times.append(time.monotonic() - started)
        return min(times)


class TritonBackend:
    """Whatever Triton serves under the artefact contract. Satisfies `InferenceBackend`.

    Args:
        url: Of Triton's gRPC, `host:port`.
        metrics: Where batches, loads and readiness are counted.
        max_queue: Images that may wait for one version.
        limits: How large an image may be.
        poll_seconds: Between two looks at Triton.
    """

    def __init__(
        self, url: str, metrics: Metrics, *, max_queue: int, limits: Limits, poll_seconds: float = 1.0
    ) -> None:
        self._url = url
        self._metrics = metrics
        self._max_queue = max_queue
        self._limits = limits
        self._poll_seconds = poll_seconds
        self._catalogue: Catalogue[TritonModel] = Catalogue(metrics)
        self._problem: str | None = "Triton has not answered yet"
        self._suspect = asyncio.Event()  # something failed: look now
        self._configs: dict[str, tuple[bytes, RepositoryModel, int]] = {}  # as last read: parsing takes milliseconds
        self._queues = Queues()
        self._looks = 0
        self._looking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Stub] = []

    async def start(self) -> None:
        self._channels = [grpc.aio.insecure_channel(self._url, OPTIONS) for _ in range(CHANNELS)]
        self._stubs = [pb_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]
        await self._look()
        self._tasks = [
            asyncio.create_task(self._watch(), name="watch-triton"),
            asyncio.create_task(self._follow(), name="follow-triton"),
        ]

    def get(self, name: str, version: str | None = None) -> TritonModel:
        if self._problem and name not in self._catalogue.models:
            raise BackendUnavailable(self._problem, retry_after=RETRY_AFTER)
        return self._catalogue.get(name, version)

    def models(self) -> list[ModelStatus]:
        return self._catalogue.statuses()

    def problems(self) -> list[str]:
        return [self._problem] if self._problem else self._catalogue.problems()

    def busy(self, answering: int) -> bool:
        del answering  # what Triton works on now leaves room for more, as long as nothing waits for a lane here
        return self._queues.waiting > 0

    def pin(self, name: str, version: str | None) -> None:
        self._catalogue.pin(name, version)

    def pinned(self, name: str) -> str | None:
        return self._catalogue.pinned(name)

    async def load(self, name: str) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=name)
        async with self._looking:
            try:
                await self._ask("load", name, self._stubs[0].RepositoryModelLoad(request, timeout=LOAD_SECONDS))
            except BackendFailed:
                if name in self._catalogue.models:
                    raise
            else:
                self._looks = -1  # what failed is tried again in this look
                await self._update_all()
        self.get(name)

    async def unload(self, name: str) -> None:
        async with self._looking:
            if name not in self._catalogue.models:
                self.get(name)
            # Nothing new goes to Triton, and what has gone comes back before Triton lets go of the model.
            self._catalogue.unload(name)
            request = pb.RepositoryModelUnloadRequest(model_name=name)
            await self._catalogue.retired()
            await self._ask("unload", name, self._stubs[0].RepositoryModelUnload(request, timeout=LOAD_SECONDS))
            await self._update_all()

    async def _ask(self, what: str, name: str, call: Awaitable[Any]) -> None:
        """Have Triton load or unload a model.

        Raises:
            BackendUnavailable: It cannot be reached.
            BackendFailed: It refused.
        """
        try:
            await call
        except grpc.aio.AioRpcError as error:
            log.error("Triton did not %s it: %s: %s", what, error.code().name, error.details(), extra={"model": name})
            await self._update_all()
            if self._problem:
                raise BackendUnavailable(self._problem, retry_after=RETRY_AFTER) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise BackendUnavailable(f"Triton did not {what} {name} within {LOAD_SECONDS:.0f} s") from None
            raise BackendFailed(
                f"Triton did not {what} {name}; it has to run with --model-control-mode=explicit, and the model has to"
                " load there; the logs say more"
            ) from None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._problem = "the backend is closed"
        await self._catalogue.close()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # Watching.

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._suspect.wait(), self._poll_seconds)
                await asyncio.sleep(self._poll_seconds / 10)  # a server that is down is not asked in a tight circle
            except TimeoutError:
                pass
            self._suspect.clear()
            try:
                await self._look()
            except Exception:
                log.exception("looking at Triton failed; what was ready keeps serving")

    async def _follow(self) -> None:
        """Doubt everything when the connection breaks: a Triton that was restarted may serve something else."""
        channel = self._channels[0]
        state = channel.get_state(try_to_connect=True)
        while True:
            await channel.wait_for_state_change(state)
            before, state = state, channel.get_state(try_to_connect=True)
            if before is grpc.ChannelConnectivity.READY:
                for served in self._catalogue.served():
                    served.open(LOST)
                self._suspect.set()

    async def _look(self) -> None:
        async with self._looking:
            await self._update_all()

    async def _update_all(self) -> None:
        """Bring the catalogue up to what Triton has."""
        self._looks += 1
        try:
            index = await self._stubs[0].RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PROBE_SECONDS)
            present, unloaded = _present(index), _unloaded(index)
            configs = {name: await self._config(name) for name, versions in present.items() if versions}
        except grpc.aio.AioRpcError as error:
            self._lost(error)
            return
        for name in self._catalogue.models.keys() - present.keys():
            self._catalogue.drop_model(name)
        for name, (config, lanes) in configs.items():
            model = self._catalogue.models.setdefault(name, Model())
            for version in model.versions.keys() - present[name]:
                self._catalogue.drop(name, version)
            for version in self._catalogue.order(name, present[name]):
                await self._update(name, version, config, lanes)
            self._catalogue.accept_config(name)
        for name in present.keys() - configs.keys():
            if name in unloaded:
                self._catalogue.unload(name)
                continue
            model = self._catalogue.models.setdefault(name, Model())
            for version in list(model.versions):
                self._catalogue.drop(name, version)
            self._catalogue.refuse_config(name, "Triton has no version of it ready; its log says why")
        if self._problem:
            log.info("Triton answers")
        self._problem = None

    async def _config(self, name: str) -> tuple[RepositoryModel, int]:
        """A model's config, and how many batches of it to keep at Triton."""
        response = await self._stubs[0].ModelConfig(pb.ModelConfigRequest(name=name), timeout=PROBE_SECONDS)
        raw = response.config.SerializeToString(deterministic=True)
        known = self._configs.get(name)
        if known is None or known[0] != raw:
            known = self._configs[name] = (raw, parse_config(response.config), _lanes(response.config))
        return known[1], known[2]

    async def _update(self, name: str, version: str, config: RepositoryModel, lanes: int) -> None:
        known = self._catalogue.models[name].versions.get(version)
        spec = config.specs.get(version)
        signature = (spec, config.refused.get(version), config.max_batch_size, lanes)
        if known is not None and known.signature == signature:
            if known.served is not None and known.served.opened:
                await self._recover(name, version, known.served)
            if known.served is not None or self._looks % RETRY_LOOKS:
                return
        if spec is None:
            missing = "its config carries no spec for it; publish it with `python -m export`"
            failure = LoadFailed("config", config.refused.get(version, missing))
            self._catalogue.put(name, version, signature, spec, failure)
            return
        served = TritonModel(
            spec,
            self._stubs,
            max_batch=max(1, config.max_batch_size),
            max_queue=self._max_queue,
            lanes=lanes,
            limits=self._limits,
            observer=QueueObserver(self._metrics, name, self._queues),
            suspect=self._suspect,
        )
        try:
            await served.verify()
        except LoadFailed as failure:
            self._catalogue.put(name, version, signature, spec, failure)
        except FoveaError as error:
            log.warning("not verified yet: %s", error.message, extra={"model": name, "version": version})
        else:
            served.start()
            self._catalogue.put(name, version, signature, spec, served)

    async def _recover(self, name: str, version: str, served: TritonModel) -> None:
        """Trust a version again when its golden images come back right."""
        try:
            await served.verify()
        except LoadFailed as failure:
            log.error("version refused: %s", failure, extra={"model": name, "version": version})
            self._catalogue.withdraw(name, version, str(failure))
        except FoveaError as error:
            log.warning("not verified yet: %s", error.message, extra={"model": name, "version": version})
        else:
            served.shut()
            log.info("version ready again", extra={"model": name, "version": version})

    def _lost(self, error: grpc.aio.AioRpcError) -> None:
        if self._problem != LOST:
            log.error("%s: %s", LOST, error.details())
        self._problem = LOST
        for served in self._catalogue.served():
            served.open(LOST)


class Queues:
    """How many images wait for a batch here, of all versions together."""

    def __init__(self) -> None:
        self.waiting = 0


class QueueObserver(VersionObserver):
    """Counts what waits in the queue of one version into the sum over all."""

    def __init__(self, metrics: Metrics, model: str, queues: Queues) -> None:
        super().__init__(metrics, model)
        self._queues = queues
        self._waiting = 0

    def queued(self, depth: int) -> None:
        super().queued(depth)
        self._queues.waiting += depth - self._waiting
        self._waiting = depth


def _present(index: pb.RepositoryIndexResponse) -> dict[str, set[str]]:
    """Every model that Triton knows, with the versions that it has ready."""
    found: dict[str, set[str]] = {}
    for row in index.models:
        if row.name.startswith("."):  # something is being published
            continue
        versions = found.setdefault(row.name, set())
        if row.state == "READY" and row.version.isdecimal():
            versions.add(row.version)
    return found


def _unloaded(index: pb.RepositoryIndexResponse) -> set[str]:
    """Models that are not loaded because nobody wants them to be."""
    return {row.name for row in index.models if row.reason == "unloaded" or row.state == "UNLOADING" or not row.state}


def _lanes(config: ModelConfig) -> int:
    """Batches to keep at Triton: enough for all its instances of a model."""
    instances: int = sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)
    return LANES * max(instances, 1)


def _tensors(response: pb.ModelInferResponse, rows: int) -> Outputs:
    """Float outputs by name, `[rows, ...]`.

    Raises:
        ValueError: The response is not what the protocol promises.
    """
    found: dict[str, NDArray[np.generic]] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype != OUTPUT_TYPE:
            raise ValueError(f"output {tensor.name} is {tensor.datatype}, not {OUTPUT_TYPE}")
        found[tensor.name] = np.frombuffer(raw, "<f4").reshape(tuple(tensor.shape))
    if any(len(values) != rows for values in found.values()):
        raise ValueError(f"a batch of {rows} came back with other numbers of rows")
    return found
