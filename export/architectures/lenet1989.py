"""The first convolutional network trained by backpropagation: LeCun, Boser, Denker, Henderson, Howard, Hubbard and
Jackel, Backpropagation Applied to Handwritten Zip Code Recognition, Neural Computation 1, 1989.

Kept from the paper: 16×16 pixels between -1 and 1; H1 and H2, twelve maps each, of 5×5 kernels two pixels apart, with
one set of weights per map but a bias for every unit; a background of -1 beyond the edges; H2's maps that see eight of
H1's twelve; 30 hidden units; the scaled hyperbolic tangent. With its 256 inputs it has 1,256 units, 64,660 connections
and 9,760 free parameters.

Changed: the paper does not tell which eight maps each of H2's sees; here three groups of four maps each leave out
another third of H1. The ten outputs are linear with softmax, not hyperbolic tangents with squared errors. The initial
weights are normal with a deviation of one over the root of the inputs (LeCun et al. 1998, Efficient BackProp), where
the paper drew them uniformly between ±2.4 / inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn

from export.architectures.base import Architecture, Network
from export.architectures.lenet5 import ScaledTanh
from service.spec import ImageSpec

MAPS = 12  # of H1 and of H2
SEEN = 8  # of H1's maps by each of H2's
GROUPS = 3  # of H2's maps that see the same
HIDDEN = 30
GROUND = -1.0  # of the image, and beyond its edges


class Plane(nn.Module):
    """5×5 convolutions with stride 2, one bias per unit: `[N, C, H, W]` to `[N, 12, H/2, W/2]`.

    Args:
        maps: How many come in, C.
        seen: How many of these each map that goes out sees; all, or eight of twelve.
        side: Of the maps that go out.
    """

    def __init__(self, maps: int, seen: int, side: int) -> None:
        super().__init__()
        self.groups = 1 if seen == maps else GROUPS
        self.weight = nn.Parameter(torch.randn(MAPS, seen, 5, 5) * (25 * seen) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(MAPS, side, side))

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, (2, 2, 2, 2), value=GROUND)
        if self.groups == 1:
            return F.conv2d(padded, self.weight, stride=2) + self.bias
        ring = torch.cat((padded, padded), 1)  # in which the maps that a group sees are neighbours
        step = maps.shape[1] // self.groups
        sums = [
            F.conv2d(ring[:, group * step : group * step + SEEN], weight, stride=2)
            for group, weight in enumerate(self.weight.chunk(self.groups))
        ]
        return torch.cat(sums, 1) + self.bias


class LeNet1989(nn.Module):
    """Grey images, float `[N, 1, 16, 16]`, to logits `[N, labels]`; layers named as in the paper."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        self.h1 = Plane(1, 1, 8)
        self.h2 = Plane(MAPS, SEEN, 4)
        self.h3 = nn.Linear(MAPS * 16, HIDDEN)
        self.output = nn.Linear(HIDDEN, labels)
        for layer in (self.h3, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        self.squash = ScaledTanh()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.squash(self.h2(self.squash(self.h1(images))))
        logits: Tensor = self.output(self.squash(self.h3(maps.flatten(1))))
        return logits


def cut(module: nn.Module) -> Network:
    """H2's 12 maps of 4×4, and from there on; the 30 units of H3 are the features."""
    h1, h2, h3, output, squash = (module.get_submodule(name) for name in ("h1", "h2", "h3", "output", "squash"))
    return Network(nn.Sequential(h1, squash, h2, squash), nn.Sequential(nn.Flatten(), h3, squash, output), 3)


ARCHITECTURES = (
    Architecture(
        name="lenet1989",
        paper="LeCun et al.: Backpropagation Applied to Handwritten Zip Code Recognition, 1989",
        year=1989,
        origin="fovea",
        image=ImageSpec(
            height=16, width=16, channels=1, resize="stretch", interpolation="bicubic", mean=(0.5,), std=(0.5,)
        ),
        labels=10,
        build=LeNet1989,
        cut=cut,
    ),
)
