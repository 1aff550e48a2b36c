"""Fit how logits become probabilities, prediction sets and abstentions, and measure what that is worth.

What is fitted comes from the validation images, what judges it from the test images, and both from the exported graph:
that is what will be served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from export import replay
from export.data import Dataset
from service import calibration
from service.spec import DISTANCE, Accuracy, Calibration, ImageSpec

COVERAGE = 0.95
FALSE_ALARMS = 0.05
BATCH = 64
TEST = ", test split"  # what follows a data set's name in a spec

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Judged:
    """What a graph says of M images.

    Attributes:
        logits: `[M, K]`.
        distance: `[M]`; None: the graph has no such output.
        labels: `[M]`, the true classes; none if nobody knows them.
    """

    logits: Floats
    distance: Floats | None
    labels: Ints

    @property
    def outputs(self) -> dict[str, Floats]:
        """By name, as `service.calibration.unfamiliar` takes them."""
        return {"logits": self.logits} | ({} if self.distance is None else {DISTANCE: self.distance})


@dataclass(frozen=True)
class Replay:
    """What a graph says of some of a data set's images.

    Attributes:
        as_such: All of them.
        guises: Those that were looked at in every guise, guise after guise.
        count: How many guises there are.
    """

    as_such: Judged
    guises: Judged
    count: int


def calibrate(
    path: Path, dataset: Dataset, image: ImageSpec, *, distance: bool = False
) -> tuple[Accuracy, Calibration]:
    """Test an exported graph on a data set's test images and calibrate it on its validation images.

    Drawings are calibrated in all the guises in which they may come, because the service's promises are to hold there
    too; accuracy is that of the images as such.

    Args:
        path: The ONNX file.
        dataset: The images.
        image: The graph's image contract.
        distance: The graph has that output.
    """
    graph = Graph(replay.session(path), image, distance)
    fitting, judging = (graph.replayed(dataset, indices) for indices in (dataset.split.validation, dataset.split.test))
    guises = f" in {fitting.count} guises" if fitting.count > 1 else ""
    return (
        accuracy(judging.as_such.logits, judging.as_such.labels, f"{dataset.name}{TEST}"),
        fit(fitting.guises, judging.guises, f"{dataset.name}, validation split{guises}"),
    )


@dataclass(frozen=True)
class Graph:
    """An exported graph that judges images.

    Attributes:
        session: Of the graph.
        image: Its image contract.
        distance: It has that output.
        tick: Told of every batch how many images it had.
    """

    session: InferenceSession
    image: ImageSpec
    distance: bool
    tick: Callable[[int], object] | None = None

    def replayed(self, dataset: Dataset, indices: Ints) -> Replay:
        """Some of a data set's images, and a sample of them in every guise."""
        found = dataset.answers(indices, self.image, self._rows)
        labels = np.tile(dataset.labels[found.sample], len(found.guises))
        return Replay(
            self._judged(found.as_such, dataset.labels[indices]),
            self._judged(np.concatenate(list(found.guises.values())), labels),
            len(found.guises),
        )

    def shown(self, pixels: Pixels) -> Judged:
        """Images of no class: uint8 `[M, H, W, C]`."""
        return self._judged(self._rows(pixels), np.zeros(0, np.int64))

    def _rows(self, pixels: Pixels) -> Floats:
        """Logits `[M, K]`, with the distance as one more column."""
        names = ["logits", DISTANCE] if self.distance else ["logits"]
        parts = []
        for start in range(0, len(pixels), BATCH):
            batch = pixels[start : start + BATCH]
            parts.append(np.concatenate(self.session.run(names, {"image": batch}), axis=1))
            if self.tick is not None:
                self.tick(len(batch))
        return np.concatenate(parts)

    def _judged(self, rows: Floats, labels: Ints) -> Judged:
        return Judged(rows[:, :-1], rows[:, -1], labels) if self.distance else Judged(rows, None, labels)


def logits_of(path: Path, pixels: Pixels) -> Floats:
    """Logits `[M, K]` of uint8 `[M, H, W, C]` from an exported graph."""
    session = replay.session(path)
    batches = np.split(pixels, range(BATCH, len(pixels), BATCH))
    return np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches])


def fit(fitting: Judged, judging: Judged, data: str) -> Calibration:
    """Fit on some images, measure on others.

    Args:
        fitting: Images that training did not learn from.
        judging: Images that nothing was chosen by.
        data: The name of the images that are fitted on.
    """
    temperature = calibration.fit_temperature(fitting.logits, fitting.labels)
    probs = calibration.probabilities(fitting.logits, temperature)
    fitted = Calibration(
        temperature=temperature,
        coverage=COVERAGE,
        conformal_quantile=calibration.fit_conformal_quantile(probs, fitting.labels, COVERAGE),
        data=data,
        **_threshold(fitting),
    )
    coverage, size = coverage_of(fitted, judging)
    unseen = calibration.probabilities(judging.logits, temperature)
    return fitted.model_copy(
        update={
            "ece_before": calibration.expected_calibration_error(
                calibration.probabilities(judging.logits), judging.labels
            ),
            "ece_after": calibration.expected_calibration_error(unseen, judging.labels),
            "measured_coverage": coverage,
            "mean_set_size": size,
            "false_alarm_rate": float(calibration.unfamiliar(fitted, judging.outputs).mean()),
            "reliability": tuple(map(tuple, calibration.reliability(unseen, judging.labels))),
        }
    )


def _threshold(fitting: Judged) -> dict[str, float]:
    """What to abstain above: a distance where there is one and the images are enough, else an energy."""
    if fitting.distance is not None:
        threshold = calibration.upper_quantile(fitting.distance, 1 - FALSE_ALARMS)
        if threshold is not None:
            return {"abstain_above_distance": threshold}
    return {"abstain_above_energy": calibration.fit_energy_threshold(fitting.logits, FALSE_ALARMS)}


def coverage_of(fitted: Calibration, judging: Judged) -> tuple[float | None, float | None]:
    """The share of prediction sets that hold the true class, and their mean size; None if there are no sets."""
    if fitted.conformal_quantile is None:
        return None, None
    inside = 1 - calibration.probabilities(judging.logits, fitted.temperature) <= fitted.conformal_quantile
    return float(inside[np.arange(len(inside)), judging.labels].mean()), float(inside.sum(axis=1).mean())


def accuracy(logits: Floats, labels: Ints, data: str) -> Accuracy:
    """The share of images whose true label has the highest logit, or one of the five highest.

    Args:
        logits: `[M, K]`.
        labels: `[M]`.
        data: The name of the images.
    """
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels[:, None]
    top5 = float(ranked.any(axis=1).mean()) if logits.shape[1] > 5 else None
    return Accuracy(data=data, images=len(labels), top1=float(ranked[:, 0].mean()), top5=top5)
