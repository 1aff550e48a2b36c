"""Fit a head: a linear classifier on a backbone's features, its calibration, and what it is worth.

Each example is held out once, from a head that is fitted on the others. What those heads say of it chooses the penalty
and fits temperature, prediction sets and abstention; the head that serves is fitted on all examples.

The same examples, in whatever order, come to the same bytes on the same machine.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.calibration import fit_temperature, probabilities
from service.heads.familiarity import axes_for, fit_familiarity
from service.heads.head import Parameters, Report
from service.heads.judgement import COVERAGE, HeldOut, judge, unjudged
from service.heads.regression import STRENGTHS, USUAL, Examples, deal, fit_path
from service.spec import Calibration

ENOUGH = 1000  # held-out examples to choose the strength by; with more, the other folds are only fitted with it
THREADS = 1  # of BLAS; several wait for each other spinning, on cores that classification needs

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class TooFewClasses(ValueError):
    """There are not two classes to tell apart."""


@dataclass(frozen=True, slots=True)
class HeadFit:
    """A head, fitted.

    Attributes:
        labels: The classes, sorted.
        parameters: With the classes in that order.
        calibration: Of its answers.
        report: What it is worth.
    """

    labels: tuple[str, ...]
    parameters: Parameters
    calibration: Calibration
    report: Report


def fit(embeddings: Floats, labels: Sequence[str], *, coverage: float = COVERAGE) -> HeadFit:
    """Fit a head.

    Args:
        embeddings: Features `[N, D]`, as the backbone gives them.
        labels: `[N]`.
        coverage: The share of prediction sets that are to hold the true class.

    Raises:
        TooFewClasses: There are not two.
        ValueError: An embedding is not finite.
    """
    from threadpoolctl import threadpool_limits

    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise TooFewClasses(f"{'one class' if names else 'no examples'} only: teach at least two classes")
    features = np.ascontiguousarray(embeddings, np.float32)
    if not np.isfinite(features).all():
        raise ValueError("an embedding holds what is no number")
    places, truth, contents = _ordered(features, labels, names)
    features = features[places]
    folds = deal(truth, contents)
    with threadpool_limits(THREADS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, whose readers are not ours
        examples = Examples.of(features)
        strength, held_out = USUAL, None
        if folds.max() > 0:
            strength, held_out = _hold_out(examples, truth, folds)
        (linear,) = fit_path(examples.points, truth, [strength], balanced=True)
        familiarity = fit_familiarity(examples.points, truth, examples.dimensions, axes_for(truth, examples.dimensions))
    parameters = Parameters(
        weights=examples.spread(linear.weights) / np.float32(examples.scale),
        bias=linear.bias,
        centres=examples.spread(familiarity.centres),
        offsets=familiarity.offsets,
        axes=examples.spread(familiarity.axes),
        length=familiarity.length * np.float32(examples.scale),
    )
    counts = np.bincount(truth).tolist()
    if held_out is None:
        calibration, report = unjudged(names, counts, strength, coverage)
    else:
        calibration, report = judge(held_out, names, counts, strength, coverage)
    return HeadFit(names, parameters, calibration, report)


def _ordered(features: Floats, labels: Sequence[str], names: tuple[str, ...]) -> tuple[Ints, Ints, Ints]:
    """The examples in an order that only they decide: by class, and in it as a shuffle would, by their hashes.

    Returns:
        Their places, their classes, and a number for each different one, all `[N]`.
    """
    index = {name: place for place, name in enumerate(names)}
    keys = [(index[label], hashlib.sha256(row.tobytes()).digest()) for label, row in zip(labels, features, strict=True)]
    places = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    truth = np.array([keys[place][0] for place in places])
    different = [keys[one] != keys[before] for before, one in pairwise(places)]
    return places, truth, np.concatenate([[0], np.cumsum(different, dtype=np.int64)])


def _hold_out(examples: Examples, truth: Ints, folds: Ints) -> tuple[float, HeldOut]:
    """What heads fitted without an example say of it, at the strength that says it best."""
    training = [folds != fold for fold in range(int(folds.max()) + 1)]
    held = np.flatnonzero(folds >= 0)
    logits = np.zeros((len(STRENGTHS), len(truth), int(truth.max()) + 1), np.float32)
    choosing = math.ceil(ENOUGH / (len(held) / len(training)))
    for train in training[:choosing]:
        for place, linear in enumerate(fit_path(examples.points[train], truth[train], STRENGTHS, balanced=True)):
            logits[place, ~train] = linear.logits(examples.points[~train])
    chosen = np.flatnonzero((folds >= 0) & (folds < choosing))
    best = int(np.argmin([_loss(each[chosen], truth[chosen]) for each in logits]))
    for train in training[choosing:]:
        (linear,) = fit_path(examples.points[train], truth[train], STRENGTHS[best : best + 1], balanced=True)
        logits[best, ~train] = linear.logits(examples.points[~train])
    distances = np.zeros(len(truth), np.float32)
    axes = min(axes_for(truth[train], examples.dimensions) for train in training)
    for train in training:
        familiarity = fit_familiarity(examples.points[train], truth[train], examples.dimensions, axes)
        distances[~train] = familiarity.distances(examples.points[~train])
    return STRENGTHS[best], HeldOut(logits[best, held], truth[held], folds[held], distances[held])


def _loss(logits: Floats, truth: Ints) -> float:
    """The mean of the logarithm of what the true class is given, at the best temperature."""
    probs = probabilities(logits.astype(np.float64), fit_temperature(logits, truth))
    return -float(np.log(np.maximum(probs[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean())
