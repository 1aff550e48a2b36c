"""Composition root: builds the parts from settings, starts them, drains and closes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Generator

import uvicorn
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from service.backends.embedded import EmbeddedBackend
from service.backends.onnx_runtime import Embedding
from service.backends.triton import TritonBackend
from service.classifier import Classifier
from service.metrics import Metrics
from service.preprocess import Limits
from service.routes.control import Control
from service.routes.shadow import Shadows
from service.routes.table import RouteTable
from service.settings import Settings
from service.transports.http import app as http
from service.transports.http.bodies import BodyLimits
from service.transports.http.protocol import JoiningProtocol

log = logging.getLogger(__name__)


class Gateway:
    """All the parts, put together; nothing runs before `start`.

    Attributes:
        classifier: The use case.
        http: The HTTP transport, an ASGI application.
        draining: It has been told to stop.
    """

    def __init__(self, settings: Settings) -> None:
        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        metrics = Metrics(registry)
        self._backend = _backend(settings, metrics)
        routes = RouteTable(self._backend, metrics)
        self._shadows = Shadows(self._backend)
        self._control = Control(self._backend, routes, settings.state_dir)
        self.classifier = Classifier(
            self._backend,
            metrics,
            routes=routes,
            shadows=self._shadows,
            default_model=settings.default_model,
            max_images=settings.max_images,
            decode_threads=settings.threads,
        )
        self.draining = False
        self.http = http.build(
            self.classifier,
            self._control,
            metrics,
            BodyLimits(settings.max_request_bytes, settings.max_images),
            default_timeout=settings.default_timeout_ms / 1000,
            max_timeout=settings.max_timeout_ms / 1000,
            admin=settings.takes_admin(),
            problems=self.problems,
        )

    async def start(self) -> None:
        """Load the models; until it returns, `problems` says that they are being loaded."""
        self._control.restore()
        await self._backend.start()

    def drain(self) -> None:
        """Say not ready from now on; go on answering."""
        self.draining = True

    def problems(self) -> list[str]:
        """Why the gateway should get no requests; empty when it is ready."""
        return [*(["the server is shutting down"] if self.draining else []), *self.classifier.problems()]

    async def close(self) -> None:
        await self._shadows.close()
        await self._backend.close()
        self.classifier.close()


def _backend(settings: Settings, metrics: Metrics) -> EmbeddedBackend | TritonBackend:
    limits = Limits(settings.max_image_bytes, settings.max_pixels)
    if settings.backend == "triton":
        return TritonBackend(
            settings.triton_url,
            metrics,
            max_queue=settings.max_queue,
            limits=limits,
            poll_seconds=settings.poll_seconds,
        )
    return EmbeddedBackend(
        settings.model_repository,
        metrics,
        embedding=Embedding(settings.threads, settings.max_queue),
        limits=limits,
        poll_seconds=settings.poll_seconds,
    )


class _Server(uvicorn.Server):
    """Leaves signals to us: readiness has to change before the listening socket closes, and a drain exits with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    SIGTERM: `/readyz` answers 503 at once; after `drain_delay` the server takes no new connections and finishes
    what it has accepted, for at most `drain_timeout`. SIGINT does the same without the delay; a second signal stops
    at once.

    Returns:
        The process's exit status.
    """
    listener = _listen(settings.host, settings.port)
    gateway = Gateway(settings)
    config = uvicorn.Config(
        gateway.http,
        http=JoiningProtocol,
        lifespan="off",
        proxy_headers=False,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout) or 1,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop(delay: float) -> None:
        if gateway.draining:  # the second signal: no more patience
            server.should_exit = server.force_exit = True
            return
        log.info("draining")
        gateway.drain()
        loop.call_later(delay, setattr, server, "should_exit", True)

    loop.add_signal_handler(signal.SIGTERM, stop, settings.drain_delay)
    loop.add_signal_handler(signal.SIGINT, stop, 0.0)
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    loading = asyncio.create_task(gateway.start())
    loading.add_done_callback(lambda task: _loaded(task, server))
    await server.serve(sockets=[listener])
    failed = loading.done() and not loading.cancelled() and loading.exception() is not None
    loading.cancel()
    try:
        await asyncio.wait_for(gateway.close(), settings.drain_timeout)
    except TimeoutError:
        log.error("a batch did not finish in time")
        failed = True
    log.info("stopped")
    return int(failed)


def _loaded(task: asyncio.Task[None], server: uvicorn.Server) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("the models cannot be loaded", exc_info=error)
        server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
