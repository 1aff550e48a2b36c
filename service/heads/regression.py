"""Multinomial logistic regression with a quadratic penalty, again and again on parts of the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

STRENGTHS = (1.0, 10.0, 100.0)  # C of scikit-learn: the inverse of the penalty's weight
USUAL = 10.0  # where nothing tells a better one
FOLDS = 5
TOLERANCE = 1e-4  # of the mean loss's gradient; ten times as much costs up to a point of accuracy
ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Examples:
    """Features in as few dimensions as hold them, scaled.

    Fewer examples than features lie in a space of their own number of dimensions. In its coordinates lengths and angles
    are the same, so the solution of any regression with a quadratic penalty is the same too, and is found in less time.

    Attributes:
        points: `[N, R]`, of a mean length of one.
        scale: What features are divided by: one number for all (docs/decisions.md).
        basis: `[R, D]`, orthonormal; None: the coordinates are the features.
    """

    points: Floats
    scale: float
    basis: Floats | None

    @classmethod
    def of(cls, features: Floats) -> Examples:
        """Features `[N, D]`."""
        from scipy.linalg import qr  # type: ignore[import-untyped]  # numpy's computes in float64, twice as long

        scale = float(np.linalg.norm(features, axis=1).mean()) or 1.0
        scaled = features / np.float32(scale)
        if len(features) >= features.shape[1]:
            return cls(scaled, scale, None)
        basis, coordinates = qr(scaled.T, mode="economic", check_finite=False)
        return cls(np.ascontiguousarray(coordinates.T), scale, np.ascontiguousarray(basis.T))

    @property
    def dimensions(self) -> int:
        """D."""
        return int((self.points if self.basis is None else self.basis).shape[1])

    def spread(self, rows: Floats) -> Floats:
        """Rows `[M, R]` of coordinates in all D dimensions."""
        return rows if self.basis is None else rows @ self.basis


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear classifier: `weights [K, R]`, `bias [K]`."""

    weights: Floats
    bias: Floats

    def logits(self, points: Floats) -> Floats:
        """Of `[N, R]`: `[N, K]`."""
        found: Floats = points @ self.weights.T + self.bias
        return found


def fit_path(points: Floats, labels: Ints, strengths: Sequence[float], *, balanced: bool) -> list[Linear]:
    """Fit once for each strength, beginning with what came of the one before.

    Args:
        points: `[N, R]`; their mean should not be much longer than one.
        labels: `[N]`, from 0 to K - 1 with none left out.
        strengths: C of scikit-learn, the inverse of the penalty's weight; rising.
        balanced: Every class weighs as much as any other, however many examples it has.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import, and only a fit needs it

    mean = points.mean(axis=0)
    centred = points - mean
    weighing = "balanced" if balanced else None
    model = LogisticRegression(class_weight=weighing, max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    found = []
    for strength in strengths:
        model.set_params(C=strength).fit(centred, labels)
        weights, bias = model.coef_, model.intercept_
        if len(bias) == 1:  # of two classes scikit-learn has one row, for the second
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        weights = weights - weights.mean(axis=0)
        bias = bias - bias.mean() - weights @ mean
        found.append(Linear(weights.astype(np.float32), bias.astype(np.float32)))
    return found


def deal(labels: Ints, contents: Ints) -> Ints:
    """Deal the examples of each class to folds, one after the other; equal ones go together.

    Args:
        labels: `[N]`.
        contents: `[N]`, what tells different examples apart; they are dealt in the order of these numbers.

    Returns:
        From 0, `[N]`; -1 for the only example of a class, which cannot be held out.
    """
    folds = np.full(len(labels), -1)
    dealt = 0
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        _, each = np.unique(contents[inside], return_inverse=True)
        if each.max() > 0:
            folds[inside] = dealt + each
            dealt += int(each.max()) + 1
    return np.where(folds < 0, -1, folds % min(FOLDS, max(dealt, 1)))
