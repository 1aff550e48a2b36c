"""LeNet-5 as published: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.

Kept from the paper: the 32×32 input, trainable subsampling, the partial connections of C3 (its Table I) and the scaled
hyperbolic tangent after every layer up to F6: 60,000 trainable parameters.
Changed: a linear output with softmax (10 × 84 + 10 = 850 parameters) in place of the radial basis functions, whose
targets were drawn by hand for ASCII; and the initial weights, which are those of Efficient BackProp (LeCun et al.
1998): the paper's own, uniform between ±2.4 / fan-in, learn nothing here with AdamW in 60 epochs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn

from export.architectures.base import Architecture, Network
from export.cam import alpha, vjp
from service.spec import ImageSpec

AMPLITUDE = 1.7159  # amplitude, with the slope 2/3: f(1) = 1 and f(-1) = -1 (the paper's appendix A)
SLOPE = 2 / 3

# Table I: which of S2's 6 maps feed each of C3's 16: triples of neighbours, quadruples of neighbours, others, all.
CONNECTIONS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


def squash(values: Tensor) -> Tensor:
    """`1.7159 · tanh(2x/3)`, any shape."""
    return AMPLITUDE * torch.tanh(SLOPE * values)


class ScaledTanh(nn.Module):
    """`squash` as a layer."""

    def forward(self, values: Tensor) -> Tensor:
        return squash(values)


class Subsampling(nn.Module):
    """Sum of 2×2 neighbours, times a trainable coefficient, plus a trainable bias, one of each per map.

    `[N, A, H, W]` to `[N, A, H/2, W/2]`. Computed as a convolution of each map by itself, which in ONNX Runtime takes
    half as long as pooling, scaling and shifting.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, maps: Tensor) -> Tensor:
        kernel = self.coefficient.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return F.conv2d(maps, kernel, self.bias, stride=2, groups=len(kernel))


class PartialConv2d(nn.Module):
    """A 5×5 convolution whose maps see only some of the maps before them, as Table I says.

    `[N, 6, H, W]` to `[N, 16, H-4, W-4]`. The weights are those of the connections that exist, 1,500 and 16 biases;
    they are scattered into a dense kernel, which is faster than 16 small convolutions and a constant for a runtime.
    """

    where: Tensor

    def __init__(self) -> None:
        super().__init__()
        flat = [to * 6 + source for to, sources in enumerate(CONNECTIONS) for source in sources]
        self.weight = nn.Parameter(torch.empty(len(flat), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(CONNECTIONS)))
        self.register_buffer("where", torch.tensor(flat), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        dense = self.weight.new_zeros(len(CONNECTIONS) * 6, 5, 5).index_copy(0, self.where, self.weight)
        return F.conv2d(maps, dense.reshape(len(CONNECTIONS), 6, 5, 5), self.bias)


class LeNet5(nn.Module):
    """Grey images, float `[N, 1, 32, 32]`, to logits `[N, labels]`; layers named as in the paper."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = PartialConv2d()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, labels)
        self._initialise()

    def _initialise(self) -> None:
        """Weights of standard deviation `1/sqrt(fan-in)`, which keeps the variance from layer to layer; no biases."""
        with torch.no_grad():
            for layer, inputs in ((self.c1, 25), (self.c5, 400), (self.f6, 120), (self.output, 84)):
                layer.get_parameter("weight").normal_(0, inputs**-0.5)
                layer.get_parameter("bias").zero_()
            fan_in = torch.tensor([25.0 * len(sources) for sources in CONNECTIONS for _ in sources])
            self.c3.weight.normal_().mul_(fan_in.rsqrt()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        s2 = squash(self.s2(squash(self.c1(images))))
        s4 = squash(self.s4(squash(self.c3(s2))))
        c5 = squash(self.c5(s4)).flatten(1)
        logits: Tensor = self.output(squash(self.f6(c5)))
        return logits


def cut(module: nn.Module) -> Network:
    """Up to C3's 16 maps of 10×10, and from there on; the 84 units of F6 are the features."""
    if not isinstance(module, LeNet5):
        raise TypeError(f"{type(module).__name__} is no LeNet5")
    tanh = ScaledTanh()
    trunk = nn.Sequential(module.c1, tanh, module.s2, tanh, module.c3, tanh)
    head = nn.Sequential(module.s4, tanh, module.c5, tanh, nn.Flatten(), module.f6, tanh, module.output)
    return Network(trunk, head, features_at=7)


@vjp.register
def _(_layer: ScaledTanh, _before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent * (SLOPE * AMPLITUDE - SLOPE / AMPLITUDE * after * after).unsqueeze(1)


@vjp.register
def _(layer: Subsampling, _before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    scaled = cotangent * layer.coefficient[:, None, None]
    return scaled.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


@alpha.register
def _(layer: Subsampling, _before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent.mean(dim=(-2, -1)) * layer.coefficient


ARCHITECTURES = (
    Architecture(
        name="lenet5",
        paper="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998",
        year=1998,
        origin="fovea",
        image=ImageSpec(
            height=32,
            width=32,
            channels=1,
            resize="stretch",
            interpolation="bicubic",
            mean=(0.1,),  # and std: the paper's own scaling would be ground -0.1, ink 1.175
            std=(0.4,),
        ),
        labels=10,
        build=LeNet5,
        cut=cut,
    ),
)
