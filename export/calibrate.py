"""Fit how logits become probabilities, prediction sets and abstentions, and measure what that is worth.

What is fitted comes from the validation images, what judges it from the test images, and both from the exported graph:
that is what will be served.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from export import replay
from export.data import Dataset
from export.data.base import Answers
from service import calibration
from service.spec import Accuracy, Calibration, ImageSpec

COVERAGE = 0.95
FALSE_ALARMS = 0.05
BATCH = 64

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def calibrate(path: Path, dataset: Dataset, image: ImageSpec) -> tuple[Accuracy, Calibration]:
    """Test an exported graph on a data set's test images and calibrate it on its validation images.

    Drawings are calibrated in all the guises in which they may come, because the service's promises are to hold there
    too; accuracy is that of the images as such.

    Args:
        path: The ONNX file.
        dataset: The images.
        image: The graph's image contract.
    """
    session = replay.session(path)
    fitting, judging = (
        dataset.answers(indices, image, lambda pixels: _logits(session, pixels))
        for indices in (dataset.split.validation, dataset.split.test)
    )
    guises = f" in {len(fitting.guises)} guises" if len(fitting.guises) > 1 else ""
    return (
        accuracy(judging.as_such, dataset.labels[dataset.split.test], f"{dataset.name}, test split"),
        fit(
            _all_guises(fitting, dataset.labels),
            _all_guises(judging, dataset.labels),
            f"{dataset.name}, validation split{guises}",
        ),
    )


def _all_guises(answers: Answers, labels: Ints) -> tuple[Floats, Ints]:
    """Logits and labels of the sampled images, guise after guise."""
    return np.concatenate(list(answers.guises.values())), np.tile(labels[answers.sample], len(answers.guises))


def logits_of(path: Path, pixels: NDArray[np.uint8]) -> Floats:
    """Logits `[M, K]` of uint8 `[M, H, W, C]` from an exported graph."""
    return _logits(replay.session(path), pixels)


def _logits(session: InferenceSession, pixels: NDArray[np.uint8]) -> Floats:
    parts = [
        session.run(["logits"], {"image": pixels[start : start + BATCH]})[0] for start in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(parts)


def fit(fitting: tuple[Floats, Ints], judging: tuple[Floats, Ints], data: str) -> Calibration:
    """Fit on some images, measure on others.

    Args:
        fitting: Logits `[M, K]` and labels `[M]` of images that training did not learn from.
        judging: The same of images that nothing was chosen by.
        data: The name of the images that are fitted on.
    """
    logits, labels = fitting
    temperature = calibration.fit_temperature(logits, labels)
    threshold = calibration.fit_energy_threshold(logits, FALSE_ALARMS)
    quantile = calibration.fit_conformal_quantile(calibration.probabilities(logits, temperature), labels, COVERAGE)
    unseen, truth = judging
    inside = None if quantile is None else 1 - calibration.probabilities(unseen, temperature) <= quantile
    return Calibration(
        temperature=temperature,
        ece_before=calibration.expected_calibration_error(calibration.probabilities(unseen), truth),
        ece_after=calibration.expected_calibration_error(calibration.probabilities(unseen, temperature), truth),
        coverage=COVERAGE,
        conformal_quantile=quantile,
        measured_coverage=None if inside is None else float(inside[np.arange(len(truth)), truth].mean()),
        mean_set_size=None if inside is None else float(inside.sum(axis=1).mean()),
        abstain_above_energy=threshold,
        false_alarm_rate=float((calibration.energy(unseen) > threshold).mean()),
        data=data,
    )


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
