"""What an encoded image says about itself, read from its first bytes without decoding anything.

Everything here costs microseconds and allocates next to nothing, whatever the bytes, so that a size limit can be
enforced before a decoder sees the data. Loops over a file's structure are bounded: a file built from millions of
empty segments is refused, not walked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.errors import InvalidImage, UnsupportedFormat

Format = Literal["JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF"]
MAX_SEGMENTS = 1000  # of a JPEG before its first scan, or entries of a TIFF directory; real files have dozens
MAX_VALUES = 4 * 65_536  # of a TIFF tag that are numbers, each of which becomes an object

_JPEG_PROGRESSIVE = 0xC2
_JPEG_FRAMES = (0xC0, 0xC1, _JPEG_PROGRESSIVE)
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, *range(0xC9, 0xCC), 0xCD, 0xCE, 0xCF)
_JPEG_SCAN = 0xDA
_JPEG_EXIF = 0xE1
_JPEG_MISPLACED = (0x00, 0xD8, 0xD9)  # an escaped byte, a second start, an end
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_NUMBERS = {3: ("H", 2), 4: ("I", 4)}  # by kind: how struct calls it, bytes
_TIFF_BYTES = (1, 2, 7)  # kinds that are taken as they are: bytes, text, anything


@dataclass(frozen=True, slots=True)
class Header:
    """The format and the size as stored, before any EXIF orientation; in pixels."""

    format: Format
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class JpegHeader(Header):
    """A JPEG up to its first scan."""

    components: int
    progressive: bool
    orientation: int  # EXIF, 1 to 8
    scan: int  # where the marker of the first scan is


class Tag(NamedTuple):
    """An entry of a TIFF directory."""

    kind: int
    values: int  # how many
    first: int  # the first of them where it is a uint16 or uint32 within the data, else 0


def probe(data: bytes) -> Header:
    """Read format and size from the header.

    Args:
        data: The encoded image.

    Returns:
        A `JpegHeader` for a JPEG, else a `Header`.

    Raises:
        InvalidImage: The data is empty, or its header is truncated or broken.
        UnsupportedFormat: Not one of the accepted formats, or a kind of them that is not decoded here.
    """
    try:
        header = _probe(data)
    except (struct.error, IndexError):
        raise InvalidImage("the image ends within its header; send the whole file") from None
    if header.width <= 0 or header.height <= 0:
        raise InvalidImage(
            f"the {header.format} header says {header.width} × {header.height} pixels; the file is broken"
        )
    return header


def _probe(data: bytes) -> Header:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
        if (length, kind) != (13, b"IHDR"):
            raise InvalidImage("the PNG does not begin with its header; the file is broken")
        return Header("PNG", width, height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("GIF", *struct.unpack_from("<HH", data, 6))
    if data.startswith((b"II*\0", b"MM\0*")):
        tags = directory(data)
        if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
            raise InvalidImage("the TIFF says no width and height; the file is broken")
        return Header("TIFF", tags[_TIFF_WIDTH].first, tags[_TIFF_HEIGHT].first)
    if data.startswith(b"BM"):
        return _bmp(data)
    if not data:
        raise InvalidImage("the image is empty; send the bytes of an image file")
    raise UnsupportedFormat("not an image in an accepted format; send JPEG, PNG, WebP, BMP, GIF or TIFF")


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start == b"\x9d\x01\x2a":
            return Header("WebP", width & 0x3FFF, height & 0x3FFF)
    elif kind == b"VP8L":
        start, bits = struct.unpack_from("<cI", data, 20)
        if start == b"\x2f":
            return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", data, 24)
        return Header("WebP", (width | width_high << 16) + 1, (height | height_high << 16) + 1)
    raise InvalidImage("the WebP does not begin with an image; the file is broken or truncated")


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height)
    width, height, bits, compression, colours = struct.unpack_from("<ii2xHI12xI", data, 18)
    if bits <= 8 and colours > 256:
        raise InvalidImage("the BMP's palette is larger than its pixels can tell; the file is broken")
    # Pillow expands run lengths in Python, run by run: seconds for a large file.
    if compression not in (0, 3):
        raise UnsupportedFormat("compressed BMP is not accepted; send it uncompressed, or as PNG")
    return Header("BMP", width, abs(height))  # a negative height stores the rows top down


def _jpeg(data: bytes) -> JpegHeader:
    """Read the segments, more strictly than libjpeg, which skips what it does not expect."""
    position, orientation, frame = 2, 1, None
    for _ in range(MAX_SEGMENTS):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in _JPEG_MISPLACED:
            break
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _JPEG_WITHOUT_LENGTH:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if length < 2:
            break
        if marker == _JPEG_SCAN:
            if frame is None or position + 2 + length > len(data):
                break
            depth, height, width, components, progressive = frame
            if depth != 8:
                raise UnsupportedFormat(f"JPEG with {depth} bits per sample is not accepted; send 8 bits")
            return JpegHeader("JPEG", width, height, components, progressive, orientation, position)
        if marker in _JPEG_FRAMES and frame is None:
            frame = (*struct.unpack_from(">BHHB", data, position + 4), marker == _JPEG_PROGRESSIVE)
        elif marker in _JPEG_OTHER_FRAMES:
            raise UnsupportedFormat(
                "lossless, hierarchical or arithmetic-coded JPEG is not accepted; send the usual kind"
            )
        elif marker == _JPEG_EXIF and orientation == 1:
            orientation = exif_orientation(data[position + 4 : position + 2 + length])
        position += 2 + length
    raise InvalidImage("the JPEG's header is broken; send the file as it was saved")


def directory(data: bytes) -> dict[int, Tag]:
    """The entries of a TIFF's first directory.

    Raises:
        InvalidImage: More entries than any real file has, or numbers in one; or two for one tag: readers differ on
            which one counts.
        struct.error: Truncated.
    """
    tags: dict[int, Tag] = {}
    for tag, entry in _entries(data):
        if tag in tags:
            raise InvalidImage(f"the TIFF says tag {tag} twice; the file is broken")
        if entry.values > MAX_VALUES and entry.kind not in _TIFF_BYTES:
            raise InvalidImage(f"the TIFF has more numbers under tag {tag} than any real file; it is broken")
        tags[tag] = entry
    return tags


def _entries(data: bytes) -> Iterator[tuple[int, Tag]]:
    order = "<" if data.startswith(b"II") else ">"
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, offset)
    if entries > MAX_SEGMENTS:
        raise InvalidImage("the TIFF has too many tags; the file is broken")
    for place in range(offset + 2, offset + 2 + 12 * entries, 12):
        tag, kind, values, pointer = struct.unpack_from(order + "HHII", data, place)
        first = 0
        if kind in _TIFF_NUMBERS:
            form, size = _TIFF_NUMBERS[kind]
            where = place + 8 if values * size <= 4 else pointer
            if where + size <= len(data):
                (first,) = struct.unpack_from(order + form, data, where)
        yield tag, Tag(kind, values, first)


def exif_orientation(block: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block asks for; 1 where it is broken or says nothing.

    Only the first directory is read and none is followed, so a block cannot loop.

    Args:
        block: With or without the `Exif\\0\\0` that goes in front in a JPEG.
    """
    try:
        for tag, entry in _entries(block.removeprefix(b"Exif\0\0")):
            if tag == _TIFF_ORIENTATION:
                return entry.first if 1 <= entry.first <= 8 else 1
    except (struct.error, InvalidImage):
        pass
    return 1
