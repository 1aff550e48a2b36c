"""Several networks as one: its outputs are the members', its maps are autograd's, and it exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export import parity
from export.cam import class_activation_maps
from export.ensemble import combine
from export.errors import ExportError
from export.to_onnx import to_onnx
from tests import zoo
from tests.unit.test_cam import grad_cam


@pytest.mark.parametrize("names", [("lenet5", "lenet5"), ("resnet18", "mobilenet_v2"), ("mlp", "linear")])
def test_an_ensemble_is_the_mean_of_its_members(names: tuple[str, ...]) -> None:
    side = None if names[0] in ("lenet5", "mlp") else 64
    torch.manual_seed(1)
    made = [zoo.network(name, side) for name in names]
    image = made[0][1]
    members = [network.double() for *_, network in made]
    for member in members[1:]:
        for parameter in member.parameters():
            parameter.data *= 1.1  # else two of a kind are the same
    ensemble = combine([member.float() for member in members], image).double()
    images = zoo.images(image).double()
    with torch.no_grad():
        expected = torch.stack([member(images) for member in members]).mean(dim=0)
        features = torch.cat([member.features(images) for member in members], dim=1)
        torch.testing.assert_close(ensemble(images), expected)
        torch.testing.assert_close(ensemble.features(images), features)
        maps = ensemble.trunk(images)
    classes = torch.tensor([[3, 0, 6], [1, 2, 0]])
    found = class_activation_maps(ensemble.head, maps, classes)
    assert found.abs().max() > 1e-9
    torch.testing.assert_close(found, grad_cam(ensemble.head, maps, classes), rtol=1e-7, atol=1e-12)


def test_an_ensemble_exports(tmp_path: Path) -> None:
    made = [zoo.network(name, 64) for name in ("resnet18", "mobilenet_v2")]
    image = made[0][1]
    ensemble = combine([network for *_, network in made], image)
    to_onnx(ensemble, image, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    assert parity.check(ensemble, image, tmp_path / "model.onnx", pixels).max_difference["cam"] < 1e-4


def test_members_must_agree_on_the_size_of_their_maps() -> None:
    made = [zoo.network(name, 64) for name in ("resnet18", "squeezenet1_1")]
    with pytest.raises(ExportError, match=r"maps of one size, these have 2×2, 3×3"):
        combine([network for *_, network in made], made[0][1])
