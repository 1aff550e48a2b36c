"""A client of the native gRPC service, made of the generated messages alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.server import Server

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

_METHODS = pb.DESCRIPTOR.services_by_name["Classifier"].methods_by_name


@dataclass(frozen=True)
class Failure:
    """How a call failed: its status, the detail, and the metadata behind it."""

    status: str
    detail: str
    trailers: dict[str, str]

    @property
    def code(self) -> str | None:
        return self.trailers.get("fovea-code")


def failure(error: Any) -> Failure:
    """Of a `grpc.RpcError`."""
    return Failure(error.code().name, error.details(), dict(error.trailing_metadata() or ()))


class Rpc:
    """Calls to one server; `classify` and `embed` give an answer as a dictionary, or how they failed."""

    def __init__(self, server: Server) -> None:
        self.channel = grpc.insecure_channel(server.grpc, UNLIMITED)

    def __enter__(self) -> Rpc:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()

    def stub(self, name: str) -> Any:
        """Of the method of that name."""
        return stub(self.channel, name)

    def classify(self, images: Sequence[bytes], **options: Any) -> dict[str, Any] | Failure:
        return self._ask("Classify", pb.ClassifyRequest, images, **options)

    def embed(self, images: Sequence[bytes], **options: Any) -> dict[str, Any] | Failure:
        return self._ask("Embed", pb.EmbedRequest, images, **options)

    def stream(self, requests: Iterable[pb.ClassifyStreamRequest], **options: Any) -> list[dict[str, Any]]:
        answers = self.stub("ClassifyStream")(iter(requests), timeout=options.pop("timeout", 30), **options)
        return [as_dict(answer) for answer in answers]

    def raw(self, path: str, message: bytes, timeout: float = 20) -> bytes | Failure:
        """The bytes of a unary answer."""
        try:
            answer: bytes = self.channel.unary_unary(path)(message, timeout=timeout)
        except grpc.RpcError as error:
            return failure(error)
        return answer

    def _ask(
        self,
        name: str,
        kind: Any,
        images: Sequence[bytes],
        *,
        timeout: float | None = 20,
        metadata: Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> dict[str, Any] | Failure:
        request = kind(images=images, **{"model": "tiny", **fields})
        try:
            return as_dict(self.stub(name)(request, timeout=timeout, metadata=metadata))
        except grpc.RpcError as error:
            return failure(error)


def stub(channel: Any, name: str) -> Any:
    """A native method on a channel of grpc or of grpc.aio."""
    method = _METHODS[name]
    request, response = (getattr(pb, kind.name) for kind in (method.input_type, method.output_type))
    make = channel.stream_stream if method.client_streaming else channel.unary_unary
    return make(
        f"/{method.containing_service.full_name}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


def as_dict(message: Any) -> dict[str, Any]:
    """A message as the JSON of HTTP would have it: numbers as numbers, and what may be missing missing."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
