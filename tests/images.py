"""Pictures to encode, and encoded images built by hand for what Pillow's encoders cannot write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.preprocess import Preprocessor
from service.spec import ImageSpec

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 13, 10
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
TIFF_KINDS = {1: "B", 3: "H", 4: "I"}  # uint8, uint16, uint32


def noise(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(0).integers(low, high, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Different in every corner and kind to JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / width * 9)], 2).astype(np.uint8)


def as_is(data: bytes, width: int = WIDTH, height: int = HEIGHT, **spec: Any) -> NDArray[np.int64]:
    """The pixels with no resizing, signed so that they can be subtracted."""
    return Preprocessor(ImageSpec(height=height, width=width, resize="stretch", **spec))(data).astype(np.int64)


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002 - Pillow's name for it
    """Encode with Pillow."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: NDArray[Any], bits: int, colour: int, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG.

    Args:
        samples: `[H, W, samples per pixel]`, each below 2 ** bits.
        bits: Per sample.
        colour: PNG's colour type.
        chunks: Kind and contents of further chunks before the pixels.
        interlaced: In Adam7's order.
    """
    height, width, _ = samples.shape
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def _packed(row: NDArray[Any], bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    binary = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(binary.ravel()).tobytes()


def gif(
    indices: NDArray[np.uint8],
    palette: NDArray[np.uint8],
    *,
    screen: tuple[int, int] | None = None,
    place: tuple[int, int] = (0, 0),
    transparent: int | None = None,
    own_palette: bool = False,
    codes: Sequence[int] | None = None,
) -> bytes:
    """A GIF of one frame.

    Args:
        indices: `[H, W]`.
        palette: `[256, 3]`.
        screen: Width and height; the frame's own if None.
        place: Left and top of the frame on the screen.
        transparent: The transparent index.
        own_palette: Give the palette to the frame, and a grey one to the screen.
        codes: Compressed codes of 9 bits instead of the right ones.
    """
    height, width = indices.shape
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    data = b"GIF89a" + struct.pack("<HHBBB", *(screen or (width, height)), 0xF7, 0, 0)
    data += (grey if own_palette else palette).tobytes()
    if transparent is not None:
        data += b"\x21\xf9\4\1\0\0" + bytes([transparent]) + b"\0"
    data += b"\x2c" + struct.pack("<4HB", *place, width, height, 0x87 if own_palette else 0)
    data += palette.tobytes() if own_palette else b""
    packed = _lzw(codes if codes is not None else list(_plain_codes(indices.ravel().tolist())))
    blocks = [packed[start : start + 255] for start in range(0, len(packed), 255)]
    return data + b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0\x3b"


def _plain_codes(values: Sequence[int]) -> Iterator[int]:
    """Every value as it is; cleared before the codes grow beyond 9 bits."""
    for start in range(0, len(values), 200):
        yield 256
        yield from values[start : start + 200]
    yield 257


def _lzw(codes: Sequence[int]) -> bytes:
    number = sum(code << 9 * place for place, code in enumerate(codes))
    return number.to_bytes(-(-9 * len(codes) // 8), "little")


def tiff(tags: Mapping[int, tuple[int, Sequence[int]]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF of one directory, its pixels in one strip unless the tags say otherwise.

    Args:
        tags: Kind (1: uint8, 3: uint16, 4: uint32) and values by tag; strips are added if they are missing.
        pixels: From byte 8 on.
        order: `<` or `>`, struct's byte order.
    """
    tags = {273: (4, [8]), 279: (4, [len(pixels)]), **tags}
    start = 8 + len(pixels)
    extra = start + 2 + 12 * len(tags) + 4
    entries, far = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(order + TIFF_KINDS[kind] * len(values), *values)
        if len(data) > 4:
            far += data
            data = struct.pack(order + "I", extra + len(far) - len(data))
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HI", 42, start)
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + bytes(4) + far
