"""Encoded bytes → the uint8 `[H, W, C]` that a model takes, as its `ImageSpec` says.

Training, export and serving share this module, so a model never sees an image prepared in two ways.
`service.decode` says what becomes of each format and mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.decode import decode
from service.errors import TooLarge
from service.header import Header, probe
from service.spec import ImageSpec

SHRINK_MARGIN = 2.0  # a JPEG is decoded at 1/2, 1/4 or 1/8 as long as it stays this much larger than it is needed

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an image may be; checked before anything is decoded."""

    max_bytes: int = 20 * 2**20  # encoded
    max_pixels: int = 50_000_000  # width × height, decoded


class _Window(NamedTuple):
    """What to cut out of the upright image, in its pixels, and the size that this becomes."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    width: int
    height: int


def pixels(data: bytes) -> int:
    """The number of pixels that decoding will produce, from the header alone, in microseconds.

    Raises:
        InvalidImage, UnsupportedFormat: As `service.header.probe`.
    """
    return probe(data).pixels


class Preprocessor:
    """Turns encoded images into a model's input. Holds no mutable state: call it from any number of threads.

    Args:
        image: The model's image contract.
        limits: How large an image may be.
    """

    def __init__(self, image: ImageSpec, limits: Limits = Limits()) -> None:
        self._spec = image
        self._limits = limits
        self._resampling = _RESAMPLING[image.interpolation]
        self._mode = "RGB" if image.channels == 3 else "L"
        swatch = Image.new("RGB", (1, 1), image.background).convert(self._mode)
        self._padding = swatch.getpixel((0, 0))

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decode, orient, resize and crop one image.

        Args:
            data: The encoded image: JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page).

        Returns:
            uint8 `[height, width, channels]`, C-contiguous.

        Raises:
            InvalidImage: Empty, truncated or broken.
            TooLarge: Beyond `limits`.
            UnsupportedFormat: Not an accepted format, or pixels without a defined white.
        """
        if len(data) > self._limits.max_bytes:
            raise TooLarge(f"{len(data)} bytes are more than {self._limits.max_bytes}; scale the image down")
        header = probe(data)
        if header.pixels > self._limits.max_pixels:
            raise TooLarge(
                f"{header.width} × {header.height} pixels are more than {self._limits.max_pixels}; scale the image down"
            )
        shrink = self._shrink(header)
        image, orientation = decode(
            data, header, background=self._spec.background, shrink=shrink, max_pixels=self._limits.max_pixels
        )
        if orientation != 1:
            image = image.transpose(_UPRIGHT[orientation])
        if image.mode != self._mode and self._mode == "L":
            image = image.convert("L")
        image = self._fit(image)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        return np.array(image).reshape(self._spec.height, self._spec.width, self._spec.channels)

    def _fit(self, image: Image.Image) -> Image.Image:
        window = self._window(image.width, image.height)
        size = window.width, window.height
        if image.size != size or window.box != (0, 0, *size):
            image = image.resize(size, self._resampling, box=window.box)
        if size == (self._spec.width, self._spec.height):
            return image
        canvas = Image.new(self._mode, (self._spec.width, self._spec.height), self._padding)
        canvas.paste(image, ((self._spec.width - window.width) // 2, (self._spec.height - window.height) // 2))
        return canvas

    def _window(self, width: int, height: int) -> _Window:
        spec = self._spec
        if spec.resize == "letterbox":
            scale = min(spec.width / width, spec.height / height)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            return _Window((0, 0, width, height), *size)
        if spec.resize_to is None:
            return _Window((0, 0, width, height), spec.width, spec.height)
        # torchvision: the longer side is truncated, the offset of the crop rounded half to even.
        short, long = min(width, height), max(width, height)
        longer = spec.resize_to * long // short
        full = (spec.resize_to, longer) if width <= height else (longer, spec.resize_to)
        left = round((full[0] - spec.width) / 2)
        top = round((full[1] - spec.height) / 2)
        x, y = width / full[0], height / full[1]
        return _Window((left * x, top * y, (left + spec.width) * x, (top + spec.height) * y), spec.width, spec.height)

    def _shrink(self, header: Header) -> int:
        if header.format != "JPEG" or self._spec.interpolation == "nearest":
            return 1
        window = self._window(header.width, header.height)
        box = window.box
        spare = min((box[2] - box[0]) / window.width, (box[3] - box[1]) / window.height) / SHRINK_MARGIN
        return max((factor for factor in (1, 2, 4, 8) if factor <= spare), default=1)
