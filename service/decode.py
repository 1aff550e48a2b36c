"""Encoded bytes → one 8-bit image, grey or RGB, as stored; whoever calls applies the orientation.

What becomes of what:

| stored                                | becomes                                                                     |
| ------------------------------------- | --------------------------------------------------------------------------- |
| animation, several pages              | the first frame or page (of an APNG: the default image)                     |
| 16-bit grey                           | v · 255 / 65535, rounded                                                    |
| 16-bit RGB, RGBA, grey + alpha, CMYK  | the high byte, as Pillow reads it                                           |
| alpha, a transparent colour           | composited on the background                                                |
| CMYK, YCCK                            | RGB by Pillow's formula; in JPEG taken as inverted, as Adobe writes it      |
| colour for one channel                | ITU-R 601-2 luma                                                            |
| 32-bit integer, floating point, L*a*b | refused: they have no agreed white                                          |
| ICC profile, gamma, XMP               | ignored: the numbers are taken as sRGB, as data sets are                    |

What is detected: every chunk of a PNG up to IEND must be there with the right checksum; a JPEG must decode to its end
without a single warning of libjpeg; the others must decode without an error. BMP, GIF, TIFF and WebP carry no
checksum, so changed pixels inside a well-formed file cannot be told from meant ones. What follows the first image
(further frames, pages, trailing bytes) is not looked at.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from service.errors import InvalidImage, TooLarge, UnsupportedFormat
from service.header import Header, directory, exif_orientation, jpeg_header

# Pillow would warn from 89 megapixels and raise from twice that. Ours is the limit, it is checked before decoding,
# and a warning in the log is of no use to anyone.
Image.MAX_IMAGE_PIXELS = None
# Damaged metadata in a TIFF is no reason to refuse its pixels, nor to write to the log. The filter is set once, here:
# warnings.catch_warnings swaps process-wide state and is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

Colour = tuple[int, int, int]

MAX_SCANS = 100  # a JPEG's scans each cost a pass over all its pixels; encoders write about ten
MAX_CHUNKS = 65_536  # of a PNG

_TO_8_BITS = ((np.arange(65_536) + 128) // 257).astype(np.uint8)  # round(v · 255 / 65535); 257 is odd, so no ties

# What Pillow and its codecs raise for damaged data. Everything else is a bug and should be seen as one.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(data: bytes, header: Header, *, background: Colour, shrink: int, max_pixels: int) -> tuple[Image.Image, int]:
    """Decode the first frame.

    Args:
        data: The encoded image.
        header: What `service.header.probe` says about it.
        background: RGB under transparent pixels.
        shrink: 1, 2, 4 or 8; a JPEG is decoded at this fraction of its size, other formats at full size.
        max_pixels: Refuse what turns out larger than its header said.

    Returns:
        The image, mode `L` or `RGB`, not yet oriented, and its EXIF orientation from 1 to 8.

    Raises:
        InvalidImage: Truncated or broken.
        TooLarge: More pixels than allowed, or built to take for ever.
        UnsupportedFormat: A pixel type with no defined white.
    """
    try:
        if header.format == "JPEG":
            return _jpeg(data, shrink)
        if header.format == "PNG":
            image, orientation = _png(data)
        else:
            image, orientation = _by_pillow(data, header, max_pixels)
        return _eight_bits(image, background), orientation
    except _BROKEN as error:
        raise InvalidImage(f"the {header.format} is truncated or damaged; send the whole file") from error


def _jpeg(data: bytes, shrink: int) -> tuple[Image.Image, int]:
    header = jpeg_header(data)
    # In coded data 0xFF is followed by 0 or a restart marker, so this counts scans (and those of a thumbnail).
    if header.many_scans and data.count(b"\xff\xda") > MAX_SCANS:
        raise TooLarge(f"the JPEG has more than {MAX_SCANS} scans; save it again")
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(header.components)
    if space is None:
        raise UnsupportedFormat(f"JPEG with {header.components} components is not accepted; send grey, RGB or CMYK")
    pixels = simplejpeg.decode_jpeg(
        data, space, min_height=-(-header.height // shrink), min_width=-(-header.width // shrink), strict=True
    )
    height, width, _ = pixels.shape
    if space == "CMYK":
        image = Image.frombytes("CMYK", (width, height), pixels.tobytes(), "raw", "CMYK;I").convert("RGB")
    else:
        image = Image.fromarray(pixels[:, :, 0] if space == "GRAY" else pixels)
    return image, header.orientation


# (bits, colour type): Pillow's mode and raw mode.
_PNG_MODES = {
    (1, 0): ("1", "1"),
    (2, 0): ("L", "L;2"),
    (4, 0): ("L", "L;4"),
    (8, 0): ("L", "L"),
    (16, 0): ("I;16", "I;16B"),
    (8, 2): ("RGB", "RGB"),
    (16, 2): ("RGB", "RGB;16B"),
    (1, 3): ("P", "P;1"),
    (2, 3): ("P", "P;2"),
    (4, 3): ("P", "P;4"),
    (8, 3): ("P", "P"),
    (8, 4): ("LA", "LA"),
    (16, 4): ("RGBA", "LA;16B"),
    (8, 6): ("RGBA", "RGBA"),
    (16, 6): ("RGBA", "RGBA;16B"),
}


def _png(data: bytes) -> tuple[Image.Image, int]:
    """Decode a PNG through Pillow's pixel decoder, reading the chunks here.

    Pillow's own reader skips the checksums of pixel data, does without IEND, inflates text and profiles that nobody
    asked for, and takes more than twice as long for a small image.
    """
    chunks = _png_chunks(data)
    ihdr = chunks[b"IHDR"]
    if len(ihdr) != 13:
        raise InvalidImage("the PNG's header chunk is broken")
    width, height, bits, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", ihdr)
    modes = _PNG_MODES.get((bits, colour))
    if modes is None or compression or filters or interlace > 1:
        raise InvalidImage("the PNG's header says a kind of pixels that does not exist; the file is broken")
    mode, raw = modes
    image = Image.frombytes(mode, (width, height), chunks[b"IDAT"], "zip", raw, interlace)
    orientation = exif_orientation(chunks[b"eXIf"]) if b"eXIf" in chunks else 1
    transparency = chunks.get(b"tRNS", b"")
    if mode == "P":
        return _with_palette(image, chunks[b"PLTE"], transparency), orientation
    if transparency and colour in (0, 2):
        return _with_transparent_colour(image, bits, transparency), orientation
    return image, orientation


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The contents of the chunks that matter, by type; pixel data joined."""
    chunks: dict[bytes, bytes] = {}
    pixels = []
    view = memoryview(data)
    position = 8
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(view[position + 4 : end]) != checksum:
            raise InvalidImage("a checksum in the PNG is wrong; the file was damaged on its way")
        if kind == b"IDAT":
            pixels.append(view[position + 8 : end])
        elif kind == b"IEND":
            chunks[b"IDAT"] = b"".join(pixels)
            return chunks
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf"):
            if kind in chunks or (pixels and kind != b"eXIf"):
                raise InvalidImage("the chunks of the PNG are out of order; the file is broken")
            chunks[kind] = data[position + 8 : end]
        elif not kind[0] & 0x20:
            raise UnsupportedFormat("the PNG needs an extension that is not supported; save it as a standard PNG")
        position = end + 4
    raise InvalidImage(f"the PNG has more than {MAX_CHUNKS} chunks; save it again")


def _with_palette(image: Image.Image, colours: bytes, alphas: bytes) -> Image.Image:
    entries, rest = divmod(len(colours), 3)
    extrema: Any = image.getextrema()
    if rest or not 0 < entries <= 256 or len(alphas) > entries or extrema[1] >= entries:
        raise InvalidImage("the PNG's palette does not fit its pixels; the file is broken")
    if not alphas:
        image.putpalette(colours)
        return image.convert("RGB")
    rgba = np.full((entries, 4), 255, np.uint8)
    rgba[:, :3] = np.frombuffer(colours, np.uint8).reshape(entries, 3)
    rgba[: len(alphas), 3] = np.frombuffer(alphas, np.uint8)
    image.putpalette(rgba.tobytes(), "RGBA")
    return image.convert("RGBA")


def _with_transparent_colour(image: Image.Image, bits: int, key: bytes) -> Image.Image:
    """Make the one colour that tRNS names transparent."""
    if image.mode == "RGB" and bits == 16:
        raise UnsupportedFormat(
            "16-bit RGB PNG with a transparent colour is not accepted; send it with alpha, or 8 bits"
        )
    values = struct.unpack(">HHH" if image.mode == "RGB" else ">H", key)
    pixels = np.asarray(image)
    if bits < 8:  # Pillow has stretched the pixels to 0 … 255 (a 1-bit image is booleans to numpy), the key is not
        values = (values[0] * 255 // (2**bits - 1),)
        pixels = pixels if bits > 1 else pixels * np.uint8(255)
    clear = (pixels == values).all(axis=2) if image.mode == "RGB" else pixels == values[0]
    alpha = Image.fromarray(np.where(clear, np.uint8(0), np.uint8(255)))
    solid = _grey16(image) if image.mode == "I;16" else image.convert("RGB")
    rgba = solid.convert("RGB")
    rgba.putalpha(alpha)
    return rgba


def _grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(_TO_8_BITS[np.asarray(image)])


def _by_pillow(data: bytes, header: Header, max_pixels: int) -> tuple[Image.Image, int]:
    image: Image.Image
    image = Image.open(io.BytesIO(data), formats=(header.format,))
    if image.width * image.height > max_pixels:
        raise TooLarge(f"{image.width} × {image.height} pixels are more than {max_pixels}; scale the image down")
    if header.format == "TIFF":
        _check_tiff(data, max_pixels)
        image.load()
        return image, 1  # Pillow has applied the orientation
    image.load()
    orientation = exif_orientation(image.info["exif"]) if header.format == "WebP" and "exif" in image.info else 1
    return image, orientation


def _check_tiff(data: bytes, max_pixels: int) -> None:
    tags = directory(data, 0)
    if 0x142 in tags and 0x143 in tags and tags[0x142].number * tags[0x143].number > max_pixels:
        raise TooLarge(f"the TIFF's tiles have more than {max_pixels} pixels; save it in strips")


def _eight_bits(image: Image.Image, background: Colour) -> Image.Image:
    """Grey or RGB in 8 bits, composited on `background`."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "YCbCr", "CMYK"):
        return image.convert("L" if image.mode == "1" else "RGB")
    if image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba, mask=rgba)
        return canvas
    if image.mode == "P":
        return image.convert("RGB")
    raise UnsupportedFormat(
        "pixels of 32-bit integers, floating point or L*a*b have no defined white; send 8 or 16 bits, grey or RGB"
    )
