"""`fovea.v1.Classifier`: protobuf messages to the use case and back."""

from __future__ import annotations

import math

from google.protobuf.message import Message

from service.answers import ExplainedPrediction, Features, Prediction, Timings
from service.classifier import Classifier
from service.errors import FoveaError, InvalidRequest
from service.explain import Explanation
from service.transports.exchange import Exchange
from service.transports.grpc.calls import Call, Method, StreamCall
from service.transports.grpc.messages import parse
from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from service.transports.grpc.statuses import retry_after_ms

SERVICE: str = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
TOP_K = 5


class NativeService:
    """The service's methods.

    Args:
        classifier: Answers.
        at_once: Images of one stream that are worked on at once.
    """

    def __init__(self, classifier: Classifier, *, at_once: int) -> None:
        self._classifier = classifier
        self._at_once = at_once

    def methods(self) -> list[Method]:
        return [
            Method(f"/{SERVICE}/Classify", self.classify, inference=True),
            Method(f"/{SERVICE}/ClassifyStream", self.classify_stream, streams=True),
            Method(f"/{SERVICE}/Embed", self.embed, inference=True),
        ]

    async def classify(self, call: Call, message: bytes) -> bytes:
        request = parse(pb.ClassifyRequest, message)
        images = list(request.images)
        model, version = self._resolve(call, request.model, request.version, len(images))
        answer = await self._classifier.classify(
            images,
            model=model,
            version=version,
            request_id=call.request_id,
            top_k=_top_k(request),
            explain=request.explain,
            deadline=call.deadline(),
        )
        response = pb.ClassifyResponse(model=answer.model, version=answer.version)
        for result in answer.results:
            _fill(response.predictions.add(), result)
        return _bytes(response)

    async def embed(self, call: Call, message: bytes) -> bytes:
        request = parse(pb.EmbedRequest, message)
        images = list(request.images)
        model, version = self._resolve(call, request.model, request.version, len(images))
        answer = await self._classifier.embed(
            images, model=model, version=version, request_id=call.request_id, deadline=call.deadline()
        )
        response = pb.EmbedResponse(model=answer.model, version=answer.version)
        for result in answer.results:
            _fill_embedding(response.predictions.add(), result)
        return _bytes(response)

    async def classify_stream(self, call: StreamCall) -> None:
        async def one(message: bytes) -> bytes:
            return await self._one(call, message)

        await call.answer_in_order(one, self._at_once)

    async def _one(self, call: StreamCall, message: bytes) -> bytes:
        response = pb.ClassifyStreamResponse()
        with call.part() as part:
            try:
                await call.charge()
                await self._classify_one(call, part, parse(pb.ClassifyStreamRequest, message), response)
            except Exception as error:  # noqa: BLE001 - it stands in the answer's place, and the stream goes on
                _fill_error(response.prediction.error, part.fail(error))
        return _bytes(response)

    async def _classify_one(
        self, call: StreamCall, part: Exchange, request: pb.ClassifyStreamRequest, response: pb.ClassifyStreamResponse
    ) -> None:
        timeout = None
        if request.HasField("timeout_ms"):
            if not 0 < request.timeout_ms < math.inf:
                raise InvalidRequest("timeout_ms must be a number of milliseconds, more than 0")
            timeout = request.timeout_ms / 1000
        model, version = self._resolve(part, request.model, request.version, 1)
        answer = await self._classifier.classify(
            [request.image],
            model=model,
            version=version,
            request_id=call.request_id,
            top_k=_top_k(request),
            explain=request.explain,
            deadline=call.deadline(part, timeout),
        )
        response.model, response.version = answer.model, answer.version
        _fill(response.prediction, answer.results[0])

    def _resolve(self, exchange: Exchange, model: str, version: str, images: int) -> tuple[str, str | None]:
        """Who is asked. If there is nobody it fails here; if there is, the name is safe as a metric label."""
        name = self._classifier.named(model or None)
        exchange.model = self._classifier.resolve(name, version or None, exchange.request_id).spec.counted_as
        exchange.images = images
        return name, version or None


def _top_k(request: pb.ClassifyRequest | pb.ClassifyStreamRequest) -> int:
    if not request.HasField("top_k"):
        return TOP_K
    if request.top_k < 1:
        raise InvalidRequest("top_k must be at least 1")
    return request.top_k


def _fill(prediction: pb.Prediction, result: Prediction | FoveaError) -> None:
    if isinstance(result, FoveaError):
        _fill_error(prediction.error, result)
        return
    for score in result.classes:
        prediction.classes.add(label=score.label, index=score.index, probability=score.probability)
    if result.prediction_set is not None:
        prediction.prediction_set.extend(result.prediction_set)
    if result.coverage is not None:
        prediction.coverage = result.coverage
    prediction.abstained = result.abstained
    _fill_timings(prediction.timings_ms, result.timings_ms)
    if isinstance(result, ExplainedPrediction):
        _fill_explanation(prediction.explanation, result.explanation)


def _fill_embedding(embedding: pb.Embedding, result: Features | FoveaError) -> None:
    if isinstance(result, FoveaError):
        _fill_error(embedding.error, result)
        return
    embedding.features.extend(result.features.tolist())
    _fill_timings(embedding.timings_ms, result.timings_ms)


def _fill_timings(message: pb.Timings, timings: Timings) -> None:
    message.decode, message.queue = timings.decode, timings.queue
    message.infer, message.total = timings.infer, timings.total


def _fill_explanation(message: pb.Explanation, found: Explanation) -> None:
    message.label, message.index = found.label, found.index
    message.map.height, message.map.width = found.map.shape
    message.map.values.extend(found.map.ravel().tolist())
    message.region.extend(found.region)
    message.image_size.extend(found.image_size)


def _fill_error(message: pb.Error, error: FoveaError) -> None:
    message.code, message.detail = error.code, error.message
    wait = retry_after_ms(error)
    if wait is not None:
        message.retry_after_ms = wait


def _bytes(response: Message) -> bytes:
    written: bytes = response.SerializeToString()
    return written
