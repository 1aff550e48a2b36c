"""Calibration against numbers worked out by hand and against data whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.calibration import (
    energy,
    expected_calibration_error,
    fit_conformal_quantile,
    fit_energy_threshold,
    fit_temperature,
    judged,
    prediction_set,
    probabilities,
    reliability,
    unfamiliar,
)
from service.spec import Calibration

Floats = NDArray[np.floating]


def drawn(images: int, labels: int = 5, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Logits and labels drawn from exactly their probabilities: perfectly calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, labels))
    uniform = rng.random((images, 1))
    return logits, (probabilities(logits).cumsum(axis=1) < uniform).sum(axis=1)


# Probabilities and energy.


def test_probabilities_by_hand() -> None:
    logits = np.array([math.log(1), math.log(3)])
    assert probabilities(logits) == pytest.approx([0.25, 0.75])
    assert probabilities(2 * logits, temperature=2.0) == pytest.approx([0.25, 0.75])
    assert probabilities(logits, temperature=1e6) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_probabilities_of_extreme_logits_neither_overflow_nor_vanish() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert probabilities(np.array([1e4, 0.0, -1e4])) == pytest.approx([1, 0, 0])
        assert probabilities(np.full(4, 3e38, np.float32)) == pytest.approx([0.25] * 4)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1), elements=st.floats(-60, 60, width=32)),
    st.floats(0.05, 20),
)
def test_probabilities_are_a_distribution_that_keeps_the_order(logits: Floats, temperature: float) -> None:
    probs = probabilities(logits, temperature)
    assert probs.shape == logits.shape
    assert np.allclose(probs.sum(axis=-1), 1, atol=1e-5)
    order = np.argsort(logits, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(probs, order, axis=-1), axis=-1) >= 0).all()


def test_energy_by_hand_and_at_any_size() -> None:
    logits = np.array([[math.log(1), math.log(3)], [0.0, 0.0]])
    assert energy(logits) == pytest.approx([-math.log(4), -math.log(2)])
    assert energy(logits + 1000) == pytest.approx([-math.log(4) - 1000, -math.log(2) - 1000])
    assert energy(np.array([5.0, -1e9])) == pytest.approx(-5.0)


def test_the_energy_threshold_raises_the_false_alarms_asked_for() -> None:
    logits, _ = drawn(4000)
    threshold = fit_energy_threshold(logits, 0.05)
    assert (energy(logits) > threshold).mean() == pytest.approx(0.05, abs=0.001)


# Temperature.


@pytest.mark.parametrize("scaling", [0.2, 0.5, 1.0, 1.7, 4.0, 10.0])
def test_temperature_undoes_a_known_scaling(scaling: float) -> None:
    logits, labels = drawn(20_000)
    assert fit_temperature(logits * scaling, labels) == pytest.approx(scaling, rel=0.03)


@given(st.floats(0.2, 5), st.integers(0, 50))
def test_temperature_is_a_minimum_of_the_likelihood(scaling: float, seed: int) -> None:
    logits, labels = drawn(300, seed=seed)
    logits = logits * scaling
    fitted = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return -float(np.log(probabilities(logits, temperature)[np.arange(300), labels]).mean())

    assert loss(fitted) <= min(loss(fitted * 1.02), loss(fitted / 1.02))


def test_temperature_stays_in_its_bounds() -> None:
    rng = np.random.default_rng(0)
    certain = np.eye(4)[rng.integers(0, 4, 100)] * 5
    assert fit_temperature(certain, certain.argmax(axis=1)) == pytest.approx(0.05)  # never wrong: as sharp as it gets
    assert fit_temperature(certain, (certain.argmax(axis=1) + 1) % 4) == pytest.approx(20)  # always wrong
    assert fit_temperature(np.zeros((10, 4)), np.zeros(10, int)) == pytest.approx(20)  # tells nothing


def test_temperature_takes_float32_logits_that_are_large() -> None:
    logits, labels = drawn(2000)
    large = (logits * 3 + 500).astype(np.float32)
    assert fit_temperature(large, labels) == pytest.approx(3, rel=0.1)


# Calibration error.


def test_calibration_error_by_hand() -> None:
    """Ten bins: two at 0.6 of which one is right, two at 0.9 both right: (2/4)·|0.6-0.5| + (2/4)·|0.9-1| = 0.1."""
    probs = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1])
    assert expected_calibration_error(probs, labels, bins=10) == pytest.approx(0.1)


def test_calibration_error_averages_confidence_inside_a_bin() -> None:
    """One bin holds all: mean confidence 0.75, accuracy 0.5."""
    probs = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert expected_calibration_error(probs, np.array([0, 1]), bins=1) == pytest.approx(0.25)


def test_calibration_error_counts_confidence_one_in_the_last_bin() -> None:
    probs = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert expected_calibration_error(probs, np.array([0, 1]), bins=10) == pytest.approx(0.5)


def test_reliability_by_hand() -> None:
    """Ten bins: three images at 0.6 and 0.62 of which one is right, and one at 1.0; all others are empty."""
    probs = np.array([[0.6, 0.4], [0.4, 0.6], [0.38, 0.62], [0.0, 1.0]])
    low, high = reliability(probs, np.array([0, 0, 0, 1]), bins=10)
    assert low == pytest.approx((0.6066667, 1 / 3, 3))
    assert high == (1.0, 1.0, 1)


def test_temperature_brings_the_calibration_error_down() -> None:
    logits, labels = drawn(20_000)
    overconfident = logits * 3
    before = expected_calibration_error(probabilities(overconfident), labels)
    after = expected_calibration_error(probabilities(overconfident, fit_temperature(overconfident, labels)), labels)
    assert before > 0.15
    assert after < 0.02


# Prediction sets.


def test_the_conformal_quantile_by_hand() -> None:
    """Nine scores 0.1 … 0.9; the rank for 80 % is ceil(10 * 0.8) = 8, so the quantile is the eighth: 0.8."""
    true = np.arange(0.9, 0.0, -0.1)
    probs = np.stack([true, 1 - true], axis=1)
    labels = np.zeros(9, int)
    assert fit_conformal_quantile(probs, labels, 0.8) == pytest.approx(0.8)
    assert fit_conformal_quantile(probs, labels, 0.9) == pytest.approx(0.9)  # rank 9 of 9: just enough
    assert fit_conformal_quantile(probs, labels, 0.95) is None  # rank 10 of 9: nine images cannot promise that


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_what_they_promise_on_new_data(coverage: float) -> None:
    logits, labels = drawn(4000, seed=1)
    quantile = fit_conformal_quantile(probabilities(logits), labels, coverage)
    assert quantile is not None
    fresh, truth = drawn(8000, seed=2)
    hits = [label in prediction_set(probs, quantile) for probs, label in zip(probabilities(fresh), truth, strict=True)]
    # Binomial: two standard deviations over 8,000 images are below 0.01; the quantile's own spread adds as much.
    assert np.mean(hits) == pytest.approx(coverage, abs=0.02)


def test_few_images_promise_at_least_the_coverage_on_average() -> None:
    """The finite-sample correction: without it 20 images would cover about 90 % minus 1/21."""
    covered = []
    for seed in range(400):
        logits, labels = drawn(20, seed=seed)
        quantile = fit_conformal_quantile(probabilities(logits), labels, 0.9)
        assert quantile is not None
        fresh, truth = drawn(50, seed=10_000 + seed)
        covered.append((1 - probabilities(fresh)[np.arange(50), truth] <= quantile).mean())
    assert np.mean(covered) >= 0.895


def test_sets_are_ordered_and_inclusive() -> None:
    probs = np.array([0.1, 0.5, 0.15, 0.25])
    assert prediction_set(probs, 1 - 0.15).tolist() == [1, 3, 2]  # 0.15 is on the edge: inside
    assert prediction_set(probs, 0.5).tolist() == [1]
    assert prediction_set(probs, 0.4).tolist() == []  # nothing conforms: an empty set says so
    assert prediction_set(probs, 1.0).tolist() == [1, 3, 2, 0]


def test_sets_of_equal_probabilities_keep_the_order_of_the_labels() -> None:
    assert prediction_set(np.array([0.25, 0.25, 0.25, 0.25]), 0.9).tolist() == [0, 1, 2, 3]


# Abstention.


def test_the_distance_decides_where_there_is_a_threshold_for_it_else_the_energy() -> None:
    logits = np.array([[9.0, 0.0], [0.0, 0.0], [9.0, 0.0]], np.float32)
    outputs = {"logits": logits, "distance": np.array([[0.2], [0.2], [0.4]], np.float32)}
    by_distance = Calibration(abstain_above_distance=0.3, abstain_above_energy=-5.0)
    assert unfamiliar(by_distance, outputs).tolist() == [False, False, True]
    assert unfamiliar(Calibration(abstain_above_energy=-5.0), outputs).tolist() == [False, True, False]
    assert unfamiliar(Calibration(), outputs).tolist() == [False, False, False]


@pytest.mark.parametrize(("distance", "strange"), [(0.3, False), (0.31, True), (math.nan, True)])
def test_of_one_image_the_distance_may_have_a_dimension_or_none(distance: float, strange: bool) -> None:
    for shape in ((), (1,)):
        outputs = {"logits": np.zeros(3, np.float32), "distance": np.full(shape, distance, np.float32)}
        found = unfamiliar(Calibration(abstain_above_distance=float(np.float32(0.3))), outputs)
        assert (found.shape, bool(found)) == ((), strange)


# Many images at once.


@given(
    hnp.arrays(np.float32, (5, 4), elements=st.integers(-3, 3).map(float)),  # so that some are equal
    st.sampled_from([None, 0.0, 0.3, 0.75, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_images_judged_together_are_judged_as_alone(
    logits: NDArray[np.float32], quantile: float | None, temperature: float
) -> None:
    fitted = Calibration(temperature=temperature, coverage=0.9, conformal_quantile=quantile, abstain_above_energy=-2.0)
    found = judged(fitted, {"logits": logits})
    for index, row in enumerate(logits):
        alone = probabilities(row, temperature)
        assert found.probabilities[index].tolist() == alone.tolist()
        assert found.order[index].tolist() == sorted(range(4), key=lambda each: -alone[each])
        assert found.rounded[index].tolist() == pytest.approx(sorted(alone.tolist(), reverse=True), abs=6e-7)
        assert all(float(f"{value:.6f}") == value for value in found.rounded[index].tolist())
        within = [] if quantile is None else prediction_set(alone, quantile).tolist()
        assert found.order[index, : found.set_sizes[index]].tolist() == within
        assert found.unfamiliar[index] == bool(unfamiliar(fitted, {"logits": row}))
