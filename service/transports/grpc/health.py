"""`grpc.health.v1.Health`: whether the server is ready, asked or watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from grpc_health.v1 import health_pb2 as pb

from service.errors import FoveaError
from service.transports.grpc.calls import Call, Method, StreamCall
from service.transports.grpc.messages import parse

SERVICE: str = pb.DESCRIPTOR.services_by_name["Health"].full_name
LOOK_SECONDS = 0.1  # between two looks at whether the server is ready, for those who watch


class UnknownService(FoveaError):
    code = "unknown_service"


_STATUS = pb.HealthCheckResponse.ServingStatus


class Health:
    """The service's methods. All services are as ready as the server.

    Args:
        services: Their names.
        problems: Why the server is not ready; empty if it is.
    """

    def __init__(self, services: Iterable[str], problems: Callable[[], Sequence[str]]) -> None:
        self._services = frozenset(("", SERVICE, *services))
        self._problems = problems
        self._looked_at = asyncio.Event()

    def methods(self) -> list[Method]:
        return [
            Method(f"/{SERVICE}/Check", self.check, open=True),
            Method(f"/{SERVICE}/List", self.list, open=True),
            Method(f"/{SERVICE}/Watch", self.watch, streams=True, open=True),
        ]

    def changed(self) -> None:
        """Tell those who watch at once."""
        self._looked_at.set()
        self._looked_at.clear()

    async def check(self, call: Call, message: bytes) -> bytes:
        del call
        service = parse(pb.HealthCheckRequest, message).service
        if service not in self._services:
            raise UnknownService(f"there is no service {service[:200]!r} here")
        return self._response(self._status(service))

    async def list(self, call: Call, message: bytes) -> bytes:
        """The status of every service."""
        del call
        parse(pb.HealthListRequest, message)
        statuses = {service: pb.HealthCheckResponse(status=self._status(service)) for service in self._services}
        written: bytes = pb.HealthListResponse(statuses=statuses).SerializeToString()
        return written

    async def watch(self, call: StreamCall) -> None:
        """Tell the status, and again whenever it has changed, as long as anybody listens."""
        message = await call.read()
        if message is None:
            return
        service = parse(pb.HealthCheckRequest, message).service
        told = None
        while True:
            if (status := self._status(service)) != told:
                await call.write(self._response(status))
                told = status
            if call.closed:
                return
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._looked_at.wait()
            except TimeoutError:
                continue

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(_STATUS.SERVICE_UNKNOWN)
        return int(_STATUS.NOT_SERVING if self._problems() else _STATUS.SERVING)

    @staticmethod
    def _response(status: int) -> bytes:
        written: bytes = pb.HealthCheckResponse(status=status).SerializeToString()
        return written
