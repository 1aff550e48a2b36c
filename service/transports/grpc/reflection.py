"""Server reflection: what services there are and what their messages look like, for tools that know neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import aio

from service.transports.grpc.calls import Method, StreamCall
from service.transports.grpc.messages import parse

SERVICE: str = pb.DESCRIPTOR.services_by_name["ServerReflection"].full_name


class Reflection:
    """The service's method.

    Args:
        services: Names of the services; this one is added.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._servicer = aio.ReflectionServicer((*services, SERVICE))

    def methods(self) -> list[Method]:
        return [Method(f"/{SERVICE}/ServerReflectionInfo", self.answer, streams=True)]

    async def answer(self, call: StreamCall) -> None:
        async def questions() -> AsyncIterator[pb.ServerReflectionRequest]:
            while (message := await call.read()) is not None:
                yield parse(pb.ServerReflectionRequest, message)

        async for response in self._servicer.ServerReflectionInfo(questions(), None):
            await call.write(response.SerializeToString())
