"""What tells an image that is like nothing taught: fitting `head.distances`.

The energy of the logits, by which networks abstain, says little here: a linear classifier on a few examples is as sure
of a stranger. What was weighed against this, with figures, is in docs/teaching.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.heads.head import TINY, distances

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

AXES = 16
EXAMPLES_PER_AXIS = 4  # beyond one for each class
PART = 4  # of all dimensions one may be an axis
SPARE, ROUNDS = 8, 4  # of the iteration


@dataclass(frozen=True, slots=True)
class Familiarity:
    """What `head.distances` takes: `centres [K, R]`, `offsets [K]`, `axes [A, R]`, `length []`."""

    centres: Floats
    offsets: Floats
    axes: Floats
    length: Floats

    def distances(self, points: Floats) -> Floats:
        """Of `[N, R]`: `[N]`."""
        return distances(points, self.centres, self.offsets, self.axes, self.length)


def fit_familiarity(points: Floats, labels: Ints, dimensions: int, axes: int) -> Familiarity:
    """Probabilistic principal components (Tipping and Bishop 1999) of what differs inside classes.

    Args:
        points: `[N, R]`.
        labels: `[N]`, from 0 to K - 1 with none left out.
        dimensions: Of the features; R if the points are not confined to a part of them.
        axes: From `axes_for`.
    """
    lengths = np.maximum(np.linalg.norm(points, axis=1), TINY)
    units = points / lengths[:, None]
    counts = np.bincount(labels)
    members = np.zeros((len(counts), len(labels)), np.float32)
    members[labels, np.arange(len(labels))] = 1
    means = members @ units / counts[:, None].astype(np.float32)
    directions = _axes(units - means[labels], dimensions, axes)
    along = means @ directions.T
    return Familiarity(
        centres=means - along @ directions,
        offsets=np.square(means).sum(axis=1) - np.square(along).sum(axis=1),
        axes=directions,
        length=np.asarray(lengths.mean(), np.float32),
    )


def axes_for(labels: Ints, dimensions: int) -> int:
    """As many as examples with such labels `[N]` can tell, and leave most dimensions as they are."""
    counts = np.bincount(labels)
    return min(AXES, dimensions // PART, int((counts[counts > 0] - 1).sum()) // EXAMPLES_PER_AXIS)


def _axes(residuals: Floats, dimensions: int, count: int) -> Floats:
    """Directions `[count, R]` in which examples `[N, R]` differ most, the shorter the less they stand out."""
    total = float(np.square(residuals).sum())
    if not count or not total:
        return np.zeros((0, residuals.shape[1]), np.float32)
    singular, directions = _leading(residuals, count)
    variances = np.square(singular)
    rest = max(total - float(variances.sum()), 0.0) / (dimensions - count)
    weights = np.sqrt(np.maximum(1 - rest / np.maximum(variances, TINY), 0))
    found: Floats = (directions * weights[:, None]).astype(np.float32)
    return found


def _leading(rows: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest singular values `[count]` of `[N, R]` and their right vectors, by iteration of a subspace.

    A whole decomposition would take as long as all the rest of a fit (Halko, Martinsson and Tropp 2011,
    arXiv:0909.4061).
    """
    width = min(count + SPARE, *rows.shape)
    basis = np.random.default_rng(0).normal(size=(rows.shape[1], width)).astype(np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(rows.T @ (rows @ basis))
    _, singular, turned = np.linalg.svd(rows @ basis, full_matrices=False)
    return singular[:count], (turned @ basis.T)[:count]
