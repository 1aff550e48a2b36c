"""Golden images: a version proves itself on them, bytes in to probabilities out, before it serves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from service.calibration import probabilities
from service.errors import FoveaError
from service.preprocess import Preprocessor
from service.spec import ModelSpec


class Drifted(Exception):
    """The outputs are not those that PyTorch gave when the version was published."""


def golden_batch(spec: ModelSpec, preprocess: Preprocessor) -> NDArray[np.uint8]:
    """The golden images, decoded and resized: `[G, H, W, C]`.

    Raises:
        Drifted: One of them is not taken any more.
    """
    return np.stack(golden_samples(spec, preprocess))


def golden_samples(spec: ModelSpec, preprocess: Preprocessor) -> list[NDArray[np.uint8]]:
    """What `preprocess` makes of each golden image.

    Raises:
        Drifted: One of them is not taken any more.
    """
    images = []
    for golden in spec.golden:
        try:
            images.append(preprocess(golden.data))
        except FoveaError as error:
            raise Drifted(f"golden image {golden.name!r} is refused: {error.message}") from error
    return images


def misshapen(spec: ModelSpec, outputs: Mapping[str, NDArray[np.generic]], rows: int) -> str | None:
    """What is wrong with the shapes of a backend's outputs for so many images; None if they are those of the spec."""
    for name, shape in spec.output_shapes.items():
        found = np.shape(outputs[name])
        if found != (rows, *shape):
            return f"{name} is {list(found[1:])}, the spec wants {list(shape)}"
    return None


def golden_difference(spec: ModelSpec, logits: NDArray[np.floating]) -> float:
    """Hold a backend's answer against the spec.

    Args:
        spec: Of the version that answered.
        logits: `[G, K]`, for `golden_batch`.

    Returns:
        The largest difference of any probability.

    Raises:
        Drifted: It is larger than the spec's `golden_tolerance`, or not a number.
    """
    expected = probabilities(np.array([golden.logits for golden in spec.golden]), spec.calibration.temperature)
    got = probabilities(logits.astype(np.float64), spec.calibration.temperature)
    differences = np.abs(got - expected).max(axis=1)
    worst = int(differences.argmax()) if np.isfinite(differences).all() else int(np.isfinite(differences).argmin())
    difference = float(differences[worst])
    if not difference <= spec.golden_tolerance:
        top, was = int(got[worst].argmax()), int(expected[worst].argmax())
        raise Drifted(
            f"golden image {spec.golden[worst].name!r}: a probability differs by {difference:.3g}, more than"
            f" {spec.golden_tolerance:g}; top class {spec.labels[top]!r} at {got[worst, top]:.4f}, published as"
            f" {spec.labels[was]!r} at {expected[worst, was]:.4f}"
        )
    return difference
