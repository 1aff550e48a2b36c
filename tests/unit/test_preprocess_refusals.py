"""Too much, foreign, truncated, damaged or built to hurt: the client is told so, and nothing else happens."""

from __future__ import annotations

import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidImage, TooLarge, UnsupportedFormat
from service.preprocess import Limits, Preprocessor, pixels
from service.spec import ImageSpec
from tests.fuzz.mutation import mutated
from tests.images import HEIGHT, WIDTH, as_is, encoded, exif, gif, noise, png, png_chunk, smooth, tiff

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


def test_the_scaling_hint_of_a_webp_is_not_part_of_its_size() -> None:
    data = headers(300, 200)["WebP"]
    width, height = struct.unpack_from("<HH", data, 26)
    assert pixels(data[:26] + struct.pack("<HH", width | 0x4000, height | 0xC000) + data[30:]) == 60_000


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
SMALL = RGB8 | {256: (3, [WIDTH]), 257: (3, [HEIGHT])}
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
    "TIFF, fax": encoded(Image.new("1", (64, 64)), "TIFF", compression="group4"),
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
        "TIFF, directory last": (tiff(SMALL, noise().tobytes()), 0),
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


def shorter(data: bytes, by: int) -> bytes:
    """A PNG whose pixels end early, `by` bytes before they should."""
    start = data.index(b"IDAT") - 4
    end = start + 12 + struct.unpack_from(">I", data, start)[0]
    rows = zlib.decompress(data[start + 8 : end - 4])
    return data[:start] + png_chunk(b"IDAT", zlib.compress(rows[:-by])) + data[end:]


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
    "PNG, interlaced, a row too few": taller(png(noise(), 8, 2, interlaced=True)),
    "PNG, interlaced, the last pass missing": shorter(png(noise(9), 8, 2, interlaced=True), 4 * (1 + 3 * WIDTH)),
    "PNG, half a row too few": taller(png(noise(), 8, 2), by=-1, wider=1),
    "PNG, unknown interlacing": headers(8, 8)["PNG"][:16] + bytes(17),
    "GIF, no image": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";",
    "GIF, no palette": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\x08\x03\0\x03\x04\0;",
    "GIF, ends early": gif(np.zeros((4, 4), np.uint8), noise(1, 256)[0], codes=[256, 1, 2, 3, 257]),
    "GIF, code from nowhere": gif(np.zeros((4, 4), np.uint8), noise(1, 256)[0], codes=[256, 1, 400, 3, 257]),
    "GIF, empty frame": gif(np.zeros((4, 0), np.uint8), noise(1, 256)[0], screen=(4, 4)),
    "TIFF, a tag twice": tiff(SMALL | {40_000: (3, [0]), 40_001: (3, [0])}, noise().tobytes()).replace(
        struct.pack("<HH", 40_001, 3), struct.pack("<HH", 40_000, 3)
    ),
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
BMP_60_000 = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 54 + 240_000, 40, WIDTH, HEIGHT, 1, 8, 0, 0, 0, 0, 60_000, 0)
HOSTILE = {
    "BMP palette": BMP_60_000 + bytes(240_000 + 16 * HEIGHT),
    "PNG chunks": png(noise(), 8, 2, *[(b"tEXt", b"")] * 70_000),
    "JPEG segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
    "JPEG padding": b"\xff\xd8" + b"\xff" * 1_000_000,
    "JPEG scans": scans(100),
    "GIF blocks": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"\x21\xfe" + b"\1a" * 100_000,
    "TIFF tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
    "TIFF numbers": tiff(GREY8 | {258: (3, [8] * 300_000)}, bytes(1)),
    "TIFF strips": tiff(GREY8 | {273: (4, [8] * 70_000), 279: (4, [1] * 70_000)}, bytes(1)),
    "TIFF tiles": tiff(GREY8 | {322: (4, [65_520]), 323: (4, [65_520]), 324: (4, [8]), 325: (4, [1])}, bytes(1)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_files_built_to_take_for_ever_are_refused_at_once(data: bytes) -> None:
    with pytest.raises((TooLarge, InvalidImage)) as caught:
        as_is(data)
    assert any(word in caught.value.message for word in ("more than", "too many", "too large", "broken"))


def test_a_png_of_16_bits_has_as_many_bytes_as_the_largest_of_8() -> None:
    colours = np.random.default_rng(0).integers(0, 65_536, (10, 10, 4))
    preprocess = Preprocessor(ImageSpec(height=8, width=8, resize_to=8), Limits(max_pixels=100))
    preprocess(png(noise(10, 10, 4), 8, 6))
    preprocess(png(colours[:5], 16, 6))
    with pytest.raises(TooLarge, match="8 bits per sample"):
        preprocess(png(colours, 16, 6))


def test_what_a_tiff_says_beside_its_pixels_reaches_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes a line to stderr for each tag that it does not know."""
    custom = {tag: (3, [tag]) for tag in range(60_000, 60_900)}
    data = tiff(SMALL | {274: (3, [1]), 34_665: (4, [8])} | custom, noise().tobytes())
    compressed = encoded(Image.fromarray(noise()), "TIFF", compression="tiff_lzw", tiffinfo=dict.fromkeys(custom, 7))
    assert np.array_equal(as_is(data), noise())
    assert np.array_equal(as_is(compressed), noise())
    with pytest.raises(InvalidImage):
        as_is(tiff(SMALL | {277: (3, [1027])}, noise().tobytes()))
    assert capfd.readouterr() == ("", "")


# --- anything at all ---


@cache
def files() -> list[bytes]:
    plain = [data for data, _ in complete().values()]
    frames = [Image.fromarray(noise()).rotate(angle) for angle in (0, 90)]
    animated = [encoded(frames[0], name, save_all=True, append_images=frames[1:]) for name in ("GIF", "WEBP", "PNG")]
    deep = png(np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 1)), 16, 0, (b"tRNS", b"\0\1"))
    return [*plain, *animated, deep, encoded(frames[0], "TIFF", compression="packbits", exif=exif(6))]


SPEC = ImageSpec(height=19, width=23, resize_to=32)


def arrives_or_is_refused(data: bytes) -> None:
    limits = Limits(max_pixels=1_000_000)
    for spec in (SPEC, ImageSpec(height=5, width=6, channels=1, resize="letterbox")):
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
    preprocess = Preprocessor(SPEC)
    alone = [preprocess(data) for data in files()]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(preprocess, files() * 20))
    for index, out in enumerate(together):
        assert np.array_equal(out, alone[index % len(alone)])
