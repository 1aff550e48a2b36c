"""What a model's logits say about an image: its prediction, counted."""

from __future__ import annotations

import math
import time
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from service.answers import ClassScore, ExplainedPrediction, Prediction, Timings
from service.backends.base import Row, Share
from service.calibration import Judgement, judged
from service.errors import BackendFailed
from service.explain import Explanation
from service.metrics import Metrics
from service.spec import Contract


class Judge:
    """Makes predictions.

    Args:
        metrics: Where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def predict(self, spec: Contract, row: Row, top_k: int, timings: Timings) -> Prediction:
        """The prediction for one image.

        Raises:
            BackendFailed: The logits are not numbers.
        """
        found, index = self._counted(spec, row)
        order = found.order[index, : max(top_k, found.set_sizes[index])].tolist()
        names = [spec.labels[each] for each in order]
        classes = list(starmap(ClassScore, zip(names, order, found.rounded[index, :top_k].tolist(), strict=False)))
        calibration = spec.calibration
        if calibration.conformal_quantile is None:
            return Prediction(classes, None, None, found.unfamiliar[index], timings)
        within = names[: found.set_sizes[index]]
        return Prediction(classes, within, calibration.coverage, found.unfamiliar[index], timings)

    def probabilities(self, spec: Contract, row: Row) -> NDArray[np.float32]:
        """Calibrated probabilities `[K]` of one image, which is counted as a prediction; raises what `predict` does."""
        found, index = self._counted(spec, row)
        return np.asarray(found.probabilities[index], np.float32)

    def _counted(self, spec: Contract, row: Row) -> tuple[Judgement, int]:
        """The judgement that an image's is part of, and its place in it."""
        found, index = _judgement(spec, row)
        best = found.rounded[index, 0].item()
        if math.isnan(best):  # one logit that is no number leaves none
            raise BackendFailed(f"{spec.name} gave an answer that is not a number")
        counted_as = spec.counted_as
        label = spec.counted_label(spec.labels[found.order[index, 0]])
        self._metrics.prediction(counted_as, label).inc()
        self._metrics.certainty(counted_as).observe(best)
        if found.unfamiliar[index]:
            self._metrics.abstained.labels(counted_as).inc()
        return found, index


def _judgement(spec: Contract, row: Row) -> tuple[Judgement, int]:
    """All images of a batch are judged at once, when the first of them is: numpy takes as long for one as for ten."""
    if not isinstance(row.outputs, Share):
        return judged(spec.calibration, {name: np.asarray(values)[None] for name, values in row.outputs.items()}), 0
    batch = row.outputs.batch
    if batch.judgement is None:
        batch.judgement = judged(spec.calibration, batch.outputs)
    return batch.judgement, row.outputs.index


def timings(began: float, decode_seconds: float, row: Row) -> Timings:
    """The times of one image, whose request came to the classifier at `began`."""

    def ms(seconds: float) -> float:
        return int(seconds * 1e6 + 0.5) / 1000  # to three digits; `round` takes three times as long

    return Timings(ms(decode_seconds), ms(row.queue_seconds), ms(row.infer_seconds), ms(time.monotonic() - began))


def explained(prediction: Prediction, found: Explanation) -> ExplainedPrediction:
    """The prediction with what speaks for it."""
    return ExplainedPrediction(
        prediction.classes,
        prediction.prediction_set,
        prediction.coverage,
        prediction.abstained,
        prediction.timings_ms,
        found,
    )
