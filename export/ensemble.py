"""Several networks as one, whose logits are the means of theirs (Hansen and Salamon 1990; snapshots: Huang et al. 2017,
arXiv:1704.00109).

Averaging logits is the geometric mean of the probabilities. Being linear it leaves the derivatives of every member what
they are, so class activation maps go through it: the members' maps stand side by side, and each speaks for its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.architectures.base import Network
from export.cam import alpha, trace, vjp
from export.errors import ExportError
from service.spec import ImageSpec

Shapes = list[tuple[int, ...]]  # of one image, by member


class Trunks(nn.Module):
    """Images to the members' feature maps side by side, `[N, C, H, W]` to `[N, sum of A, h, w]`."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(member.trunk for member in members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in self.members], dim=1)


class Beside(nn.Module):
    """One layer made of parts, each with its own share of the input and of the output, `[N, a]` to `[N, b]` or maps.

    Args:
        parts: Of one member each.
        shapes: Of what goes into each part.
    """

    def __init__(self, parts: Sequence[nn.Sequential], shapes: Shapes) -> None:
        super().__init__()
        self._parts = nn.ModuleList(parts)
        self.shapes = shapes

    @property
    def parts(self) -> list[nn.Sequential]:
        """The layers of each member."""
        return [part for part in self._parts if isinstance(part, nn.Sequential)]

    def shares(self, joined: Tensor) -> list[Tensor]:
        """What goes into each part."""
        maps = joined.ndim > 2
        widths = [shape[0] if maps else math.prod(shape) for shape in self.shapes]
        parts = torch.split(joined, widths, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, joined: Tensor) -> Tensor:
        shares = zip(self.parts, self.shares(joined), strict=True)
        return torch.cat([part(share).flatten(1) for part, share in shares], dim=1)


class Mean(Beside):
    """The members' readouts, `[N, sum of D]` to `[N, K]`, their mean."""

    def forward(self, joined: Tensor) -> Tensor:
        shares = zip(self.parts, self.shares(joined), strict=True)
        return torch.stack([part(share) for part, share in shares]).mean(dim=0)


def combine(members: Sequence[Network], image: ImageSpec) -> Network:
    """One network of several.

    Args:
        members: In evaluation mode, with the same classes in the same order.
        image: The image contract of all of them.

    Raises:
        ExportError: Their last feature maps differ in size, so that no one map could show where they look.
    """
    blank = torch.zeros(1, image.channels, image.height, image.width)
    with torch.no_grad():
        maps = [member.eval().trunk(blank) for member in members]
        features = [member.head[: member.features_at](each) for member, each in zip(members, maps, strict=True)]
    sizes = {tuple(each.shape[2:]) for each in maps}
    if len(sizes) > 1:
        listed = ", ".join("×".join(map(str, size)) for size in sorted(sizes))
        raise ExportError(f"an ensemble's members need last feature maps of one size, these have {listed}")
    head = nn.Sequential(
        Beside(
            [nn.Sequential(*list(member.head)[: member.features_at]) for member in members],
            [tuple(each.shape[1:]) for each in maps],
        ),
        Mean(
            [nn.Sequential(*list(member.head)[member.features_at :]) for member in members],
            [tuple(each.shape[1:]) for each in features],
        ),
    )
    return Network(Trunks(members), head, 1).eval()


def _back(part: nn.Sequential, values: list[Tensor], cotangent: Tensor, *, means: bool = False) -> Tensor:
    """A cotangent, `[N, C, b]`, through all layers of a part to its input, or to the spatial means of that.

    Args:
        part: The layers.
        values: What `export.cam.trace` gave for them.
        cotangent: By the flattened output.
        means: Whether the first layer is to give means.
    """
    cotangent = torch.unflatten(cotangent, 2, values[-1].shape[1:])
    for index in reversed(range(len(part))):
        rule = alpha if means and index == 0 else vjp
        cotangent = rule(part[index], values[index], values[index + 1], cotangent)
    return cotangent


def _traces(layer: Beside, joined: Tensor) -> list[list[Tensor]]:
    return [trace(part, share) for part, share in zip(layer.parts, layer.shares(joined), strict=True)]


@vjp.register
def _(layer: Mean, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    each = cotangent / len(layer.parts)
    parts = zip(layer.parts, _traces(layer, before), strict=True)
    return torch.cat([_back(part, values, each).flatten(2) for part, values in parts], dim=2)


@alpha.register
def _(layer: Beside, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    traces = _traces(layer, before)
    cotangents = torch.split(cotangent, [math.prod(values[-1].shape[1:]) for values in traces], dim=2)
    parts = zip(layer.parts, traces, cotangents, strict=True)
    return torch.cat([_back(part, values, each, means=True) for part, values, each in parts], dim=2)
