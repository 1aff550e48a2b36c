"""How long batches take on this machine, as far as it can be foreseen."""

from __future__ import annotations

import time

STALE_SECONDS = 1.0  # measurements older than this are doubted
DOUBT = 4.0  # by this factor


class BatchTimes:
    """Predicts how long a batch of n images takes.

    The shape, seconds = fixed + each * n, is measured once, by `calibrate`; the scale follows what really runs, so
    that a busy neighbour or a throttled clock shows within a few batches.
    """

    def __init__(self) -> None:
        self._fixed = 0.0
        self._each = 0.0
        self._scale = 1.0
        self._measured = time.monotonic()

    def calibrate(self, one: float, many: float, size: int) -> None:
        """Set the shape from the seconds of a batch of one and of a batch of `size` images."""
        self._each = max((many - one) / (size - 1), one * 1e-3) if size > 1 else one
        self._fixed = max(one - self._each, 0.0)
        self._scale = 1.0
        self._measured = time.monotonic()

    def observe(self, size: int, seconds: float) -> None:
        base = self._fixed + self._each * size
        if base > 0:
            weight = 0.5 if self.stale() else 0.2
            # A batch that took a hundred times as long met with an accident; only several of them are a trend.
            ratio = min(seconds / base, 4 * self._scale)
            self._scale += weight * (ratio - self._scale)
        self._measured = time.monotonic()

    def undisturbed(self, size: int) -> float:
        """What a batch of n images takes where nothing slows the machine down: no longer than first measured."""
        return min(self._scale, 1.0) * (self._fixed + self._each * size)

    def at_best(self, size: int) -> float:
        """What a batch of n images may take if the last batches were slower than the machine is.

        As fast as first measured, then; and faster once all measurements are old.
        """
        return self.undisturbed(size) / (DOUBT if self.stale() else 1.0)

    def stale(self) -> bool:
        """Whether the last measurement is an old one."""
        return time.monotonic() - self._measured > STALE_SECONDS

    def predict(self, size: int) -> float:
        return self._scale * (self._fixed + self._each * size)
