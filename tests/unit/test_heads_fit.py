"""Fitting heads, on handwritten digits as scikit-learn has them: 64 numbers each, taken for features."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from service.calibration import fit_temperature, prediction_set, probabilities, upper_quantile
from service.heads.fit import HeadFit, TooFewClasses, fit
from service.heads.head import Parameters, distances

Floats = NDArray[np.float32]


@cache
def digits() -> tuple[Floats, NDArray[np.int64]]:
    found = load_digits()
    return found.data.astype(np.float32), found.target.astype(np.int64)


def drawn(shots: int, seed: int = 0, classes: int = 10) -> tuple[Floats, list[str], Floats, NDArray[np.int64]]:
    """So many digits of each class to teach, with their labels, and all others, with their classes."""
    features, classes_of = digits()
    random = np.random.default_rng(seed)
    orders = [random.permutation(np.flatnonzero(classes_of == each)) for each in range(classes)]
    taught = np.concatenate([order[:shots] for order in orders])
    others = np.concatenate([order[shots:] for order in orders])
    return features[taught], [f"digit {each}" for each in classes_of[taught]], features[others], classes_of[others]


def wide(features: Floats) -> Floats:
    """The same in so many dimensions that a few examples do not fill them."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(400, features.shape[1])))[0]
    return (features @ turned.T).astype(np.float32)


def answers(head: HeadFit, features: Floats) -> Floats:
    return np.stack([head.parameters.logits(each) for each in features])


def everything(head: HeadFit) -> tuple[object, ...]:
    return head.labels, head.parameters.to_bytes(), head.calibration.model_dump_json(), head.report.model_dump_json()


# What it learns.


def test_a_head_keeps_on_other_digits_what_it_reports() -> None:
    found = []
    for seed in range(6):
        features, labels, others, classes = drawn(20, seed)
        head = fit(features, labels)
        probs = probabilities(answers(head, others), head.calibration.temperature)
        quantile = head.calibration.conformal_quantile
        assert quantile is not None
        covered = [each in prediction_set(row, quantile) for each, row in zip(classes, probs, strict=True)]
        limit = head.calibration.abstain_above_distance
        assert limit is not None
        alarms = [head.parameters.distance(each) > limit for each in others]
        reported = (head.report.accuracy, head.calibration.measured_coverage, head.calibration.false_alarm_rate)
        found.append(
            [*map(float, reported), (probs.argmax(axis=1) == classes).mean(), np.mean(covered), np.mean(alarms)]
        )
    accuracy, coverage, alarm_rate, true_accuracy, true_coverage, true_alarm_rate = np.mean(found, axis=0)
    assert true_accuracy > 0.91
    assert accuracy == pytest.approx(true_accuracy, abs=0.025)
    assert true_coverage == pytest.approx(0.95, abs=0.02)
    assert coverage == pytest.approx(0.95, abs=0.02)
    assert true_alarm_rate == pytest.approx(0.05, abs=0.02)
    assert alarm_rate == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("dimensions", ["narrow", "wide"])
@pytest.mark.parametrize("classes", [2, 10])
def test_it_is_logistic_regression_on_features_scaled_by_one_number(dimensions: str, classes: int) -> None:
    features, labels, others, _ = drawn(12, classes=classes)
    if dimensions == "wide":
        features, others = wide(features), wide(others)
    head = fit(features, labels)
    mean, scale = features.mean(axis=0), np.linalg.norm(features, axis=1).mean()
    direct = LogisticRegression(C=head.report.strength, tol=1e-7, max_iter=10_000)
    direct.fit((features - mean) / scale, labels)
    assert tuple(direct.classes_) == head.labels
    expected = direct.predict_proba((others - mean) / scale)
    assert probabilities(answers(head, others)) == pytest.approx(expected, abs=0.03)
    assert head.parameters.weights.sum(axis=0) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shots", [3, 30])
def test_the_same_examples_in_another_order_come_to_the_same_bytes(shots: int) -> None:
    features, labels, _, _ = drawn(shots)
    turned = np.random.default_rng(1).permutation(len(labels))
    assert everything(fit(features, labels)) == everything(fit(features[turned], [labels[each] for each in turned]))


def test_examples_that_say_nothing_of_their_labels_get_no_praise() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 30)).astype(np.float32)
    head = fit(features, [str(each) for each in random.integers(0, 4, 200)])
    assert head.report.accuracy == pytest.approx(0.25, abs=0.1)
    assert head.report.ece is not None
    assert head.report.ece < 0.1
    assert head.calibration.mean_set_size is not None
    assert head.calibration.mean_set_size > 3.4


def test_copies_of_an_example_do_not_judge_each_other() -> None:
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 30)).astype(np.float32), random.integers(0, 3, 60)
    head = fit(np.repeat(features, 4, axis=0), [str(each) for each in np.repeat(labels, 4)])
    assert head.report.validated == 240
    assert head.report.accuracy == pytest.approx(1 / 3, abs=0.15)


# What it reports.


def test_a_report_counts_every_example_once() -> None:
    features, labels, _, _ = drawn(10)
    report = fit(features, labels).report
    assert (report.examples, report.validated, report.folds) == (100, 100, 5)
    confusion = np.array(report.confusion)
    assert confusion.sum(axis=1).tolist() == [10] * 10
    assert np.trace(confusion) / 100 == pytest.approx(report.accuracy)
    assert [each.accuracy for each in report.classes] == pytest.approx(confusion.diagonal() / 10)
    assert sum(count for _, _, count in report.reliability) == 100
    gaps = sum(count * abs(confidence - accuracy) for confidence, accuracy, count in report.reliability)
    assert gaps / 100 == pytest.approx(report.ece)
    assert not report.warnings


def test_of_very_many_classes_not_every_pair_is_counted() -> None:
    random = np.random.default_rng(0)
    means = random.normal(size=(101, 20))
    features = (means.repeat(2, 0) + random.normal(0, 0.1, (202, 20))).astype(np.float32)
    report = fit(features, [f"class {place // 2}" for place in range(202)]).report
    assert report.validated == 202
    assert report.confusion is None


def test_few_examples_that_all_come_out_right_are_no_certainty() -> None:
    features, labels, others, _ = drawn(5, classes=2)
    head = fit(features, labels)
    assert head.report.accuracy == 1.0
    confidence = probabilities(answers(head, others), head.calibration.temperature).max(axis=1)
    assert 0.9 < np.median(confidence) < 0.999


def test_prediction_sets_and_abstention_need_nineteen_held_out_examples() -> None:
    features, labels, _, _ = drawn(10, classes=2)
    enough, too_few = fit(features[1:], labels[1:]), fit(features[2:], labels[2:])
    assert enough.calibration.conformal_quantile is not None
    assert enough.calibration.abstain_above_distance is not None
    assert too_few.calibration.conformal_quantile is None
    assert too_few.calibration.abstain_above_distance is None
    assert [text for text in too_few.report.warnings if text.startswith("no prediction sets: that takes 19 examples")]
    assert fit(features, labels, coverage=0.9).calibration.coverage == 0.9
    assert fit(features, labels, coverage=0.99).calibration.conformal_quantile is None


def test_the_only_example_of_a_class_teaches_and_is_not_held_out() -> None:
    features, labels, _, _ = drawn(10)
    alone = [place for place in range(100) if labels[place] != "digit 7" or place == 70]
    head = fit(features[alone], [labels[place] for place in alone])
    report = head.report
    assert (report.examples, report.validated) == (91, 90)
    assert [each.accuracy is None for each in report.classes] == [each == 7 for each in range(10)]
    assert np.array(report.confusion)[7].sum() == 0
    assert len([text for text in report.warnings if "'digit 7'" in text]) == 1


def test_a_class_of_few_examples_is_not_drowned_by_the_others() -> None:
    recalls = []
    for seed in range(5):
        features, labels, others, classes = drawn(50, seed)
        kept = [place for place in range(500) if labels[place] != "digit 7" or place % 50 < 3]
        head = fit(features[kept], [labels[place] for place in kept])
        recalls.append((answers(head, others[classes == 7]).argmax(axis=1) == 7).mean())
    assert np.mean(recalls) > 0.6


def test_one_example_of_each_class_makes_a_head_that_promises_nothing() -> None:
    features, labels, others, classes = drawn(1)
    head = fit(features, labels)
    assert (answers(head, others).argmax(axis=1) == classes).mean() > 0.5
    report, calibration = head.report, head.calibration
    assert (report.folds, report.validated, report.accuracy, report.ece, report.confusion) == (
        None,
        0,
        None,
        None,
        None,
    )
    assert [each.accuracy for each in report.classes] == [None] * 10
    assert (calibration.conformal_quantile, calibration.abstain_above_distance) == (None, None)
    assert len(report.warnings) == 1
    assert "teach two of each class" in report.warnings[0]


@pytest.mark.parametrize("count", [0, 5])
def test_fewer_than_two_classes_are_refused(count: int) -> None:
    with pytest.raises(TooFewClasses, match="teach at least two"):
        fit(np.ones((count, 8), np.float32), ["only"] * count)


def test_an_embedding_that_is_no_number_is_refused() -> None:
    features, labels, _, _ = drawn(5)
    features[3, 3] = np.nan
    with pytest.raises(ValueError, match="no number"):
        fit(features, labels)


# Abstention.


def test_strangers_are_further_than_what_was_taught() -> None:
    features, labels, _, _ = drawn(20)
    head = fit(features, labels)
    random = np.random.default_rng(0)
    strangers = {
        "noise": random.uniform(0, 16, (200, 64)),
        "inverted": 16 - features[:200],
        "blank": np.full((1, 64), 16.0),
        "shuffled": random.permuted(features, axis=1),
    }
    limit = head.calibration.abstain_above_distance
    assert limit is not None
    for kind, images in strangers.items():
        far = [head.parameters.distance(each) > limit for each in images]
        assert np.mean(far) > 0.95, kind


def test_a_distance_is_mahalanobis_of_the_direction() -> None:
    features, labels, others, _ = drawn(20)
    found = fit(features, labels).parameters
    taught = features / np.linalg.norm(features, axis=1, keepdims=True)
    shrunk = np.eye(64) - found.axes.T @ found.axes
    means = [taught[[name == label for name in labels]].mean(axis=0) for label in sorted(set(labels))]
    for image in others[:50]:
        length = np.linalg.norm(image)
        squares = [(image / length - mean) @ shrunk @ (image / length - mean) for mean in means]
        expected = min(squares) * max(1, length / np.linalg.norm(features, axis=1).mean())
        assert found.distance(image) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_features_of_nothing_but_zeros_have_a_distance() -> None:
    features, labels, _, _ = drawn(5)
    assert np.isfinite(fit(features, labels).parameters.distance(np.zeros(64, np.float32)))


def test_axes_leave_distances_between_few_features() -> None:
    random = np.random.default_rng(0)
    means = np.array([[9, 1, 1], [1, 9, 1], [1, 1, 9]])
    features = (means.repeat(20, 0) + random.normal(0, 0.5, (60, 3))).astype(np.float32)
    head = fit(features, [*"r" * 20, *"g" * 20, *"b" * 20])
    limit = head.calibration.abstain_above_distance
    assert limit is not None
    assert head.parameters.distance(np.array([9, 9, 1], np.float32)) > limit
    assert head.parameters.distance(np.array([9, 1, 1], np.float32)) < limit


# Its numbers.


def test_parameters_are_the_same_after_bytes() -> None:
    features, labels, others, _ = drawn(5)
    before = fit(features, labels).parameters
    after = Parameters.from_bytes(before.to_bytes())
    assert (after.logits(others[0]) == before.logits(others[0])).all()
    assert after.distance(others[0]) == before.distance(others[0])


def test_distances_to_nothing_but_centres_by_hand() -> None:
    centres = np.array([[1, 0], [0, 1]], np.float32)
    arguments = (centres, np.ones(2, np.float32), np.zeros((0, 2), np.float32), np.float32(5))
    features = np.array([[5, 0], [3, 4], [0, -2], [0, 10]], np.float32)
    assert distances(features, *arguments) == pytest.approx([0, 0.4, 2, 0], abs=1e-6)
    assert distances(np.array([[30, 40]], np.float32), *arguments) == pytest.approx([4])  # ten times as long


def test_doubt_keeps_a_temperature_from_certainty() -> None:
    logits = np.array([[4.0, 0.0]] * 9 + [[0.0, 4.0]] * 10)
    labels = np.array([0] * 9 + [1] * 10)
    assert fit_temperature(logits, labels) == pytest.approx(0.05)
    assert probabilities(logits, fit_temperature(logits, labels, doubt=0.1)).max(axis=1) == pytest.approx(
        0.95, abs=1e-3
    )


def test_an_upper_quantile_is_promised_or_not_given() -> None:
    assert upper_quantile(np.arange(19.0), 0.95) == 18
    assert upper_quantile(np.arange(99.0), 0.95) == 94
    assert upper_quantile(np.arange(18.0), 0.95) is None
