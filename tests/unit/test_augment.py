"""Recipes of augmentations: their words, what they do to images, and on what that depends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor

from export import augment
from export.draws import Draws
from export.errors import ExportError, UnknownName

CHANGING = tuple(name for name in augment.AUGMENTATIONS if name not in ("mixup", "cutmix"))
# Every augmentation at the strength that leaves images alone; a crop is never the whole image.
IDENTITIES = ",".join(f"{name}={int(name in ('resolution', 'exposure'))}" for name in CHANGING if name != "crop")


def images(count: int = 8, channels: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Smooth blobs over the whole range, float `[count, channels, height, width]`."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(7))
    return 255 * F.interpolate(coarse, (height, width), mode="bilinear")


@pytest.mark.parametrize("text", ["", "none", augment.DRAWINGS, augment.PHOTOGRAPHS, ",".join(CHANGING)])
def test_a_recipe_says_what_it_is(text: str) -> None:
    recipe = augment.parse(text)
    assert augment.parse(str(recipe)) == recipe
    assert str(augment.parse(str(recipe))) == str(recipe)


def test_words_are_put_in_order_and_strengths_spelt_out() -> None:
    assert str(augment.parse(" noise , rotation = 5.5,flip")) == "rotation=5.5,flip=0.5,noise=10"
    assert str(augment.parse("")) == "none"


@pytest.mark.parametrize("text", ["flip=2", "flip=", "flip=much", "flip,flip=1", "noise=nan", "blur=inf", "crop=0"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"flip|noise|blur|crop"):
        augment.parse(text)


@pytest.mark.parametrize("text", ["rotations", "flip,", "flip;noise"])
def test_unknown_names_are_refused_with_the_nearest(text: str) -> None:
    with pytest.raises(UnknownName, match="augmentation"):
        augment.parse(text)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 24, 40)])
@pytest.mark.parametrize("name", CHANGING)
def test_each_changes_images_and_keeps_shape_and_range(name: str, shape: tuple[int, int, int]) -> None:
    before = images(8, *shape)
    after = augment.parse(name)(before.clone(), Draws(1, 8))
    assert after.shape == before.shape
    assert after.min() >= 0
    assert after.max() <= 255
    assert (after - before).abs().mean() > 0.2


def test_at_no_strength_images_stay_as_they_are() -> None:
    before = images(channels=3)
    torch.testing.assert_close(augment.parse(IDENTITIES)(before, Draws(1, 8)), before, rtol=0, atol=0.05)


def test_what_becomes_of_an_image_depends_on_its_place_alone() -> None:
    recipe = augment.parse(",".join(CHANGING))
    before = images(channels=3)
    rows = torch.tensor([1, 6])
    torch.testing.assert_close(recipe(before[rows], Draws(3, 8, rows)), recipe(before, Draws(3, 8))[rows])
    assert not torch.equal(recipe(before, Draws(3, 8)), recipe(before, Draws(4, 8)))


def test_angles_are_those_of_pixels_in_any_shape() -> None:
    square = F.pad(images(1, 1, 16, 16), (24, 24, 24, 24))  # of 64: turning moves nothing out of the wide one
    wide = F.pad(square, (32, 32))
    recipe = augment.parse("rotation=90")
    torch.testing.assert_close(recipe(wide, Draws(1, 1))[..., 32:-32], recipe(square, Draws(1, 1)), rtol=0, atol=0.5)


def test_resolution_is_lost_as_in_a_scan() -> None:
    before = images(64)
    before[:, :, ::2] = 0  # rows that no smaller image can hold
    after = augment.parse("resolution=0.25")(before, Draws(1, 64))
    contrast = (after[:, :, 1:] - after[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    original = (before[:, :, 1:] - before[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    assert (contrast < 0.6 * original).float().mean() > 0.9
    torch.testing.assert_close(after.mean(), before.mean(), rtol=0.05, atol=0)
    flat = torch.full((8, 1, 32, 32), 100.0)
    torch.testing.assert_close(augment.parse("resolution,blur")(flat, Draws(1, 8)), flat, rtol=0, atol=0.01)


def test_thickness_acts_on_light_strokes_both_ways() -> None:
    stroke = torch.zeros(32, 1, 16, 16)
    stroke[..., 6:9] = 200
    ink = augment.parse("thickness=1")(stroke, Draws(1, 32)).sum(dim=(1, 2, 3)) / stroke[0].sum()
    assert 1 < ink.max() <= 5 / 3 + 1e-5  # a pixel more on both sides at most
    assert 1 / 3 - 1e-5 <= ink.min() < 1


@pytest.mark.parametrize("text", ["mixup=1", "cutmix", "mixup,cutmix"])
def test_mixed_targets_hold_the_shares_of_the_pixels(text: str) -> None:
    targets = torch.eye(16)
    constant = 255 * targets[..., None, None].expand(16, 16, 8, 8)  # channel k is what shows class k
    mixed, answers = augment.parse(text).mix(constant, targets, Draws(1, 16))
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(16))
    torch.testing.assert_close(mixed.mean(dim=(2, 3)) / 255, answers)
    assert ((answers > 0.01) & (answers < 0.99)).sum() > 8, "hardly anything is mixed"


def test_without_mixing_targets_stay_as_they_are() -> None:
    before, targets = images(), torch.eye(8)
    assert augment.parse(augment.DRAWINGS).mix(before, targets, Draws(1, 8)) == (before, targets)
