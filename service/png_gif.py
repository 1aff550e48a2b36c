"""PNG and GIF: the blocks are read here, only the pixels in them are left to Pillow.

Pillow's own PNG reader takes twice as long for a small image, skips the checksums of pixel data, does without the end
chunk, inflates text and profiles that nobody asked for, and mistakes the transparent grey of 2 and 4 bits. Its GIF
reader walks any number of blocks, paints what the frame leaves open, and lets indices point beyond the palette.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from service.errors import InvalidImage, TooLarge, UnsupportedFormat

MAX_BLOCKS = 65_536  # chunks of a PNG, blocks before a GIF's first frame
MAX_BYTES_A_PIXEL = 4  # of a PNG that has as many pixels as are allowed; a smaller one may have 8

_TO_8_BITS = ((np.arange(65_536) + 128) // 257).astype(np.uint8)  # 65535 = 255 · 257; 257 is odd, so there are no ties
_AT_ONCE = 2**20  # pixels: numpy looks them up without letting other threads run

_PNG_MODES = {  # (bits per sample, colour type): Pillow's mode, and the layout that it decodes from
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
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
_PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ZEROS = (0, (0, 0), (0, 0, 0), (0, 0, 0, 0))
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")


def grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Scale a mode `I;16` image to 8 bits: v · 255 / 65535, rounded."""
    samples = np.asarray(image)
    grey = np.empty(samples.shape, np.uint8)
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        grey[top : top + rows] = _TO_8_BITS[samples[top : top + rows]]
    return Image.fromarray(grey)


def png(data: bytes, max_pixels: int) -> tuple[Image.Image, bytes]:
    """Decode a PNG; of an animated one the default image.

    Args:
        data: The encoded image.
        max_pixels: As many of `MAX_BYTES_A_PIXEL` bytes are inflated at most.

    Returns:
        The image, mode `1`, `L`, `LA`, `RGB` or `RGBA`, and its EXIF block, empty if there is none.

    Raises:
        InvalidImage: A checksum is wrong, a chunk is missing, or they contradict each other.
        TooLarge: More chunks than `MAX_BLOCKS`, or more bytes of pixels.
        UnsupportedFormat: An extension of PNG, or 16-bit RGB with a transparent colour.
        struct.error, LookupError, ValueError: Otherwise truncated or broken.
    """
    chunks = _png_chunks(data)
    width, height, bits, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    mode, layout = _PNG_MODES[bits, colour]
    if compression or filters or interlace > 1:
        raise InvalidImage("the PNG's header asks for what no PNG has; the file is broken")
    if width * height * bits * _PNG_SAMPLES[colour] > 8 * MAX_BYTES_A_PIXEL * max_pixels:
        raise TooLarge(
            f"the PNG's pixels take more than {MAX_BYTES_A_PIXEL * max_pixels} bytes; send 8 bits per sample, or scale"
            " the image down"
        )
    image = Image.frombytes(mode, (width, height), chunks[b"IDAT"], "zip", layout, interlace)
    # Pillow leaves rows that are missing at the end zero and says nothing. They are not if the last pixel is not.
    last = image.getpixel((width - 1, height - 1))
    if (interlace or last in _ZEROS) and not _has_all_rows(chunks[b"IDAT"], width, height, bits, colour, interlace):
        raise InvalidImage("rows of the PNG are missing; send the whole file")
    transparency = chunks.get(b"tRNS", b"")
    if mode == "P":
        image = _with_palette(image, chunks[b"PLTE"], transparency)
    elif transparency:
        image = _without_colour(image, bits, transparency)
    elif mode == "I;16":
        image = grey_of_16_bits(image)
    return image, chunks.get(b"eXIf", b"")


def _has_all_rows(data: bytes, width: int, height: int, bits: int, colour: int, interlace: int) -> bool:
    """Whether pixel data inflate to as many bytes as the rows take, each with one for its filter."""
    missing = 0
    for left, top, step_x, step_y in _PNG_PASSES if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * bits * _PNG_SAMPLES[colour] + 7) // 8)
    inflater = zlib.decompressobj()
    while missing > 0:
        part = inflater.decompress(data, 1 << 24)
        if not part:
            return False
        missing -= len(part)
        data = inflater.unconsumed_tail
    return True


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The contents of the chunks that matter, by type; the pixel data in one piece."""
    chunks: dict[bytes, bytes] = {}
    pixels = []
    view = memoryview(data)
    start = 8
    for _ in range(MAX_BLOCKS):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if zlib.crc32(view[start + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise InvalidImage("a checksum in the PNG is wrong: it was damaged on its way; send it again")
        if kind == b"IDAT":
            pixels.append(view[start + 8 : end])
        elif kind == b"IEND":
            chunks[b"IDAT"] = b"".join(pixels)
            return chunks
        elif kind in _PNG_KEPT:
            chunks.setdefault(kind, data[start + 8 : end])
        elif not kind[0] & 0x20:  # a capital letter: not to be skipped
            raise UnsupportedFormat("the PNG uses an extension; save it as a standard PNG")
        start = end + 4
    raise TooLarge(f"the PNG has more than {MAX_BLOCKS} chunks; save it anew")


def _without_colour(image: Image.Image, bits: int, colour: bytes) -> Image.Image:
    """Make one colour transparent, which is given in samples of the PNG's own depth."""
    if image.mode in ("LA", "RGBA"):
        raise InvalidImage("the PNG has both alpha and a transparent colour; the file is broken")
    if image.mode == "RGB" and bits == 16:  # Pillow keeps the high bytes, which are not enough to compare
        raise UnsupportedFormat(
            "16-bit RGB PNG with a transparent colour is not accepted; send it with alpha, or 8 bits"
        )
    key = np.frombuffer(colour, ">u2").astype(np.int64)
    if key.size != len(image.getbands()):
        raise InvalidImage("the PNG's transparent colour is broken")
    if bits < 8:  # Pillow has stretched the samples to 0 … 255
        key = key * 255 // (2**bits - 1)
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    bands = np.moveaxis(pixels.reshape(image.height, image.width, -1), 2, 0)
    opaque = np.zeros((image.height, image.width), bool)
    for band, value in zip(bands, key.tolist(), strict=True):  # all at once they take four times as long
        opaque |= band != value
    rgba = (grey_of_16_bits(image) if image.mode == "I;16" else image).convert("RGB")
    rgba.putalpha(Image.fromarray(opaque).convert("L"))
    return rgba


def _with_palette(image: Image.Image, colours: bytes, alphas: bytes) -> Image.Image:
    """Colour the indices of a mode `P` image.

    Args:
        image: The indices.
        colours: RGB, RGB, …
        alphas: Of the first entries; the others are opaque.
    """
    entries = len(colours) // 3
    histogram = image.histogram()
    if len(colours) % 3 or any(histogram[entries:]):
        raise InvalidImage("the palette does not fit the pixels; the file is damaged")
    if not alphas:
        image.putpalette(colours)
        return image.convert("RGB")
    rgba = np.full((entries, 4), 255, np.uint8)
    rgba[:, :3] = np.frombuffer(colours, np.uint8).reshape(entries, 3)
    rgba[: len(alphas), 3] = np.frombuffer(alphas, np.uint8)
    image.putpalette(rgba.tobytes(), "RGBA")
    return image.convert("RGBA")


def gif(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a GIF's first frame, on a transparent screen if it is smaller.

    Returns:
        The image, mode `RGB` or `RGBA`.

    Raises:
        InvalidImage: No frame, or the palette does not hold every index.
        TooLarge: The frame needs more than `max_pixels`, which the header need not say; or too many blocks.
        struct.error, IndexError, ValueError: Otherwise truncated or broken.
    """
    start = 13
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    colours, start = _gif_palette(data, flags, start)
    transparent = None
    in_extension = False
    for _ in range(MAX_BLOCKS):
        byte = data[start]
        if in_extension:  # blocks that begin with their length; an empty one is the last
            start += 1 + byte
            in_extension = byte > 0
        elif byte == 0x21:
            if data[start + 1] == 0xF9:  # about the next frame
                transparent = data[start + 6] if data[start + 3] & 1 else None
            start += 2
            in_extension = True
        elif byte == 0x2C:
            return _gif_frame(data, start + 1, (width, height), colours, transparent, max_pixels)
        else:
            raise InvalidImage("the GIF has no image where one should be; the file is broken")
    raise TooLarge(f"the GIF has more than {MAX_BLOCKS} blocks before its first frame; save it anew")


def _gif_palette(data: bytes, flags: int, start: int) -> tuple[bytes, int]:
    """The palette at `start`, if the flags say that one is there, and where it ends."""
    end = start + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return data[start:end], end


def _gif_frame(
    data: bytes, start: int, screen: tuple[int, int], colours: bytes, transparent: int | None, max_pixels: int
) -> Image.Image:
    left, top, width, height, flags = struct.unpack_from("<4HB", data, start)
    own_colours, start = _gif_palette(data, flags, start + 9)
    screen = max(screen[0], left + width), max(screen[1], top + height)
    if screen[0] * screen[1] > max_pixels:
        raise TooLarge(f"the GIF's frame needs more than {max_pixels} pixels; scale the image down")
    if not width * height:
        raise InvalidImage("the GIF's first frame is empty; the file is broken")
    interlaced = flags >> 6 & 1
    indices = Image.frombytes("P", (width, height), memoryview(data)[start + 1 :], "gif", data[start], interlaced, -1)
    colours = own_colours or colours
    alphas = b""
    if transparent is not None:
        alphas = b"\xff" * transparent + b"\0"
        colours = colours.ljust(3 * len(alphas), b"\0")  # the index may lie beyond the palette
    frame = _with_palette(indices, colours, alphas)
    if frame.size == screen:
        return frame
    canvas = Image.new("RGBA", screen, (0, 0, 0, 0))
    canvas.paste(frame, (left, top))
    return canvas
