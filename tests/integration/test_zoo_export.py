"""Every family through the whole export for real: ONNX, checker, parity, and maps against autograd's Grad-CAM.

The weights are random; `tests.zoo` sees to it that they make networks whose outputs can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from export import parity, replay
from export.architectures.base import Network
from export.to_onnx import OPSET, to_onnx
from service.spec import OUTPUTS, ImageSpec
from tests import zoo

pytestmark = pytest.mark.timeout(300)  # half a minute for the largest, and more beside others

# Name, side of the input (None: as published), and whether it takes more than ten seconds.
FAMILIES: tuple[tuple[str, int | None, bool], ...] = (
    ("linear", None, False),
    ("mlp", None, False),
    ("lenet1989", None, False),
    ("lenet5", None, False),
    ("neocognitron", None, False),
    ("highway", None, False),
    ("resnet18", 64, False),
    ("squeezenet1_1", 64, False),
    ("alexnet2012", None, True),
    ("zfnet", None, True),
    ("alexnet", 64, True),
    ("vgg11_bn", 32, True),
    ("googlenet", 64, True),
    ("inception_v3", 96, True),
    ("resnext50_32x4d", 64, True),
    ("wide_resnet50_2", 64, True),
    ("densenet121", 64, True),
    ("mobilenet_v2", 64, True),
    ("mobilenet_v3_small", 64, True),
    ("shufflenet_v2_x0_5", 64, True),
    ("mnasnet0_5", 64, True),
    ("efficientnet_b0", 64, True),
    ("efficientnet_v2_s", 64, True),
    ("regnet_x_400mf", 64, True),
    ("regnet_y_400mf", 64, True),
    ("convnext_tiny", 64, True),
    ("swin_t", 64, True),
    ("swin_v2_t", 64, True),
    ("maxvit_t", None, True),
    ("inception_v4", 96, True),
    ("timm:resnetv2_18", 64, True),
    ("timm:mobilenetv3_small_050", 64, True),
    ("timm:nfnet_f0", 64, True),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small inputs gain nothing from more, and lose much where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(image: ImageSpec, count: int) -> NDArray[np.uint8]:
    """Smooth coloured blobs, which look more like photographs than noise does: uint8 `[count, H, W, C]`."""
    torch.manual_seed(0)
    coarse = torch.rand(count, image.channels, 5, 5)
    fine = torch.nn.functional.interpolate(coarse, (image.height, image.width), mode="bicubic").clamp(0, 1)
    return (255 * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def grad_cam(network: Network, image: ImageSpec, pixels: NDArray[np.uint8], classes: Tensor) -> NDArray[np.float32]:
    """Selvaraju et al. 2017 by autograd, without the rectification; for classes `[N, C]`, `[N, C, h, w]`."""
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in (image.mean, image.std))
    maps = network.trunk((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    maps = maps.detach().requires_grad_()
    logits = network.head(maps)
    found = []
    for column in classes.T:
        (gradient,) = torch.autograd.grad(logits.gather(1, column[:, None]).sum(), maps, retain_graph=True)
        found.append((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))
    return torch.stack(found, dim=1).detach().numpy()


@pytest.mark.parametrize(
    ("name", "side"),
    [pytest.param(name, side, id=name, marks=pytest.mark.slow if slow else ()) for name, side, slow in FAMILIES],
)
def test_a_family_goes_all_the_way(name: str, side: int | None, tmp_path: Path) -> None:
    _, image, _, network = zoo.network(name, side)
    path = tmp_path / "model.onnx"
    pixels = pictures(image, 3)

    to_onnx(network, image, path)
    found = parity.check(network, image, path, pixels)

    assert found.images == 3 + parity.NOISE
    assert max(found.max_difference.values()) <= found.tolerance
    model = onnx.load(path)
    assert {opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")} == {OPSET}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch may have any size"
    outputs = dict(zip(OUTPUTS, replay.session(path).run(list(OUTPUTS), {"image": pixels}), strict=True))
    assert np.abs(outputs["activations"]).max() > 1e-3, "a network of zeros shows nothing"
    best_first = torch.from_numpy(-outputs["logits"]).argsort(dim=1)[:, : outputs["cam"].shape[1]]
    expected = grad_cam(network, image, pixels, best_first)
    np.testing.assert_allclose(outputs["cam"], expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
