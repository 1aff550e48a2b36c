"""A taught head: a linear classifier on a backbone's features, and all that has to be known of it.

A head answers like a model: its logits are calibrated, explained and abstained from in the same way. Its weights apply
to the features as the backbone gives them; whatever scaling the fit used is folded into them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.spec import Contract

Floats = NDArray[np.float32]

TINY = 1e-12  # what is shorter has no direction


class Backbone(BaseModel):
    """The version of a model on whose features a head was taught."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    digest: str  # `ModelSpec.digest`: features of another digest mean something else


class ClassReport(BaseModel):
    """One class in cross-validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    examples: int = Field(ge=1)
    accuracy: float | None = Field(default=None, ge=0, le=1)  # None: too few examples to hold one out


class Report(BaseModel):
    """How well a head does on examples that it was not fitted on, by stratified cross-validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    examples: int
    folds: int | None = None  # None: too few examples to validate anything
    validated: int = 0  # examples that were held out once
    accuracy: float | None = None
    ece: float | None = None  # expected calibration error of the calibrated probabilities, 15 bins
    strength: float  # C of the logistic regression: the inverse of the penalty's weight
    classes: tuple[ClassReport, ...]
    # [true][given], in the order of the labels; None: nothing was validated, or there are more than a hundred classes.
    confusion: tuple[tuple[int, ...], ...] | None = None
    reliability: tuple[tuple[float, float, int], ...] = ()  # per bin that is not empty: confidence, accuracy, examples
    warnings: tuple[str, ...] = ()  # for people: what to do to get a better head


class HeadSpec(Contract):
    """Everything about one version of one head but its weights."""

    backbone: Backbone
    report: Report
    created: str  # ISO 8601, UTC

    @property
    def counted_as(self) -> str:
        return f"{self.backbone.name} heads"

    def counted_label(self, label: str) -> str:
        del label
        return "taught"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers of a head with K classes on D features.

    Attributes:
        weights: `[K, D]`.
        bias: `[K]`.
        centres: `[K, D]`, how far a class's centre lies beyond `axes`; see `distances`.
        offsets: `[K]`, the squared lengths that go with them.
        axes: `[R, D]`, along which examples of one class differ most.
        length: `[]`, of the examples' features, on average.
    """

    weights: Floats
    bias: Floats
    centres: Floats
    offsets: Floats
    axes: Floats
    length: Floats

    def to_bytes(self) -> bytes:
        """In numpy's `.npz` format."""
        file = io.BytesIO()
        np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Parameters:
        """What `to_bytes` made.

        Raises:
            ValueError: It is something else.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def logits(self, features: NDArray[np.generic]) -> Floats:
        """Of features `[D]`: `[K]`."""
        found: Floats = self.weights @ np.asarray(features, np.float32) + self.bias
        return found

    def distance(self, features: NDArray[np.generic]) -> float:
        """How unlike everything taught features `[D]` are; from 0, like a class's mean."""
        alone = np.asarray(features, np.float32)[None]
        return float(distances(alone, self.centres, self.offsets, self.axes, self.length)[0])

    def maps(self, activations: NDArray[np.generic], places: tuple[int, int]) -> Floats:
        """Signed class activation maps `[K, h, w]` (Zhou et al. 2016, arXiv:1512.04150): exact, for a linear head.

        Args:
            activations: `[A, h, w]`, the last feature maps.
            places: Rows and columns of the grid over which the features are their means; h and w are multiples.
        """
        maps = np.asarray(activations, np.float32)
        count, height, width = maps.shape
        rows, columns = places
        weights = self.weights.reshape(-1, count, rows, columns)
        tiles = maps.reshape(count, rows, height // rows, columns, width // columns)
        found: Floats = np.einsum("karc,arhcw->krhcw", weights, tiles, optimize=True)
        return found.reshape(-1, height, width)


def distances(features: NDArray[np.generic], centres: Floats, offsets: Floats, axes: Floats, length: Floats) -> Floats:
    """Squared distances to the nearest class, of features at length one, with what differs inside classes left out.

    That is `min_c |(I - A'A)^(1/2) (u - m_c)|²` with u the features at length one, m_c the mean of such features of
    class c, and A the axes: Mahalanobis' distance (Lee et al. 2018, arXiv:1807.03888) for a covariance with a few
    strong directions and the same variance in all others, which is the unit. For features that are longer than usual it
    is more by as much.

    Args:
        features: `[N, D]`.
        centres: `(I - A'A) m_c`, `[K, D]`.
        offsets: `m_c' (I - A'A) m_c`, `[K]`.
        axes: A, `[R, D]`; orthogonal, each shorter than one.
        length: What is usual, `[]`.

    Returns:
        `[N]`.
    """
    raw = np.asarray(features, np.float32)
    lengths = np.linalg.norm(raw, axis=1)
    units = raw / np.maximum(lengths, TINY)[:, None]
    left = np.square(units).sum(axis=1) - np.square(units @ axes.T).sum(axis=1)
    nearest = left + (offsets - 2 * units @ centres.T).min(axis=1)
    found: Floats = nearest * np.maximum(lengths / length, 1)
    return found
