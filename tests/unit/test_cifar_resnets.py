"""Residual networks for small grey images: as published, and exported without loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import nn

from export import architectures, parity
from export.to_onnx import to_onnx


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "maps", "places"),
    [
        # He et al.: 0.27 M, Zagoruyko and Komodakis: 0.7 M; here without two of the colours' kernels of 16 maps.
        ("resnet20", 269_722 - 2 * 9 * 16, 19, 64, 1),
        ("wrn16_2", 691_674 - 2 * 9 * 16 + 15 * 128 * 10, 13 + 3, 128, 4),  # 16 places in place of one
    ],
)
def test_networks_are_those_of_the_papers(
    name: str, parameters: int, convolutions: int, maps: int, places: int
) -> None:
    architecture = architectures.get(name)
    module = architecture.build(10)
    assert sum(each.numel() for each in module.parameters()) == parameters
    assert sum(isinstance(layer, nn.Conv2d) for layer in module.modules()) == convolutions
    network = architecture.cut(module).eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(network(images), module.eval()(images))
    assert network.trunk(images).shape == (2, maps, 8, 8)
    assert network.trunk(images).min() == 0
    means = F.adaptive_avg_pool2d(network.trunk(images), places).flatten(1)
    torch.testing.assert_close(network.features(images), means)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_2"])
def test_dropout_reaches_the_last_layer_alone(name: str) -> None:
    architecture = architectures.get(name)
    module = architecture.build(5)
    network = architecture.cut(module).train()
    (dropout,) = (layer for layer in module.modules() if isinstance(layer, nn.Dropout))
    maps = torch.rand(4, network.trunk(torch.rand(4, 1, 32, 32)).shape[1], 8, 8)
    torch.testing.assert_close(network.head(maps), network.eval().head(maps))
    dropout.p = 0.5
    assert not torch.equal(network.train().head(maps), network.eval().head(maps))
    assert torch.equal(network.train().head[:2](maps), network.eval().head[:2](maps))


@pytest.mark.parametrize("name", ["resnet20", "wrn16_2"])
def test_exported_networks_compute_the_same(name: str, tmp_path: Path) -> None:
    architecture = architectures.get(name)
    torch.manual_seed(0)
    module = architecture.build(52)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    path = tmp_path / "model.onnx"

    network = architecture.cut(module.eval())
    to_onnx(network, architecture.image, path)

    found = parity.check(network, architecture.image, path, pixels)
    assert max(found.max_difference.values()) <= found.tolerance
    onnx.checker.check_model(path)
    assert path.stat().st_size <= 5_000_000
