"""The distance from the training images: what the graph computes is the measure of heads, in any precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from export import familiarity, parity, replay
from export.architectures.base import Network
from export.data import Dataset, Split
from export.data.base import encoded
from export.half import to_half
from export.quantize import kept_in_float
from export.to_onnx import to_onnx
from service.heads.familiarity import Familiarity, fit_familiarity
from service.spec import ImageSpec

Floats = NDArray[np.float32]

SIDE, MAPS, KINDS = 8, 24, 3
IMAGE = ImageSpec(height=SIDE, width=SIDE, channels=1, resize="stretch", mean=(0.5,), std=(0.5,))


def clouds(images: int, width: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Features `[N, D]` in clouds around the centres of classes, long in a few directions, and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % KINDS
    stretched = random.normal(0, 1, (images, 4)) @ np.random.default_rng(1).normal(0, 0.5, (4, width))
    centres = np.random.default_rng(2).normal(0, 3, (KINDS, width))
    return (centres[labels] + stretched + random.normal(0, 0.2, (images, width))).astype(np.float32), labels


def network(distance: nn.Module, scale: float = 1.0) -> Network:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, MAPS, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        next(trunk.parameters()).mul_(scale)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * MAPS, KINDS))
    return Network(trunk, head, 2, distance).eval()


def fitted(width: int) -> Familiarity:
    points, labels = clouds(300, width)
    return fit_familiarity(points, labels, width, 4)


def test_it_is_the_measure_of_heads_for_features_of_the_usual_length() -> None:
    found = fitted(MAPS)
    asked, _ = clouds(50, MAPS, seed=3)
    strange = np.random.default_rng(4).normal(0, 3, (50, MAPS)).astype(np.float32)
    rows = np.concatenate([asked, strange])
    rows *= 7 / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = fit_and_ask(found, rows)
    given = familiarity.Distance(found, 7.0, 1)(torch.from_numpy(rows)).numpy()[:, 0]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert given[50:].min() > np.quantile(given[:50], 0.95)


def fit_and_ask(found: Familiarity, rows: Floats) -> Floats:
    """`|(I - A'A)^(1/2) (u - m)|²` to the nearest centre, from its definition in float64."""
    units = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    axes = found.axes.astype(np.float64)
    inside = np.eye(rows.shape[1]) - axes.T @ axes
    means = np.linalg.solve(inside, found.centres.T.astype(np.float64)).T
    apart = units[:, None] - means[None]
    return np.asarray(np.einsum("nkd,de,nke->nk", apart, inside, apart).min(axis=1), np.float32)


def test_features_longer_or_shorter_than_usual_are_further_away_by_as_much() -> None:
    rows = torch.from_numpy(clouds(1, MAPS)[0])
    length = float(torch.linalg.vector_norm(rows))
    distance = familiarity.Distance(fitted(MAPS), length, 1)
    usual, double, half, none = (float(distance(rows * factor)) for factor in (1, 2, 0.5, 0))
    assert double == pytest.approx(2 * usual, rel=1e-5)
    assert half == pytest.approx(2 * usual, rel=1e-5)
    assert none > 1e6


def test_features_are_averaged_over_their_places() -> None:
    found = fitted(MAPS)
    maps = torch.rand(5, MAPS, 4, generator=torch.Generator().manual_seed(0))
    by_place = familiarity.Distance(found, 2.0, 4)(maps.flatten(1))
    torch.testing.assert_close(by_place, familiarity.Distance(found, 2.0, 1)(maps.mean(dim=2)))


@pytest.mark.parametrize("scale", [1.0, 3000.0], ids=["usual", "squares beyond half precision"])
def test_the_graph_computes_it_in_float_whatever_the_precision(scale: float, tmp_path: Path) -> None:
    path, half = tmp_path / "model.onnx", tmp_path / "half.onnx"
    distant = network(familiarity.Distance(fitted(MAPS), 2.0 * scale, 4), scale)
    to_onnx(distant, IMAGE, path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 1), np.uint8)
    assert parity.check(distant, IMAGE, path, pixels).max_difference["distance"] < 1e-5
    (expected,) = replay.session(path).run(["distance"], {"image": pixels})
    assert expected.shape == (9, 1)
    to_half(path, half)
    (found,) = replay.session(half).run(["distance"], {"image": pixels})
    np.testing.assert_allclose(found, expected, rtol=0.01)
    graph = onnx.load(path).graph
    (product,) = [node.name for node in graph.node if "network.distance.weight" in node.input]
    assert product in kept_in_float(graph)


def drawings(kind: int, images: int, random: np.random.Generator) -> list[bytes]:
    """Bars: upright, lying or both; noise if there is no such kind."""
    files = []
    for _ in range(images):
        pixels = random.integers(0, 40, (SIDE, SIDE), np.uint8)
        place = int(random.integers(1, SIDE - 1))
        if kind in (0, 2):
            pixels[:, place] = 230
        if kind in (1, 2):
            pixels[place] = 230
        if kind > 2:
            pixels = random.integers(0, 256, (SIDE, SIDE), np.uint8)
        files.append(encoded(Image.fromarray(pixels)))
    return files


def test_held_out_images_are_near_and_strangers_far() -> None:
    random = np.random.default_rng(0)
    images = [file for kind in range(KINDS) for file in drawings(kind, 120, random)] + drawings(3, 60, random)
    labels = np.repeat([*range(KINDS), 0], [*[120] * KINDS, 60])
    order = random.permutation(KINDS * 120)
    split = Split(np.sort(order[:240]), np.sort(order[240:300]), np.sort(order[300:]))
    dataset = Dataset("bars", images, labels, ("upright", "lying", "both"), split)
    plain = network(nn.Identity())
    plain.distance = familiarity.fit(plain, dataset, IMAGE, None)
    outputs = parity.outputs_of(plain, IMAGE, dataset.pixels(np.arange(len(images)), IMAGE))
    held_out = outputs["distance"][split.test, 0]
    assert (outputs["distance"][KINDS * 120 :, 0] > np.quantile(held_out, 0.95)).all()
    again = familiarity.fit(plain, dataset, IMAGE, None)
    torch.testing.assert_close(again.weight, plain.distance.weight, rtol=0, atol=0)
