"""What a comparison of models found, and the words for it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from export.measure import Batch, Measured


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Frozen):
    """Where the figures come from."""

    processor: str
    cores: int
    onnxruntime: str


class Entry(_Frozen):
    """A model."""

    name: str
    version: str
    architecture: str
    precision: str
    accuracy: float | None  # top-1, of 1
    accuracy_data: str | None
    parameters: int
    macs: int  # multiply-accumulates per image
    file_bytes: int
    measured: Measured

    @property
    def fastest(self) -> Batch:
        """The batch size of the highest throughput."""
        return max(self.measured.batches, key=lambda batch: batch.images_per_second)

    @property
    def memory_bytes(self) -> int:
        """What the model adds to an empty process, at the largest batch."""
        return self.measured.batches[-1].memory_bytes - self.measured.empty_bytes


class Comparison(_Frozen):
    """All of it."""

    machine: Machine
    models: tuple[Entry, ...]  # by multiply-accumulates
    failed: dict[str, str]  # model: why it could not be run


def conditions(comparison: Comparison) -> str:
    """On what, and with what, it was measured."""
    machine = comparison.machine
    ran = {(entry.measured.device, entry.measured.threads) for entry in comparison.models}
    how = " and ".join("GPU" if device == "GPU" else f"{threads} threads" for device, threads in sorted(ran))
    return f"{machine.processor}, {machine.cores} cores, {how}, ONNX Runtime {machine.onnxruntime}"


def amount(value: float) -> str:
    """A number as people say it: 138 M, 4.1 G, 420 k."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
