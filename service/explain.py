"""Where in an image a model looked: one class activation map, its place in the image, and a picture of both.

The map is what Grad-CAM shows (Selvaraju et al. 2017, arXiv:1610.02391): the class's signed map, clipped at zero and
scaled so that its maximum is 1. It is spread evenly over what the network saw of the image; the cells of a network
that does not pad its convolutions lie a little closer to the middle than they are drawn.

Coordinates are pixels of the upright image, the first pixel's left edge at 0.
"""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.decode import decode
from service.errors import BackendFailed, InvalidRequest
from service.header import JpegHeader, probe
from service.preprocess import Limits, Preprocessor, window
from service.spec import Contract, ImageSpec

OVERLAY_SIDE = 1024  # pixels of the longer side of an overlay, at most
ALPHA = 0.6  # of the colours where the map is 1, unless asked otherwise
COLORMAP = "viridis"

_OUTSIDE = 0.6  # brightness of what the network did not see
_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_EXIF_MARKS = {"BMP": None, "PNG": b"eXIf", "WebP": b"EXIF"}  # without it in the file there is no orientation
_NAMED_LABELS = 10  # in a message, at most
_MATCHED_CHARACTERS = 100  # of a label that is looked for among the known ones

# Whoever is shown where the model looked sent an image that was decoded before, within the server's own limits.
_NO_LIMITS = Limits(max_bytes=sys.maxsize, max_pixels=sys.maxsize)

# viridis, by Stéfan van der Walt and Nathaniel Smith for Matplotlib (public domain, CC0): uniform to the eye, in grey
# and to the colour-blind too. RGB of 256 steps, in hexadecimal.
_VIRIDIS = (
    "44015444025544035745055845065a45085b46095c460b5e460c5f460e61470f6247116347126547146647156747166947186a48196b"
    "481a6c481c6e481d6f481e70482071482172482273482374472575472676472777472878472a79472b7a472c7b462d7c462f7c46307d"
    "46317e45327f45347f453580453681443781443982433a83433b83433c84423d84423e854240854141864142864043874044873f4587"
    "3f47883e48883e49893d4a893d4b893d4c893c4d8a3c4e8a3b508a3b518a3a528b3a538b39548b39558b38568b38578c37588c37598c"
    "365a8c365b8c355c8c355d8c345e8d345f8d33608d33618d32628d32638d31648d31658d31668d30678d30688d2f698d2f6a8d2e6b8e"
    "2e6c8e2e6d8e2d6e8e2d6f8e2c708e2c718e2c728e2b738e2b748e2a758e2a768e2a778e29788e29798e287a8e287a8e287b8e277c8e"
    "277d8e277e8e267f8e26808e26818e25828e25838d24848d24858d24868d23878d23888d23898d22898d228a8d228b8d218c8d218d8c"
    "218e8c208f8c20908c20918c1f928c1f938b1f948b1f958b1f968b1e978a1e988a1e998a1e998a1e9a891e9b891e9c891e9d881e9e88"
    "1e9f881ea0871fa1871fa2861fa38620a48520a58521a68521a78422a78423a88323a98224aa8225ab8126ac8127ad8028ae7f29af7f"
    "2ab07e2bb17d2cb17d2eb27c2fb37b30b47a32b57a33b67935b77836b87738b97639b9763bba753dbb743ebc7340bd7242be7144be70"
    "45bf6f47c06e49c16d4bc26c4dc26b4fc36951c46853c56755c66657c66559c7645bc8625ec96160c96062ca5f64cb5d67cc5c69cc5b"
    "6bcd596dce5870ce5672cf5574d05477d05279d1517cd24f7ed24e81d34c83d34b86d44988d5478bd5468dd64490d64392d74195d73f"
    "97d83e9ad83c9dd93a9fd938a2da37a5da35a7db33aadb32addc30afdc2eb2dd2cb5dd2bb7dd29bade27bdde26bfdf24c2df22c5df21"
    "c7e01fcae01ecde01dcfe11cd2e11bd4e11ad7e219dae218dce218dfe318e1e318e4e318e7e419e9e419ece41aeee51bf1e51cf3e51e"
    "f6e61ff8e621fae622fde724"
)
_COLOURS = np.frombuffer(bytes.fromhex(_VIRIDIS), np.uint8).reshape(256, 3)

Size = tuple[int, int]  # width, height
Region = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Explanation:
    """What speaks for one class in one image.

    Attributes:
        label: The class.
        index: Of the label.
        map: `[h, w]`, from 0 to 1; all zero if nothing speaks for the class.
        region: What the map covers. Within the image; larger than it where the network's input was padded.
        image_size: Of the upright image.
    """

    label: str
    index: int
    map: NDArray[np.float64]
    region: Region
    image_size: Size


def explanation(
    spec: Contract, outputs: Mapping[str, NDArray[np.generic]], size: Size, label: str | None = None
) -> Explanation:
    """Explain one class of one image.

    Args:
        spec: Of the model.
        outputs: Of the image: `logits [K]` and `cam [C, h, w]`, maps of the C highest logits, best first.
        size: Of the upright image.
        label: Whose map; None for the class with the highest logit.

    Raises:
        BackendFailed: The outputs are not numbers.
        InvalidRequest: The label is not among those that have a map.
    """
    logits, maps = np.asarray(outputs["logits"], np.float64), np.asarray(outputs["cam"], np.float64)
    if not (np.isfinite(logits).all() and np.isfinite(maps).all()):
        raise BackendFailed(f"{spec.name} gave an answer that is not a number")
    mapped = [int(index) for index in np.argsort(-logits, kind="stable")[: len(maps)]]
    rank = 0
    if label is not None:
        labels = [spec.labels[index] for index in mapped]
        if label not in labels:
            raise InvalidRequest(
                f"there is no map of {label[:_MATCHED_CHARACTERS]!r}: only the {len(maps)} most probable labels of an"
                f" image have one, here {', '.join(labels)}"
            )
        rank = labels.index(label)
    region = seen_region(spec.image, size)
    return Explanation(spec.labels[mapped[rank]], mapped[rank], normalised(maps[rank]), region, size)


def normalised(signed: NDArray[np.floating]) -> NDArray[np.float64]:
    """A signed map `[h, w]` as Grad-CAM shows it: from 0 to 1, to four digits."""
    positive = np.maximum(signed, 0).astype(np.float64)
    highest = positive.max()
    scaled: NDArray[np.float64] = np.round(positive / highest, 4) if highest > 0 else np.zeros_like(positive)
    return scaled


def unknown_label(spec: Contract, label: str) -> InvalidRequest:
    """The error for a label that the model does not know; names close ones. Takes milliseconds per thousand labels."""
    asked = label[:_MATCHED_CHARACTERS]
    if close := difflib.get_close_matches(asked, spec.labels, 5):
        hint = f"close to it are {', '.join(close)}"
    else:
        more = ", …" if len(spec.labels) > _NAMED_LABELS else ""
        hint = f"it knows {', '.join(spec.labels[:_NAMED_LABELS])}{more}"
    return InvalidRequest(f"{spec.name} knows no label {asked!r}; {hint}")


def seen_region(image: ImageSpec, size: Size) -> Region:
    """The part of an upright image that `service.preprocess` makes the network's input of, to 1/100 pixel.

    Args:
        image: How the model wants images prepared.
        size: Of the upright image.
    """
    (width, height), (left, top, right, bottom) = window(image, *size)
    x, y = (right - left) / width, (bottom - top) / height  # pixels of the original to one of the input
    left -= (image.width - width) // 2 * x  # what a letterbox pads lies beyond the image
    top -= (image.height - height) // 2 * y
    return (round(left, 2), round(top, 2), round(left + image.width * x, 2), round(top + image.height * y, 2))


def stated_size(data: bytes) -> Size | None:
    """The size of an image turned upright, where that can be told without decoding it.

    Args:
        data: Encoded; a preprocessor has taken it.
    """
    header = probe(data)
    if isinstance(header, JpegHeader):
        lying = header.orientation in _LYING
        return (header.height, header.width) if lying else (header.width, header.height)
    if header.format not in _EXIF_MARKS:
        return None
    mark = _EXIF_MARKS[header.format]
    return None if mark is not None and mark in data else (header.width, header.height)


def upright_size(data: bytes) -> Size:
    """The size of an image turned upright; decodes it if it must.

    Args:
        data: Encoded; a preprocessor has taken it.
    """
    if size := stated_size(data):
        return size
    image, _, _, orientation = decode(data, probe(data), background=(0, 0, 0), shrink=1, max_pixels=sys.maxsize)
    return (image.height, image.width) if orientation in _LYING else (image.width, image.height)


def overlay(
    data: bytes,
    explained: Explanation,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    alpha: float = ALPHA,
    description: str = "",
) -> bytes:
    """Draw a map over its image; the same bytes for the same arguments.

    The stronger the map, the less of the image shows through; what the network did not see is dimmed.

    Args:
        data: The encoded image; a preprocessor has taken it.
        explained: What to draw.
        background: RGB, seen through transparent pixels.
        alpha: Opacity of the colours where the map is 1, from 0 to 1.
        description: Goes into the file, as the PNG's text `Description`.

    Returns:
        A PNG, upright, as large as the image or `OVERLAY_SIDE` pixels on its longer side.
    """
    image = _upright(data, explained.image_size, background)
    height, width, _ = image.shape
    left, top, right, bottom = explained.region
    x = (np.arange(width) + 0.5) * explained.image_size[0] / width
    y = (np.arange(height) + 0.5) * explained.image_size[1] / height
    columns = _bilinear((x - left) / (right - left), explained.map.shape[1])
    rows = _bilinear((y - top) / (bottom - top), explained.map.shape[0])
    seen = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    strength = (rows @ explained.map.astype(np.float32) @ columns.T) * seen
    colours = _COLOURS[np.rint(strength * 255).astype(np.uint8)]
    opacity = (alpha * strength)[:, :, None]
    blended = image * np.where(seen, 1, np.float32(_OUTSIDE))[:, :, None] * (1 - opacity) + colours * opacity
    text = PngInfo()
    if description:
        text.add_text("Description", description)
    file = io.BytesIO()
    Image.fromarray(np.rint(blended).astype(np.uint8)).save(file, "PNG", compress_level=4, pnginfo=text)
    return file.getvalue()


def _upright(data: bytes, size: Size, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image as it is looked at, RGB `[height, width, 3]`."""
    scale = min(1.0, OVERLAY_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return Preprocessor(ImageSpec(height=height, width=width, resize="stretch", background=background), _NO_LIMITS)(
        data
    )


def _bilinear(places: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """Weights that interpolate linearly between the centres of cells, `[places, cells]`; constant past the outer ones.

    Args:
        places: 0 to 1 from the first cell's outer edge to the last one's.
        cells: How many.
    """
    position = np.clip(places * cells - 0.5, 0, cells - 1)[:, None]
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(position - np.arange(cells))).astype(np.float32)
    return weights
