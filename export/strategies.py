"""Which parameters of a network are trained, and how fast: from scratch, all of a pretrained one, or its last stages.

Low stages hold what any picture is made of, high ones what the pretrained network was for. So the closer to the head,
the higher the rate (discriminative fine-tuning, Howard and Ruder 2018, arXiv:1801.06146), and with few images the low
stages stay as they are (Yosinski et al. 2014, arXiv:1411.1792).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.architectures.base import Network
from export.optimise import Groups
from service.spec import ImageSpec

LOWER = 0.3  # rate of a stage over that of the one above it
LAST = 2  # stages that `last` trains
SCRATCH, LINEAR, FULL, LAST_STAGES, AUTO = "scratch", "linear", "full", "last", "auto"
STRATEGIES = (AUTO, LINEAR, LAST_STAGES, FULL)


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        groups: Of parameters, each with its peak rate; those of the head are the last.
        frozen: Modules that stay as they are, the statistics of their normalisation included.
    """

    groups: Groups
    frozen: list[nn.Module]


def stages(trunk: nn.Module, image: ImageSpec) -> list[list[nn.Module]]:
    """The layers with parameters of their own, in the order in which they run, by the size of the maps they give.

    Args:
        trunk: From images to the last feature maps.
        image: Its image contract.
    """
    found: list[tuple[torch.Size, nn.Module]] = []

    def note(layer: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        if all(layer is not known for _, known in found):
            found.append((output.shape[2:], layer))

    layers = [module for module in trunk.modules() if any(True for _ in module.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    training = trunk.training
    with torch.no_grad():
        trunk.eval()(torch.zeros(1, image.channels, image.height, image.width))
    trunk.train(training)
    for hook in hooks:
        hook.remove()
    grouped: list[list[nn.Module]] = []
    size = None
    for shape, layer in found:
        if not grouped or shape != size:
            grouped.append([])
        grouped[-1].append(layer)
        size = shape
    return grouped


def plan(module: nn.Module, network: Network, image: ImageSpec, strategy: str, rate: float) -> Plan:
    """What a strategy trains.

    Args:
        module: The whole network, auxiliary heads included.
        network: The same, cut; it shares its parameters.
        image: Its image contract.
        strategy: `SCRATCH`, `FULL` or `LAST_STAGES`.
        rate: Peak learning rate of the head.
    """
    if strategy == SCRATCH:
        return Plan([{"params": list(module.parameters()), "lr": rate}], [])
    layered = stages(network.trunk, image)
    kept = len(layered) - LAST if strategy == LAST_STAGES else 0
    frozen = [layer for stage in layered[: max(kept, 0)] for layer in stage]
    still = {id(parameter) for layer in frozen for parameter in layer.parameters()}
    groups: Groups = []
    taken = set(still)
    for depth, stage in enumerate(reversed(layered[max(kept, 0) :]), start=1):
        parameters = [each for layer in stage for each in layer.parameters(recurse=False) if id(each) not in taken]
        taken |= {id(each) for each in parameters}
        groups.insert(0, {"params": parameters, "lr": rate * LOWER**depth})
    groups.append({"params": [each for each in module.parameters() if id(each) not in taken], "lr": rate})
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) not in still)
    return Plan([group for group in groups if group["params"]], frozen)
