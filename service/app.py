"""Composition root: builds the parts from settings, starts them, drains and closes them."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from service.access.rates import Rates, RatesUnavailable
from service.access.ring import Policy, Ring
from service.backends.base import InferenceBackend
from service.backends.embedded import EmbeddedBackend
from service.backends.onnx_runtime import Embedding
from service.backends.triton import TritonBackend
from service.classifier import Classifier
from service.exposure import opened
from service.heads.directory import Directory
from service.heads.fitter import Fitter
from service.heads.live import LiveHeads
from service.heads.teaching import Limits, Teaching
from service.metrics import Metrics
from service.oip.protocol import OpenInference
from service.preprocess import Limits as ImageLimits
from service.routes.control import Control
from service.routes.shadow import Shadows
from service.routes.table import RouteTable
from service.settings import InvalidSettings, Settings
from service.store.shared import SharedStore
from service.tracing.trace import Tracer
from service.transports.grpc.calls import Limits as CallLimits
from service.transports.grpc.server import GrpcServer
from service.transports.http import app as http
from service.transports.http.bodies import BodyLimits
from service.transports.http.server import HttpServer
from service.workers.member import Member
from service.workers.peers import Peers, pids

log = logging.getLogger(__name__)


class Gateway:
    """All the parts, put together; nothing runs before `start`.

    Attributes:
        classifier: The use case.
        http: The HTTP transport, an ASGI application.
        grpc: The gRPC transport.
        draining: It has been told to stop.
    """

    def __init__(self, settings: Settings, member: Member | None) -> None:
        metrics = _shared_metrics(member) if member else _metrics()
        backend = _backend(settings, metrics)
        self._shared = SharedStore(opened(settings))
        self._rates = _rates(settings)
        self._tracer = _tracer(settings)
        # The first to follow the store: a key that was revoked is not to wait for heads that are read.
        ring = Ring(self._shared, self._rates, Policy(settings.is_loopback(), settings.insecure, settings.admin))
        heads = LiveHeads(self._shared, backend)
        self._models = Directory(backend, heads)
        routes = RouteTable(self._models, metrics)
        self._shadows = Shadows(self._models)
        self._control = Control(backend, routes, self._shared)
        self.classifier = Classifier(
            self._models,
            metrics,
            routes=routes,
            shadows=self._shadows,
            default_model=settings.default_model,
            max_images=settings.max_images,
            decode_threads=settings.threads,
        )
        self._fitter = Fitter()
        limits = Limits(settings.max_heads, settings.max_examples, settings.max_labels)
        teaching = Teaching(self._shared, heads, self.classifier, self._models, self._fitter, limits)
        self.draining = False
        self._peers = Peers(member.path(), self.classifier.statistics.dump) if member else None
        protocol = OpenInference(
            self.classifier,
            self._control,
            problems=self.problems,
            max_images=settings.max_images,
            others=self._peers.ask if self._peers else None,
        )
        self.http = http.build(
            self.classifier,
            protocol,
            self._control,
            teaching,
            heads,
            metrics,
            BodyLimits(settings.max_request_bytes, settings.max_images),
            default_timeout=settings.default_timeout_ms / 1000,
            max_timeout=settings.max_timeout_ms / 1000,
            ring=ring,
            tracer=self._tracer,
            problems=self.problems,
        )
        self.grpc = GrpcServer(
            self.classifier,
            protocol,
            ring,
            metrics,
            CallLimits(
                settings.max_calls,
                settings.max_message_bytes or settings.max_request_bytes,
                default_timeout=settings.default_timeout_ms / 1000,
                max_timeout=settings.max_timeout_ms / 1000,
            ),
            tracer=self._tracer,
            max_images=settings.max_images,
            problems=self.problems,
            tls=settings.tls(),
        )

    async def start(self) -> None:
        """Load the models; until it returns, `problems` says that they are being loaded."""
        if self._tracer is not None:
            self._tracer.start()
        if self._peers is not None:
            await self._peers.start()
        await self._shared.start()
        await self._models.start()

    def drain(self) -> None:
        """Say not ready from now on; go on answering."""
        self.draining = True
        self.grpc.drain()

    def problems(self) -> list[str]:
        """Why the gateway should get no requests; empty when it is ready."""
        return [*(["the server is shutting down"] if self.draining else []), *self.classifier.problems()]

    async def close(self) -> None:
        await self._shadows.close()
        await self._fitter.close()
        await self._models.close()
        await self._shared.close()
        await self._rates.close()
        self.classifier.close()
        if self._peers is not None:
            await self._peers.close()
        if self._tracer is not None:
            await self._tracer.close()


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[Classifier]:
    """The use case without a server: with the taught heads, if the database is there; none is made."""
    metrics = Metrics(CollectorRegistry())
    models: InferenceBackend = _backend(settings, metrics)
    shared: SharedStore | None = None
    if (store := opened(settings)).exists():
        shared = SharedStore(store)
        models = Directory(models, LiveHeads(shared, models))
        await shared.start()
    classifier = Classifier(
        models,
        metrics,
        default_model=settings.default_model,
        max_images=settings.max_images,
        decode_threads=settings.threads,
    )
    await models.start()
    try:
        yield classifier
    finally:
        await models.close()
        if shared:
            await shared.close()
        classifier.close()


def _metrics() -> Metrics:
    """The metrics of a process by itself, with those of the process."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return Metrics(registry)


def _shared_metrics(member: Member) -> Metrics:
    """The metrics of all workers together, whichever is asked."""
    return Metrics(CollectorRegistry(), folder=member.path(), processes=lambda: pids(member.path()))


def _rates(settings: Settings) -> Rates:
    try:
        return Rates(settings.rate_limit_url)
    except RatesUnavailable as error:
        raise InvalidSettings(f"FOVEA_RATE_LIMIT_URL: {error}") from None


def _tracer(settings: Settings) -> Tracer | None:
    if settings.traces == "off":
        return None
    try:
        from service.tracing.otlp import OtlpTracer, TracingUnavailable  # which takes a third of a second
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise InvalidSettings(
            "FOVEA_TRACES: sending traces takes OpenTelemetry: pip install 'fovea[tracing]'"
        ) from None
    try:
        return OtlpTracer()
    except TracingUnavailable as error:
        raise InvalidSettings(f"FOVEA_TRACES: {error}") from None


def _backend(settings: Settings, metrics: Metrics) -> EmbeddedBackend | TritonBackend:
    limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
    if settings.backend == "triton":
        return TritonBackend(
            settings.triton_url,
            metrics,
            max_queue=settings.max_queue,
            limits=limits,
            decodes=settings.decode_on == "triton",
            poll_seconds=settings.poll_seconds,
        )
    return EmbeddedBackend(
        settings.model_repository,
        metrics,
        embedding=Embedding(settings.threads, settings.max_queue),
        limits=limits,
        poll_seconds=settings.poll_seconds,
    )


async def serve(settings: Settings, member: Member | None = None) -> int:
    """Serve until SIGTERM or SIGINT; a worker, also until its supervisor is gone.

    SIGTERM: `/readyz` and gRPC's health say not ready at once; after `drain_delay` the server takes no new connections
    and finishes what it has accepted, for at most `drain_timeout`. SIGINT does the same without the delay; a second
    signal stops at once.

    Returns:
        The process's exit status.
    """
    # What the imports made stays. Full collections that looked at it each time stopped everything for tens of
    # milliseconds, several times while a large JSON was read.
    gc.collect()
    gc.freeze()
    gateway = Gateway(settings, member)
    http_server = HttpServer(gateway.http, drain_timeout=settings.drain_timeout, tls=settings.tls())
    servers = (http_server, gateway.grpc)
    if member is None:
        log.info("listening on %s", http_server.listen(settings.host, settings.port))
        if settings.grpc_port is not None:
            log.info("listening on %s", gateway.grpc.listen(settings.host, settings.grpc_port))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.stop()

    def drain(delay: float) -> None:
        if gateway.draining:  # the second signal: no more patience
            for server in servers:
                server.abort()
            return
        log.info("draining")
        gateway.drain()
        loop.call_later(delay, stop)

    def loaded(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("the models cannot be loaded", exc_info=error)
            stop()

    def orphaned(alive: int) -> None:
        loop.remove_reader(alive)
        log.error("the supervisor is gone")
        drain(0.0)

    loop.add_signal_handler(signal.SIGTERM, drain, settings.drain_delay)
    loop.add_signal_handler(signal.SIGINT, drain, 0.0)
    if member is not None:
        loop.add_reader(member.alive, orphaned, member.alive)
    loading = asyncio.create_task(gateway.start())
    loading.add_done_callback(loaded)
    if member is not None:
        # A worker that took requests while it loads would refuse what the others can answer.
        await asyncio.wait([loading])
        http_server.adopt(member.http, member.held("http"))
        if member.grpc is not None:
            gateway.grpc.adopt(member.grpc, member.held("grpc"))
    await asyncio.gather(http_server.serve(), gateway.grpc.serve(settings.drain_timeout))
    failed = loading.done() and not loading.cancelled() and loading.exception() is not None
    loading.cancel()
    try:
        await asyncio.wait_for(gateway.close(), settings.drain_timeout)
    except TimeoutError:
        log.error("a batch did not finish in time")
        failed = True
    log.info("stopped")
    return int(failed)
