"""Training on a device: one step held against the CPU's, and Fovea's own loop. Not yet run on a GPU."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from numpy.typing import NDArray
from torch import Tensor

from deploy.gpu.rows import Failed
from export.__main__ import main as export
from export.architectures.base import Network
from export.learner import normalised
from service.spec import ImageSpec

IMAGES = 4
STEPS = 4
RATE = 1e-3
LOSS_TOLERANCE = 1e-4  # relative: float32 without TF32
GRADIENT_TOLERANCE = 1e-2  # of the whole gradient's length
RANDOM = ("Dropout", "DropPath", "StochasticDepth")  # devices draw other numbers


def step(network: Network, image: ImageSpec, pixels: NDArray[np.uint8], device: str) -> str:
    """Train for a few steps on one batch: the loss must fall, and on a GPU begin as on the CPU, gradient and all.

    Args:
        network: With its initial weights, which stay as they are.
        image: Its image contract.
        pixels: uint8 `[M, H, W, C]`.
        device: "cuda" or "cpu".

    Raises:
        Failed: The loss does not fall, or the devices differ.
    """
    losses, gradient = _train(network, image, pixels[:IMAGES], device)
    said = f"loss {losses[0]:.4g} → {losses[-1]:.4g} in {STEPS} steps"
    if not losses[-1] < losses[0]:
        raise Failed(f"the loss does not fall: {said}")
    if device == "cpu":
        return said
    expected, reference = _train(network, image, pixels[:IMAGES], "cpu")
    loss_apart = abs(losses[0] - expected[0]) / abs(expected[0])
    apart = float((gradient - reference).norm() / reference.norm())
    said = f"{said}; against the CPU: loss differs by {loss_apart:.1g}, gradient by {apart:.1g}"
    if not (loss_apart <= LOSS_TOLERANCE and apart <= GRADIENT_TOLERANCE):
        raise Failed(f"{said}; {LOSS_TOLERANCE:g} and {GRADIENT_TOLERANCE:g} are allowed")
    return said


def loop(folder: Path) -> str:
    """`export train` for one epoch on the GPU.

    Args:
        folder: Where the run goes.

    Raises:
        Failed: The command fails.
    """
    command = ["train", "--arch", "lenet5", "--data", "digits", "--epochs", "1", "--device", "gpu"]
    if status := export([*command, "--out", str(folder / "run")]):
        raise Failed(f"export train ended with {status}; what it says is above")
    return "one epoch of LeNet-5 on digits, checkpoint and report written"


def _train(network: Network, image: ImageSpec, pixels: NDArray[np.uint8], device: str) -> tuple[list[float], Tensor]:
    """The loss before each step and after the last, and the first gradient, flat, on the CPU."""
    trained = copy.deepcopy(network).to(device).train()
    for module in trained.modules():
        if type(module).__name__.startswith(RANDOM):
            module.eval()
    optimizer = torch.optim.SGD(trained.parameters(), lr=RATE)
    planes = normalised(torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float(), image)
    labels = torch.arange(len(pixels), device=device)
    losses: list[float] = []
    gradient = torch.empty(0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(STEPS + 1):
            loss = F.cross_entropy(trained(planes), labels)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if not len(gradient):
                parts = [each.grad.flatten() for each in trained.parameters() if each.grad is not None]
                gradient = torch.cat(parts).cpu()
            optimizer.step()
    return losses, gradient
