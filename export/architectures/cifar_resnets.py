"""Residual networks for small images, here grey ones of 32×32 pixels.

`resnet20` is the smallest of those for CIFAR-10 in He, Zhang, Ren and Sun, Deep Residual Learning for Image
Recognition, 2015 (arXiv:1512.03385), section 4.2: three stages of three blocks, with 16, 32 and 64 maps. Shortcuts that
change the shape are of their option A, which has no parameters: every second pixel, and maps of zeros beside theirs.

`wrn16_2` is WRN-16-2 of Zagoruyko and Komodakis, Wide Residual Networks, 2016 (arXiv:1605.07146): normalisation before
each convolution, three stages of two blocks, twice as many maps, shortcuts by 1×1 convolutions.

Changed: one channel in place of three, as their use here is drawings; and dropout before the last layer, which passes
everything unless a training sets it. `wrn16_2` keeps 4×4 places of the last maps where the paper averages over all of
them: 2,048 features, which say where a stroke is. As features of digits, for a network trained on `letters`, they read
95 % of the test images with ten of each class to learn from; the 128 averages read 88 %.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn

from export.architectures._heads import chain, network
from export.architectures.base import Architecture, Network
from service.spec import ImageSpec

WIDTHS = (16, 32, 64)  # maps of the three stages
PLACES = 4  # of the wide network's last maps, on each axis


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut of option A: `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.subsample = nn.AvgPool2d(1, stride)  # every second pixel, where the stride is 2
        self.more = outputs - inputs

    def forward(self, maps: Tensor) -> Tensor:
        rest = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(maps)))))
        before, after = self.more // 2, self.more - self.more // 2
        return torch.relu(rest + F.pad(self.subsample(maps), (0, 0, 0, 0, before, after)))


class WideBlock(nn.Module):
    """Two convolutions, each after normalisation and rectification: as `Block`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, maps: Tensor) -> Tensor:
        first = torch.relu(self.bn1(maps))
        rest: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(first))))
        return rest + (maps if self.shortcut is None else self.shortcut(first))


def _stages(block: type[Block] | type[WideBlock], inputs: int, widths: Sequence[int], depth: int) -> nn.Sequential:
    """Stages of equal depth; each but the first begins by halving the sides."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, maps in enumerate(widths):
        first = block(inputs, maps, 1 if stage == 0 else 2)
        blocks[f"stage{stage + 1}"] = nn.Sequential(first, *(block(maps, maps, 1) for _ in range(depth - 1)))
        inputs = maps
    return nn.Sequential(blocks)


def _initialised(module: nn.Module) -> None:
    """He et al. 2015 (arXiv:1502.01852), as in both papers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class ResNet20(nn.Module):
    """Float `[N, 1, 32, 32]` to logits `[N, labels]`."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        self.conv = _conv(1, WIDTHS[0])
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.stages = _stages(Block, WIDTHS[0], WIDTHS, depth=3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(p=0)
        self.fc = nn.Linear(WIDTHS[-1], labels)
        _initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.relu(self.bn(self.conv(images))))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.pool(maps))))
        return logits


class WideResNet(nn.Module):
    """Float `[N, 1, 32, 32]` to logits `[N, labels]`.

    Args:
        depth: Convolutions, counted as in the paper: 4 + 6 · blocks in a stage.
        width: Factor of the maps.
        labels: Classes.
    """

    def __init__(self, depth: int, width: int, labels: int = 10) -> None:
        super().__init__()
        self.conv = _conv(1, WIDTHS[0])
        self.stages = _stages(WideBlock, WIDTHS[0], [width * maps for maps in WIDTHS], (depth - 4) // 6)
        self.bn = nn.BatchNorm2d(width * WIDTHS[-1])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(PLACES)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(p=0)
        self.fc = nn.Linear(width * WIDTHS[-1] * PLACES**2, labels)
        _initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn(self.stages(self.conv(images))))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.pool(maps))))
        return logits


def cut(module: nn.Module) -> Network:
    """The last maps of 8×8, rectified, and pooling with dropout and one linear layer."""
    order = ("conv", "bn", "relu", "stages") if isinstance(module, ResNet20) else ("conv", "stages", "bn", "relu")
    return network(chain(module, *order), chain(module, "pool", "flatten", "dropout", "fc"))


def _architecture(name: str, paper: str, year: int, build: Callable[[int], nn.Module]) -> Architecture:
    return Architecture(
        name=name,
        paper=paper,
        year=year,
        origin="fovea",
        image=ImageSpec(
            height=32,
            width=32,
            channels=1,
            resize="stretch",
            interpolation="bicubic",
            mean=(0.5,),  # and std: dark on light is as frequent as light on dark, and as far from 0
            std=(0.5,),
        ),
        labels=10,
        build=build,
        cut=cut,
    )


ARCHITECTURES = (
    _architecture(
        "resnet20", "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015", 2015, ResNet20
    ),
    _architecture("wrn16_2", "Zagoruyko, Komodakis: Wide Residual Networks, 2016", 2016, partial(WideResNet, 16, 2)),
)
