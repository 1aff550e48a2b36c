"""What every architecture is to the rest of `export`: a network cut where its last feature maps are.

The artefact contract asks for class activation maps from the forward pass itself. So a network is a `trunk`, which
ends in the last feature maps, and a `head`: a sequence of simple layers from those maps to the logits, whose
derivative has a closed form (`export.cam`). The activations at `features_at` in the head are the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.spec import ImageSpec


class Network(nn.Module):
    """A classifier in two parts.

    Attributes:
        trunk: float `[N, C, H, W]` to the last feature maps, float `[N, A, h, w]`.
        head: The maps to logits `[N, K]`; every layer in it has a rule in `export.cam`.
        features_at: The features are the output of `head[:features_at]`, `[N, D]`.
        distance: Features to their distance from those of the training images, `[N, 1]`; None: nobody knows these.
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Sequential, features_at: int, distance: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.features_at = features_at
        self.distance = distance

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations, `[N, D]`."""
        features: Tensor = self.head[: self.features_at](self.trunk(images))
        return torch.flatten(features, 1)


@dataclass(frozen=True)
class Architecture:
    """A network by name.

    Attributes:
        name: What the command line calls it.
        paper: Authors, title and year, as one would cite it.
        year: Of publication.
        origin: Where the code is from: "fovea", "torchvision" or "timm".
        image: The image contract it was published with; `mean` and `std` included.
        labels: How many classes it was published with.
        build: Number of classes to a module whose state-dict names are those of its origin, so that published
            and fine-tuned state dicts load into it unchanged.
        cut: That module to a `Network` over the same parameters.
        weights: Names that `--weights` accepts besides a file.
    """

    name: str
    paper: str
    year: int
    origin: str
    image: ImageSpec
    labels: int
    build: Callable[[int], nn.Module]
    cut: Callable[[nn.Module], Network]
    weights: tuple[str, ...] = ()
