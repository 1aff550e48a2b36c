"""The native gRPC service, in messages that the server itself describes by reflection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gevent
import grpc
import grpc.experimental.gevent
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from load_tests.locust_users.known import Unusable
from load_tests.locust_users.outcomes import Late, Refused, Wrong, judge

PACKAGE = "fovea.v1"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
CONNECT_SECONDS = 10.0
CALLS = 1000  # at once: under gevent each waits in a thread of its pool, which has ten unless told otherwise


class Rpc:
    """A channel that all users of a process share; made once, because gevent's support is for the whole process.

    Args:
        address: host:port.
        key: Of the server; None where there is none.
        secure: Whether it speaks TLS.

    Raises:
        Unusable: The service is not there.
    """

    def __init__(self, address: str, key: str | None, secure: bool) -> None:
        gevent.get_hub().threadpool.maxsize = CALLS
        grpc.experimental.gevent.init_gevent()
        self._key = key
        if secure:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), UNLIMITED)
        else:
            self._channel = grpc.insecure_channel(address, UNLIMITED)
        try:
            self._pool = self._described()
        except grpc.RpcError as error:
            hint = "name another address with --grpc, or leave gRPC out with --grpc off"
            raise Unusable(f"gRPC at {address} does not answer: {error.details()}; {hint}") from None
        self._request, self._message = self._type("ClassifyRequest"), self._type("ClassifyStreamRequest")
        self._classify = self._channel.unary_unary(
            f"/{PACKAGE}.Classifier/Classify",
            self._request.SerializeToString,
            self._type("ClassifyResponse").FromString,
        )
        self._stream = self._channel.stream_stream(
            f"/{PACKAGE}.Classifier/ClassifyStream",
            self._message.SerializeToString,
            self._type("ClassifyStreamResponse").FromString,
        )

    def _described(self) -> DescriptorPool:
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{PACKAGE}.Classifier")
        stub = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        answers = stub.ServerReflectionInfo(
            iter([question]), timeout=CONNECT_SECONDS, metadata=self._metadata(), wait_for_ready=True
        )
        pool = DescriptorPool()
        for answer in answers:
            for file in answer.file_descriptor_response.file_descriptor_proto:
                pool.AddSerializedFile(file)
        return pool

    def _type(self, name: str) -> Any:
        return GetMessageClass(self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))

    def classify(self, images: list[bytes], model: str, seconds: float, key: str | None = None) -> Any:
        """One call. Raises `grpc.RpcError`."""
        request = self._request(images=images, model=model)
        return self._classify(request, timeout=seconds, metadata=self._metadata(key))

    def stream(self, images: list[bytes], model: str, seconds: float) -> list[Any]:
        """One stream, a message an image. Raises `grpc.RpcError`."""
        requests: Iterator[Any] = (self._message(image=image, model=model) for image in images)
        return list(self._stream(requests, timeout=seconds, metadata=self._metadata()))

    def _metadata(self, key: str | None = None) -> tuple[tuple[str, str], ...]:
        key = key or self._key
        return (("authorization", f"Bearer {key}"),) if key else ()


def code_of(error: Any) -> str:
    """The stable code of a failed call, or in its absence the status."""
    return str(dict(error.trailing_metadata() or ()).get("fovea-code") or error.code().name.lower())


def excused(error: Any) -> None:
    """Raise Refused or Late if the server had too much to do and said so as documented."""
    code = code_of(error)
    if code == "overloaded":
        if "retry-after-ms" not in dict(error.trailing_metadata()):
            raise Wrong("overloaded without retry-after-ms")
        raise Refused("RESOURCE_EXHAUSTED overloaded")
    if code == "deadline_exceeded":
        raise Late("DEADLINE_EXCEEDED")


def right(predictions: Iterable[Any], labels: list[str]) -> None:
    """Check the predictions of an answer or a stream; raises Refused, Late or Wrong."""
    judge(
        [
            (each.error.code, each.error.detail) if each.error.code else (None, each.classes[0].label)
            for each in predictions
        ],
        labels,
    )
