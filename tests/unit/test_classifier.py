"""The use case over a fake model: late, cancelled or failed, a request leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from service.backends.base import InferenceBackend, Row
from service.classifier import INLINE_BYTES, INLINE_PIXELS, Classifier
from service.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    TooLarge,
    UnknownModel,
)
from service.metrics import Metrics
from tests.models import png, tiny_logits, tiny_spec
from tests.server import expected, is_right, picture

LARGE = png(np.zeros((INLINE_PIXELS // 8, 16, 3), np.uint8))  # twice what is decoded on the event loop


class Ticket:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._open = True

    async def infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row:
        self._model.inferred.append(sample)
        await self._model.gate.wait()
        logits = tiny_logits(sample[None])[0] + self._model.bias
        return Row({"logits": logits, "features": sample.mean(axis=(0, 1)) / 255}, 0.001, 0.002, 1)

    def close(self) -> None:
        self._model.open -= self._open
        self._open = False


class Model:
    """A served model that counts the places it has given away and takes any image as its own `preprocess` says."""

    def __init__(self) -> None:
        self.spec = tiny_spec()
        self.open = 0
        self.inferred: list[NDArray[np.uint8]] = []
        self.decoded: list[str] = []
        self.decode: Callable[[bytes], None] = lambda data: None
        self.bias = 0.0  # added to every logit
        self.refusal: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def preprocess(self, data: bytes) -> NDArray[np.uint8]:
        self.decoded.append(threading.current_thread().name)
        self.decode(data)
        return picture(len(data))

    def admit(self, deadline: float, images: int = 1) -> list[Ticket]:
        if self.refusal:
            raise self.refusal
        self.open += images
        return [Ticket(self) for _ in range(images)]


class Backend:
    def __init__(self, model: Model) -> None:
        self.model = model

    def get(self, name: str, version: str | None = None) -> Any:
        if name != "tiny":
            raise UnknownModel(name)
        return self.model

    def models(self) -> list[Any]:
        return []


@asynccontextmanager
async def classifying(**options: Any) -> AsyncIterator[tuple[Classifier, Model, CollectorRegistry]]:
    registry, model = CollectorRegistry(), Model()
    backend = cast(InferenceBackend, Backend(model))
    classifier = Classifier(backend, Metrics(registry), **{"default_model": "tiny", "decode_threads": 1} | options)
    yield classifier, model, registry
    classifier.close()
    assert model.open == 0, "a place was never given back"


async def test_small_images_are_decoded_on_the_loop_and_others_elsewhere() -> None:
    here = threading.current_thread().name
    small = png(picture(1))
    padded = small + b"\0" * INLINE_BYTES
    frames = b"GIF89a\x08\0\x08\0\0\0\0"  # its first frame may be of any size
    entries = struct.pack("<HHIIHHII", 256, 3, 1, 8, 257, 3, 1, 8)
    tiles = b"II*\0" + struct.pack("<IH", 8, 2) + entries  # a TIFF of 8 × 8; its tiles may be of any size
    async with classifying() as (classifier, model, _):
        for image in (small, LARGE, padded, frames, tiles):
            await classifier.classify([image])
        assert [name == here for name in model.decoded] == [True, False, False, False, False]


async def test_a_deadline_passes_for_an_image_that_waits_for_a_thread_too() -> None:
    """Decoding may be the bottleneck: who waits for it hears in time, and what is late is not decoded at all."""
    held = threading.Event()
    async with classifying() as (classifier, model, _):
        model.decode = lambda data: held.wait(5) and None
        first = asyncio.create_task(classifier.classify([LARGE]))
        await asyncio.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await classifier.classify([LARGE], deadline=started + 0.05)
        assert time.monotonic() - started < 0.3
        held.set()
        await first
        assert len(model.decoded) == 1


async def test_cancelling_gives_places_back_wherever_it_happens() -> None:
    held = threading.Event()
    async with classifying() as (classifier, model, _):
        model.decode = lambda data: held.wait(5) and None
        for images in ([LARGE], [LARGE] * 3):
            task = asyncio.create_task(classifier.classify(images))
            await asyncio.sleep(0.01)
            assert model.open == len(images)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert model.open == 0
        held.set()
        model.gate.clear()
        task = asyncio.create_task(classifier.classify([png(picture(1))] * 3))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_nobody_foresaw_fails_the_request_and_gives_places_back() -> None:
    def surprise(data: bytes) -> None:
        raise ZeroDivisionError

    async with classifying() as (classifier, model, _):
        model.decode = surprise
        for images in ([LARGE], [png(picture(1)), LARGE]):
            with pytest.raises(ZeroDivisionError):
                await classifier.classify(images)


@pytest.mark.parametrize("bias", [math.nan, math.inf])
async def test_an_answer_that_is_no_number_is_the_backends_failure(bias: float) -> None:
    async with classifying() as (classifier, model, _):
        model.bias = bias
        with np.errstate(invalid="ignore"), pytest.raises(BackendFailed, match="not a number"):
            await classifier.classify([png(picture(1))])


async def test_one_bad_image_is_raised_alone_and_returned_among_others() -> None:
    def choosy(data: bytes) -> None:
        if data == LARGE:
            raise InvalidImage("no")

    async with classifying() as (classifier, model, registry):
        model.decode = choosy
        with pytest.raises(InvalidImage):
            await classifier.classify([LARGE])
        good = png(picture(1))
        answer = await classifier.classify([good, LARGE, good])
        assert [type(result).__name__ for result in answer.results] == ["Prediction", "InvalidImage", "Prediction"]
        assert registry.get_sample_value("fovea_rejected_total", {"reason": "invalid_image"}) == 2


async def test_what_is_refused_as_a_whole() -> None:
    async with classifying(max_images=2) as (classifier, model, registry):
        with pytest.raises(TooLarge):
            await classifier.classify([LARGE] * 3)
        with pytest.raises(InvalidRequest):
            await classifier.classify([])
        with pytest.raises(UnknownModel):
            await classifier.classify([LARGE], model="nobody")
        model.refusal = Overloaded("full", retry_after=3.0)
        with pytest.raises(Overloaded):
            await classifier.classify([LARGE] * 2)
        assert registry.get_sample_value("fovea_rejected_total", {"reason": "overloaded"}) == 2
        assert model.decoded == []


async def test_predictions_are_calibrated_cut_and_counted() -> None:
    async with classifying() as (classifier, _, registry):
        image = png(picture(1))
        (prediction,) = (await classifier.classify([image], top_k=2)).results
        classes = [
            {"label": each.label, "index": each.index, "probability": each.probability}
            for each in cast(Any, prediction).classes
        ]
        assert is_right({"classes": classes}, picture(len(image)))
        assert len(classes) == 2
        best = f"label-{expected(picture(len(image))).argmax()}"
        labels = {"model": "tiny", "label": best}
        assert registry.get_sample_value("fovea_predictions_total", labels) == 1
        assert cast(Any, prediction).timings_ms.queue == 1.0
        assert cast(Any, prediction).timings_ms.infer == 2.0


async def test_features_come_as_they_are() -> None:
    async with classifying() as (classifier, _, _):
        image = png(picture(1))
        (result,) = (await classifier.embed([image], deadline=math.inf)).results
        assert cast(Any, result).features == pytest.approx(picture(len(image))[0, 0] / 255)


async def test_without_a_default_and_without_models_the_client_is_told() -> None:
    async with classifying(default_model=None) as (classifier, _, _):
        with pytest.raises(InvalidRequest, match="none"):
            await classifier.classify([LARGE])
