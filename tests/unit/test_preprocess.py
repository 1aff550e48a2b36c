"""Bytes in, pixels out: every format and kind of pixel, orientation and resizing."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidImage, UnsupportedFormat
from service.preprocess import Preprocessor
from service.spec import ImageSpec
from tests.images import HEIGHT, WIDTH, Pixels, as_is, encoded, exif, gif, noise, png, smooth, tiff

BLUE = (0, 0, 255)


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


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF, compressed"])
def test_exif_orientation(format: str, orientation: int) -> None:  # noqa: A002 - Pillow's name for it
    stored = smooth(24, 16)
    choices: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
        "TIFF, compressed": {"compression": "tiff_lzw"},
    }
    options = choices.get(format, {})
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


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_nearest_takes_the_same_pixel_in_a_mirror(orientation: int) -> None:
    stored, spec = noise(32, 32), ImageSpec(height=16, width=16, resize="stretch", interpolation="nearest")
    data = encoded(Image.fromarray(stored), "PNG", exif=exif(orientation))
    assert np.array_equal(Preprocessor(spec)(data), reference(UPRIGHT[orientation](stored), spec))


def test_a_jpeg_is_not_decoded_smaller_than_its_upright_sides_allow() -> None:
    data = encoded(Image.fromarray(noise(1000, 250)), "JPEG", exif=exif(6))
    spec = ImageSpec(height=100, width=40, resize="stretch")
    full = UPRIGHT[6](np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(Preprocessor(spec)(data) - reference(full, spec)).max() <= 1


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


def spec_for(resize: str, interpolation: str, width: int = 23, height: int = 19) -> ImageSpec:
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
@pytest.mark.parametrize("size", [(61, 37), (37, 61), (200, 333), (20, 23), (40, 40), (23, 19), (32, 32), (7, 300)])
def test_resizing_is_torchvisions(size: tuple[int, int], resize: str, interpolation: str) -> None:
    # Pillow chooses the order of its two passes by the size of what it makes, and rounds and clips between them:
    # hence no extremes, which bicubic and lanczos would overshoot, and a second level for lanczos.
    picture, spec = noise(*size, low=64, high=192), spec_for(resize, interpolation)
    difference = np.abs(Preprocessor(spec)(encoded(Image.fromarray(picture), "PNG")) - reference(picture, spec))
    if interpolation in ("nearest", "box"):  # of two pixels equally near, either will do
        assert (difference > 1).mean() < 0.2
    else:
        assert difference.max() <= (2 if interpolation == "lanczos" else 1)


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
