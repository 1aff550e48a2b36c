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
    confusion: tuple[tuple[int, ...], ...] | None = None  # [true][given], in the order of the labels
    reliability: tuple[tuple[float, float, int], ...] = ()  # per bin that is not empty: confidence, accuracy, examples
    warnings: tuple[str, ...] = ()  # for people: what to do to get a better head


class HeadSpec(Contract):
    """Everything about one version of one head but its weights."""

    backbone: Backbone
    report: Report
    created: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers of a head with K classes on D features.

    Attributes:
        weights: `[K, D]`.
        bias: `[K]`.
    """

    weights: Floats
    bias: Floats

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
