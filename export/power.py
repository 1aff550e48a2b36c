"""Electrical power of an NVIDIA GPU, from its own sensor through NVML. Not yet run: no GPU was at hand.

`pip install nvidia-ml-py` brings the module `pynvml`; without it, or without a GPU, nothing is measured.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

PERIOD = 0.05  # seconds between samples; the sensor itself averages over about as much


class Meter:
    """Samples the power of the first GPU while it is entered.

    Attributes:
        watts: Mean of the samples; None: nothing to measure with.
    """

    def __init__(self) -> None:
        self.watts: float | None = None
        self._nvml: Any = None
        self._stop = threading.Event()
        self._samples: list[float] = []
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)

    def __enter__(self) -> Meter:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return self
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return self
        self._nvml = nvml
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is None:
            return
        self._stop.set()
        self._thread.join()
        self._nvml.nvmlShutdown()
        if self._samples:
            self.watts = sum(self._samples) / len(self._samples)

    def _sample(self) -> None:
        gpu = self._nvml.nvmlDeviceGetHandleByIndex(0)
        while not self._stop.wait(PERIOD):
            self._samples.append(self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1000)  # it counts in milliwatts
