"""Encoded images of every kind that the gateway takes, drawn from a seed: photographs, digits and textures."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile

# Pillow takes no more than this for a small progressive JPEG, and noise of high quality does not fit the default.
ImageFile.MAXBLOCK = 2**23  # bytes

Pixels = NDArray[np.uint8]
Draws = np.random.Generator

LARGE = (4000, 3000)  # 12 megapixels
LARGE_EVERY = 250  # so many images hold one of that size
PIXELS = (((1, 1), (31, 31)), ((32, 32), (160, 160)), ((160, 160), (800, 600)), ((800, 600), (2000, 1500)))
SIZE_SHARES = (0.08, 0.35, 0.5, 0.07)
NEAREST, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        kind: Its format and what is special about it.
        data: As encoded.
        width, height: As stored, pixels.
    """

    kind: str
    data: bytes
    width: int
    height: int


def pictures(count: int, seed: int = 0) -> Iterator[Picture]:
    """So many of them, one in `LARGE_EVERY` of 12 megapixels; each depends on the seed and its number alone."""
    for number in range(count):
        draws = np.random.default_rng((seed, number))
        if number % LARGE_EVERY == LARGE_EVERY - 1:
            width, height = LARGE if draws.random() < 0.5 else LARGE[::-1]
            kind, data = _jpeg(subject(draws, width, height), draws)
        else:
            width, height = _size(draws)
            encode = _ENCODERS[draws.choice(len(_ENCODERS), p=_SHARES)]
            kind, data = encode(subject(draws, width, height), draws)
        yield Picture(kind, data, width, height)


def photograph(size: tuple[int, int], quality: int = 90) -> bytes:
    """scikit-learn's photograph of a temple, enlarged or scaled down, as JPEG."""
    return _encoded(Image.fromarray(_photographs()[0]).resize(size), "JPEG", quality=quality)


def subject(draws: Draws, width: int, height: int) -> Pixels:
    """A picture of that size, RGB."""
    paint = (_photograph, _digit, _texture)[draws.choice(3, p=(0.5, 0.2, 0.3))]
    return np.ascontiguousarray(paint(draws, width, height))


@functools.cache
def _photographs() -> list[Pixels]:
    from sklearn.datasets import load_sample_image

    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


@functools.cache
def _digits() -> NDArray[np.float64]:
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().images)


def _size(draws: Draws) -> tuple[int, int]:
    """Width and height; area, within one of `PIXELS`, and aspect are drawn evenly on a logarithmic scale."""
    low, high = PIXELS[draws.choice(len(PIXELS), p=SIZE_SHARES)]
    area = np.exp(draws.uniform(np.log(low[0] * low[1]), np.log(high[0] * high[1])))
    widest = 20 if draws.random() < 0.05 else 3
    aspect = np.exp(draws.uniform(-np.log(widest), np.log(widest)))
    return max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))


def _photograph(draws: Draws, width: int, height: int) -> Pixels:
    """A part of one of the two, somewhat lighter or darker."""
    photo = Image.fromarray(_photographs()[draws.integers(2)])
    share = draws.uniform(0.2, 1.0)
    across, down = share * photo.width, share * photo.height
    left, top = draws.uniform(0, photo.width - across), draws.uniform(0, photo.height - down)
    part = np.asarray(photo.resize((width, height), BICUBIC, (left, top, left + across, top + down)))
    return np.clip(part * draws.uniform(0.6, 1.3), 0, 255).astype(np.uint8)


def _digit(draws: Draws, width: int, height: int) -> Pixels:
    """A digit in one colour on another."""
    digit = _digits()[draws.integers(len(_digits()))] / 16 * 255
    mask = Image.fromarray(digit.astype(np.uint8)).resize((width, height), BICUBIC if draws.random() < 0.8 else NEAREST)
    ink, paper = draws.integers(0, 256, 3), draws.integers(0, 256, 3)
    cover = np.asarray(mask)[:, :, None] / 255
    return (cover * ink + (1 - cover) * paper).astype(np.uint8)


def _texture(draws: Draws, width: int, height: int) -> Pixels:
    """Waves, a grid and grain."""
    y, x = np.ogrid[0:height, 0:width]
    waves: Any = 128.0
    for size in (width, height, 40.0):
        angle, length = draws.uniform(0, np.pi), size * draws.uniform(0.1, 1.0)
        waves = waves + 50 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / length * 2 * np.pi)
    across, down = (max(1, int(side * draws.uniform(0.02, 0.4))) for side in (width, height))
    grid = (x // across + y // down) % 2 * draws.uniform(0, 120)
    coarse = max(1, int(draws.integers(1, 9)))
    grain = draws.integers(0, 256, (-(-height // coarse), -(-width // coarse), 3), np.uint8)
    grown = np.asarray(Image.fromarray(grain).resize((width, height), NEAREST))
    tint = draws.uniform(0.5, 1.2, 3)
    picture = (waves + grid)[:, :, None] * tint + (grown - 128.0) * draws.uniform(0, 0.6)
    return np.clip(picture, 0, 255).astype(np.uint8)


# --- encoders: pixels and draws → kind and bytes ---


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002 - Pillow's name for it
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _turned(draws: Draws) -> bytes:
    """An EXIF block with an orientation, the usual one most of the time."""
    block = Image.Exif()
    block[0x0112] = int(draws.integers(1, 9)) if draws.random() < 0.4 else 1
    return block.tobytes()


def _jpeg(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    quality = int(draws.integers(30, 99))
    if draws.random() < 0.06:
        rare = str(draws.choice(np.array(["411", "440"])))
        return "JPEG 4:1:1, 4:4:0", simplejpeg.encode_jpeg(rgb, quality, "RGB", rare)
    mode = str(draws.choice(np.array(["RGB", "L", "CMYK"]), p=(0.8, 0.14, 0.06)))
    options: dict[str, Any] = {"progressive": True} if draws.random() < 0.25 else {}
    if mode == "RGB":
        options["subsampling"] = int(draws.integers(3))
    if draws.random() < 0.1:
        options["restart_marker_blocks"] = int(draws.integers(1, 20))
    data = _encoded(Image.fromarray(rgb).convert(mode), "JPEG", quality=quality, exif=_turned(draws), **options)
    if mode != "RGB":
        return f"JPEG {'grey' if mode == 'L' else mode}", data
    kind = f"JPEG {('4:4:4', '4:2:2', '4:2:0')[options['subsampling']]}"
    return f"{kind}, progressive" if "progressive" in options else kind, data


def _webp(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    image = Image.fromarray(_with_alpha(rgb, draws) if draws.random() < 0.3 else rgb)
    if draws.random() < 0.4:
        return "WebP lossless", _encoded(image, "WEBP", lossless=True, method=0, exif=_turned(draws))
    quality = int(draws.integers(30, 99))
    return "WebP lossy", _encoded(image, "WEBP", quality=quality, method=0, exif=_turned(draws))


def _gif(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    image = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=int(draws.integers(2, 257)))
    options = {"transparency": int(draws.integers(4))} if draws.random() < 0.3 else {}
    return "GIF", _encoded(image, "GIF", interlace=int(draws.integers(2)), **options)


def _bmp(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    return "BMP", _encoded(Image.fromarray(rgb).convert(str(draws.choice(np.array(["1", "L", "P", "RGB"])))), "BMP")


def _tiff(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    compression = str(draws.choice(np.array(["raw", "tiff_lzw", "tiff_deflate", "packbits"])))
    if draws.random() < 0.2:
        return "TIFF, 16-bit grey", _encoded(
            Image.fromarray(_deep(rgb[:, :, 0], draws)), "TIFF", compression=compression
        )
    mode = str(draws.choice(np.array(["1", "L", "P", "RGB", "RGBA", "CMYK"])))
    image = Image.fromarray(_with_alpha(rgb, draws)) if mode == "RGBA" else Image.fromarray(rgb).convert(mode)
    return "TIFF", _encoded(image, "TIFF", compression=compression, exif=_turned(draws))


def _png(rgb: Pixels, draws: Draws) -> tuple[str, bytes]:
    """All colour types and depths, half of them interlaced, most with an orientation."""
    interlaced = draws.random() < 0.5
    colour = int(draws.choice(np.array([0, 2, 3, 4, 6])))
    bits = int(draws.choice(np.array({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(colour, [8, 16]))))
    chunks = [(b"eXIf", _turned(draws).removeprefix(b"Exif\0\0"))]
    samples: NDArray[Any] = rgb
    if colour == 3:
        image = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=2**bits)
        samples = np.asarray(image)[:, :, None]
        chunks.append((b"PLTE", bytes(image.getpalette() or ())[: 3 * 2**bits].ljust(3 * 2**bits, b"\0")))
        if draws.random() < 0.4:
            chunks.append((b"tRNS", draws.integers(0, 256, draws.integers(1, 2**bits + 1), np.uint8).tobytes()))
    else:
        if colour in (4, 6):
            samples = _with_alpha(rgb, draws)
        samples = samples[:, :, {0: [0], 4: [0, 3]}.get(colour, slice(None))]
        samples = _deep(samples, draws) if bits == 16 else samples >> (8 - bits)
    kind = f"PNG {('grey', '', 'RGB', 'palette', 'grey with alpha', '', 'RGBA')[colour]}, {bits} bits"
    return kind, _png_file(samples, bits, colour, chunks, interlaced)


def _deep(samples: Pixels, draws: Draws) -> NDArray[np.uint16]:
    """8 bits as 16, the lower half drawn."""
    return samples.astype(np.uint16) << 8 | draws.integers(0, 256, samples.shape, np.uint16)


def _with_alpha(rgb: Pixels, draws: Draws) -> Pixels:
    """Fading to one side, or a disc with an edge."""
    height, width, _ = rgb.shape
    y, x = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]  # type: ignore[misc] # numpy's way to say so many
    alpha = x + 0 * y if draws.random() < 0.5 else ((x - 0.5) ** 2 + (y - 0.5) ** 2 < draws.uniform(0.05, 0.3)) + 0.0
    return np.dstack((rgb, (255 * alpha).astype(np.uint8)))


def _png_file(
    samples: NDArray[Any], bits: int, colour: int, chunks: list[tuple[bytes, bytes]], interlaced: bool
) -> bytes:
    """A PNG of `[H, W, samples per pixel]`, written here because Pillow writes neither Adam7 nor 16 bits of colour."""
    height, width, _ = samples.shape
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    rows = b"".join(_packed(part, bits) for part in passes if part.size)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    sums = ((kind, data, zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc) for kind, data, crc in sums
    )


def _packed(part: NDArray[Any], bits: int) -> bytes:
    """Rows as PNG stores them, each behind the number of its filter: none."""
    height = len(part)
    if bits == 16:
        rows = part.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        flat = np.ascontiguousarray(part.reshape(height, -1)).astype(np.uint8)
        rows = np.packbits(np.unpackbits(flat[:, :, None], axis=2)[:, :, 8 - bits :].reshape(height, -1), axis=1)
    return np.hstack((np.zeros((height, 1), np.uint8), rows)).tobytes()


Encoder = Callable[[Pixels, Draws], tuple[str, bytes]]
_ENCODERS: list[Encoder] = [_jpeg, _png, _webp, _gif, _bmp, _tiff]
_SHARES = (0.45, 0.28, 0.09, 0.05, 0.05, 0.08)
