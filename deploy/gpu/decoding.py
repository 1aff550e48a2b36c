"""JPEG decoding: what the gateway does on the CPU, and nvJPEG on the GPU, which has not yet run."""

from __future__ import annotations

import importlib
import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from deploy.gpu.rows import Failed, Skipped
from export import throughput
from service.preprocess import Preprocessor
from service.spec import ImageSpec

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


def gpu() -> float:
    """Images per second that nvJPEG decodes in batches, at full size, from the machine's memory to the GPU's.

    Raises:
        Skipped: torchvision here has no nvJPEG.
        Failed: The pixels are not those of the CPU's decoder.
    """
    decode_jpeg = importlib.import_module("torchvision.io").decode_jpeg
    data = photograph()
    files = [torch.frombuffer(bytearray(data), dtype=torch.uint8)] * BATCH
    try:
        found = decode_jpeg(files, device="cuda")
    except RuntimeError as error:
        if "nvJPEG" in str(error) or "not compiled" in str(error):
            raise Skipped("torchvision here was built without nvJPEG: install its CUDA build") from error
        raise
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    apart = float(np.abs(found[-1].permute(1, 2, 0).cpu().numpy().astype(np.float32) - expected).mean())
    if apart > APART:
        raise Failed(f"nvJPEG's pixels differ by {apart:.2g} levels in the mean; {APART:g} is allowed")

    def run() -> None:
        decode_jpeg(files, device="cuda")
        torch.cuda.synchronize()

    return BATCH / throughput.seconds({"gpu": run}, ROUNDS, LEAST)["gpu"]
