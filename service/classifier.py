"""The one use case, behind every transport: encoded images in, predictions out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.answers import Answer, Explained, Features, Inferred, Prediction
from service.backends.base import InferenceBackend, ModelStatus, Row, ServedModel, Ticket
from service.calibration import probabilities
from service.errors import DeadlineExceeded, FoveaError, InvalidRequest, Overloaded, TooLarge
from service.explain import (
    ALPHA,
    COLORMAP,
    Size,
    explanation,
    overlay,
    stated_size,
    unknown_label,
    upright_size,
)
from service.header import probe
from service.judge import Judge, explained, timings
from service.metrics import Metrics
from service.preprocess import Undecoded
from service.routes.shadow import Seen, Shadows
from service.routes.table import Choice, RouteTable
from service.statistics import Statistics
from service.tracing.trace import current, span

# Up to this size decoding takes less time than handing it to another thread and back.
INLINE_PIXELS = 64 * 64
INLINE_BYTES = 16 * 1024
INLINE_FORMATS = ("PNG", "JPEG", "WebP", "BMP")  # a GIF's frame, a TIFF's tile may be far larger than the image

BUNDLED = "lenet5-digits"  # comes with Fovea

FEATURES = frozenset({"features"})
EXPLAINED = frozenset({"logits", "cam"})
PROBABILITIES = frozenset({"probabilities"})

Pixels = NDArray[np.uint8]

P = ParamSpec("P")
T = TypeVar("T")
Input = TypeVar("Input", bytes, bytes | Pixels)


class Classifier:
    """Classifies, explains and embeds images with the backend's models.

    Args:
        backend: Runs the models.
        metrics: Where predictions are counted.
        routes: Names that stand for several models; none unless given.
        shadows: Classify behind the back of those who ask for a route.
        default_model: For requests that name none; if None, the only model there is, or the bundled one among several.
        max_images: In one request.
        decode_threads: For images too large to decode on the event loop, and for drawing.

    Attributes:
        statistics: Of every version, whoever asked.
    """

    def __init__(
        self,
        backend: InferenceBackend,
        metrics: Metrics,
        *,
        routes: RouteTable | None = None,
        shadows: Shadows | None = None,
        default_model: str | None = None,
        max_images: int = 64,
        decode_threads: int = 2,
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._judge = Judge(metrics)
        self._routes = (routes or RouteTable(backend, metrics)).live
        self._shadows = shadows or Shadows(backend)
        self._traffic = self._shadows.traffic
        self._default_model = default_model
        self._max_images = max_images
        self.statistics = Statistics()
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        model: str | None = None,
        version: str | None = None,
        request_id: str = "",
        top_k: int = 5,
        explain: bool = False,
        deadline: float = math.inf,
    ) -> Answer[Prediction]:
        """Classify encoded images.

        Args:
            images: Encoded, each in any accepted format.
            model: Name of a model or a route; None for the default.
            version: Of a model; None for the pinned one, else the newest.
            request_id: Decides between a route's primary and its canary, always alike.
            top_k: Classes per image; all of them if there are fewer.
            explain: Answer with an `ExplainedPrediction` for each image, from the same pass through the network.
            deadline: On the clock of `time.monotonic`, seconds.

        Raises:
            FoveaError: The request as a whole cannot be answered. With a single image its own error is raised.
        """
        served, choice = self._choose(model, version, request_id)
        began = time.monotonic()
        seen = _count(choice)

        async def one(ticket: Ticket, image: bytes) -> Prediction:
            outputs = served.spec.judged_by | EXPLAINED if explain else served.spec.judged_by
            row, sample, decode_seconds = await self._infer(served, ticket, image, outputs, deadline)
            size = await self._upright_size(image, deadline) if explain else None
            prediction = self._judge.predict(served.spec, row, top_k, timings(began, decode_seconds, row))
            if size:
                prediction = explained(prediction, explanation(served.spec, row.outputs, size))
            if seen is not None:
                seen.append(Seen(image, sample, prediction.classes[0].label))
            return prediction

        answer = await self._answer(served, images, deadline, one)
        if choice is not None and seen:
            self._shadows.offer(choice.route, served, seen)
        return answer

    async def embed(
        self,
        images: Sequence[bytes],
        *,
        model: str | None = None,
        version: str | None = None,
        request_id: str = "",
        deadline: float = math.inf,
    ) -> Answer[Features]:
        """Features of encoded images; arguments and errors as `classify`."""
        served, choice = self._choose(model, version, request_id)
        began = time.monotonic()
        if choice is not None:
            choice.route.count(choice)

        async def one(ticket: Ticket, image: bytes) -> Features:
            row, _, decode_seconds = await self._infer(served, ticket, image, FEATURES, deadline)
            features = np.asarray(row.outputs["features"], np.float32)
            return Features(features, timings(began, decode_seconds, row))

        return await self._answer(served, images, deadline, one)

    async def explain(
        self,
        images: Sequence[bytes],
        *,
        model: str | None = None,
        version: str | None = None,
        request_id: str = "",
        label: str | None = None,
        deadline: float = math.inf,
    ) -> Answer[Explained]:
        """What speaks for a class in encoded images; other arguments and errors as `classify`.

        Not counted among the predictions: most who ask have asked for the prediction before.

        Args:
            label: The class; None for each image's most probable one.

        Raises:
            InvalidRequest: The model does not know the label; or, in an image's place, has no map of it for this image.
        """
        served = await self._explainer(model, version, request_id, label, deadline)
        began = time.monotonic()

        async def one(ticket: Ticket, image: bytes) -> Explained:
            return await self._explain(served, ticket, image, label, began, deadline)

        return await self._answer(served, images, deadline, one)

    async def overlay(
        self,
        image: bytes,
        *,
        model: str | None = None,
        version: str | None = None,
        request_id: str = "",
        label: str | None = None,
        alpha: float = ALPHA,
        deadline: float = math.inf,
    ) -> bytes:
        """A PNG of what speaks for a class, drawn over the image; other arguments and errors as `explain`.

        Args:
            alpha: Opacity of the colours where most speaks for the class, from 0 to 1.
        """
        served = await self._explainer(model, version, request_id, label, deadline)
        began = time.monotonic()

        async def one(ticket: Ticket, image: bytes) -> bytes:
            found = await self._explain(served, ticket, image, label, began, deadline)
            spec = served.spec
            text = f"class activation map of {found.label} by {spec.name} version {spec.version}, in {found.colormap}"
            draw = partial(overlay, background=spec.image.background, alpha=alpha, description=text)
            return await self._aside("the overlay was drawn", deadline, draw, image, found)

        (drawn,) = (await self._answer(served, [image], deadline, one)).results
        if isinstance(drawn, FoveaError):
            raise drawn
        return drawn

    async def infer(
        self,
        inputs: Sequence[bytes] | Pixels,
        outputs: frozenset[str],
        *,
        model: str | None = None,
        version: str | None = None,
        request_id: str = "",
        deadline: float = math.inf,
    ) -> Inferred:
        """Outputs as arrays, of encoded images or of pixels; other arguments as `classify`.

        Args:
            inputs: Encoded images; or pixels as the network takes them, uint8 `[N, H, W, C]`.
            outputs: Names of the contract; or `PROBABILITIES` of encoded images, which count as predictions.

        Raises:
            FoveaError: The request cannot be answered. One bad image fails it, and is named if it is one of several.
        """
        served, choice = self._choose(model, version, request_id)
        seen = _count(choice)
        self._check_number(len(inputs))
        if isinstance(inputs, np.ndarray):
            image = served.spec.image
            if inputs.dtype != np.uint8 or inputs.shape[1:] != (image.height, image.width, image.channels):
                raise InvalidRequest(
                    f"{served.spec.name} takes pixels as uint8 [N, {image.height}, {image.width}, {image.channels}],"
                    f" not as {inputs.dtype} {list(inputs.shape)}"
                )
        judged = outputs == PROBABILITIES
        wanted = served.spec.judged_by if judged else outputs

        async def one(ticket: Ticket, given: bytes | Pixels) -> dict[str, NDArray[np.float32]]:
            row, sample, _ = await self._infer(served, ticket, given, wanted, deadline)
            if not judged:
                return {name: np.asarray(row.outputs[name], np.float32) for name in outputs}
            probs = self._judge.probabilities(served.spec, row)
            if seen is not None and isinstance(given, bytes):
                seen.append(Seen(given, sample, served.spec.labels[int(probs.argmax())]))
            return {"probabilities": probs}

        answer = await self._answer(served, list(inputs), deadline, one)
        rows = [_whole(index, result) for index, result in enumerate(answer.results)]
        if choice is not None and seen:
            self._shadows.offer(choice.route, served, seen)
        return Inferred(served.spec, {name: _stacked([row[name] for row in rows]) for name in outputs})

    def resolve(self, model: str | None, version: str | None, request_id: str = "") -> ServedModel:
        """The version that answers such a request.

        Raises:
            UnknownModel: No such model or version.
            BackendUnavailable: It is not ready.
            InvalidRequest: No model was named and there is no default; or a version of a route was asked for.
        """
        return self._choose(model, version, request_id)[0]

    def named(self, model: str | None) -> str:
        """The model or route that a request is for.

        Raises:
            InvalidRequest: No model was named and there is no default.
        """
        return self._default_model or self._only_model() if model is None else model

    def models(self) -> Sequence[ModelStatus]:
        return self._backend.models()

    def problems(self) -> list[str]:
        """Why the classifier is not ready; empty when it is."""
        return self._backend.problems()

    def close(self) -> None:
        self._decoders.shutdown()

    def _choose(self, model: str | None, version: str | None, request_id: str) -> tuple[ServedModel, Choice | None]:
        """Who answers, and if it is on behalf of a route, which."""
        if model is None:
            model = self.named(None)
        route = self._routes.get(model)
        if route is None:
            return self._backend.get(model, version), None
        if version is not None:
            raise InvalidRequest(f"{model} is a route, which chooses the version; name the model to ask for one")
        choice = route.choose(request_id)
        return choice.served, choice

    async def _answer(
        self,
        served: ServedModel,
        images: Sequence[Input],
        deadline: float,
        one: Callable[[Ticket, Input], Awaitable[T]],
    ) -> Answer[T]:
        if (trace := current.get()) is not None:
            trace.note({"fovea.model": served.spec.name, "fovea.version": served.spec.version})
        self._check_number(len(images))
        with self.statistics.request(served.spec, isinstance(images[0], bytes)) as tally:
            try:
                tickets = tally.watch(served.admit(deadline, len(images)))
            except Overloaded as error:
                self._metrics.rejected.labels(error.code).inc(len(images))
                raise
            results: list[T | FoveaError]
            self._traffic.asked += len(images)
            self._traffic.answering += len(images)
            try:
                if len(images) == 1:
                    results = [await one(tickets[0], images[0])]
                else:
                    settled = await asyncio.gather(*map(one, tickets, images), return_exceptions=True)
                    results = [_result(result) for result in settled]
            finally:
                self._traffic.answering -= len(images)
                for ticket in tickets:
                    ticket.close()
        return Answer(served.spec.name, served.spec.version, results)

    def _check_number(self, images: int) -> None:
        if images > self._max_images:
            raise TooLarge(f"{images} images in one request; at most {self._max_images} are taken")
        if not images:
            raise InvalidRequest("the request holds no image")

    async def _explainer(
        self, model: str | None, version: str | None, request_id: str, label: str | None, deadline: float
    ) -> ServedModel:
        """Who explains a label, which it knows."""
        served, choice = self._choose(model, version, request_id)
        if label is not None and label not in served.spec.labels:
            raise await self._aside("the label was looked for", deadline, unknown_label, served.spec, label)
        if choice is not None:
            choice.route.count(choice)
        return served

    async def _explain(
        self, served: ServedModel, ticket: Ticket, image: bytes, label: str | None, began: float, deadline: float
    ) -> Explained:
        row, _, decode_seconds = await self._infer(served, ticket, image, EXPLAINED, deadline)
        size = await self._upright_size(image, deadline)
        found = explanation(served.spec, row.outputs, size, label)
        logits = np.asarray(row.outputs["logits"], np.float32)
        probability = float(probabilities(logits, served.spec.calibration.temperature)[found.index])
        return Explained(
            found.label,
            found.index,
            found.map,
            found.region,
            found.image_size,
            round(probability, 6),
            COLORMAP,
            timings(began, decode_seconds, row),
        )

    async def _upright_size(self, image: bytes, deadline: float) -> Size:
        """Width and height of an image that has been decoded before."""
        if size := stated_size(image):
            return size
        return await self._aside("the image was measured", deadline, upright_size, image)

    async def _infer(
        self, served: ServedModel, ticket: Ticket, image: bytes | Pixels, outputs: frozenset[str], deadline: float
    ) -> tuple[Row, Pixels, float]:
        """Decode one image, unless it is pixels already, and wait for its row.

        Returns:
            The row; what was decoded, `[H, W, C]`; the seconds decoding took, its wait for a thread included.
        """
        started = time.monotonic()
        try:
            if not isinstance(image, bytes):
                sample = image
            else:
                with span("decode", {"fovea.image.bytes": len(image)}):
                    if isinstance(served.preprocess, Undecoded) or _is_quick(image):
                        sample = served.preprocess(image)
                    else:
                        sample = await self._aside("the image was decoded", deadline, served.preprocess, image)
            decode_seconds = time.monotonic() - started
            row = await ticket.infer(sample, outputs)
        except FoveaError as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        if sample is not image:
            self._metrics.decoding(served.spec.counted_as).observe(decode_seconds)
        self._metrics.queueing(served.spec.counted_as).observe(row.queue_seconds)
        return row, sample, decode_seconds

    async def _aside(self, done: str, deadline: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work on another thread; what is still waiting for one at its deadline is dropped."""
        future = asyncio.get_running_loop().run_in_executor(self._decoders, partial(work, *args, **kwargs))
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed before {done}") from None

    def _only_model(self) -> str:
        names = sorted({status.name for status in self._backend.models() if status.kind == "model"})
        if len(names) == 1:
            return names[0]
        if BUNDLED in names:  # so that the first request of a new user needs no name
            return BUNDLED
        raise InvalidRequest(
            "name a model: POST /v1/models/{model}/classify, or set FOVEA_DEFAULT_MODEL; there are "
            + (", ".join(names) or "none")
        )


def _count(choice: Choice | None) -> list[Seen] | None:
    """Note a request to a route; where to put what its shadow is to see, if it is to see anything."""
    if choice is None:
        return None
    choice.route.count(choice)
    return [] if choice.route.route.shadow and not choice.canary else None


def _is_quick(image: bytes) -> bool:
    """Whether an image may be decoded on the event loop, which must never stand still for long."""
    if len(image) > INLINE_BYTES:
        return False
    header = probe(image)
    return header.pixels <= INLINE_PIXELS and header.format in INLINE_FORMATS


def _result(settled: T | BaseException) -> T | FoveaError:
    """What stands in an image's place: its result or its own error; anything else fails the whole request."""
    if isinstance(settled, BaseException) and not isinstance(settled, FoveaError):
        raise settled
    return settled


def _whole(index: int, result: T | FoveaError) -> T:
    """The result of one of several images that are answered together or not at all."""
    if isinstance(result, FoveaError):
        raise type(result)(f"image {index}: {result.message}", retry_after=result.retry_after) from result.__cause__
    return result


def _stacked(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """`[N, …]`"""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
