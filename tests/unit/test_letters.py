"""The letters that are drawn here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.architectures import get
from export.data import letters
from export.errors import DataError


def test_letters_are_of_52_classes_and_split() -> None:
    few = letters.load_of("10")
    assert few.name == "letters:10"
    assert "".join(few.label_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert few.drawn
    for part, count in ((few.split.train, 6), (few.split.validation, 2), (few.split.test, 2)):
        assert np.bincount(few.labels[part]).tolist() == 52 * [count]
    assert few.pixels(few.split.test[:3], get("lenet5").image).shape == (3, 32, 32, 1)


def test_images_of_a_class_are_drawn_once_and_for_all_and_differ() -> None:
    few, more = letters.load_of("6"), letters.load_of("12")
    assert len(set(more.images)) == len(more.images) == 52 * 12
    for label in range(52):
        assert few.images[6 * label : 6 * label + 6] == more.images[12 * label : 12 * label + 6]


def test_letters_are_light_on_dark_and_large() -> None:
    dataset = letters.load_of("5")
    means = []
    for image in dataset.images:
        with Image.open(io.BytesIO(image)) as opened:
            assert (opened.mode, opened.size) == ("L", (32, 32))
            left, top, right, bottom = opened.getbbox()
            pixels = np.asarray(opened)
        assert max(right - left, bottom - top) >= 0.55 * 32
        assert pixels.max() > 128
        means.append(pixels.mean())
    assert np.mean(means) < 90


def test_every_font_draws_every_letter_in_a_shape_of_its_own() -> None:
    for font in letters.fonts():
        shapes = {bytes(font.getmask(letter)) for letter in letters.NAMES}
        assert len(shapes) == 52, font.getname()


@pytest.mark.parametrize("argument", ["", "many", "4", "-7", "1.5"])
def test_too_few_or_no_number_is_refused(argument: str) -> None:
    with pytest.raises(DataError, match="letters:300"):
        letters.load_of(argument)


def test_missing_fonts_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: tmp_path)
    with pytest.raises(DataError, match="matplotlib"):
        letters.fonts()
