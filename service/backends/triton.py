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
from collections.abc import Awaitable, Set
from functools import partial
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from service.backends import triton_wire as wire
from service.backends.base import ModelStatus
from service.backends.catalogue import Catalogue, LoadFailed, Model, VersionObserver
from service.backends.triton_model import LOST, RETRY_AFTER, Connection, TritonModel
from service.errors import BackendFailed, BackendUnavailable, FoveaError
from service.metrics import Metrics
from service.preprocess import Limits
from service.spec import RepositoryModel, parse_config

log = logging.getLogger(__name__)

CHANNELS = 2  # TCP connections; one carries some hundred megabytes a second
PROBE_SECONDS = 2.0  # without an answer to a health check, Triton is taken for dead
REPLAY_SECONDS = 1.0  # that a look waits for the golden images of one model, before it goes on to the next
LOAD_SECONDS = 120.0  # for Triton to load or unload a model
RETRY_LOOKS = 10  # between two tries of a version that failed: Triton's files may be mended without its spec changing
NO_DECODER = (
    f"Triton has no model {wire.DECODER}, which is to decode images: start it by `deploy/triton/serve.py --decode`,"
    " or this gateway with --decode-on gateway"
)
# Without these a channel waits up to two minutes before it tries a server again that was away.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or all channels would share one connection
)

Stub: TypeAlias = Any  # pb_grpc.GRPCInferenceServiceStub, which has no types


class TritonBackend:
    """Whatever Triton serves under the artefact contract. Satisfies `InferenceBackend`.

    Args:
        url: Of Triton's gRPC, `host:port`.
        metrics: Where batches, loads and readiness are counted.
        max_queue: Images that may wait for one version.
        limits: How large an image may be.
        decodes: Triton decodes, by its decode model; without that nothing is ready.
        poll_seconds: Between two looks at Triton.
    """

    remembers = True

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        max_queue: int,
        limits: Limits,
        decodes: bool = False,
        poll_seconds: float = 1.0,
    ) -> None:
        self._url = url
        self._metrics = metrics
        self._max_queue = max_queue
        self._limits = limits
        self._decodes = decodes
        self._poll_seconds = poll_seconds
        self._catalogue: Catalogue[TritonModel] = Catalogue(metrics)
        self._problem: str | None = "Triton has not answered yet"
        self._suspect = asyncio.Event()  # something failed: look now
        self._configs: dict[str, tuple[bytes, RepositoryModel, int]] = {}  # as last read: parsing takes milliseconds
        self._queues = Queues()
        self._looks = 0
        self._looking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._replays: dict[str, asyncio.Task[None]] = {}  # by model: one that hangs holds up none of the others
        self._channels: list[grpc.aio.Channel] = []
        self._stub: Stub
        self._connection: Connection

    async def start(self) -> None:
        self._channels = [grpc.aio.insecure_channel(self._url, OPTIONS) for _ in range(CHANNELS)]
        self._stub = pb_grpc.GRPCInferenceServiceStub(self._channels[0])
        read = pb.ModelInferResponse.FromString
        calls = [channel.unary_unary(wire.INFER, response_deserializer=read) for channel in self._channels]
        self._connection = Connection(calls, self._suspect, self._limits, self._decodes)
        await self._look()
        self._tasks = [
            asyncio.create_task(self._watch(), name="watch-triton"),
            asyncio.create_task(self._follow(), name="follow-triton"),
        ]
        await self._replayed(*self._replays)

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

    def hold(self, names: Set[str]) -> None:
        """Nothing: what is unloaded, Triton knows."""

    async def load(self, name: str) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=name)
        async with self._looking:
            try:
                await self._ask("load", name, self._stub.RepositoryModelLoad(request, timeout=LOAD_SECONDS))
            except BackendFailed:
                if name in self._catalogue.models:
                    raise
            else:
                self._end_replay(name)
                self._looks = -1  # what failed is tried again in this look
                await self._update_all()
        await self._replayed(name)
        self.get(name)

    async def unload(self, name: str) -> None:
        async with self._looking:
            if name not in self._catalogue.models:
                self.get(name)
            # Nothing new goes to Triton, and what has gone comes back before Triton lets go of the model.
            self._end_replay(name)
            self._catalogue.unload(name)
            request = pb.RepositoryModelUnloadRequest(model_name=name)
            await self._catalogue.retired()
            await self._ask("unload", name, self._stub.RepositoryModelUnload(request, timeout=LOAD_SECONDS))
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
        tasks = [*self._tasks, *self._replays.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
        """Bring the catalogue up to what Triton has; replays that take their time go on behind this."""
        self._looks += 1
        try:
            index = await self._stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=PROBE_SECONDS)
            present, unloaded = wire.present(index), wire.unloaded(index)
            decoder = present.pop(wire.DECODER, None)
            configs = {name: await self._config(name) for name, versions in present.items() if versions}
        except grpc.aio.AioRpcError as error:
            self._refuse(LOST, error.details())
            return
        if self._decodes and not decoder:
            self._refuse(NO_DECODER)
            return
        for name in self._catalogue.models.keys() - present.keys():
            self._end_replay(name)
            self._catalogue.drop_model(name)
        for name in present.keys() - configs.keys():
            self._end_replay(name)
            self._note_absent(name, unloaded=name in unloaded)
        for name, (config, instances) in configs.items():
            if name not in self._replays:
                task = asyncio.create_task(self._update(name, present[name], config, instances), name=f"replay-{name}")
                self._replays[name] = task
                task.add_done_callback(partial(self._note_replayed, name))
                await asyncio.wait([task], timeout=REPLAY_SECONDS)
        if self._problem:
            log.info("Triton answers")
        self._problem = None

    async def _config(self, name: str) -> tuple[RepositoryModel, int]:
        """A model's config, and how many instances of it there are."""
        response = await self._stub.ModelConfig(pb.ModelConfigRequest(name=name), timeout=PROBE_SECONDS)
        raw = response.config.SerializeToString(deterministic=True)
        known = self._configs.get(name)
        if known is None or known[0] != raw:
            known = self._configs[name] = (raw, parse_config(response.config), wire.instances(response.config))
        return known[1], known[2]

    async def _update(self, name: str, present: set[str], config: RepositoryModel, instances: int) -> None:
        """Bring one model up to what Triton has."""
        model = self._catalogue.models.setdefault(name, Model())
        for version in model.versions.keys() - present:
            self._catalogue.drop(name, version)
        for version in self._catalogue.order(name, present):
            await self._update_version(name, version, config, instances)
        self._catalogue.accept_config(name)

    async def _update_version(self, name: str, version: str, config: RepositoryModel, instances: int) -> None:
        known = self._catalogue.models[name].versions.get(version)
        spec = config.specs.get(version)
        signature = (spec, config.refused.get(version), config.max_batch_size, instances)
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
            self._connection,
            max_batch=max(1, config.max_batch_size),
            max_queue=self._max_queue,
            instances=instances,
            observer=QueueObserver(self._metrics, name, self._queues),
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

    def _note_absent(self, name: str, *, unloaded: bool) -> None:
        """Note that Triton has no version of a model ready, because somebody wanted so or because it fails."""
        if unloaded:
            self._catalogue.unload(name)
            return
        model = self._catalogue.models.setdefault(name, Model())
        for version in list(model.versions):
            self._catalogue.drop(name, version)
        self._catalogue.refuse_config(name, "Triton has no version of it ready; its log says why")

    async def _replayed(self, *names: str) -> None:
        """Wait until models that are being looked at have been."""
        if tasks := [self._replays[name] for name in names if name in self._replays]:
            await asyncio.wait(tasks)

    def _note_replayed(self, name: str, task: asyncio.Task[None]) -> None:
        if self._replays.get(name) is task:
            del self._replays[name]
        if not task.cancelled() and (error := task.exception()):
            log.error("looking at it failed; what was ready keeps serving", exc_info=error, extra={"model": name})

    def _end_replay(self, name: str) -> None:
        if task := self._replays.pop(name, None):
            task.cancel()

    def _refuse(self, problem: str, details: str | None = None) -> None:
        """Answer nothing until the problem is solved."""
        if self._problem != problem:
            log.error("%s%s", problem, f": {details}" if details else "")
        self._problem = problem
        for served in self._catalogue.served():
            served.open(problem)


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
