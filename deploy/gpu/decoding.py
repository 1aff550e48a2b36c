"""JPEG to the network's pixels: by the gateway on the CPU, by the decode model on the GPU, which has not yet run."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from deploy.gpu.rows import Failed, Skipped
from export import throughput
from service.preprocess import Preprocessor
from service.spec import ImageSpec

NVJPEG = Path(__file__).resolve().parents[1] / "triton/decoding/fovea-decode/1/nvjpeg.py"
QUALITY = 92
BATCH = 64
APART = 2.0  # mean difference in 8-bit levels: decoders differ in the inverse transform and in how they enlarge colour
ROUNDS, LEAST = 3, 0.1


def photograph() -> bytes:
    """A JPEG of 640×427 pixels, about 100 KB."""
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def cpu(image: ImageSpec) -> float:
    """Images per second that one core of the gateway brings from JPEG to the network's pixels."""
    data, preprocess = photograph(), Preprocessor(image)
    return 1 / throughput.seconds({"cpu": lambda: preprocess(data)}, ROUNDS, LEAST)["cpu"]


def gpu(image: ImageSpec) -> float:
    """Images per second that the decode model brings there on a GPU, in batches.

    Raises:
        Skipped: torchvision here has no nvJPEG.
        Failed: The pixels are not those of the CPU, or a truncated file is taken.
    """
    data = photograph()
    try:
        nvjpeg = _module().NvJpeg(0)
    except RuntimeError as error:
        raise Skipped(f"torchvision here was built without nvJPEG: install its CUDA build ({error})") from error
    found = dict(nvjpeg.prepared([data], image))
    if not found:
        raise Failed("nvJPEG does not take a sound photograph, or the network takes no colour")
    expected = Preprocessor(image)(data).astype(np.float32)
    apart = float(np.abs(found[0].cpu().numpy().astype(np.float32) - expected).mean())
    if apart > APART:
        raise Failed(f"nvJPEG's pixels differ by {apart:.2g} levels in the mean; {APART:g} is allowed")
    if list(nvjpeg.prepared([data[: len(data) // 2] + data[-2:]], image)):
        raise Failed("nvJPEG takes a file with its second half missing, which the gateway refuses")

    def run() -> None:
        nvjpeg.stack([pixels for _, pixels in nvjpeg.prepared([data] * BATCH, image)])
        torch.cuda.synchronize()

    return BATCH / throughput.seconds({"gpu": run}, ROUNDS, LEAST)["gpu"]


def _module() -> ModuleType:
    """The decode model's own code: it lies in a model repository, where nothing can be imported by name."""
    spec = importlib.util.spec_from_file_location("nvjpeg", NVJPEG)
    if spec is None or spec.loader is None:
        raise Failed(f"{NVJPEG} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
