"""Data sets, their splits, and the guises and variations of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import architectures, augment, data
from service.preprocess import Preprocessor
from service.spec import ImageSpec


def test_digits_are_split_once_and_for_all() -> None:
    digits = data.load("digits")
    split = digits.split
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [1078, 360, 359]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    contents = [{digits.images[index] for index in part} for part in parts]
    assert sum(map(len, contents)) == len(set.union(*contents))
    for part, share in zip(parts, data.SHARES, strict=True):
        expected = np.bincount(digits.labels) * share
        assert np.abs(np.bincount(digits.labels[part]) - expected).max() <= 1
    assert split.test[:5].tolist() == [11, 12, 20, 24, 35]


def test_copies_of_an_image_stay_together() -> None:
    images = tuple(bytes([index // 3]) for index in range(90))  # three copies of each
    split = data.stratified(images, np.zeros(90, np.int64))
    contents = [{images[index] for index in part} for part in (split.train, split.validation, split.test)]
    assert [len(each) for each in contents] == [18, 6, 6]
    assert len(set.union(*contents)) == 30


def test_digits_are_scaled_to_the_full_range() -> None:
    digits = data.load("digits")
    image = ImageSpec(height=8, width=8, channels=1, resize="stretch")
    pixels = digits.pixels(np.arange(50), image)
    assert pixels.shape == (50, 8, 8, 1)
    assert set(np.unique(pixels)) <= {round(value * 255 / 16) for value in range(17)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1"])
def test_colour_modes_of_a_grey_digit_are_one_image(mode: str, tmp_path: Path) -> None:
    preprocess = Preprocessor(architectures.get("lenet5").image)
    grey = Image.fromarray(np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (8, 8)))
    files = []
    for each in ("L", mode):
        path = tmp_path / f"{each}.png"
        grey.convert(each).save(path)
        files.append(path.read_bytes())
    np.testing.assert_array_equal(preprocess(files[0]), preprocess(files[1]))


def test_augmentation_leaves_pixels_in_range_and_can_do_nothing() -> None:
    images = 255 * torch.rand(4, 1, 32, 32)
    random = torch.Generator().manual_seed(0)
    same = augment.affine(images, random, degrees=0, shift=0, scale=0, shear=0)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-2)
    torch.testing.assert_close(augment.exposure(images, random, dimmest=1, inverted=0), images)
    torch.testing.assert_close(augment.exposure(images, random, dimmest=1, inverted=1), 255 - images)
    changed = augment.exposure(augment.affine(images, random), random)
    assert changed.min() >= 0
    assert changed.max() <= 255.001
    assert not torch.equal(changed, images)
