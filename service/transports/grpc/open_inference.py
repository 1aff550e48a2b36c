"""`inference.GRPCInferenceService`: the Open Inference Protocol's messages to `service.oip` and back.

The messages are tritonclient's: a second copy of the protocol's file could not be loaded beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

from tritonclient.grpc import service_pb2 as pb

from service.errors import InvalidRequest, TooLarge
from service.oip.protocol import InferAnswer, InferRequest, ModelStatistics, OpenInference, WantedOutput, deadline_of
from service.oip.tensors import MAX_STRINGS, Tensor, checked_shape, from_json, from_raw, to_raw
from service.statistics import Duration
from service.transports.exchange import Exchange
from service.transports.grpc.calls import Call, Method, StreamCall
from service.transports.grpc.guard import Guard
from service.transports.grpc.messages import parse

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MAX_TENSORS = 8

_OPEN = frozenset(("ServerLive", "ServerReady"))  # to whoever comes without a key, as `/v2/health` is

Message: TypeAlias = Any  # of pb, which has no types

# Where a tensor's elements are if they are not raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class OpenInferenceService:
    """The service's methods: those of the protocol, and of Triton's extensions to it that work here.

    Args:
        protocol: Answers.
        guard: Lets calls through that load and unload.
        at_once: Requests of one stream that are worked on at once.
    """

    def __init__(self, protocol: OpenInference, guard: Guard, *, at_once: int) -> None:
        self._protocol = protocol
        self._guard = guard
        self._at_once = at_once

    def methods(self) -> list[Method]:
        views: dict[str, Callable[[Message], Message]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "RepositoryIndex": self._index,
        }
        return [
            *(
                Method(f"/{SERVICE}/{name}", partial(_shown, name, view), open=name in _OPEN)
                for name, view in views.items()
            ),
            Method(f"/{SERVICE}/ModelStatistics", self.statistics),
            Method(f"/{SERVICE}/ModelInfer", self.infer, inference=True),
            Method(f"/{SERVICE}/ModelStreamInfer", self.infer_stream, streams=True),
            Method(f"/{SERVICE}/RepositoryModelLoad", self.load),
            Method(f"/{SERVICE}/RepositoryModelUnload", self.unload),
        ]

    # Inference.

    async def infer(self, call: Call, message: bytes) -> bytes:
        response = await self._infer(call, call, parse(pb.ModelInferRequest, message))
        written: bytes = response.SerializeToString()
        return written

    async def infer_stream(self, call: StreamCall) -> None:
        """Answers each message by one, in order; what goes wrong is in an answer too."""

        async def one(message: bytes) -> bytes:
            response = pb.ModelStreamInferResponse()
            with call.part() as part:
                try:
                    request = parse(pb.ModelInferRequest, message)
                    response.infer_response.id = request.id  # clients tell answers apart by it, failures too
                    await call.charge()
                    response.infer_response.CopyFrom(await self._infer(call, part, request))
                except Exception as error:  # noqa: BLE001 - the stream goes on
                    response.error_message = part.fail(error).message
            written: bytes = response.SerializeToString()
            return written

        await call.answer_in_order(one, self._at_once)

    async def _infer(self, call: Call, exchange: Exchange, message: Message) -> Message:
        # Fails here if there is no such model; the name is safe as a metric label from here on.
        spec = self._protocol.resolve(message.model_name, message.model_version, exchange.request_id)
        exchange.model = spec.counted_as
        request = _request(message)
        exchange.images = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 0
        limits = call.limits
        deadline = deadline_of(
            request.parameters,
            call.allowed(exchange),
            arrived=exchange.arrived,
            default=limits.default_timeout,
            longest=limits.max_timeout,
        )
        return _response(await self._protocol.infer(request, request_id=exchange.request_id, deadline=deadline))

    # What there is.

    def _live(self, request: Message) -> Message:
        del request
        return pb.ServerLiveResponse(live=self._protocol.live())

    def _ready(self, request: Message) -> Message:
        del request
        return pb.ServerReadyResponse(ready=self._protocol.ready())

    def _server_metadata(self, request: Message) -> Message:
        del request
        return pb.ServerMetadataResponse(**asdict(self._protocol.server_metadata()))

    def _model_ready(self, request: Message) -> Message:
        return pb.ModelReadyResponse(ready=self._protocol.model_ready(request.name, request.version))

    def _model_metadata(self, request: Message) -> Message:
        return pb.ModelMetadataResponse(**asdict(self._protocol.model_metadata(request.name, request.version)))

    def _model_config(self, request: Message) -> Message:
        return pb.ModelConfigResponse(config=self._protocol.model_config(request.name, request.version))

    def _index(self, request: Message) -> Message:
        return pb.RepositoryIndexResponse(models=[asdict(entry) for entry in self._protocol.index(request.ready)])

    async def statistics(self, call: Call, message: bytes) -> bytes:
        del call
        request = parse(pb.ModelStatisticsRequest, message)
        found = await self._protocol.statistics(request.name, request.version)
        written: bytes = pb.ModelStatisticsResponse(model_stats=map(_statistics, found)).SerializeToString()
        return written

    # What changes the server.

    async def load(self, call: Call, message: bytes) -> bytes:
        self._guard.authorize(call)
        request = parse(pb.RepositoryModelLoadRequest, message)
        await self._protocol.load(request.model_name, _parameters(request.parameters))
        return b""  # the response has no fields

    async def unload(self, call: Call, message: bytes) -> bytes:
        self._guard.authorize(call)
        await self._protocol.unload(parse(pb.RepositoryModelUnloadRequest, message).model_name)
        return b""


async def _shown(name: str, view: Callable[[Message], Message], call: Call, message: bytes) -> bytes:
    del call
    written: bytes = view(parse(getattr(pb, f"{name}Request"), message)).SerializeToString()
    return written


def _parameters(given: Mapping[str, Message]) -> dict[str, object]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in given.items()}


def _request(message: Message) -> InferRequest:
    """Raises: InvalidRequest, TooLarge: Its tensors are not as they should be."""
    for what, given in (("inputs", message.inputs), ("outputs", message.outputs)):
        if len(given) > MAX_TENSORS:
            raise TooLarge(f"there are {len(given)} {what}; at most {MAX_TENSORS} are taken")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs")
    inputs = [_raw(tensor, data) for tensor, data in zip(message.inputs, raw, strict=True)] if raw else None
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        [_typed(tensor) for tensor in message.inputs] if inputs is None else inputs,
        [_wanted(output) for output in message.outputs],
        _parameters(message.parameters),
    )


def _raw(tensor: Message, data: bytes) -> Tensor:
    _no_shared_memory(tensor)
    if tensor.HasField("contents"):
        raise InvalidRequest(f"the input {tensor.name[:80]!r} has contents and raw_input_contents; send either")
    return from_raw(tensor.name, tensor.datatype, list(tensor.shape), data)


def _typed(tensor: Message) -> Tensor:
    _no_shared_memory(tensor)
    name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidRequest(f"the input {name[:80]!r}: {datatype[:40]!r} can only be sent in raw_input_contents")
    if others := [each.name for each, _ in tensor.contents.ListFields() if each.name != field]:
        raise InvalidRequest(f"the input {name[:80]!r} is {datatype[:40]}, which goes in {field}, not in {others[0]}")
    data = list(getattr(tensor.contents, field))
    if datatype != "BYTES":
        return from_json(name, datatype, shape, data)
    dimensions, count = checked_shape(name, shape)
    if count != len(data):
        raise InvalidRequest(
            f"the input {name[:80]!r}: shape {shape} takes {count} elements, and there are {len(data)}"
        )
    if count > MAX_STRINGS:
        raise TooLarge(f"the input {name[:80]!r} has {count} elements; at most {MAX_STRINGS} of BYTES are taken")
    return Tensor(name, datatype, dimensions, data)


def _wanted(output: Message) -> WantedOutput:
    _no_shared_memory(output)
    classes = _parameters(output.parameters).get("classification", 0)
    if type(classes) is not int or not 0 <= classes < 2**31:
        raise InvalidRequest(f"classification of {output.name[:80]!r} must be a number of classes")
    return WantedOutput(output.name, classes)


def _no_shared_memory(tensor: Message) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest("shared memory is not served; send and ask for tensors in the messages")


def _response(answer: InferAnswer) -> Message:
    response = pb.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    for tensor in answer.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(to_raw(tensor))
    return response


def _statistics(one: ModelStatistics) -> Message:
    counts = one.counts
    executions = counts.executions()
    return pb.ModelStatistics(
        name=one.name,
        version=one.version,
        last_inference=counts.last_inference,
        inference_count=counts.inferences,
        execution_count=sum(batches.count for batches in executions.values()),
        inference_stats={name: _duration(each) for name, each in counts.durations().items()},
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(batches))
            for size, batches in executions.items()
        ],
    )


def _duration(one: Duration) -> Message:
    return pb.StatisticDuration(count=one.count, ns=one.ns)
