"""Where the map lies in the image, how it is drawn, and what is refused; expectations come from numpy and Pillow."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.errors import BackendFailed, InvalidRequest
from service.explain import (
    OVERLAY_SIDE,
    Explanation,
    explanation,
    overlay,
    seen_region,
    stated_size,
    unknown_label,
    upright_size,
)
from service.preprocess import Preprocessor
from service.spec import ImageSpec
from service.transports.http.inference import prefers_png
from tests.images import encoded, exif
from tests.models import tiny_spec

CROP = ImageSpec(height=24, width=24, resize="shorter_side", resize_to=30)
WIDE = ImageSpec(height=20, width=28, resize="shorter_side", resize_to=28)
STRETCH = ImageSpec(height=24, width=24, resize="stretch")
LETTERBOX = ImageSpec(height=24, width=24, resize="letterbox")
HOTTEST = (253, 231, 37)  # the last colour of viridis


def opened(data: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int64)


# Geometry.


@pytest.mark.parametrize("spec", [CROP, WIDE, STRETCH, LETTERBOX])
@pytest.mark.parametrize(("width", "height"), [(120, 80), (80, 120), (97, 97), (61, 100)])
def test_the_region_is_what_the_preprocessor_sees(spec: ImageSpec, width: int, height: int) -> None:
    """Red tells a pixel's column and green its row; so each pixel of the input tells where it was taken from."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([2 * x, 2 * y, np.full_like(x, 7)], 2).astype(np.uint8)
    seen = Preprocessor(spec)(encoded(Image.fromarray(ramps), "PNG")).astype(float)
    left, top, right, bottom = seen_region(spec, (width, height))
    from_x = left + (np.arange(spec.width) + 0.5) * (right - left) / spec.width
    from_y = top + (np.arange(spec.height) + 0.5) * (bottom - top) / spec.height
    # A filter mirrors nothing at the image's edge, so a ramp is bent there.
    columns = (from_x > 6) & (from_x < width - 6)
    rows = (from_y > 6) & (from_y < height - 6)
    assert columns.sum() > 8
    assert rows.sum() > 8
    inner = seen[rows][:, columns]
    np.testing.assert_allclose(inner[:, :, 0], np.broadcast_to(2 * (from_x[columns] - 0.5), inner.shape[:2]), atol=0.8)
    np.testing.assert_allclose(
        inner[:, :, 1].T, np.broadcast_to(2 * (from_y[rows] - 0.5), inner.shape[1::-1]), atol=0.8
    )


def test_a_padded_input_is_larger_than_the_image() -> None:
    assert seen_region(LETTERBOX, (48, 24)) == (0, -12, 48, 36)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_the_size_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    block = {"exif": exif(orientation)} if kind not in ("GIF", "BMP") else {}
    data = encoded(Image.new("RGB", (30, 20)), kind, **block)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    assert upright_size(data) == upright
    assert stated_size(data) in (upright, None)
    assert kind not in ("JPEG", "BMP") or stated_size(data)  # these need no decoding


# The map.


def outputs(logits: list[float], maps: list[NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    return {"logits": np.array(logits, np.float32), "cam": np.stack(maps)}


def test_a_map_is_clipped_scaled_and_its_own_class() -> None:
    first, second = np.array([[4, -1], [2, 0]], np.float32), np.array([[-3, -1], [-2, -5]], np.float32)
    given = outputs([0, 3, 1, 2, -1, -2, -3], [first, second, first, first, first])
    spec = tiny_spec(labels=7)
    found = explanation(spec, given, (40, 20))
    assert (found.label, found.index) == ("label-1", 1)
    assert found.map.tolist() == [[1, 0], [0.5, 0]]
    assert (found.region, found.image_size) == ((0, 0, 40, 20), (40, 20))
    against = explanation(spec, given, (40, 20), "label-3")
    assert (against.index, against.map.tolist()) == (3, [[0, 0], [0, 0]])  # nothing speaks for it
    with pytest.raises(InvalidRequest, match=r"here label-1, label-3, label-2, label-0, label-4$"):
        explanation(spec, given, (40, 20), "label-5")


@pytest.mark.parametrize("broken", ["logits", "cam"])
def test_what_is_no_number_is_not_shown(broken: str) -> None:
    given = outputs([0, 1, 2], [np.ones((2, 2), np.float32)] * 3)
    given[broken] = np.full_like(given[broken], np.nan)
    with pytest.raises(BackendFailed):
        explanation(tiny_spec(), given, (8, 8))


def test_an_unknown_label_is_told_from_close_ones() -> None:
    spec = tiny_spec().model_copy(update={"labels": ("tabby cat", "tiger cat", "beagle")})
    assert unknown_label(spec, "tiger  cats").message.endswith("close to it are tiger cat")
    assert unknown_label(spec, "7").message.endswith("it knows tabby cat, tiger cat, beagle")
    assert len(unknown_label(spec, "x" * 10_000).message) < 300


# The picture.


def blob(width: int, height: int, x: int, y: int) -> Image.Image:
    """Dark but for a bright spot of 9 × 9 pixels."""
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
    return Image.fromarray(pixels)


def brightness(spec: ImageSpec, data: bytes) -> Explanation:
    """An explanation by a network that looks for light, in cells of 4 × 4 pixels."""
    light = Preprocessor(spec)(data).astype(float).mean(axis=2) - 30
    cells = light.reshape(spec.height // 4, 4, spec.width // 4, 4).mean(axis=(1, 3))
    size = upright_size(data)
    return Explanation("light", 0, cells / cells.max(), seen_region(spec, size), size)


@pytest.mark.parametrize("spec", [CROP, STRETCH, LETTERBOX, WIDE])
@pytest.mark.parametrize(("width", "height", "x", "y"), [(160, 100, 105, 30), (100, 160, 30, 105)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_hottest_pixel_lies_on_what_is_bright(
    spec: ImageSpec, width: int, height: int, x: int, y: int, orientation: int
) -> None:
    data = encoded(blob(width, height, x, y), "PNG", exif=exif(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(np.int64)
    found = brightness(spec, data)
    drawn = opened(overlay(data, found, alpha=1))
    assert drawn.shape == upright.shape
    hot = np.argwhere(np.abs(drawn - HOTTEST).sum(2) <= np.abs(drawn - HOTTEST).sum(2).min()).mean(0)
    bright = np.argwhere(upright[:, :, 0] == 255).mean(0)
    left, top, right, bottom = found.region
    cell = 4 * (right - left) / spec.width, 4 * (bottom - top) / spec.height
    assert abs(hot[1] - bright[1]) <= cell[0] / 2 + 1
    assert abs(hot[0] - bright[0]) <= cell[1] / 2 + 1


def test_without_colours_the_image_stands_upright_and_is_dimmed_outside_the_crop() -> None:
    data = encoded(blob(120, 80, 60, 40), "PNG", exif=exif(6))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(float)
    found = brightness(CROP, data)  # 24 of 30 pixels across, 24 of 45 down
    drawn = opened(overlay(data, found, alpha=0))
    inside = np.zeros(upright.shape[:2], bool)
    left, top, right, bottom = (round(edge) for edge in found.region)
    inside[top:bottom, left:right] = True
    assert (right - left, bottom - top) == (64, 64)
    np.testing.assert_allclose(drawn[inside], upright[inside], atol=1)
    np.testing.assert_allclose(drawn[~inside], upright[~inside] * 0.6, atol=1)


def test_the_colours_are_those_of_viridis() -> None:
    """One cell per pixel, from 0 to 1, and nothing of the image showing through where the map is 1."""
    data = encoded(Image.new("L", (256, 1)), "PNG")
    ramp = Explanation("any", 0, np.arange(256)[None] / 255, (0, 0, 256, 1), (256, 1))
    table = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255
    strength = np.arange(256)[:, None] / 255
    np.testing.assert_allclose(opened(overlay(data, ramp, alpha=1))[0], table * strength, atol=1.5)


def test_a_large_image_is_drawn_smaller_and_always_alike() -> None:
    data = encoded(blob(3000, 1500, 2000, 700), "JPEG", quality=60, exif=exif(8))
    found = brightness(STRETCH, data)
    drawn = overlay(data, found, description="of «7»")
    assert opened(drawn).shape == (OVERLAY_SIDE, OVERLAY_SIDE // 2, 3)
    assert overlay(data, found, description="of «7»") == drawn
    assert Image.open(io.BytesIO(drawn)).info["Description"] == "of «7»"


# Which of the two.


@pytest.mark.parametrize(
    ("accept", "png"),
    [
        ("", False), ("*/*", False), ("application/json", False), ("text/html", False), ("image/png", True),
        ("IMAGE/PNG", True), ("image/*", True), ("image/png, application/json", False), ("image/webp", False),
        ("image/avif,image/png,*/*;q=0.8", True), ("application/json;q=0.5, image/png", True), ("image/png;q=0", False),
        ("image/png;q=0.1, */*", False), ("image/png;q=much", False),
    ],
)  # fmt: skip
def test_a_png_is_for_those_who_prefer_one(accept: str, png: bool) -> None:
    assert prefers_png(accept.encode()) is png
