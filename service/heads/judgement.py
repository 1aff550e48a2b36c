"""What held-out examples say of a head: its calibration, and how well it does.

Temperature, prediction sets and abstention are fitted on all held-out examples. What is reported of them is
cross-fitted: for each fold they are fitted on the others, so that nothing is judged by what it was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import calibration as fitting
from service.calibration import expected_calibration_error, probabilities, reliability
from service.heads.head import ClassReport, Report
from service.spec import Calibration

COVERAGE = 0.95
FALSE_ALARMS = 0.05  # share of images like the examples that may be abstained from
FEW = 50  # held-out examples, below which an accuracy says little
NAMED = 5  # classes in one warning
CONFUSED = 100  # classes of which all pairs are counted: of a thousand they would take megabytes

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What heads say of examples that they were not fitted on.

    Attributes:
        logits: `[V, K]`.
        truth: Classes, `[V]`.
        folds: Of each example, `[V]`, from 0.
        distances: From what was taught, `[V]`.
    """

    logits: Floats
    truth: Ints
    folds: Ints
    distances: Floats

    def part(self, chosen: NDArray[np.bool_]) -> HeldOut:
        return HeldOut(self.logits[chosen], self.truth[chosen], self.folds[chosen], self.distances[chosen])


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Of held-out examples; None where they are too few."""

    temperature: float
    quantile: float | None
    threshold: float | None

    @classmethod
    def on(cls, held_out: HeldOut, coverage: float) -> _Fitted:
        # Few examples that all come out right would ask for certainty; so half an example more has every label.
        doubt = 0.5 / (len(held_out.truth) + 0.5)
        temperature = fitting.fit_temperature(held_out.logits, held_out.truth, doubt)
        probs = probabilities(held_out.logits, temperature)
        return cls(
            temperature,
            fitting.fit_conformal_quantile(probs, held_out.truth, coverage),
            fitting.upper_quantile(held_out.distances, 1 - FALSE_ALARMS),
        )


def judge(
    held_out: HeldOut, names: Sequence[str], counts: Sequence[int], strength: float, coverage: float
) -> tuple[Calibration, Report]:
    """Calibrate a head by held-out examples, and say how well it does on them.

    Args:
        held_out: What heads say of examples that they were not fitted on.
        names: The classes `[K]`.
        counts: Examples of each, `[K]`.
        strength: Of the head.
        coverage: The share of prediction sets that are to hold the true class.
    """
    fitted = _Fitted.on(held_out, coverage)
    crossed = _cross_fitted(held_out, coverage)
    given, truth, kinds = held_out.logits.argmax(axis=1), held_out.truth, len(names)
    confusion = np.bincount(truth * kinds + given, minlength=kinds**2).reshape(kinds, kinds)
    seen, hits = confusion.sum(axis=1), confusion.diagonal()
    calibration = Calibration(
        temperature=fitted.temperature,
        ece_before=expected_calibration_error(probabilities(held_out.logits), truth),
        ece_after=expected_calibration_error(crossed.probs, truth),
        coverage=coverage,
        conformal_quantile=fitted.quantile,
        measured_coverage=crossed.coverage,
        mean_set_size=crossed.set_size,
        abstain_above_distance=fitted.threshold,
        false_alarm_rate=crossed.false_alarms,
        data=f"{len(truth)} of {sum(counts)} examples, each held out once",
    )
    report = Report(
        examples=sum(counts),
        folds=int(held_out.folds.max()) + 1,
        validated=len(truth),
        accuracy=float((given == truth).mean()),
        ece=calibration.ece_after,
        strength=strength,
        classes=tuple(
            ClassReport(label=name, examples=counts[place], accuracy=hits[place] / seen[place] if seen[place] else None)
            for place, name in enumerate(names)
        ),
        confusion=tuple(map(tuple, confusion.tolist())) if kinds <= CONFUSED else None,
        reliability=reliability(crossed.probs, truth),
        warnings=tuple(_warnings(names, seen, len(truth), fitted, coverage)),
    )
    return calibration, report


def unjudged(
    names: Sequence[str], counts: Sequence[int], strength: float, coverage: float
) -> tuple[Calibration, Report]:
    """The same for a head of whose classes each has one example: nothing can be said."""
    warning = (
        "one example of each class: none can be held out, so the accuracy is unknown, probabilities are not calibrated,"
        " and there are no prediction sets and no abstention; teach two of each class at least, better ten"
    )
    return Calibration(coverage=coverage), Report(
        examples=sum(counts),
        strength=strength,
        classes=tuple(ClassReport(label=name, examples=count) for name, count in zip(names, counts, strict=True)),
        warnings=(warning,),
    )


@dataclass(frozen=True, slots=True)
class _Crossed:
    """What comes of held-out examples when each fold's are answered as the others ask for.

    Attributes:
        probs: `[V, K]`.
        coverage, set_size, false_alarms: None where the others of some fold are too few.
    """

    probs: Floats
    coverage: float | None
    set_size: float | None
    false_alarms: float | None


def _cross_fitted(held_out: HeldOut, coverage: float) -> _Crossed:
    truth = held_out.truth
    probs = np.zeros(held_out.logits.shape)
    sets = np.zeros(probs.shape, bool)
    alarms = np.zeros(len(truth), bool)
    enough = True
    for fold in np.unique(held_out.folds):
        inside = held_out.folds == fold
        fitted = _Fitted.on(held_out.part(~inside), coverage)
        probs[inside] = probabilities(held_out.logits[inside], fitted.temperature)
        if fitted.quantile is None or fitted.threshold is None:
            enough = False
            continue
        sets[inside] = 1 - probs[inside] <= fitted.quantile
        alarms[inside] = held_out.distances[inside] > fitted.threshold
    if not enough:
        return _Crossed(probs, None, None, None)
    covered = sets[np.arange(len(truth)), truth]
    return _Crossed(probs, float(covered.mean()), float(sets.sum(axis=1).mean()), float(alarms.mean()))


def _warnings(names: Sequence[str], seen: Ints, validated: int, fitted: _Fitted, coverage: float) -> list[str]:
    """What to do to get a better head, or to know more of it."""
    found = []
    alone = [name for name, count in zip(names, seen, strict=True) if not count]
    if alone:
        which = ", ".join(map(repr, alone[:NAMED])) + (f" and {len(alone) - NAMED} more" if len(alone) > NAMED else "")
        found.append(
            f"one example each of {which}: it cannot be held out, so nothing is known of how well they are told from"
            " the others; teach two at least, better ten"
        )
    if validated < FEW:
        found.append(
            f"only {validated} examples could be held out, so accuracy and probabilities are rough; teach {FEW} in all"
            " at least, better ten of each class"
        )
    if fitted.quantile is None:
        found.append(_wanting("prediction sets", coverage, validated))
    if fitted.threshold is None:
        found.append(_wanting("abstention", 1 - FALSE_ALARMS, validated))
    return found


def _wanting(what: str, share: float, validated: int) -> str:
    needed = math.ceil(round(share / (1 - share), 6))
    return f"no {what}: that takes {needed} examples in classes of two or more, and there are {validated}"
