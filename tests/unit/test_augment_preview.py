"""The picture of an augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.augment_preview import preview


def has(picture: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels of a picture have exactly that colour."""
    with Image.open(picture) as image:
        return int((np.asarray(image.convert("RGB")) == colour).all(axis=-1).sum())


def test_every_image_and_every_variant_is_shown_enlarged(tmp_path: Path) -> None:
    colours = np.array([[[200, 10 * row, 20 * column] for column in range(4)] for row in range(2)], np.uint8)
    tiles = np.broadcast_to(colours[:, :, None, None], (2, 4, 4, 4, 3))
    path = tmp_path / "preview.png"
    preview(tiles[:, 0], ["cat", "dog"], tiles[:, 1:], "rotate=10", path)
    areas = [has(path, tuple(colour.tolist())) for colour in colours.reshape(-1, 3)]
    assert min(areas) > 50 * 50
    assert max(areas) < 1.1 * min(areas)


@pytest.mark.parametrize("label", ["<b>", "$x", "猫", "", "a very long name of a class\nof images"])
def test_any_label_and_any_recipe_are_drawn(tmp_path: Path, label: str) -> None:
    pixels = np.zeros((1, 28, 20, 1), np.uint8)
    preview(pixels, [label], pixels[:, None], f"{label} " * 30, tmp_path / "preview.png")
    assert has(tmp_path / "preview.png", (0, 0, 0))
    assert [file.name for file in tmp_path.iterdir()] == ["preview.png"]


def test_many_variants_widen_the_picture(tmp_path: Path) -> None:
    widths = []
    for variants in (4, 20):
        pixels = np.zeros((1, 8, 8, 1), np.uint8)
        preview(pixels, ["0"], np.repeat(pixels[:, None], variants, axis=1), "", tmp_path / "preview.png")
        with Image.open(tmp_path / "preview.png") as image:
            widths.append(image.width)
    assert widths[1] > 1.5 * widths[0]
