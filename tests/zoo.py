"""Networks of the zoo with random weights that behave: their activations neither vanish nor explode on the way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export import architectures
from export.architectures.base import Architecture, Network
from service.spec import ImageSpec


def images(image: ImageSpec, count: int = 2) -> Tensor:
    """Normalised uniform noise, float `[count, C, H, W]`."""
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in (image.mean, image.std))
    return (torch.rand(count, image.channels, image.height, image.width) - mean) / std


def resized(image: ImageSpec, side: int | None) -> ImageSpec:
    """The same contract for a smaller input; None: as it is."""
    if side is None:
        return image
    return image.model_copy(update={"height": side, "width": side, "resize": "stretch", "resize_to": None})


def settle(module: nn.Module, image: ImageSpec) -> None:
    """Set the statistics of every batch normalisation so that it keeps the scale of what it is given.

    One scale for all channels: statistics of each would make a deep random network amplify rounding errors a
    millionfold (Yang et al. 2019, A Mean Field Theory of Batch Normalization), and parity would be a matter of chance.
    """

    def scale(layer: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        assert layer.running_var is not None
        layer.running_var.fill_(given[0].square().mean())

    hooks = [layer.register_forward_pre_hook(scale) for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        module.eval()(images(image))
    for hook in hooks:
        hook.remove()


def network(name: str, side: int | None = None, labels: int = 7) -> tuple[Architecture, ImageSpec, nn.Module, Network]:
    """A network by name, for an input of that side: its architecture, image contract, module, and the module cut."""
    architecture = architectures.get(name)
    image = resized(architecture.image, side)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = architecture.build(labels).eval()
        settle(module, image)
    return architecture, image, module, architecture.cut(module).eval()
