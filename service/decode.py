"""Encoded bytes → one 8-bit image, grey or RGB, still lying as it is stored.

| stored                                  | becomes                                                                   |
| --------------------------------------- | ------------------------------------------------------------------------- |
| an animation, several pages             | the first frame or page; of an APNG the default image                     |
| 16-bit grey                             | v · 255 / 65535, rounded                                                  |
| other 16-bit colour, of PNG or TIFF     | the high byte, as Pillow reads it                                         |
| alpha, a transparent colour             | composited on the background                                              |
| CMYK, YCCK                              | RGB by Pillow's formula; in a JPEG inverted, as Adobe writes it           |
| 12 or 32 bits, signed, float, Lab       | refused: it has no white that everyone agrees on                          |
| ICC profile, gamma, XMP                 | ignored: the numbers are taken as they are, which is how data sets go     |

An image is accepted if its first frame is there to the last pixel and nothing in it is known to be wrong:

- PNG: every chunk up to and including IEND has the right checksum, and the palette holds every index. No changed bit
  passes.
- JPEG: libjpeg decodes it to the end marker without a warning. No truncated file passes; of single bits changed in
  the coded data, half do, because the codes after them make sense again.
- GIF: the codes fill the frame, and the palette holds every index.
- WebP, TIFF, BMP: the decoder finds no fault. They have no checksums, so a pixel changed on the way goes unnoticed.
  A fax in a TIFF is refused: libtiff mends it row by row and writes a line to stderr for each.

What follows the first frame (other frames, trailing bytes) is not looked at.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from typing import NamedTuple

import simplejpeg
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import InvalidImage, TooLarge, UnsupportedFormat
from service.header import Format, Header, JpegHeader, directory, exif_orientation
from service.png_gif import gif, grey_of_16_bits, png

# Pillow would warn from 89 megapixels on and raise from 179. The caller's limit is checked before decoding instead.
Image.MAX_IMAGE_PIXELS = None
# Damaged metadata is no reason to refuse a TIFF's pixels or to fill the log. Set once, at import:
# warnings.catch_warnings swaps the state of the whole process and is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with an image is told to who sent it

Colour = tuple[int, int, int]

# Each scan of a JPEG is a pass over all its pixels, however few bytes it has; encoders write about ten.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 1_000_000_000  # about a second
MAX_STRIPS = 65_536  # of a TIFF

# TIFF tags
_BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _PLANAR = 258, 259, 262, 273, 277, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _SAMPLE_FORMAT = 322, 323, 324, 339
# Those that pixels depend on. Of others libtiff may complain, each time in a line on stderr, and Pillow follow some.
_READ = frozenset((*range(256, 260), 262, 266, *range(273, 285), 317, 320, *range(322, 326), 332, *range(338, 348)))
_READ |= frozenset(range(529, 533))
_COMPRESSIONS = (1, 5, 7, 8, 32_773, 32_946, 34_925, 50_000, 50_001)  # none, LZW, JPEG, deflate, PackBits, …

# What Pillow and its codecs raise for damaged data; anything else is a bug of ours and should show as one.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)


class Decoded(NamedTuple):
    """An image as stored."""

    image: Image.Image  # mode L or RGB
    width: float  # pixels of `image` that belong to the picture; a shrunk JPEG ends within its last column and row
    height: float
    orientation: int  # EXIF, 1 to 8, not applied yet


def decode(data: bytes, header: Header, *, background: Colour, shrink: int, max_pixels: int) -> Decoded:
    """Decode the first frame.

    Args:
        data: The encoded image.
        header: What `service.header.probe` says about it.
        background: RGB, seen through transparent pixels.
        shrink: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size; other formats take no notice.
        max_pixels: What the decoder may allocate.

    Raises:
        InvalidImage: Truncated or damaged.
        TooLarge: The frame has more pixels than the header said, or is built to take for ever.
        UnsupportedFormat: Pixels with no agreed white, or a rare kind that cannot be decoded exactly.
    """
    try:
        if isinstance(header, JpegHeader):
            image = _jpeg(data, header, shrink)
            return Decoded(_flat(image, background), header.width / shrink, header.height / shrink, header.orientation)
        image, exif = _one_size(data, header.format, max_pixels)
        return Decoded(_flat(image, background), image.width, image.height, exif_orientation(exif))
    except _DAMAGE as error:
        raise InvalidImage(f"the {header.format} is truncated or damaged; send the whole file") from error


def _one_size(data: bytes, kind: Format, max_pixels: int) -> tuple[Image.Image, bytes]:
    """Decode a format that knows only its full size; the image in any mode, and its EXIF block."""
    if kind == "PNG":
        return png(data, max_pixels)
    if kind == "GIF":
        return gif(data, max_pixels), b""
    if kind == "TIFF":
        return _tiff(data, max_pixels), b""  # Pillow has turned it upright
    if kind == "BMP":
        return _bmp(data), b""
    image = WebPImageFile(io.BytesIO(data))
    image.load()
    return image, image.info.get("exif", b"")


def _flat(image: Image.Image, background: Colour) -> Image.Image:
    """Grey or RGB, without transparency."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image.convert("RGB")


def _jpeg(data: bytes, header: JpegHeader, shrink: int) -> Image.Image:
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(header.components)
    if space is None:
        raise UnsupportedFormat(f"JPEG with {header.components} components is not accepted; send grey, RGB or CMYK")
    in_scan = data[header.scan + 4]
    # Within coded data 0xFF is followed by zero or a restart marker, so this counts scans and those of a thumbnail.
    scans = data.count(b"\xff\xda") if header.progressive or in_scan < header.components else 1
    if scans > min(MAX_SCANS, MAX_SCANNED_PIXELS // header.pixels):
        raise TooLarge(f"{scans} scans are more than a JPEG of this size may have; save it anew")
    # Some cameras write nonsense where a sequential scan says that it holds all the frequencies. It has no
    # meaning there, but libjpeg warns, and a warning is an error here.
    spectrum = header.scan + 5 + 2 * in_scan
    if not header.progressive and data[spectrum : spectrum + 3] != b"\0\x3f\0":
        data = data[:spectrum] + b"\0\x3f\0" + data[spectrum + 3 :]
    width, height = -(-header.width // shrink), -(-header.height // shrink)
    try:
        pixels = simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            raise UnsupportedFormat("JPEG with this chroma subsampling is not accepted; send 4:4:4 or 4:2:0") from error
        raise
    if space == "CMYK":
        return Image.frombytes("CMYK", (width, height), pixels.tobytes(), "raw", "CMYK;I")
    return Image.fromarray(pixels[:, :, 0] if space == "GRAY" else pixels)


def _bmp(data: bytes) -> Image.Image:
    image = BmpImageFile(io.BytesIO(data))
    entries = len(image.palette.palette) // len(image.palette.rawmode or "BGRX") if image.palette else 0
    image.load()
    if image.mode == "P" and any(image.histogram()[entries:]):
        raise InvalidImage("the BMP's palette does not fit its pixels; the file is damaged")
    return image


def _tiff(data: bytes, max_pixels: int) -> Image.Image:
    tags = directory(data)

    def first(tag: int, default: int) -> int:
        return tags[tag].first if tag in tags else default

    bits, photometric, planar = first(_BITS, 1), first(_PHOTOMETRIC, 0), first(_PLANAR, 1) == 2
    if not bits:
        raise InvalidImage("the TIFF does not say how deep its pixels are; the file is broken")
    if (
        bits not in (1, 2, 4, 8, 16)
        or first(_SAMPLE_FORMAT, 1) != 1  # unsigned
        or photometric not in (0, 1, 2, 3, 5, 6)  # grey of either sense, RGB, palette, CMYK, YCbCr
        or (bits == 16 and (photometric == 0 or planar))  # Pillow misreads these
    ):
        raise UnsupportedFormat(
            "TIFF with pixels of this kind is not accepted; send unsigned 8 or 16 bits, grey, RGB or CMYK, interleaved"
        )
    if first(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise UnsupportedFormat(
            "TIFF compressed as a fax, or in a rare way, is not accepted; send it with LZW or deflate, or as PNG"
        )
    strips = max((tags[tag].values for tag in (_STRIPS, _TILES) if tag in tags), default=0)
    if strips > MAX_STRIPS or first(_TILE_WIDTH, 1) * first(_TILE_HEIGHT, 1) > max_pixels:
        raise TooLarge("the TIFF's tiles are too large or its strips too many; save it anew")
    image = TiffImageFile(io.BytesIO(_bare(data)))
    planes = first(_SAMPLES, 1) if planar else 1
    if image.tile[0].codec_name == "raw" and _covered(image) < image.width * image.height * planes:
        raise InvalidImage("parts of the TIFF are missing; send the whole file")  # Pillow would leave them black
    image.load()
    return grey_of_16_bits(image) if image.mode.startswith("I;16") else image


def _bare(data: bytes) -> bytes:
    """A TIFF whose first directory holds only the tags that pixels depend on, and is the last one."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [data[place : place + 12] for place in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _READ]
    bare = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + bare + data[start + len(bare) :]


def _covered(image: TiffImageFile) -> int:
    """The pixels in all strips or tiles."""
    boxes = (tile.extents or (0, 0, 0, 0) for tile in image.tile)
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
