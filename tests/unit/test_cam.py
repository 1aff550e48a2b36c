"""Closed-form class activation maps against Grad-CAM by torch.autograd, layer by layer and for whole heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from export import architectures
from export.cam import class_activation_maps, vjp

pytestmark = pytest.mark.timeout(60)

SIDE = 6  # of the maps
MAPS = 4
CLASSES = torch.tensor([[3, 0, 6], [1, 2, 0]])


def grad_cam(head: nn.Module, activations: Tensor, classes: Tensor) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, without the rectification."""
    activations = activations.clone().requires_grad_()
    logits = head(activations)
    maps = []
    for column in range(classes.shape[1]):
        chosen = logits.gather(1, classes[:, column : column + 1]).sum()
        (gradient,) = torch.autograd.grad(chosen, activations, retain_graph=True)
        maps.append((gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1))
    return torch.stack(maps, dim=1).detach()


def check(head: nn.Sequential, activations: Tensor, classes: Tensor = CLASSES) -> None:
    head = head.double().eval()
    ours = class_activation_maps(head, activations.double(), classes)
    torch.testing.assert_close(ours, grad_cam(head, activations.double(), classes), rtol=1e-9, atol=1e-12)
    assert ours.abs().max() > 1e-6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps() -> Tensor:
    return torch.randn(2, MAPS, SIDE, SIDE)


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """With statistics and parameters other than the initial ones."""
    for tensor in (layer.running_mean, layer.weight, layer.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


POINTWISE = [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Identity(), nn.Dropout()]


@pytest.mark.parametrize("layer", POINTWISE, ids=lambda layer: type(layer).__name__)
def test_pointwise_functions(layer: nn.Module) -> None:
    check(nn.Sequential(layer, nn.Flatten(), nn.Linear(MAPS * SIDE**2, 7)), 3 * maps())


SPATIAL = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d((2, 3), stride=(3, 1), padding=1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((4, 5)),
    nn.AdaptiveAvgPool2d((None, 9)),
    nn.Conv2d(MAPS, 5, 1),
    nn.Conv2d(MAPS, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(MAPS, 3, 2, dilation=3, stride=2),
]


@pytest.mark.parametrize("layer", SPATIAL, ids=str)
def test_pooling_and_convolution(layer: nn.Module) -> None:
    width = layer(maps()).flatten(1).shape[1]
    check(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 7)), maps())


def test_global_average_pooling_and_one_linear_layer_give_classic_maps() -> None:
    linear = nn.Linear(MAPS, 7)
    activations = maps()
    check(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear), activations)
    classic = torch.einsum("nka,nahw->nkhw", linear.weight[CLASSES].float(), activations)  # Zhou et al. 2016
    ours = class_activation_maps(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).float(), activations, CLASSES
    )
    torch.testing.assert_close(ours * SIDE**2, classic)


def test_fully_connected_head_as_alexnet_has() -> None:
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(MAPS * 9, 16),
        nn.ReLU(inplace=False),
        nn.Dropout(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, 7),
    )
    check(head, maps())


def test_convolutional_classifier_as_squeezenet_has() -> None:
    check(nn.Sequential(nn.Dropout(), nn.Conv2d(MAPS, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), maps())


def test_normalising_heads() -> None:
    check(
        nn.Sequential(
            batch_norm(nn.BatchNorm2d(MAPS)),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(MAPS, 9),
            batch_norm(nn.BatchNorm1d(9)),
            nn.LayerNorm(9),
            nn.Tanh(),
            nn.Linear(9, 7, bias=False),
        ),
        maps(),
    )
    check(nn.Sequential(nn.LayerNorm([MAPS, SIDE, SIDE], elementwise_affine=False), *last()), maps())
    check(nn.Sequential(nn.BatchNorm2d(MAPS, affine=False), *last()), maps())


def last() -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Tanh(), nn.Flatten(), nn.Linear(MAPS * SIDE**2, 7)


def test_lenet5() -> None:
    architecture = architectures.get("lenet5")
    network = architecture.cut(architecture.build(10))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    check(network.head, torch.randn(2, 16, 10, 10), torch.tensor([[9, 4, 0, 1, 7], [3, 2, 5, 6, 8]]))


def test_lenet5_is_the_published_network() -> None:
    architecture = architectures.get("lenet5")
    module = architecture.build(10)
    network = architecture.cut(module)
    counts = {name: sum(each.numel() for each in layer.parameters()) for name, layer in module.named_children()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 850}
    assert sum(counts.values()) - counts["output"] == 60_000
    images = torch.randn(3, 1, 32, 32)
    assert network.trunk(images).shape == (3, 16, 10, 10)
    assert network.features(images).shape == (3, 84)
    torch.testing.assert_close(network(images), module(images))


def test_unknown_layers_are_named() -> None:
    head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(MAPS * 9, 7))
    with pytest.raises(TypeError, match=r"MaxPool2d.*register a rule"):
        class_activation_maps(head, maps(), CLASSES)


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Conv2d(MAPS, 3, 3, padding="same"),
        nn.Conv2d(MAPS, 3, 3, padding=1, padding_mode="circular"),
        nn.GELU(approximate="tanh"),
        nn.BatchNorm2d(MAPS, track_running_stats=False),
        nn.Flatten(0),
    ],
    ids=str,
)
def test_variants_without_a_rule_are_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match="no class activation maps through"):
        vjp(layer, maps(), layer(maps()), torch.zeros(2, 3, 1))


def test_a_rule_can_be_added_beside_its_layer() -> None:
    class Double(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * values

    @vjp.register(Double)
    def _(_layer: Double, _before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
        return 2 * cotangent

    check(nn.Sequential(Double(), *last()), maps())
