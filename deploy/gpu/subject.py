"""The network that everything is checked with, and its files in every precision.

Its weights are random: speed does not depend on them, and that engines agree needs no trained network. Its batch
statistics are those of real photographs, so that activations have sizes that occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.gpu.rows import Failed
from export import parity, quantize
from export.describe import describe
from export.half import to_half
from export.learner import normalised
from export.publish import Candidate, from_weights, real_images
from export.to_onnx import to_onnx
from service.spec import Precision

TENSORRT_INT8 = "int8-tensorrt"  # file name of the format that TensorRT takes


@dataclass(frozen=True)
class Subject:
    """A network with what is measured on it.

    Attributes:
        candidate: The network, in evaluation mode on the CPU, and its image contract.
        macs: Multiply-accumulates for one image.
        pixels: Photographs, uint8 `[M, H, W, C]`.
        folder: Of its files.
    """

    candidate: Candidate
    macs: int
    pixels: NDArray[np.uint8]
    folder: Path

    def file(self, name: str) -> Path:
        """Where its ONNX file of that precision or format lies."""
        return self.folder / f"{name}.onnx"

    def exported(self, precision: Precision) -> str:
        """Write its ONNX file in one precision, and hold it against PyTorch on the CPU.

        fp16 and int8 are made of the fp32 file, which has to be there.

        Returns:
            How far each output is from PyTorch's.

        Raises:
            Failed: There is no fp32 file to make it of.
            ExportError: It cannot be written, or does not agree.
        """
        network, image = self.candidate.network, self.candidate.image
        if precision == "fp32":
            to_onnx(network, image, self.file("fp32"))
        elif not self.file("fp32").exists():
            raise Failed("there is no fp32 file to make it of")
        elif precision == "fp16":
            to_half(self.file("fp32"), self.file("fp16"))
        else:
            self._quantize()
        agreement = parity.check(network, image, self.file(precision), self.pixels, precision)
        differences = ", ".join(f"{name} {value:.1g}" for name, value in agreement.max_difference.items())
        return f"differs from PyTorch by {differences}; {agreement.tolerance:g} is allowed"

    def _quantize(self) -> None:
        """Both int8 files: the one for CPUs, and the one for TensorRT. Accuracy is not judged: there is none."""
        fused = self.file("fused")
        quantize.fuse(self.file("fp32"), fused)
        for name, form in (("int8", quantize.CPU[0]), (TENSORRT_INT8, quantize.TENSORRT[0])):
            ranges = self.folder / f"{name}.json"
            quantize.write(fused, self.file(name), form, _Reader(self.pixels), ranges)  # type: ignore[arg-type]


def take(name: str, folder: Path) -> Subject:
    """Take a network by name.

    Args:
        name: Of the architecture.
        folder: For its files.

    Raises:
        UnknownName: There is none of that name.
    """
    torch.manual_seed(0)
    candidate = from_weights(name, None)
    network, image = candidate.network, candidate.image
    pixels = real_images(None, image)
    averaging = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    for module in averaging:
        module.train()
        module.momentum = None  # a plain mean
    with torch.inference_mode():
        network(normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), image))
    network.eval()
    macs = describe(network, (image.channels, image.height, image.width)).macs
    return Subject(candidate, macs, pixels, folder)


class _Reader:
    """Calibration images one at a time, as ONNX Runtime's quantizer wants them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}
