"""From logits to calibrated probabilities, prediction sets and abstention; fitting and applying side by side.

Sources: temperature scaling and expected calibration error, Guo et al. 2017 (arXiv:1706.04599); split conformal
prediction with the least ambiguous sets, Sadinle, Lei and Wasserman 2019 (arXiv:1609.00451); energy as a score of
unfamiliar inputs, Liu et al. 2020 (arXiv:2010.03759).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.spec import DISTANCE, Calibration

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

BINS = 15


class Judgement(NamedTuple):
    """What calibration makes of the logits of N images.

    Attributes:
        probabilities: `[N, K]`.
        order: `[N, K]`, indices of the classes, the most probable first.
        rounded: `[N, K]`, the probabilities in that order, to six digits.
        set_sizes: `[N]`, how many of the first classes are in the prediction set; 0 without sets.
        unfamiliar: `[N]`.
    """

    probabilities: Floats
    order: Ints
    rounded: NDArray[np.float64]
    set_sizes: list[int]
    unfamiliar: list[bool]


def judged(fitted: Calibration, outputs: Mapping[str, NDArray[np.generic]]) -> Judgement:
    """Judge images.

    Args:
        fitted: Of the model, or of the head.
        outputs: `logits [N, K]`, and `distance [N]` or `[N, 1]` if there is a threshold for it.
    """
    probs = probabilities(np.asarray(outputs["logits"], np.float32), fitted.temperature)
    order = (-probs).argsort(axis=1, kind="stable")
    # Rounded as Python rounds: a whole number is divided, so that it comes out as few digits.
    rounded = np.rint(probs[np.arange(len(probs))[:, None], order].astype(np.float64) * 1e6) / 1e6
    sizes = [0] * len(probs)
    if fitted.conformal_quantile is not None:
        sizes = _inside(probs, fitted.conformal_quantile).sum(axis=1).tolist()
    return Judgement(probs, order, rounded, sizes, unfamiliar(fitted, outputs).tolist())


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Softmax of `logits / temperature`.

    Args:
        logits: `[..., K]`.
        temperature: > 0; above 1 it softens, below 1 it sharpens.

    Returns:
        `[..., K]`, each row summing to 1.
    """
    raised = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def energy(logits: Floats) -> Floats:
    """Free energy `-log(sum(exp(logits)))`, `[..., K]` to `[...]`: low for familiar images, high for others."""
    top = logits.max(axis=-1)
    return np.asarray(-(top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))))


def fit_temperature(logits: Floats, labels: Ints, doubt: float = 0.0) -> float:
    """The temperature with the least negative log-likelihood on held-out data.

    The likelihood is convex in 1/temperature and its derivative is monotone, so bisection finds the optimum.

    Args:
        logits: `[N, K]`.
        labels: `[N]`, the true classes.
        doubt: The share of each label that is spread over all classes: keeps few images that all come out right from
            asking for certainty.

    Returns:
        A temperature in [0.05, 20]; the upper end if the logits tell nothing, the lower if they are never wrong.
    """
    logits = logits.astype(np.float64)
    told = (1 - doubt) * logits[np.arange(len(labels)), labels] + doubt * logits.mean(axis=1)

    def slope(beta: float) -> float:
        expected = (probabilities(logits, 1 / beta) * logits).sum(axis=1)
        return float((expected - told).mean())

    low, high = 1 / 20, 1 / 0.05
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(30):  # to a billionth
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def expected_calibration_error(probs: Floats, labels: Ints, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their counts.

    Args:
        probs: `[N, K]`.
        labels: `[N]`.
        bins: Number of bins on [0, 1].
    """
    found = reliability(probs, labels, bins)
    return sum(each.images * abs(each.confidence - each.accuracy) for each in found) / max(len(labels), 1)


class Bin(NamedTuple):
    """Images of about the same confidence.

    Attributes:
        confidence: Mean probability of the predicted class.
        accuracy: Share of images whose predicted class is the true one.
        images: How many there are.
    """

    confidence: float
    accuracy: float
    images: int


def reliability(probs: Floats, labels: Ints, bins: int = BINS) -> tuple[Bin, ...]:
    """What `expected_calibration_error` sums over, without the bins that are empty; the least confident first."""
    confidence = probs.max(axis=1)
    correct = probs.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return tuple(
        Bin(float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum()))
        for inside in (bin_of == index for index in np.unique(bin_of))
    )


def fit_conformal_quantile(probs: Floats, labels: Ints, coverage: float) -> float | None:
    """The score `1 - p(true class)` below which the true class falls with probability `coverage`.

    Args:
        probs: `[N, K]` calibrated probabilities of held-out images.
        labels: `[N]`.
        coverage: The asked share of prediction sets that hold the true class.

    Returns:
        The finite-sample quantile, or None if N is too small to promise that coverage.
    """
    return upper_quantile(1 - probs[np.arange(len(labels)), labels], coverage)


def upper_quantile(scores: Floats, share: float) -> float | None:
    """The value that one more score like these stays within, with a probability of `share` at least.

    Args:
        scores: `[N]`.
        share: Above 0, below 1.

    Returns:
        One of the scores, or None if N is too small to promise that.
    """
    rank = math.ceil((len(scores) + 1) * share)
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])


def prediction_set(probs: Floats, quantile: float) -> Ints:
    """Indices of the classes that cannot be ruled out, most probable first; may be empty.

    Args:
        probs: `[K]`.
        quantile: From `fit_conformal_quantile`.
    """
    inside = np.flatnonzero(_inside(probs, quantile))
    return np.asarray(inside[np.argsort(-probs[inside], kind="stable")])


def _inside(probs: Floats, quantile: float) -> NDArray[np.bool_]:
    """Which classes cannot be ruled out: of two, never the less probable alone."""
    return np.asarray(1 - probs <= quantile)  # as fitted; `probs >= 1 - quantile` rounds otherwise


def fit_energy_threshold(logits: Floats, false_alarm_rate: float = 0.05) -> float:
    """The energy above which the given share of held-out images lies: abstain beyond it.

    Args:
        logits: `[N, K]` of held-out images like the training data.
        false_alarm_rate: Share of them that may be abstained from.
    """
    return float(np.quantile(energy(logits.astype(np.float64)), 1 - false_alarm_rate))


def unfamiliar(fitted: Calibration, outputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_]:
    """Whether images are unlike those that a model, or a head, has learned from.

    Args:
        fitted: By the distance if it has a threshold for that, else by the energy; never if it has neither.
        outputs: `logits [..., K]`, and `distance [...]` or `[..., 1]` if there is a threshold for it.
    """
    logits = np.asarray(outputs["logits"], np.float32)
    if fitted.abstain_above_distance is not None:
        distance = np.asarray(outputs[DISTANCE], np.float32).reshape(logits.shape[:-1])
        return np.asarray(~(distance <= fitted.abstain_above_distance))  # what is no number is strange
    if fitted.abstain_above_energy is not None:
        return np.asarray(energy(logits) > fitted.abstain_above_energy)
    return np.zeros(logits.shape[:-1], np.bool_)
