"""A stream of images into a stream of answers, in order: decoded on threads beside inference, in full batches."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Outputs
from service.bulk.model import LoadedModel
from service.bulk.sources import Image, Name
from service.calibration import prediction_set, probabilities, unfamiliar
from service.errors import BackendFailed, FoveaError
from service.spec import Contract

T = TypeVar("T")

PIECE = 16  # images that a thread takes at once: handing over one takes as long as decoding a small one
AHEAD = 2  # batches that may be decoded before they are needed

Pixels = NDArray[np.uint8]
_Decoded = tuple[Name, Pixels | FoveaError]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one image, in the numbers of `/v1/classify`.

    Attributes:
        classes: Indices, the most probable first.
        probabilities: Theirs, calibrated.
        prediction_set: Indices; None if the model was not calibrated for sets.
        abstained: The image is unlike the training data.
        features: `[D]`, if they were asked for.
    """

    classes: list[int]
    probabilities: list[float]
    prediction_set: list[int] | None
    abstained: bool
    features: NDArray[np.float32] | None


class Answered(NamedTuple):
    name: Name
    result: Verdict | FoveaError


class Predictor:
    """Answers any number of images, holding only a few batches of them.

    Args:
        model: That answers.
        top_k: Classes per image.
        features: Whether they are wanted.
        threads: That decode.
        readers: That read, where that means waiting for a network; then only `threads` of them decode at a time.
    """

    def __init__(self, model: LoadedModel, *, top_k: int, features: bool, threads: int, readers: int) -> None:
        self._model = model
        self._top_k = top_k
        self._features = features
        self._slots = threading.Semaphore(threads)
        self._workers = max(threads, readers)
        self._piece = 1 if readers > threads else min(PIECE, model.max_batch)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def answers(self, images: Iterable[Image]) -> Iterator[list[Answered]]:
        """The images, answered, in their order; a list as soon as a batch is full.

        Raises:
            OSError: Images cannot be read, for a reason that is not theirs.
        """
        group: list[_Decoded] = []
        samples = 0
        for one in self._decoded(images):
            group.append(one)
            samples += not isinstance(one[1], FoveaError)
            if samples == self._model.max_batch:
                yield self._answer(group)
                group, samples = [], 0
        if group:
            yield self._answer(group)

    def _decoded(self, images: Iterable[Image]) -> Iterator[_Decoded]:
        ahead = self._workers + AHEAD * self._model.max_batch // self._piece
        under_way: deque[Future[list[_Decoded]]] = deque()
        for piece in pieces(images, self._piece):
            under_way.append(self._pool.submit(self._decode, piece))
            if len(under_way) > ahead:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    def _decode(self, piece: list[Image]) -> list[_Decoded]:
        found: list[_Decoded] = []
        for name, read in piece:
            try:
                data = read()
                with self._slots:
                    found.append((name, self._model.preprocess(data)))
            except FoveaError as error:
                found.append((name, error))
        return found

    def _answer(self, group: list[_Decoded]) -> list[Answered]:
        verdicts = iter(self._infer([sample for _, sample in group if not isinstance(sample, FoveaError)]))
        return [Answered(name, sample if isinstance(sample, FoveaError) else next(verdicts)) for name, sample in group]

    def _infer(self, samples: list[Pixels]) -> list[Verdict | FoveaError]:
        """Verdicts on samples; if a batch fails, its halves, down to the samples that make it fail."""
        if not samples:
            return []
        try:
            outputs = self._model.run(np.stack(samples), features=self._features)
        except Exception:  # noqa: BLE001 - it is in the log by now
            if len(samples) == 1:
                return [BackendFailed("the backend failed on this image; the log says more")]
            half = len(samples) // 2
            return [*self._infer(samples[:half]), *self._infer(samples[half:])]
        return list(_verdicts(self._model.spec, outputs, self._top_k, features=self._features))


def _verdicts(spec: Contract, outputs: Outputs, top_k: int, *, features: bool) -> Iterator[Verdict | FoveaError]:
    calibration = spec.calibration
    probs = probabilities(np.asarray(outputs["logits"], np.float32), calibration.temperature)
    orders = np.argsort(-probs, axis=-1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probs, orders, axis=-1).tolist()
    abstained = unfamiliar(calibration, outputs).tolist()
    for index, (row, order) in enumerate(zip(probs, orders.tolist(), strict=True)):
        if np.isnan(row[0]):  # one logit that is no number leaves none
            yield BackendFailed(f"{spec.name} gave an answer that is not a number")
            continue
        yield Verdict(
            order,
            [round(probability, 6) for probability in best[index]],
            None
            if calibration.conformal_quantile is None
            else prediction_set(row, calibration.conformal_quantile).tolist(),
            abstained[index],
            np.asarray(outputs["features"][index], np.float32) if features else None,
        )


def pieces(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many values, the last one maybe shorter."""
    rest = iter(values)
    while piece := list(itertools.islice(rest, size)):
        yield piece
