"""What a model says to images: predictions, explanations, features, each with its timings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import FoveaError
from service.explain import Explanation
from service.spec import Contract

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one image; `total` runs from the request's arrival at the classifier to the image's answer."""

    decode: float
    queue: float
    infer: float
    total: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    label: str
    index: int
    probability: float  # calibrated


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        classes: The most probable, best first.
        prediction_set: Labels that cannot be ruled out at the stated coverage; None if the model was not calibrated
            for sets.
        coverage: How often such a set holds the true label, on images like the held-out ones.
        abstained: The image is unlike the training data: do not trust the classes.
    """

    classes: list[ClassScore]
    prediction_set: list[str] | None
    coverage: float | None
    abstained: bool
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class ExplainedPrediction(Prediction):
    """A prediction with what speaks for its best class."""

    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Explained(Explanation):
    """What speaks for one class of one image, and how probable that class is."""

    probability: float  # calibrated
    colormap: str  # of the overlay
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class Features:
    """Penultimate activations of one image, `[D]`."""

    features: NDArray[np.float32]
    timings_ms: Timings


@dataclass(frozen=True, slots=True)
class Inferred:
    """Outputs by name, `[N, …]`, of all images of a request, and the contract that says what they mean."""

    spec: Contract
    outputs: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a model said to each image, in order; an image that could not be answered has its error in its place."""

    model: str
    version: str
    results: list[T | FoveaError]
