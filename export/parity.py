"""The gate: an exported graph computes what PyTorch computes, on real images and on noise, in batches of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export import replay
from export.architectures.base import Network
from export.errors import ParityError
from export.to_onnx import Served
from service.spec import DISTANCE, ImageSpec, Parity, Precision

# Largest difference allowed, relative to the largest magnitude in that output of that image, or to 1 if that is less.
# For fp32 that is rounding; so it is for fp16, a hundred of its units, as deep networks stack them up. For int8 it only
# finds what is broken, in any of the outputs: how good the rest is, accuracy says (`export.quantize`).
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-2, "int8": 0.75}

BATCHES = (1, 3, 8)
NOISE = 8  # images of uniform noise beside the real ones; none for int8, whose ranges are those of real images
SETTLED = 0.1  # relative: where the highest logits lie further apart than twice that, their order is held to be certain
FORWARD = ("activations", "features", "logits", "cam", DISTANCE)  # in this order: the first to part is the culprit

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """Where an output differs most.

    Attributes:
        output: Its name.
        relative: The difference, relative as `TOLERANCES` says; infinite where one side is not finite.
        image: Index of the image.
        batch: Size of the batch that it was in.
        place: Index into the output of that image.
        exported: The value that ONNX Runtime gave.
        reference: The value that PyTorch gave.
    """

    output: str
    relative: float
    image: int
    batch: int
    place: tuple[int, ...]
    exported: float
    reference: float

    def __str__(self) -> str:
        return (
            f"{self.output} by {self.relative:.2g} (image {self.image}, batch of {self.batch}, at {list(self.place)}: "
            f"{self.exported:.6g}, PyTorch has {self.reference:.6g})"
        )


def check(
    network: Network, image: ImageSpec, path: Path, pixels: NDArray[np.uint8], precision: Precision = "fp32"
) -> Parity:
    """Hold an exported graph against the network that it came from.

    Args:
        network: In evaluation mode.
        image: Its image contract.
        path: The ONNX file.
        pixels: Real images, uint8 `[M, H, W, C]`; noise is added to them.
        precision: Says which tolerance holds.

    Returns:
        The figures, for the spec.

    Raises:
        ParityError: Some output differs by more than the tolerance; the message holds each one's largest difference.
        DriftError: ONNX Runtime cannot load the file.
    """
    tolerance = TOLERANCES[precision]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE * (precision != "int8"), *pixels.shape[1:]), np.uint8)
    everything = np.concatenate([pixels, noise])
    reference = outputs_of(network, image, everything)
    session = replay.session(path)
    names = list(reference)
    forward = [name for name in FORWARD if name in reference]
    worst: dict[str, Difference] = {}
    for size in BATCHES:
        parts = [
            session.run(names, {"image": everything[start : start + size]}) for start in range(0, len(everything), size)
        ]
        exported = {name: np.concatenate(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}
        for name in forward:
            comparable = np.full(len(everything), True)
            if name == "cam":
                comparable = settled(reference["logits"], min(tolerance, SETTLED))
            found = compare(name, exported[name], reference[name], comparable, size)
            if name not in worst or found.relative > worst[name].relative:
                worst[name] = found
    parted = [str(worst[name]) for name in forward if worst[name].relative > tolerance]
    if parted:
        raise ParityError(
            f"{path.name} and PyTorch part ways, first in {', then '.join(parted)}; {precision} allows {tolerance:g}"
        )
    return Parity(
        tolerance=tolerance,
        images=len(everything),
        max_difference={name: worst[name].relative for name in names},
        reference=f"PyTorch {torch.__version__.split('+')[0]}",
    )


@torch.inference_mode()
def outputs_of(network: Network, image: ImageSpec, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
    """What PyTorch gives for uint8 `[M, H, W, C]`, by output."""
    served = Served(network, image).eval()
    parts = [served(batch) for batch in torch.split(torch.from_numpy(pixels), max(BATCHES))]
    return {name: torch.cat(each).numpy() for name, each in zip(served.outputs, zip(*parts, strict=True), strict=True)}


def settled(logits: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Images whose highest logits cannot swap places within the tolerance, so that their maps come in one order.

    Args:
        logits: `[M, K]`.
        tolerance: Relative, as in `TOLERANCES`.

    Returns:
        `[M]`.
    """
    ranked = -np.sort(-logits, axis=1)[
        :, :6
    ]  # the five that have maps, and the next, which could take the fifth's place
    gaps = (ranked[:, :-1] - ranked[:, 1:]).min(axis=1)
    return np.asarray(gaps > 2 * tolerance * np.maximum(1, np.abs(logits).max(axis=1)))


def compare(name: str, exported: Floats, reference: Floats, comparable: NDArray[np.bool_], batch: int) -> Difference:
    """The largest difference between two arrays `[M, ...]` over the images that are comparable, `[M]`.

    Raises:
        ParityError: The shapes differ.
    """
    if exported.shape != reference.shape:
        raise ParityError(f"{name} is {exported.shape[1:]} in the exported graph, {reference.shape[1:]} in PyTorch")
    axes = tuple(range(1, reference.ndim))
    scale = np.maximum(1, np.abs(reference).max(axis=axes, keepdims=True))
    with np.errstate(invalid="ignore"):
        apart = np.abs(exported.astype(np.float64) - reference) / scale
    apart = np.where(np.isfinite(apart), apart, np.inf)
    apart[~comparable] = 0
    index, *place = (int(each) for each in np.unravel_index(int(apart.argmax()), apart.shape))
    where = (index, *place)
    return Difference(
        name, float(apart[where]), index, batch, tuple(place), float(exported[where]), float(reference[where])
    )
