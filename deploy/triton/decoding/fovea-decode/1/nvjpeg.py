"""JPEG on an NVIDIA GPU: nvJPEG, through torchvision, and PyTorch's resampling. The decoder has never run yet.

What it does not take, or fails on, the decode model prepares on the CPU, so refusals come with the same words. Pixels
differ from the CPU's by the decoders' rounding, and because the CPU decodes large files at a fraction of their size.
Whether nvJPEG refuses what libjpeg refuses is for `make gpu-check` to find out.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from service.errors import FoveaError
from service.header import Header, JpegHeader, probe
from service.preprocess import window

END_OF_IMAGE = b"\xff\xd9"
FILTERS = ("bilinear", "bicubic")  # that PyTorch can apply with antialiasing
# EXIF orientation: whether to transpose, then which of rows and columns to reverse.
UPRIGHT = {
    1: (False, ()),
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}


class NvJpeg:
    """Prepares JPEGs on one GPU.

    Raises:
        RuntimeError: There is no such GPU, or torchvision has no nvJPEG.
    """

    def __init__(self, device: int) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch has no GPU here: install its CUDA build, or set the instance group to KIND_CPU")
        self._decode = importlib.import_module("torchvision.io").decode_jpeg
        self._device = torch.device("cuda", device)
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, "JPEG")
        self._decode([_tensor(buffer.getvalue())], device=self._device)  # without nvJPEG this fails, now

    def prepared(self, files: Sequence[bytes], image: Any) -> Iterator[tuple[int, torch.Tensor]]:
        """Those that nvJPEG decodes: place and uint8 `[H, W, 3]` on the GPU.

        Args:
            files: Encoded images.
            image: An `ImageSpec`, or what looks like one.
        """
        headers = {place: header for place, file in enumerate(files) if (header := _header(file, image)) is not None}
        if not headers:
            return
        try:
            decoded = self._decode([_tensor(files[place]) for place in headers], device=self._device)
        except RuntimeError:  # one of them is broken: which, and how, the CPU's decoder says
            return
        for (place, header), pixels in zip(headers.items(), decoded, strict=True):
            yield place, fit(pixels, header.orientation, image)

    def stack(self, images: Sequence[Any]) -> torch.Tensor:
        """Images of either memory as one batch on the GPU."""
        return torch.stack([torch.as_tensor(each, device=self._device) for each in images])


def _tensor(file: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def _header(file: bytes, image: Any) -> JpegHeader | None:
    """That of a JPEG that is taken here: whole, in colour."""
    if image.channels != 3 or image.interpolation not in FILTERS or not file.endswith(END_OF_IMAGE):
        return None
    try:
        header: Header = probe(file)
    except FoveaError:
        return None
    return header if isinstance(header, JpegHeader) and header.components == 3 else None


def fit(pixels: torch.Tensor, orientation: int, image: Any) -> torch.Tensor:
    """Turn upright, resize and crop or pad, as `service.preprocess` does.

    Args:
        pixels: uint8 `[3, H, W]`, as stored.
        orientation: EXIF, 1 to 8.
        image: An `ImageSpec`, or what looks like one.

    Returns:
        uint8 `[height, width, 3]`.
    """
    transpose, reverse = UPRIGHT[orientation]
    upright = (pixels.transpose(1, 2) if transpose else pixels).flip(reverse)
    height, width = upright.shape[1:]
    (columns, rows), (left, top, right, bottom) = window(image, width, height)
    # The whole image at the scale at which the window becomes what is wanted; then the window.
    scale_x, scale_y = columns / (right - left), rows / (bottom - top)
    size = (round(height * scale_y), round(width * scale_x))
    resized = functional.interpolate(upright[None].float(), size, mode=image.interpolation, antialias=True)[0]
    y, x = round(top * scale_y), round(left * scale_x)
    cropped = resized[:, y : y + rows, x : x + columns].round().clamp(0, 255).byte().permute(1, 2, 0)
    if (rows, columns) == (image.height, image.width):
        return cropped.contiguous()
    background = torch.tensor(image.background, dtype=torch.uint8, device=pixels.device)
    canvas = background.expand(image.height, image.width, 3).clone()
    y, x = (image.height - rows) // 2, (image.width - columns) // 2
    canvas[y : y + rows, x : x + columns] = cropped
    return canvas
