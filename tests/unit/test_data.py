"""Data sets by name, their splits, and the guises of their images."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import architectures, data
from export.data import textures
from export.data.base import OnAccess
from export.errors import DataError, UnknownName
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


def test_contradicting_copies_are_in_no_part() -> None:
    images = [bytes([index]) for index in range(20)] + [b"\0", b"\0", b"\1"]
    split = data.stratified(images, np.array([0] * 20 + [0, 1, 0]))
    assert sorted(np.concatenate([split.train, split.validation, split.test])) == [*range(1, 20), 22]
    assert any({1, 22} <= set(part) for part in (split.train, split.validation, split.test))


@pytest.mark.parametrize("distinct", [3, 4, 5, 10])
def test_every_part_gets_an_image_of_a_small_class(distinct: int) -> None:
    images = [bytes([label, index]) for label in range(2) for index in (*range(distinct), 0)]
    labels = np.repeat(np.arange(2), distinct + 1)
    split = data.stratified(images, labels)
    for part in (split.train, split.validation, split.test):
        assert set(labels[part]) == {0, 1}


def test_shots_are_drawn_from_each_class_by_seed() -> None:
    digits = data.load("digits")
    shot = data.load("digits", shots=4, seed=1)
    assert np.bincount(digits.labels[shot.split.train]).tolist() == [4] * 10
    assert set(shot.split.train) < set(digits.split.train)
    assert np.array_equal(shot.split.test, digits.split.test)
    assert np.array_equal(shot.split.train, data.few(digits, 4, seed=1).split.train)
    assert not np.array_equal(shot.split.train, data.few(digits, 4, seed=2).split.train)
    assert np.array_equal(data.few(digits, 1000).split.train, digits.split.train)
    with pytest.raises(DataError, match="1 or more"):
        data.load("digits", shots=0)


def test_images_on_access_are_a_sequence() -> None:
    made: list[int] = []
    images = OnAccess(4, lambda index: made.append(index) or bytes([index]))
    assert (len(images), made) == (4, [])
    assert images[np.int64(2)] == images[-2] == b"\2"
    assert images[1:3] == [b"\1", b"\2"]
    assert list(images) == [b"\0", b"\1", b"\2", b"\3"]
    with pytest.raises(IndexError):
        images[4]


def test_every_data_set_is_described_and_importing_them_is_light() -> None:
    named = {each.name for each in data.ABOUT}
    prefixes = {name.partition(":")[0] for name in named if ":" in name}
    assert {name for name in named if ":" not in name} == set(data.LOADERS)
    assert prefixes == set(data.PREFIXES)
    heavy = "torch torchvision sklearn skimage matplotlib"
    code = f"import sys, export.data; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["digits", "textures"])
def test_what_is_said_of_a_data_set_is_so(name: str) -> None:
    said = next(each for each in data.ABOUT if each.name == name)
    dataset = data.load(name)
    assert (len(dataset.label_names), len(dataset.images)) == (said.classes, said.images)
    assert dataset.skipped == ()


def test_a_data_set_takes_its_argument_after_a_colon() -> None:
    assert data.load("letters:5").name == "letters:5"
    with pytest.raises(UnknownName, match="digits"):
        data.load("digits:5")


def test_textures_are_the_same_every_time_and_tell_nothing_by_brightness() -> None:
    found = textures.load()
    assert found.images == textures.load.__wrapped__().images
    assert len(set(found.images)) == len(found.images)
    for part, count in (("train", 300), ("validation", 100), ("test", 100)):
        assert np.bincount(found.labels[getattr(found.split, part)]).tolist() == [count] * 10
    image = ImageSpec(height=32, width=32, channels=1, resize="stretch")
    pixels = found.pixels(np.arange(len(found.images)), image)
    means = [pixels[found.labels == label].mean() for label in range(10)]
    assert max(means) - min(means) < 10


@pytest.mark.parametrize("shape", [(301, 40), (40, 384)])
def test_bands_of_a_photograph_share_no_pixel(shape: tuple[int, int]) -> None:
    numbered = np.arange(np.prod(shape)).reshape(shape)
    bands = textures.bands(numbered)
    assert len(bands) == len(textures.BANDS) == 5
    assert min(min(band.shape) for band in bands) >= textures.SIDE
    seen = np.concatenate([band.ravel() for band in bands])
    assert len(set(seen.tolist())) == len(seen) == (max(shape) - 4 * textures.GAP) * 40
    along = shape.index(max(shape))
    rows = [np.unique(np.unravel_index(band, shape)[along]) for band in bands]
    assert all(after.min() - before.max() == textures.GAP + 1 for before, after in pairwise(rows))


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
