"""Bytes in, pixels out: every format and kind of pixel, and every way of being broken that we could think of."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidImage, TooLarge, UnsupportedFormat
from service.preprocess import Limits, Preprocessor, pixels
from service.spec import ImageSpec
from tests.images import encoded, gif, png, png_chunk, tiff

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 13, 10
BLUE = (0, 0, 255)


def noise(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(0).integers(low, high, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Different in every corner and kind to JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / width * 9)], 2).astype(np.uint8)


def as_is(data: bytes, width: int = WIDTH, height: int = HEIGHT, **spec: Any) -> NDArray[np.int64]:
    """The pixels with no resizing, signed so that they can be subtracted."""
    return Preprocessor(ImageSpec(height=height, width=width, resize="stretch", **spec))(data).astype(np.int64)


def grey(values: NDArray[Any]) -> NDArray[Any]:
    """One channel as three."""
    return np.repeat(values[:, :, None], 3, axis=2)


def on_background(rgba: Pixels, background: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.int64]:
    colour, alpha = rgba[:, :, :3].astype(float), rgba[:, :, 3:] / 255
    return np.rint(colour * alpha + np.array(background) * (1 - alpha)).astype(np.int64)


# --- what comes out ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_the_output_is_a_contiguous_array_of_bytes_of_its_own(mode: str, channels: int) -> None:
    spec = ImageSpec(height=7, width=5, channels=channels, resize_to=8)
    out = Preprocessor(spec)(encoded(Image.fromarray(noise(channels=4)).convert(mode), "PNG"))
    assert out.shape == (7, 5, channels)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable


LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
}
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L", "P"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"],
    "WEBP": ["RGB", "RGBA"],
}


@pytest.mark.parametrize(("format", "mode"), [(name, mode) for name in MODES for mode in MODES[name]])
def test_lossless_formats_keep_every_pixel(format: str, mode: str) -> None:  # noqa: A002 - Pillow's name for it
    colour = Image.fromarray(noise(channels=4))
    image = (colour.convert("RGB") if mode in ("P", "CMYK", "YCbCr") else colour).convert(mode)
    data = encoded(image, format, **LOSSLESS[format])
    expected = on_background(np.asarray(image.convert("RGBA")), BLUE)
    assert np.array_equal(as_is(data, background=BLUE), expected)
    luma = np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L"))
    assert np.array_equal(as_is(data, background=BLUE, channels=1)[:, :, 0], luma)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "lzma", "zstd"])
def test_compressed_tiff_keeps_every_pixel(compression: str) -> None:
    assert np.array_equal(as_is(encoded(Image.fromarray(noise()), "TIFF", compression=compression)), noise())


def test_half_transparent_black_on_white_is_middle_grey() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 128))
    for data in (encoded(image, "PNG"), encoded(image, "TIFF"), encoded(image, "WEBP", lossless=True)):
        assert as_is(data, 2, 1).tolist() == [[[127] * 3] * 2]  # 255 · 127 / 255
        assert as_is(data, 2, 1, channels=1).tolist() == [[[127]] * 2]
        assert as_is(data, 2, 1, background=(0, 0, 0)).tolist() == [[[0] * 3] * 2]


def test_grey_is_the_luma_of_itu_r_601() -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 30]]], np.uint8))
    assert as_is(encoded(image, "PNG"), 4, 1, channels=1).ravel().tolist() == [76, 150, 29, 124]


# --- depths that Pillow does not take over as they are ---

SIXTEEN = {0: 0, 128: 0, 129: 1, 257: 1, 0x7FFF: 127, 0x8000: 128, 65406: 254, 65407: 255, 65535: 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF, little-endian", "TIFF, big-endian", "TIFF, compressed"])
def test_16_bit_grey_is_scaled_and_rounded(kind: str) -> None:
    values = np.array([list(SIXTEEN)])
    if kind == "PNG":
        data = png(values[:, :, None], 16, 0)
    elif kind == "TIFF, compressed":
        data = encoded(Image.fromarray(values.astype(np.uint16)), "TIFF", compression="tiff_lzw")
    else:
        order = "<" if "little" in kind else ">"
        tags = {256: (3, [values.size]), 257: (3, [1]), 258: (3, [16]), 262: (3, [1])}
        data = tiff(tags, values.astype(order + "u2").tobytes(), order)
    assert as_is(data, values.size, 1)[0, :, 0].tolist() == list(SIXTEEN.values())


def test_16_bit_colour_keeps_the_high_byte() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 4))
    assert np.array_equal(as_is(png(samples[:, :, :3], 16, 2)), samples[:, :, :3] >> 8)
    assert np.array_equal(as_is(png(samples, 16, 6)), on_background((samples >> 8).astype(np.uint8)))
    high = (samples[:, :, [0, 0, 0, 1]] >> 8).astype(np.uint8)
    assert np.array_equal(as_is(png(samples[:, :, :2], 16, 4)), on_background(high))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_bits(bits: int, interlaced: bool) -> None:
    samples = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH, 1))
    stretched = grey(samples[:, :, 0] * 255 // (2**bits - 1))
    assert np.array_equal(as_is(png(samples, bits, 0, interlaced=interlaced)), stretched)
    colours = noise(1, 2**bits)[0]
    data = png(samples, bits, 3, (b"PLTE", colours.tobytes()), interlaced=interlaced)
    assert np.array_equal(as_is(data), colours[samples[:, :, 0]])


def test_black_is_not_taken_for_missing() -> None:
    black = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for interlaced in (False, True):
        for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
            data = png(black[:, :, :channels], 8, colour, interlaced=interlaced)
            assert not as_is(data, background=(0, 0, 0)).any()
    for size in ((1, 1), (2, 1), (1, 3), (4, 4), (9, 9)):  # some passes are empty
        assert not as_is(png(black[: size[0], : size[1], :1], 1, 0, interlaced=True), size[1], size[0]).any()


def test_interlaced_colour() -> None:
    assert np.array_equal(as_is(png(noise(), 8, 2, interlaced=True)), noise())
    assert np.array_equal(as_is(png(noise(channels=4), 8, 6, interlaced=True)), on_background(noise(channels=4)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_compared_at_its_own_depth(bits: int) -> None:
    top = 2**bits - 1
    values = [0, 1] if bits == 1 else [0, 1, 2, top - 1, top]
    out = as_is(
        png(np.array([values])[:, :, None], bits, 0, (b"tRNS", struct.pack(">H", 1))), len(values), 1, background=BLUE
    )
    scaled = [round(value * 255 / top) for value in values]
    assert out[0].tolist() == [list(BLUE) if v == 1 else [s] * 3 for v, s in zip(values, scaled, strict=True)]


def test_the_transparent_colour_of_a_png_needs_all_three_samples() -> None:
    samples = np.array([[[1, 2, 3], [1, 2, 4], [9, 2, 3]]])
    out = as_is(png(samples, 8, 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3))), 3, 1)
    assert out[0].tolist() == [[255] * 3, [1, 2, 4], [9, 2, 3]]
    with pytest.raises(UnsupportedFormat, match="16-bit RGB"):
        as_is(png(samples, 16, 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3))), 3, 1)


def test_palette_with_an_alpha_for_each_of_the_first_colours() -> None:
    palette = (b"PLTE", bytes([10, 20, 30, 100, 100, 100, 200, 0, 0]))
    out = as_is(png(np.array([[[0], [1], [2]]]), 8, 3, palette, (b"tRNS", bytes([0, 128]))), 3, 1, background=(0, 0, 0))
    assert out[0].tolist() == [[0, 0, 0], [50, 50, 50], [200, 0, 0]]


def test_premultiplied_alpha_of_a_tiff_is_undone_first() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 100, 50, 128))
    tags = {256: (3, [2]), 257: (3, [1]), 262: (3, [2]), 277: (3, [4]), 258: (3, [8] * 4), 338: (3, [1])}
    straight = as_is(encoded(rgba, "TIFF"), 2, 1)
    assert np.abs(as_is(tiff(tags, bytes([100, 50, 25, 128] * 2)), 2, 1) - straight).max() <= 1
    tags |= {262: (3, [1]), 277: (3, [2]), 258: (3, [8] * 2)}
    half_grey = as_is(encoded(Image.new("LA", (2, 1), (200, 128)), "TIFF"), 2, 1)
    assert np.abs(as_is(tiff(tags, bytes([100, 128] * 2)), 2, 1) - half_grey).max() <= 1


# --- JPEG ---


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}])
def test_jpeg_is_decoded_as_pillow_decodes_it(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(smooth(HEIGHT, WIDTH)).convert(mode), "JPEG", quality=95, **options)
    assert np.array_equal(as_is(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_cmyk_jpeg_is_inverted_as_adobe_writes_it() -> None:
    for colour, expected in [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255,) * 3)]:
        data = encoded(Image.new("CMYK", (8, 8), colour), "JPEG", quality=95)
        assert np.abs(as_is(data, 8, 8) - expected).max() <= 3
    # YCCK: the same inks, stored as luma and chroma.
    inks = np.ascontiguousarray(np.broadcast_to(np.array([0, 255, 255, 255], np.uint8), (8, 8, 4)))
    assert np.abs(as_is(simplejpeg.encode_jpeg(inks, 95, "CMYK"), 8, 8) - (0, 255, 255)).max() <= 3


def test_nonsense_that_cameras_write_about_the_frequencies_of_a_sequential_scan_is_overlooked() -> None:
    data = encoded(Image.fromarray(smooth(HEIGHT, WIDTH)), "JPEG")
    spectrum = data.index(b"\xff\xda") + 5 + 2 * 3
    assert data[spectrum : spectrum + 3] == b"\0\x3f\0"
    odd = data[:spectrum] + b"\0\0\0" + data[spectrum + 3 :]
    assert np.array_equal(as_is(odd), as_is(data))


def test_a_jpeg_that_libjpeg_would_patch_up_is_refused() -> None:
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", quality=90)
    for broken in (data[:-200] + b"\xff\xd9", data[:-2] + bytes(9) + data[-2:]):
        Image.open(io.BytesIO(broken)).load()  # Pillow sees nothing wrong
        with pytest.raises(InvalidImage):
            as_is(broken, 64, 64)


@pytest.mark.parametrize("interpolation", ["bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(603, 801), (907, 681)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_decoded_small_looks_the_same(size: tuple[int, int], interpolation: str, orientation: int) -> None:
    data = large_jpeg(size, orientation)
    spec = ImageSpec(height=48, width=56, resize_to=64, interpolation=interpolation)
    full = UPRIGHT[orientation](np.asarray(Image.open(io.BytesIO(data))))
    difference = np.abs(Preprocessor(spec)(data).astype(np.int64) - reference(full, spec))
    assert difference.mean() < 0.7
    assert np.percentile(difference, 99) <= 5


@cache
def large_jpeg(size: tuple[int, int], orientation: int) -> bytes:
    """Gradients, noise and hard edges."""
    picture = smooth(*size).astype(np.int64) + noise(*size, low=0, high=16)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    picture[(y // 47 + x // 61) % 3 == 0] += 40
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return encoded(image, "JPEG", quality=90, exif=exif(orientation))


# --- orientation ---

UPRIGHT: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF, compressed"])
def test_exif_orientation(format: str, orientation: int) -> None:  # noqa: A002 - Pillow's name for it
    stored = smooth(24, 16)
    options: dict[str, Any] = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    if format == "TIFF, compressed":
        options = {"compression": "tiff_lzw"}
    data = encoded(Image.fromarray(stored), format.split(",")[0], exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](stored)
    out = as_is(data, expected.shape[1], expected.shape[0])
    assert np.abs(out - expected).max() <= (6 if format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "lanczos"])
@pytest.mark.parametrize("resize", ["shorter_side", "stretch", "letterbox"])
def test_turning_after_resizing_is_turning_before_it(resize: str, interpolation: str, orientation: int) -> None:
    stored = noise(37, 61, low=64, high=192)
    spec = spec_for(resize, interpolation)
    data = encoded(Image.fromarray(stored), "PNG", exif=exif(orientation))
    difference = np.abs(Preprocessor(spec)(data).astype(np.int64) - reference(UPRIGHT[orientation](stored), spec))
    assert difference.max() <= (0 if interpolation == "nearest" else 1)


LOOP = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
BROKEN_EXIF = {
    "empty": b"",
    "truncated": exif(6)[:20],
    "not a directory": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "a loop": b"Exif\0\0" + LOOP,
    "countless entries": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(1000),
    "orientation 9": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, 9) + bytes(4),
    "orientation in words": b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 2, 1, 6) + bytes(4),
    "noise": random.Random(0).randbytes(300),
}


@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_broken_exif_is_overlooked(block: bytes) -> None:
    stored = smooth(24, 16)
    assert np.array_equal(as_is(png(stored, 8, 2, (b"eXIf", block.removeprefix(b"Exif\0\0"))), 16, 24), stored)
    webp = encoded(Image.fromarray(stored), "WEBP", lossless=True, exif=block)
    assert np.array_equal(as_is(webp, 16, 24), stored)
    plain = encoded(Image.fromarray(stored), "JPEG")
    jpeg = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
    assert np.array_equal(as_is(jpeg, 16, 24), as_is(plain, 16, 24))


def test_exif_of_either_byte_order() -> None:
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        block = mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)
        assert np.array_equal(as_is(png(noise(), 8, 2, (b"eXIf", block))), noise()[::-1, ::-1])


def test_damaged_metadata_of_a_tiff_is_overlooked_in_silence() -> None:
    tags = {256: (3, [2]), 257: (3, [1]), 258: (3, [8]), 262: (3, [1])}
    odd = {34665: (4, [0xFFFFFF]), 34853: (4, [3]), 282: (4, [1, 2, 3]), 266: (3, [1, 1])}
    assert as_is(tiff(tags, bytes([5, 9])), 2, 1)[0, :, 0].tolist() == [5, 9]
    code = (
        "import sys; from service.preprocess import *; from service.spec import ImageSpec;"
        "out = Preprocessor(ImageSpec(height=1, width=2, resize='stretch'))(sys.stdin.buffer.read());"
        "print(out[0, :, 0].tolist())"
    )
    data = tiff(tags | odd, bytes([5, 9]))
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], input=data, capture_output=True, check=False)
    assert (result.stdout.strip(), result.stderr) == (b"[5, 9]", b"")


# --- several frames ---


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_only_the_first_frame_counts(format: str) -> None:  # noqa: A002 - Pillow's name for it
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    assert np.abs(as_is(data) - (255, 0, 0)).max() <= 2  # WebP is lossy


def test_gif_transparency_palettes_and_frames_smaller_than_the_screen() -> None:
    indices, palette = noise(4, 5, 1)[:, :, 0], noise(1, 256)[0]
    colours = palette[indices]
    assert np.array_equal(as_is(gif(indices, palette), 5, 4), colours)
    assert np.array_equal(as_is(gif(indices, palette, own_palette=True), 5, 4), colours)
    hole = int(indices[1, 2])
    clear = np.where((indices == hole)[:, :, None], BLUE, colours)
    assert np.array_equal(as_is(gif(indices, palette, transparent=hole), 5, 4, background=BLUE), clear)
    framed = np.full((7, 8, 3), BLUE)
    framed[2:6, 1:6] = colours
    assert np.array_equal(as_is(gif(indices, palette, screen=(8, 7), place=(1, 2)), 8, 7, background=BLUE), framed)


def test_interlaced_gif() -> None:
    data = bytearray(encoded(Image.fromarray(noise(16, 16, 1)[:, :, 0]), "GIF", interlace=1))
    assert np.array_equal(as_is(bytes(data), 16, 16), grey(noise(16, 16, 1)[:, :, 0]))


def test_bmp_stored_top_down() -> None:
    data = bytearray(encoded(Image.fromarray(noise()), "BMP"))
    struct.pack_into("<i", data, 22, -HEIGHT)
    assert np.array_equal(as_is(bytes(data)), noise()[::-1])


def test_tiff_in_planes_and_in_tiles() -> None:
    tags = {256: (3, [16]), 257: (3, [32]), 262: (3, [2]), 277: (3, [3]), 258: (3, [8] * 3)}
    samples = noise(32, 16)
    planes = np.moveaxis(samples, 2, 0).tobytes()
    strips = {284: (3, [2]), 273: (4, [8, 8 + 512, 8 + 1024]), 279: (4, [512] * 3)}
    assert np.array_equal(as_is(tiff(tags | strips, planes), 16, 32), samples)
    tiles = {322: (3, [16]), 323: (3, [16]), 324: (4, [8, 8 + 768]), 325: (4, [768] * 2)}
    whole = tiff(tags | tiles, samples.tobytes())
    assert np.array_equal(as_is(whole, 16, 32), samples)
    for missing in (
        strips | {273: (4, [8, 8 + 512]), 279: (4, [512] * 2)},
        {278: (3, [8]), 273: (4, [8]), 279: (4, [384])},
    ):
        with pytest.raises(InvalidImage):
            as_is(tiff(tags | missing, planes), 16, 32)


# --- resizing ---

FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def spec_for(resize: str, interpolation: str, width: int = 24, height: int = 19) -> ImageSpec:
    resize_to = 32 if resize == "shorter_side" else None
    return ImageSpec(
        height=height, width=width, resize=resize, resize_to=resize_to, interpolation=interpolation, background=BLUE
    )


def reference(pixels: Pixels, spec: ImageSpec) -> NDArray[np.int64]:
    """Resize everything, then crop or pad: torchvision's Resize and CenterCrop, written down plainly."""
    image, method = Image.fromarray(np.ascontiguousarray(pixels)), FILTERS[spec.interpolation]
    width, height = image.size
    if spec.resize == "stretch":
        out = image.resize((spec.width, spec.height), method)
    elif spec.resize == "letterbox":
        scale = min(spec.width / width, spec.height / height)
        small = image.resize((round(width * scale), round(height * scale)), method)
        out = Image.new("RGB", (spec.width, spec.height), spec.background)
        out.paste(small, ((spec.width - small.width) // 2, (spec.height - small.height) // 2))
    else:
        to = spec.resize_to
        assert to is not None
        size = (to, int(to * height / width)) if width <= height else (int(to * width / height), to)
        full = image.resize(size, method)
        left, top = int(round((full.width - spec.width) / 2.0)), int(round((full.height - spec.height) / 2.0))  # noqa: RUF046
        out = full.crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(out).astype(np.int64)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("resize", ["shorter_side", "stretch", "letterbox"])
@pytest.mark.parametrize("size", [(61, 37), (37, 61), (200, 333), (20, 23), (40, 40), (24, 19), (32, 32), (7, 300)])
def test_resizing_is_torchvisions(size: tuple[int, int], resize: str, interpolation: str) -> None:
    # Where bicubic and lanczos overshoot the range, the order of Pillow's two passes shows; hence no extremes.
    picture, spec = noise(*size, low=64, high=192), spec_for(resize, interpolation)
    difference = np.abs(Preprocessor(spec)(encoded(Image.fromarray(picture), "PNG")) - reference(picture, spec))
    assert difference.max() <= 1 or (interpolation in ("nearest", "box") and (difference > 1).mean() < 0.2)


def test_shorter_side_keeps_the_centre_and_letterbox_everything() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20], picture[:, 60:], picture[:, 20:60] = (255, 0, 0), (0, 255, 0), (9, 9, 9)
    data = encoded(Image.fromarray(picture), "PNG")
    cropped = Preprocessor(ImageSpec(height=10, width=10, resize_to=10, interpolation="box"))(data)
    assert (cropped == 9).all()
    boxed = Preprocessor(ImageSpec(height=16, width=16, resize="letterbox", interpolation="box", background=BLUE))(data)
    assert (boxed[:4] == BLUE).all()
    assert (boxed[12:] == BLUE).all()
    assert boxed[8].tolist() == [[255, 0, 0]] * 4 + [[9, 9, 9]] * 8 + [[0, 255, 0]] * 4
    stretched = Preprocessor(ImageSpec(height=4, width=4, resize="stretch", interpolation="box"))(data)
    assert stretched[0].tolist() == [[255, 0, 0], [9, 9, 9], [9, 9, 9], [0, 255, 0]]


def test_letterbox_pads_grey_with_the_luma_of_the_background() -> None:
    data = encoded(Image.new("L", (8, 2), 200), "PNG")
    out = Preprocessor(ImageSpec(height=8, width=8, channels=1, resize="letterbox", background=(255, 0, 0)))(data)
    assert sorted({*out.ravel().tolist()}) == [76, 200]


def test_extreme_shapes() -> None:
    for size in ((1, 60_000), (60_000, 1)):
        data = encoded(Image.new("RGB", size, (1, 2, 3)), "PNG")
        for resize in ("shorter_side", "stretch", "letterbox"):
            for interpolation in FILTERS:
                out = Preprocessor(spec_for(resize, interpolation))(data)
                assert {tuple(pixel) for pixel in out.reshape(-1, 3).tolist()} <= {(1, 2, 3), BLUE}


# --- limits ---


def headers(width: int, height: int) -> dict[str, bytes]:
    """Files that end with their header: whoever looks further finds them truncated."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    extended = b"\0\0\0\0" + struct.pack("<i", width - 1)[:3] + struct.pack("<i", height - 1)[:3]
    lossless = b"\x2f" + struct.pack("<I", (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14)
    return {
        "PNG": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr),
        "JPEG": jpeg[: frame + 5] + size + jpeg[frame + 9 : scan + 14],
        "GIF": b"GIF89a" + struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, 0, 0, 0),
        "BMP": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0),
        "BMP of OS/2": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, width & 0xFFFF, height & 0xFFFF, 1, 24),
        "TIFF": tiff({256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 262: (3, [1])}, b""),
        "WebP": b"RIFF\0\0\0\0WEBPVP8 "
        + bytes(7)
        + b"\x9d\x01\x2a"
        + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF),
        "WebP, lossless": b"RIFF\0\0\0\0WEBPVP8L" + bytes(4) + lossless,
        "WebP, extended": b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<I", 10) + extended,
    }


@pytest.mark.parametrize("name", headers(1, 1))
def test_pixels_are_read_from_the_header_and_limited_before_decoding(name: str) -> None:
    data = headers(3000, 2000)[name]
    assert pixels(data) == 6_000_000
    preprocess = Preprocessor(ImageSpec(height=8, width=8, resize_to=8), Limits(max_pixels=5_999_999))
    with pytest.raises(TooLarge, match=r"3000 × 2000 pixels .* 5999999 .*scale"):
        preprocess(data)
    with pytest.raises(InvalidImage):  # allowed, so somebody looked further
        Preprocessor(ImageSpec(height=8, width=8, resize_to=8))(data)


def test_absurd_sizes() -> None:
    for name in ("PNG", "BMP", "TIFF", "WebP, extended"):
        with pytest.raises(TooLarge):
            as_is(headers(60_000, 60_000)[name])
    with pytest.raises(TooLarge, match="65535 a side"):  # the filter alone would take gigabytes
        as_is(png(np.zeros((1, 65_536, 1)), 8, 0))
    for name in ("PNG", "TIFF", "BMP", "JPEG"):
        with pytest.raises(InvalidImage):
            as_is(headers(0, 5)[name])


def test_too_many_bytes() -> None:
    data = encoded(Image.new("L", (4, 4)), "PNG")
    spec = ImageSpec(height=4, width=4, resize="stretch")
    assert Preprocessor(spec, Limits(max_bytes=len(data)))(data).shape == (4, 4, 3)
    with pytest.raises(TooLarge, match="bytes"):
        Preprocessor(spec, Limits(max_bytes=len(data) - 1))(data)


def test_a_gif_frame_beyond_its_screen_counts() -> None:
    indices, palette = np.zeros((4, 4), np.uint8), noise(1, 256)[0]
    data = gif(indices, palette, screen=(4, 4), place=(60_000, 60_000))
    assert pixels(data) == 16
    with pytest.raises(TooLarge):
        as_is(data, 4, 4)


# --- what is refused ---

RGB8 = {256: (3, [1]), 257: (3, [1]), 262: (3, [2]), 277: (3, [3]), 258: (3, [8] * 3)}
UNSUPPORTED = {
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "HTML": b"<!doctype html><img>",
    "JSON": b'{"images": []}',
    "text": "Grüße".encode(),
    "zeros": bytes(1000),
    "noise": random.Random(1).randbytes(1000),
    "ICO": encoded(Image.new("RGB", (16, 16)), "ICO"),
    "PPM": encoded(Image.new("RGB", (4, 4)), "PPM"),
    "JPEG 2000": encoded(Image.new("RGB", (4, 4)), "JPEG2000"),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(100),
    "PDF": b"%PDF-1.7\n",
    "BigTIFF": b"II+\0\x08\0\0\0" + bytes(100),
    "BMP, run lengths": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 0, 0, 0, 0, 0),
    "JPEG, lossless": b"\xff\xd8\xff\xc3\0\x0b\x08\0\x08\0\x08\1\1\x11\0",
    "JPEG, arithmetic": b"\xff\xd8\xff\xc9\0\x0b\x08\0\x08\0\x08\1\1\x11\0",
    "JPEG, 12 bits": b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x08\0\x08\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0",
    "JPEG, 2 components": b"\xff\xd8\xff\xc0\0\x0e\x08\0\x08\0\x08\2\1\x11\0\2\x11\0\xff\xda\0\x0a\2\1\0\2\0\0\x3f\0",
    "PNG, Apple's": png(noise(), 8, 2, (b"CgBI", bytes(4))),
    "TIFF, 32-bit integers": encoded(Image.new("I", (4, 4)), "TIFF"),
    "TIFF, floating point": encoded(Image.new("F", (4, 4)), "TIFF"),
    "TIFF, L*a*b": encoded(Image.new("LAB", (4, 4)), "TIFF"),
    "TIFF, signed": tiff(RGB8 | {339: (3, [2] * 3)}, bytes(3)),
    "TIFF, 12 bits": tiff({256: (3, [2]), 257: (3, [1]), 262: (3, [1]), 258: (3, [12])}, bytes(3)),
    "TIFF, 64 bits": tiff(RGB8 | {258: (3, [64] * 3), 339: (3, [3] * 3)}, bytes(24)),
    "TIFF, white is zero in 16 bits": tiff({256: (3, [1]), 257: (3, [1]), 262: (3, [0]), 258: (3, [16])}, bytes(2)),
    "TIFF, 16 bits in planes": tiff(RGB8 | {258: (3, [16] * 3), 284: (3, [2])}, bytes(6)),
}


@pytest.mark.parametrize("data", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match=r"send|save it as"):
        as_is(data)


def test_strange_chroma_subsampling_is_named_as_the_reason() -> None:
    data = bytearray(encoded(Image.fromarray(smooth(HEIGHT, WIDTH)), "JPEG", subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = 0x44
    with pytest.raises(UnsupportedFormat, match="subsampling"):
        as_is(bytes(data))


def test_the_message_for_foreign_data_names_the_formats_accepted() -> None:
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WebP, BMP, GIF or TIFF"):
        pixels(b"hello")


def test_an_empty_body_is_an_invalid_image() -> None:
    for read in (as_is, pixels):
        with pytest.raises(InvalidImage, match="empty"):
            read(b"")


# --- what is broken ---


def complete() -> dict[str, tuple[bytes, int]]:
    """Small files of each kind, and how many bytes at their end nobody needs."""
    colour, indexed = Image.fromarray(noise()), Image.fromarray(noise()).convert("P")
    exact = {"lossless": True}
    return {
        "PNG": (encoded(colour, "PNG"), 0),
        "PNG, palette": (encoded(indexed, "PNG", transparency=3), 0),
        "PNG, interlaced": (png(noise(), 8, 2, interlaced=True), 0),
        "JPEG": (encoded(colour, "JPEG"), 0),
        "JPEG, progressive": (encoded(colour, "JPEG", progressive=True), 0),
        "JPEG, CMYK": (encoded(colour.convert("CMYK"), "JPEG"), 0),
        "WebP": (encoded(colour, "WEBP"), 0),
        "WebP, lossless": (encoded(colour, "WEBP", **exact), 0),
        "WebP, extended": (encoded(Image.fromarray(noise(channels=4)), "WEBP", exif=exif(1), **exact), 0),
        "BMP": (encoded(colour, "BMP"), 1),  # the padding of the last row
        "BMP, palette": (encoded(indexed, "BMP"), 3),
        "GIF": (encoded(indexed, "GIF"), 2),  # the frame's end and the file's
        "TIFF": (encoded(colour, "TIFF"), 0),
        "TIFF, LZW": (encoded(colour, "TIFF", compression="tiff_lzw"), 0),
        "TIFF, JPEG": (encoded(colour, "TIFF", compression="jpeg"), 0),
        "TIFF, directory last": (tiff(RGB8 | {256: (3, [WIDTH]), 257: (3, [HEIGHT])}, noise().tobytes()), 0),
    }


@pytest.mark.parametrize("name", complete())
def test_no_truncated_file_passes(name: str) -> None:
    data, spare = complete()[name]
    preprocess = Preprocessor(ImageSpec(height=8, width=8, resize_to=8))
    expected = preprocess(data)
    assert np.array_equal(preprocess(data + b"trailing bytes"), expected)
    assert np.array_equal(preprocess(data[: len(data) - spare]), expected)
    for length in range(len(data) - spare):
        # Before the magic number is complete, it is not known what the file would have been.
        with pytest.raises(UnsupportedFormat if 0 < length < MAGIC[name.split(",")[0]] else InvalidImage):
            preprocess(data[:length])


MAGIC = {"PNG": 8, "JPEG": 3, "WebP": 12, "BMP": 2, "GIF": 6, "TIFF": 4}


def test_a_png_with_any_bit_changed_is_refused() -> None:
    data = encoded(Image.fromarray(noise()), "PNG", exif=exif(3))
    for index in range(8, len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        with pytest.raises((InvalidImage, TooLarge)):
            as_is(bytes(changed))


def taller(data: bytes, by: int = 1, wider: int = 0) -> bytes:
    """A PNG that says it is larger than its pixels are."""
    width, height = struct.unpack_from(">II", data, 16)
    header = struct.pack(">II", width + wider, height + by) + data[24:29]
    return data[:8] + png_chunk(b"IHDR", header) + data[33:]


PALETTE = (b"PLTE", bytes(6))
TWO = np.array([[[0], [1]]])
BROKEN = {
    "PNG, index beyond the palette": png(TWO + 1, 8, 3, PALETTE),
    "PNG, no palette": png(TWO, 8, 3),
    "PNG, half a colour": png(TWO, 8, 3, (b"PLTE", bytes(7))),
    "PNG, more alphas than colours": png(TWO, 8, 3, PALETTE, (b"tRNS", bytes(3))),
    "PNG, alpha twice": png(noise(channels=4), 8, 6, (b"tRNS", bytes(6))),
    "PNG, half a transparent colour": png(noise(), 8, 2, (b"tRNS", bytes(2))),
    "PNG, 3 bits": png(TWO, 3, 0),
    "PNG, no pixels": headers(8, 8)["PNG"] + png_chunk(b"IEND", b""),
    "PNG, a row too few": taller(png(noise(), 8, 2)),
    "PNG, interlaced, a pass too few": taller(png(noise(), 8, 2, interlaced=True)),
    "PNG, half a row too few": taller(png(noise(), 8, 2), by=-1, wider=1),
    "PNG, unknown interlacing": headers(8, 8)["PNG"][:16] + bytes(17),
    "GIF, no image": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";",
    "GIF, no palette": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\x08\x03\0\x03\x04\0;",
    "GIF, ends early": gif(np.zeros((4, 4), np.uint8), noise(1, 256)[0], codes=[256, 1, 2, 3, 257]),
    "GIF, code from nowhere": gif(np.zeros((4, 4), np.uint8), noise(1, 256)[0], codes=[256, 1, 400, 3, 257]),
    "GIF, empty frame": gif(np.zeros((4, 0), np.uint8), noise(1, 256)[0], screen=(4, 4)),
    "BMP, palette of 2 ** 32": b"BM"
    + bytes(12)
    + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 0, 0, 0, 0, 2**32 - 1, 0),
    "TIFF, a tag twice": tiff(RGB8, bytes(3)).replace(struct.pack("<HH", 277, 3), struct.pack("<HH", 262, 3)),
    "TIFF, no size": tiff({258: (3, [8]), 262: (3, [1])}, bytes(3)),
    "JPEG, rubbish between segments": b"\xff\xd8\xff\xfe\0\2junk\xff\xc0",
    "JPEG, segment shorter than its length": b"\xff\xd8\xff\xfe\0\1",
    "JPEG, no frame": b"\xff\xd8\xff\xda\0\x08\1\1\0\0\x3f\0",
    "WebP, unknown chunk": b"RIFF\x20\0\0\0WEBPJUNK" + bytes(40),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        as_is(data)
    assert "0x" not in caught.value.message
    assert "object" not in caught.value.message


def test_bmp_index_beyond_the_palette() -> None:
    image = Image.fromarray(TWO[:, :, 0].astype(np.uint8) * 7, "P")
    image.putpalette(noise(1, 8)[0].tobytes())
    data = bytearray(encoded(image, "BMP"))
    assert np.array_equal(as_is(bytes(data), 2, 1)[0], noise(1, 8)[0][[0, 7]])
    data[-4] = 200
    with pytest.raises(InvalidImage, match="palette"):
        as_is(bytes(data), 2, 1)


# --- what is built to hurt ---


def test_text_and_profiles_of_a_png_are_never_inflated() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    data = png(noise(), 8, 2, (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb))
    assert np.array_equal(as_is(data), noise())


def test_pixel_data_beyond_the_image_is_never_inflated() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in noise())
    data = png(noise(), 8, 2)
    data = data.replace(png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IDAT", zlib.compress(rows + bytes(10**8))))
    assert np.array_equal(as_is(data), noise())


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(noise()), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


GREY8 = {256: (3, [1]), 257: (3, [1]), 258: (3, [8]), 262: (3, [1])}
HOSTILE = {
    "PNG chunks": png(noise(), 8, 2, *[(b"tEXt", b"")] * 70_000),
    "JPEG segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
    "JPEG padding": b"\xff\xd8" + b"\xff" * 1_000_000,
    "JPEG scans": scans(100),
    "GIF blocks": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"\x21\xfe" + b"\1a" * 100_000,
    "TIFF tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
    "TIFF strips": tiff(GREY8 | {273: (4, [8] * 70_000), 279: (4, [1] * 70_000)}, bytes(1)),
    "TIFF tiles": tiff(GREY8 | {322: (4, [65_520]), 323: (4, [65_520]), 324: (4, [8]), 325: (4, [1])}, bytes(1)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_files_built_to_take_for_ever_are_refused_at_once(data: bytes) -> None:
    with pytest.raises((TooLarge, InvalidImage)) as caught:
        as_is(data)
    assert any(word in caught.value.message for word in ("more than", "too many", "too large", "broken"))


# --- anything at all ---


@cache
def files() -> list[bytes]:
    plain = [data for data, _ in complete().values()]
    frames = [Image.fromarray(noise()).rotate(angle) for angle in (0, 90)]
    animated = [encoded(frames[0], name, save_all=True, append_images=frames[1:]) for name in ("GIF", "WEBP", "PNG")]
    deep = png(np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 1)), 16, 0, (b"tRNS", b"\0\1"))
    return [*plain, *animated, deep, encoded(frames[0], "TIFF", compression="packbits", exif=exif(6))]


def mutated(data: bytes, seed: int) -> bytes:
    """A few bytes changed, lost or added; a PNG's checksums mended, so that the change gets through."""
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(min(len(out), chance.choice([32, 128, len(out)])))
        change = chance.randrange(5)
        if change <= 1:
            out[place] ^= 1 << chance.randrange(8)
        elif change == 2:
            out[place : place + 4] = chance.choice([bytes(4), b"\xff" * 4, chance.randbytes(4)])
        elif change == 3:
            del out[place : place + chance.randint(1, 16)]
        else:
            out[place:place] = chance.randbytes(chance.randint(1, 16))
        out = out or bytearray(1)
    if out.startswith(b"\x89PNG\r\n\x1a\n"):
        start = 8
        while start + 12 <= len(out):
            end = start + 8 + struct.unpack_from(">I", out, start)[0]
            if end + 4 > len(out):
                break
            struct.pack_into(">I", out, end, zlib.crc32(out[start + 4 : end]))
            start = end + 4
    return bytes(out)


def arrives_or_is_refused(data: bytes) -> None:
    limits = Limits(max_pixels=1_000_000)
    for spec in (spec_for("shorter_side", "bicubic"), ImageSpec(height=5, width=6, channels=1, resize="letterbox")):
        try:
            out = Preprocessor(spec, limits)(data)
        except (InvalidImage, TooLarge, UnsupportedFormat):
            continue
        assert out.shape == (spec.height, spec.width, spec.channels)
        assert out.dtype == np.uint8


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 100), st.integers(0, 2**32))
def test_damaged_files_give_pixels_or_an_error_for_the_client(which: int, seed: int) -> None:
    arrives_or_is_refused(mutated(files()[which % len(files())], seed))


MAGICS = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBP"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=200))
def test_random_bytes_behind_a_magic_number(magic: bytes, data: bytes) -> None:
    arrives_or_is_refused(magic + data)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=100).filter(lambda data: not data.startswith(tuple(MAGICS))))
def test_random_bytes_are_no_format(data: bytes) -> None:
    for read in (as_is, pixels):
        with pytest.raises(UnsupportedFormat):
            read(data)


def test_threads_share_a_preprocessor() -> None:
    preprocess = Preprocessor(spec_for("shorter_side", "bilinear"))
    alone = [preprocess(data) for data in files()]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(preprocess, files() * 20))
    for index, out in enumerate(together):
        assert np.array_equal(out, alone[index % len(alone)])
