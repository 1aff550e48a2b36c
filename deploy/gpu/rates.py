"""The rate of matrix products that a machine really reaches, against which networks are held. Not yet run on a GPU.

Data sheets promise what a machine gives to nobody; a large product of square matrices by PyTorch (cuBLAS on a GPU) is
as near to it as a network could come. On a CPU the same products show that the code runs, and are no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from export import throughput

SIDES = {"cuda": 8192, "cpu": 256}
TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
BURST = {"cuda": 10, "cpu": 1}  # products between two waits for the GPU
ROUNDS, LEAST = 5, 0.05


def measure(device: str) -> dict[str, float]:
    """Operations per second, a multiply-accumulate counting as two, by type of number; without those that fail here.

    Args:
        device: "cuda" or "cpu", which has no tf32.
    """
    found = {}
    for name in TYPES:
        if name == "tf32" and device == "cpu":
            continue
        try:
            found[name] = _rate(name, device)
        except RuntimeError:  # PyTorch's word for a type that this device has no product for
            continue
    return found


def _rate(name: str, device: str) -> float:
    side, burst = SIDES[device], BURST[device]
    product = _product(name, device, side)

    def run() -> None:
        for _ in range(burst):
            product()
        if device == "cuda":
            torch.cuda.synchronize()

    with _precision("high" if name == "tf32" else "highest"):
        seconds = throughput.seconds({name: run}, ROUNDS, LEAST)[name]
    return 2 * side**3 * burst / seconds


def _product(name: str, device: str, side: int) -> Callable[[], Tensor]:
    if name == "int8":
        left, right = (torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(left, right.t())  # there is no public one
    left, right = (torch.randn(side, side, device=device).to(TYPES[name]) for _ in range(2))
    return lambda: left @ right


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Whether float32 products may be done in TF32 ("high") or not ("highest")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
