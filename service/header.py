"""What an encoded image says about itself, read from its first bytes without decoding anything.

Everything here costs microseconds and allocates next to nothing, whatever the bytes, so that a size limit can be
enforced before a decoder sees the data. Loops over a file's structure are bounded: a file built from millions of
empty segments is refused instead of walked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.errors import InvalidImage, UnsupportedFormat

Format = Literal["JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF"]
ACCEPTED = "JPEG, PNG, WebP, BMP, GIF or TIFF"
MAX_SEGMENTS = 1000  # of a JPEG before its first scan, or entries of a TIFF directory; real files have dozens

_SOS, _EXIF = 0xDA, 0xE1
_FRAMES_8_BIT = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential and progressive, Huffman and arithmetic
_FRAMES_OTHER = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless and hierarchical
_ALONE = (0x01, *range(0xD0, 0xD8))  # JPEG markers without a length
_ORIENTATION = 0x0112


class Header(NamedTuple):
    """The format and the stored size, before any EXIF orientation."""

    format: Format
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """A JPEG up to its first scan."""

    width: int
    height: int
    components: int
    orientation: int
    many_scans: bool  # progressive, or one scan per component


def probe(data: bytes) -> Header:
    """Read format and size from the header.

    Args:
        data: The encoded image.

    Returns:
        Format, width and height in pixels as stored. A GIF's frame may turn out to be larger than its screen and is
        checked again when it is decoded.

    Raises:
        InvalidImage: The data is empty, or its header is truncated or broken.
        UnsupportedFormat: Not one of the accepted formats, or a variant of them that is not decoded here.
    """
    if not data:
        raise InvalidImage("the image is empty; send the bytes of an image file")
    try:
        header = _probe(data)
    except (struct.error, IndexError):
        raise InvalidImage("the image is truncated in its header; send the whole file") from None
    if header.width <= 0 or header.height <= 0:
        raise InvalidImage(
            f"the {header.format} header says {header.width} × {header.height} pixels; the file is broken"
        )
    return header


def _probe(data: bytes) -> Header:
    if data.startswith(b"\xff\xd8\xff"):
        jpeg = jpeg_header(data)
        return Header("JPEG", jpeg.width, jpeg.height)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
        if (length, kind) != (13, b"IHDR"):
            raise InvalidImage("the PNG does not begin with its header chunk; the file is broken")
        return Header("PNG", width, height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Header("WebP", *_webp_size(data))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("GIF", *struct.unpack_from("<HH", data, 6))
    if data.startswith((b"II*\0", b"MM\0*")):
        tags = directory(data, 0)
        return Header("TIFF", tags[0x100].number, tags[0x101].number) if 0x100 in tags and 0x101 in tags else _no_size()
    if data.startswith(b"BM"):
        return Header("BMP", *_bmp_size(data))
    raise UnsupportedFormat(f"not an image in a format that is accepted here; send {ACCEPTED}")


def _no_size() -> Header:
    raise InvalidImage("the TIFF says no width and height; the file is broken")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8 ":
        if data[23:26] not in (b"\x9d\x01\x2a", b""):
            raise InvalidImage("the WebP's key frame is broken")
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", data, 24)
        return (width | width_high << 16) + 1, (height | height_high << 16) + 1
    if len(kind) < 4:
        raise IndexError
    raise InvalidImage("the WebP begins with an unknown chunk; the file is broken")


def _bmp_size(data: bytes) -> tuple[int, int]:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    # Pillow expands run lengths in Python, byte by byte, holding the interpreter: seconds for a large file.
    if compression not in (0, 3):
        raise UnsupportedFormat("compressed BMP is not accepted; send it uncompressed, or as PNG")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise UnsupportedFormat(
            f"BMP with {bits} bits per pixel is not accepted; send 1, 4, 8, 16, 24 or 32 bits, or PNG"
        )
    return width, abs(height)  # a negative height stores the rows top down


def jpeg_header(data: bytes) -> JpegHeader:
    """Read a JPEG up to its first scan; stricter than libjpeg, which skips what it does not expect.

    Raises:
        InvalidImage: The segments are broken.
        UnsupportedFormat: Lossless, hierarchical, or not 8 bits deep.
        struct.error, IndexError: The data ends before the first scan.
    """
    position, orientation = 2, 1
    frame = None
    for _ in range(MAX_SEGMENTS):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _ALONE:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == _SOS:
            if frame is None:
                break
            progressive, width, height, components = frame
            many = progressive or data[position + 4] < components
            return JpegHeader(width, height, components, orientation, many)
        if marker in _FRAMES_OTHER:
            raise UnsupportedFormat(
                "lossless and hierarchical JPEG are not accepted; send a baseline or progressive one"
            )
        if marker in _FRAMES_8_BIT:
            if frame is not None:
                break
            depth, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if depth != 8:
                raise UnsupportedFormat(f"JPEG with {depth} bits per sample is not accepted; send 8 bits")
            frame = marker in (0xC2, 0xCA), width, height, components
        elif marker == _EXIF and orientation == 1:
            orientation = exif_orientation(data[position + 4 : position + 2 + length])
        elif marker in (0x00, 0xD8, 0xD9):
            break
        if length < 2:
            break
        position += 2 + length
    raise InvalidImage("the JPEG's header is broken; the file is damaged")


class Tag(NamedTuple):
    """An entry of a TIFF directory."""

    kind: int  # 3: uint16, 4: uint32, …
    values: int  # how many
    number: int  # the first value where it is a uint16 or uint32 stored in the entry itself, else 0


def directory(data: bytes, start: int) -> dict[int, Tag]:
    """Read the first directory of a TIFF structure, which EXIF blocks are too.

    Args:
        data: Holds the structure.
        start: Where its byte-order mark is.

    Returns:
        Entries by tag; the first of several with one tag.

    Raises:
        InvalidImage: More entries than any real file has.
        struct.error: Truncated.
    """
    order = {b"II": "<", b"MM": ">"}[data[start : start + 2]]
    (offset,) = struct.unpack_from(order + "I", data, start + 4)
    (entries,) = struct.unpack_from(order + "H", data, start + offset)
    if entries > MAX_SEGMENTS:
        raise InvalidImage("the TIFF directory has too many entries; the file is broken")
    tags: dict[int, Tag] = {}
    for index in range(entries):
        place = start + offset + 2 + 12 * index
        tag, kind, count = struct.unpack_from(order + "HHI", data, place)
        form = {3: "H", 4: "I"}.get(kind) if count == 1 else None
        number = struct.unpack_from(order + form, data, place + 8)[0] if form else 0
        tags.setdefault(tag, Tag(kind, count, number))
    return tags


def exif_orientation(block: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block asks for; 1 where it is broken or says nothing.

    Only the first directory is read and no offset in it is followed, so a block cannot loop.

    Args:
        block: With or without the `Exif\\0\\0` that JPEG puts in front.
    """
    start = 6 if block.startswith(b"Exif\0\0") else 0
    try:
        orientation = directory(block, start)[_ORIENTATION].number
    except (struct.error, KeyError, InvalidImage):
        return 1
    return orientation if 1 <= orientation <= 8 else 1
