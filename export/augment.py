"""Variations of training images, on whole batches of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor


def affine(
    images: Tensor,
    random: torch.Generator,
    degrees: float = 15,
    shift: float = 0.1,
    scale: float = 0.15,
    shear: float = 0.2,
) -> Tensor:
    """Move, turn, stretch and shear each image by amounts of its own; what comes in at the borders is 0.

    Args:
        images: float `[N, C, H, W]`.
        random: Where the amounts are drawn from, each uniformly between ± its limit.
        degrees: Of rotation.
        shift: As a share of the side, on both axes.
        scale: Of each axis by itself, on a logarithmic scale: 0.15 is 0.86 to 1.16.
        shear: Of x by y.
    """

    def draw(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=random) - 1) * limit

    angle, skew = draw(math.radians(degrees)), draw(shear)
    wide, high = draw(scale).exp(), draw(scale).exp()
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = (
        torch.stack([cosine * wide, (skew * cosine - sine) * high, draw(2 * shift)], dim=1),
        torch.stack([sine * wide, (skew * sine + cosine) * high, draw(2 * shift)], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def exposure(images: Tensor, random: torch.Generator, dimmest: float = 0.7, inverted: float = 0.5) -> Tensor:
    """Dim each image a little, and swap dark and light in some.

    Args:
        images: float `[N, C, H, W]` in [0, 255].
        random: Where the amounts are drawn from.
        dimmest: The least factor.
        inverted: Share of images with dark and light swapped.
    """
    each = (len(images), 1, 1, 1)
    images = images * (dimmest + (1 - dimmest) * torch.rand(each, generator=random))
    return torch.where(torch.rand(each, generator=random) < inverted, 255 - images, images)
