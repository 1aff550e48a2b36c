"""Random numbers that depend on where in a training they are drawn, and on nothing that was drawn before.

So a training that was killed goes on as if it had not been, and processes that share a batch draw for its images what
one process alone would have drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def seed_of(*place: int) -> int:
    """A seed for a place, such as (seed of the run, epoch, batch): places beside each other get unrelated seeds."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


class Draws:
    """Draws for some of the images of a batch.

    They are drawn on the CPU, the same for every device.

    Args:
        seed: Of the batch.
        total: Images in the whole batch.
        rows: Which of them are here, int64 `[N]`; None: all.
        device: Where the numbers are needed.
    """

    def __init__(self, seed: int, total: int, rows: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._total = total
        self._rows = torch.arange(total) if rows is None else rows
        self._device = device

    def __len__(self) -> int:
        """How many images are drawn for, N."""
        return len(self._rows)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float `[N, *shape]`, uniform in [low, high)."""
        drawn = torch.rand(self._total, *shape, generator=self._generator)
        return (low + (high - low) * drawn)[self._rows].to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Float `[N, *shape]`, standard normal."""
        return torch.randn(self._total, *shape, generator=self._generator)[self._rows].to(self._device)

    def integers(self, end: int) -> Tensor:
        """Int64 `[N]`, uniform in 0 … end - 1."""
        return torch.randint(end, (self._total,), generator=self._generator)[self._rows].to(self._device)
