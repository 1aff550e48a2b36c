"""The gRPC server: its services, its port, and how it stops."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from service.access.ring import Ring
from service.classifier import Classifier
from service.metrics import Metrics
from service.oip.protocol import OpenInference
from service.tracing.trace import Tracer
from service.transports.grpc import health, native, open_inference
from service.transports.grpc.calls import InFlight, Limits
from service.transports.grpc.gate import Gate
from service.transports.grpc.guard import Guard
from service.transports.grpc.health import Health
from service.transports.grpc.listener import Listener
from service.transports.grpc.native import NativeService
from service.transports.grpc.open_inference import OpenInferenceService
from service.transports.grpc.reflection import Reflection
from service.workers import sockets
from service.workers.accepting import Held

# Calls beyond the limit are refused in our words, and counted; so many on one connection.
MARGIN_CALLS = 1000
CUT_SECONDS = 1.0  # for refusals to leave when a drain has run out of time


class GrpcServer:
    """All gRPC services on one port; nothing runs before `listen`.

    Args:
        classifier: Answers.
        protocol: Answers what is asked by the Open Inference Protocol.
        ring: Knows who may ask, and who may change the server.
        metrics: Where calls are counted.
        limits: What calls may take.
        tracer: Makes the calls' traces, if they are to have any.
        max_images: In one request, and worked on at once in one stream.
        problems: Why the server is not ready.
        tls: Files of the certificate chain and of its key; None for plain text.
    """

    def __init__(
        self,
        classifier: Classifier,
        protocol: OpenInference,
        ring: Ring,
        metrics: Metrics,
        limits: Limits,
        *,
        tracer: Tracer | None,
        max_images: int,
        problems: Callable[[], Sequence[str]],
        tls: tuple[Path, Path] | None,
    ) -> None:
        services = (native.SERVICE, open_inference.SERVICE)
        self._health = Health(services, problems)
        parts = (
            NativeService(classifier, at_once=max_images),
            OpenInferenceService(protocol, Guard(ring), at_once=max_images),
            self._health,
            Reflection((*services, health.SERVICE)),
        )
        self._calls = InFlight(limits, metrics, tracer)
        gate = Gate([method for part in parts for method in part.methods()], self._calls, ring)
        self._listener = Listener(gate.opened, max_streams=limits.max_calls + MARGIN_CALLS)
        self._tls = tls
        self._stopped = asyncio.Event()
        self._socket: socket.socket | None = None
        self._held: Held | None = None

    def listen(self, host: str, port: int) -> str:
        """Take the address.

        Args:
            host: Address to listen on.
            port: 0 takes a free one.

        Returns:
            The address, as `grpc://host:port`.

        Raises:
            OSError: It cannot be listened on.
        """
        self._socket = sockets.for_grpc(host, port)
        host, port = self._socket.getsockname()[:2]
        return sockets.shown("grpcs" if self._tls else "grpc", host, port)

    def adopt(self, descriptor: int, held: Held) -> None:
        """Accept from a socket that listens already, like other processes, of which each holds its share."""
        self._socket = socket.socket(fileno=descriptor)
        self._held = held

    def drain(self) -> None:
        """Tell those who watch the server's health that it has changed."""
        self._health.changed()

    async def serve(self, drain_timeout: float) -> None:
        """Answer until told to stop, and then what has been accepted.

        Args:
            drain_timeout: Seconds after that until what is still there is refused.
        """
        if self._socket is not None:
            await self._listener.start(self._socket, _context(*self._tls) if self._tls else None, self._held)
        await self._stopped.wait()
        self._calls.close_streams()
        self._health.changed()
        cut = asyncio.get_running_loop().call_later(drain_timeout, self._calls.cut)
        await self._listener.stop(drain_timeout + CUT_SECONDS)
        cut.cancel()

    def stop(self) -> None:
        """Take no new calls, and finish."""
        self._stopped.set()

    def abort(self) -> None:
        """Stop, and refuse what is still there."""
        self.stop()
        self._calls.cut()


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context
