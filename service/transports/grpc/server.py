"""The gRPC server: its services, its port, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

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
from service.transports.grpc.native import NativeService
from service.transports.grpc.open_inference import OpenInferenceService
from service.transports.grpc.reflection import Reflection
from service.workers import sockets

# Up to so much beyond the limit a message is read nevertheless, to be refused in our words and counted. What is larger
# is refused by grpc itself, unread.
MARGIN_BYTES = 2**20
# A peer that has vanished without a word holds its streams for so long; by default it would be hours.
KEEPALIVE_SECONDS = 60
IDLE_SECONDS = 300  # of a connection without a call, which is then closed; clients connect again by themselves
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
        self._gate = Gate([method for part in parts for method in part.methods()], self._calls, ring)
        self._stopped = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def listen(self, host: str, port: int, tls: tuple[Path, Path] | None, *, shared: bool = False) -> str:
        """Take calls from now on.

        Args:
            host: Address to listen on.
            port: 0 takes a free one.
            tls: Files of the certificate chain and of its key; None for plain text.
            shared: Other processes of ours listen there, too; the kernel deals out the connections.

        Returns:
            The address, as `grpc://host:port`.

        Raises:
            OSError: The address cannot be listened on.
        """
        limits = self._calls.limits
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", int(shared)),  # by default a second server would share the port, too
                ("grpc.max_receive_message_length", limits.max_message_bytes + MARGIN_BYTES),
                ("grpc.max_send_message_length", -1),  # the gate sees to it
                ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
                ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
            ),
        )
        server.add_generic_rpc_handlers((self._gate,))
        try:
            if not shared:  # grpc would say no more than that it failed
                sockets.listening(host, port).close()
            if tls:
                certificate, key = (path.read_bytes() for path in tls)
                credentials = grpc.ssl_server_credentials([(key, certificate)])
                port = server.add_secure_port(sockets.address(host, port), credentials)
            else:
                port = server.add_insecure_port(sockets.address(host, port))
        except (OSError, RuntimeError) as error:
            raise sockets.no_grpc(host, port, error) from error
        await server.start()
        self._server = server
        return sockets.shown("grpcs" if tls else "grpc", host, port)

    def drain(self) -> None:
        """Tell those who watch the server's health that it has changed."""
        self._health.changed()

    async def serve(self, drain_timeout: float) -> None:
        """Answer until told to stop, and then what has been accepted.

        Args:
            drain_timeout: Seconds after that until what is still there is refused.
        """
        await self._stopped.wait()
        if self._server is None:
            return
        self._calls.close_streams()
        self._health.changed()
        stopping = asyncio.create_task(self._server.stop(drain_timeout + CUT_SECONDS))
        cut = asyncio.get_running_loop().call_later(drain_timeout, self._calls.cut)
        await stopping
        cut.cancel()

    def stop(self) -> None:
        """Take no new calls, and finish."""
        self._stopped.set()

    def abort(self) -> None:
        """Stop, and refuse what is still there."""
        self.stop()
        self._calls.cut()
