"""A convolutional highway network: Srivastava, Greff and Schmidhuber, Training Very Deep Networks, 2015
(arXiv:1507.06228), their Highway B of 19 layers and about 2.3 million parameters for CIFAR.

A highway layer computes `H(x) · T(x) + x · (1 - T(x))`: what its rectified convolution H makes of the maps, and the
maps as they came, as the gate T, a sigmoid convolution, decides for each unit. Its bias starts below zero, so that
deep networks start by carrying and train from there.

Kept from the paper: the layers of FitNet 4 (Romero et al. 2014), highway layers wherever maps keep their number, the
gate's negative bias, and, as in the paper's comparison with the state of the art, a 1×1 convolution and global average
pooling for an end: here in the other order, which is the same as both are linear.

Changed: no dropout; the paper gives its rates nowhere. The paper normalises contrast globally, image by image; here
the mean and deviation of CIFAR-10's colours stand for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.architectures._heads import network, pooled
from export.architectures.base import Architecture, Network
from service.spec import ImageSpec

STAGES = (((32, 3), (48, 2)), ((80, 6),), ((128, 6),))  # maps and layers, between poolings
GATE_BIAS = -2.0  # the paper: below zero, the lower the deeper


class Highway(nn.Module):
    """A highway layer: `[N, C, H, W]` to the same."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(maps, maps, 3, padding=1)
        self.gate = nn.Conv2d(maps, maps, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(maps))
        return torch.relu(self.transform(maps)) * gate + maps * (1 - gate)


class HighwayNetwork(nn.Module):
    """Float `[N, 3, 32, 32]` to logits `[N, labels]`."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage in STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for maps, depth in stage:
                layers += [nn.Conv2d(before, maps, 3, padding=1), nn.ReLU(inplace=True)]
                layers += [Highway(maps) for _ in range(depth - 1)]
                before = maps
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(before, labels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in self.modules():
            if isinstance(layer, Highway):
                nn.init.constant_(layer.gate.bias, GATE_BIAS)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(images).mean(dim=(2, 3)))
        return logits


def cut(module: nn.Module) -> Network:
    """The last 128 maps of 8×8, and global average pooling with one linear layer."""
    return network(module.get_submodule("features"), pooled(module.get_submodule("output")))


ARCHITECTURES = (
    Architecture(
        name="highway",
        paper="Srivastava, Greff, Schmidhuber: Training Very Deep Networks, 2015",
        year=2015,
        origin="fovea",
        image=ImageSpec(
            height=32,
            width=32,
            resize="stretch",
            interpolation="bicubic",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        labels=10,
        build=HighwayNetwork,
        cut=cut,
    ),
)
