"""Encoded bytes → the uint8 `[H, W, C]` that a model takes, as its `ImageSpec` says.

Training, export and serving share this module, so a model never sees an image prepared in two ways.
`service.header` reads sizes, `service.decode` says what becomes of each format and kind of pixel.

Resizing gives what torchvision's `Resize(resize_to)` and `CenterCrop` give on a PIL image, in one step that computes
only what stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.decode import Decoded, decode
from service.errors import TooLarge
from service.header import Header, JpegHeader, probe

if TYPE_CHECKING:  # the decode model in Triton imports this module, and has no pydantic
    from service.spec import ImageSpec

# A shrunk JPEG keeps this many times the size needed in each direction, so that what is seen is up to the resampling
# filter and not to the decoder's crude one. Against full decoding, two photographs differ by 0.3 to 0.7 levels of 255
# on average and by more than 4 in 1 % of the values (at a margin of 1: 1 to 5, and 34; of 2: 0.4 to 1.1, and 7).
SHRINK_MARGIN = 2.5
# And at least so many pixels each way: where the input is small, a few levels decide between two letters. A model of
# 32×32 named another class for 1 % of a varied set of JPEGs with the margin alone, and for 0.1 % with this.
SHRUNK_SIDE = 192
# A resampling filter over a side of s pixels takes up to 48 · s bytes of coefficients, however thin the image.
MAX_SIDE = 65_535  # pixels, JPEG's own limit

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Nearest and box pick whole pixels, so they cannot do without any.
_PICKS_PIXELS = (Image.Resampling.NEAREST, Image.Resampling.BOX)

_UPRIGHT = {  # by EXIF orientation, of what stands
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
}
_LYING = {5: 1, 6: 2, 7: 3, 8: 4}  # what remains of these once rows have become columns
_MIRRORED_SIDEWAYS, _MIRRORED_UPWARDS = (2, 3), (3, 4)

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an image may be; checked before anything is decoded."""

    max_bytes: int = 20 * 2**20  # encoded
    max_pixels: int = 50_000_000  # width × height


def pixels(data: bytes) -> int:
    """The number of pixels that the header of an encoded image announces, in microseconds.

    Raises:
        InvalidImage: The data is empty, or its header is truncated or broken.
        UnsupportedFormat: Not an accepted format.
    """
    return probe(data).pixels


class Preprocessor:
    """Turns encoded images into a model's input; immutable, so any number of threads may call it at once.

    Args:
        image: The model's image contract.
        limits: How large an image may be.
    """

    def __init__(self, image: ImageSpec, limits: Limits = Limits()) -> None:
        self._spec = image
        self._limits = limits
        self._resampling = _RESAMPLING[image.interpolation]
        self._mode = "RGB" if image.channels == 3 else "L"
        self._padding = Image.new("RGB", (1, 1), image.background).convert(self._mode).getpixel((0, 0))

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decode, resize, crop and turn one image upright.

        Args:
            data: The encoded image: JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page).

        Returns:
            uint8 `[height, width, channels]`, C-contiguous.

        Raises:
            InvalidImage: Empty, truncated or broken.
            TooLarge: Beyond the limits.
            UnsupportedFormat: Not an accepted format, or a rare kind of it.
        """
        header = self.header(data)
        decoded = decode(
            data,
            header,
            background=self._spec.background,
            shrink=self._shrink(header),
            max_pixels=self._limits.max_pixels,
        )
        image = self._fit(decoded)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        shape = (self._spec.height, self._spec.width, self._spec.channels)
        return np.frombuffer(image.tobytes(), np.uint8).reshape(shape).copy()

    def header(self, data: bytes) -> Header:
        """What the header of an image within the limits says.

        Raises:
            InvalidImage, TooLarge, UnsupportedFormat: As when it is decoded, as far as the header tells.
        """
        if len(data) > self._limits.max_bytes:
            raise TooLarge(f"{len(data)} bytes are more than {self._limits.max_bytes}; scale the image down")
        header = probe(data)
        if header.pixels > self._limits.max_pixels or max(header.width, header.height) > MAX_SIDE:
            raise TooLarge(
                f"{header.width} × {header.height} pixels are more than {self._limits.max_pixels} in all"
                f" or {MAX_SIDE} a side; scale the image down"
            )
        return header

    def _fit(self, decoded: Decoded) -> Image.Image:
        """Resize and crop first and mirror the little that remains."""
        image, width, height, orientation = decoded
        if image.mode != self._mode and self._mode == "L":
            image = image.convert("L")
        if orientation in _LYING:
            # Pillow resizes in two passes, rounding and clipping between them: the first has to be that of the rows.
            image = image.transpose(Image.Transpose.TRANSPOSE)
            width, height, orientation = height, width, _LYING[orientation]
        if orientation != 1 and self._resampling == Image.Resampling.NEAREST:
            # Between two pixels, nearest takes the right-hand one: not the same one in a mirror.
            image, orientation = image.transpose(_UPRIGHT[orientation]), 1
        size, box = window(self._spec, width, height)
        box = _as_stored(box, orientation, width, height)
        if image.size != size or box != (0, 0, *size):
            image = image.resize(size, self._resampling, box)
        if orientation != 1:
            image = image.transpose(_UPRIGHT[orientation])
        if size == (self._spec.width, self._spec.height):
            return image
        canvas = Image.new(self._mode, (self._spec.width, self._spec.height), self._padding)
        canvas.paste(image, ((self._spec.width - size[0]) // 2, (self._spec.height - size[1]) // 2))
        return canvas

    def _shrink(self, header: Header) -> int:
        """The fraction, one over this, at which a JPEG may be decoded."""
        if not isinstance(header, JpegHeader) or self._resampling in _PICKS_PIXELS:
            return 1
        lying = header.orientation in _LYING
        size, box = window(self._spec, *((header.height, header.width) if lying else (header.width, header.height)))
        across, down = (max(SHRINK_MARGIN * side, SHRUNK_SIDE) for side in size)
        spare = min((box[2] - box[0]) / across, (box[3] - box[1]) / down)
        return next((factor for factor in (8, 4, 2) if factor <= spare), 1)


class Undecoded(Preprocessor):
    """Checks headers and limits, and leaves the decoding to others."""

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """The encoded image as it is, uint8 `[bytes]`; raises what its header alone gives reason to."""
        self.header(data)
        return np.frombuffer(data, np.uint8)


def window(spec: ImageSpec, width: float, height: float) -> tuple[tuple[int, int], Box]:
    """What to cut out of an upright image, and the size that this becomes.

    Args:
        spec: How the model wants images prepared.
        width: Of the image.
        height: Of the image.

    Returns:
        Width and height in the network's input, which a letterbox pads; and left, top, right, bottom in the image.
    """
    if spec.resize == "letterbox":
        scale = min(spec.width / width, spec.height / height)
        return (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)
    if spec.resize_to is None:
        return (spec.width, spec.height), (0, 0, width, height)
    # As torchvision does it: the longer side is truncated, the offsets of the crop are rounded half to even.
    longer = int(spec.resize_to * max(width, height) / min(width, height))
    full_width, full_height = (spec.resize_to, longer) if width <= height else (longer, spec.resize_to)
    left, top = round((full_width - spec.width) / 2), round((full_height - spec.height) / 2)
    x, y = width / full_width, height / full_height
    right, bottom = min(width, (left + spec.width) * x), min(height, (top + spec.height) * y)
    return (spec.width, spec.height), (left * x, top * y, right, bottom)


def _as_stored(box: Box, orientation: int, width: float, height: float) -> Box:
    """Where a box of the upright image lies in a stored one of the same size, which may be mirrored."""
    left, top, right, bottom = box
    if orientation in _MIRRORED_SIDEWAYS:
        left, right = width - right, width - left
    if orientation in _MIRRORED_UPWARDS:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
