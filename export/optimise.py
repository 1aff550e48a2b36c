"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from export.errors import ExportError, UnknownName

MOMENTUM = 0.9
DROPS = (0.5, 0.75)  # of the training, where `step` divides the rate by ten (He et al. 2015, on CIFAR-10)
CYCLES = 4  # of warm restarts, where no number of snapshots says otherwise

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=weight_decay)


def _adam(groups: Groups, weight_decay: float) -> Optimizer:
    return torch.optim.Adam(groups, weight_decay=weight_decay)


def _adamw(groups: Groups, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Groups, float], Optimizer]] = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}


def _one_cycle(optimizer: Optimizer, steps: int, _cycles: int) -> LRScheduler:  # Smith and Topin 2017, arXiv:1708.07120
    return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], steps)


def _cosine(optimizer: Optimizer, steps: int, _cycles: int) -> LRScheduler:  # Loshchilov and Hutter 2016
    return CosineAnnealingLR(optimizer, steps)


def _warm_restarts(optimizer: Optimizer, steps: int, cycles: int) -> LRScheduler:  # arXiv:1608.03983
    return CosineAnnealingWarmRestarts(optimizer, -(-steps // cycles))


def _step(optimizer: Optimizer, steps: int, _cycles: int) -> LRScheduler:
    return MultiStepLR(optimizer, [int(steps * drop) for drop in DROPS])


def _constant(optimizer: Optimizer, _steps: int, _cycles: int) -> LRScheduler:
    return ConstantLR(optimizer, 1.0)


SCHEDULES: Mapping[str, Callable[[Optimizer, int, int], LRScheduler]] = {
    "constant": _constant,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "step": _step,
    "warm-restarts": _warm_restarts,
}


def optimizer(name: str, groups: Groups, weight_decay: float) -> Optimizer:
    """An optimiser.

    Args:
        name: One of `OPTIMIZERS`.
        groups: Of parameters, each with its peak rate `lr`.
        weight_decay: As that optimiser means it.

    Raises:
        UnknownName: There is none of that name.
    """
    if name not in OPTIMIZERS:
        raise UnknownName.among("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](groups, weight_decay)


def schedule(name: str, of: Optimizer, steps: int, cycles: int = 0) -> LRScheduler:
    """A schedule, to be advanced after each of `steps` steps.

    Args:
        name: One of `SCHEDULES`.
        of: The optimiser whose rates it sets.
        steps: Of the whole training.
        cycles: Of warm restarts; 0: a usual number.

    Raises:
        UnknownName: There is none of that name.
        ExportError: It has no cycles, and some are asked for.
    """
    if name not in SCHEDULES:
        raise UnknownName.among("schedule", name, SCHEDULES)
    if cycles and name != "warm-restarts":
        raise ExportError(
            f"snapshots are taken at the ends of cycles, and {name} has none: pass --schedule warm-restarts"
        )
    return SCHEDULES[name](of, steps, cycles or CYCLES)
