"""What the decode model does with JPEGs that a GPU has decoded, on a CPU: as the gateway's own preparation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from service.preprocess import Preprocessor
from service.spec import ImageSpec
from tests.images import encoded, exif, smooth

FILE = Path(__file__).parents[2] / "deploy/triton/decoding/fovea-decode/1/nvjpeg.py"


@pytest.fixture(scope="module")
def nvjpeg() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nvjpeg", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "way",
    [
        {"resize": "shorter_side", "resize_to": 60},
        {"resize": "stretch"},
        {"resize": "letterbox", "background": (10, 200, 90)},
    ],
    ids=["crop", "stretch", "letterbox"],
)
def test_fit(nvjpeg: ModuleType, way: dict[str, object], orientation: int, interpolation: str) -> None:
    image = ImageSpec.model_validate({"height": 40, "width": 56, "interpolation": interpolation} | way)
    pixels = smooth(150, 210)
    expected = Preprocessor(image)(encoded(Image.fromarray(pixels), "PNG", exif=exif(orientation)))
    found = nvjpeg.fit(torch.from_numpy(pixels).permute(2, 0, 1), orientation, image).numpy()
    assert found.shape == expected.shape
    apart = np.abs(found.astype(int) - expected)
    assert apart.mean() < 0.5
    assert apart.max() <= 6  # a window that begins within a pixel is moved to its edge
