"""The checks in their order, and what they hand on to each other.

Every check imports what it needs when it runs: where a package is missing, that check is skipped and the others run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deploy.gpu.machine import Machine
from deploy.gpu.rows import Skipped

if TYPE_CHECKING:
    from deploy.gpu.engines import Engine
    from deploy.gpu.subject import Subject
    from deploy.gpu.table import Entry
    from service.spec import Precision

PRECISIONS = ("fp32", "fp16", "int8")
CUDA_PRECISIONS = ("fp32", "tf32", "fp16")  # ONNX Runtime's CUDA provider has no int8 convolutions; TensorRT has
TUNED = 16  # images that a plan is built for

Check = tuple[str, Callable[[], str]]


@dataclass(frozen=True)
class Options:
    """What is checked.

    Attributes:
        arch: The network.
        batches: Images, for the table.
        threads: Of the CPU.
    """

    arch: str
    batches: tuple[int, ...]
    threads: int


class Bench:
    """The checks.

    Args:
        options: What is checked.
        machine: On what.
        folder: For files of the checks.

    Attributes:
        rates: Operations per second in matrix products, by device and precision.
        entries: The table.
        decoding: JPEG files per second, by device.
    """

    def __init__(self, options: Options, machine: Machine, folder: Path) -> None:
        self._options, self._machine, self._folder = options, machine, folder
        self._taken: Subject | None = None
        self._engines: list[Engine] = []
        self.rates: dict[str, dict[str, float]] = {}
        self.entries: list[Entry] = []
        self.decoding: dict[str, float] = {}

    def checks(self) -> Iterator[Check]:
        """Name and check, in the order in which they have to run."""
        yield "GPU", self._gpu
        for device in ("cpu", "cuda"):
            yield f"matrix rates, {device}", partial(self._rates, device)
        yield f"network {self._options.arch}", self._take
        for device in ("cpu", "cuda"):
            yield f"training step, {device}", partial(self._step, device)
        yield "training loop, cuda", self._loop
        for precision in PRECISIONS:
            yield f"export and parity, {precision}", partial(self._export, precision)
        for precision in PRECISIONS:
            yield f"ONNX Runtime on the CPU, {precision}", partial(self._cpu, precision)
        for precision in CUDA_PRECISIONS:
            yield f"ONNX Runtime on CUDA, {precision}", partial(self._cuda, precision)
        for precision in PRECISIONS:
            yield f"TensorRT, {precision}", partial(self._tensorrt, precision)
        for device in ("cpu", "cuda"):
            yield f"Triton from the wheel, {device} instance", partial(self._triton, device)
        yield "JPEG decoding, cpu", self._decode_on_cpu
        yield "JPEG decoding, cuda", self._decode_on_gpu
        yield "throughput table", self._table

    def _gpu(self) -> str:
        machine = self._machine
        machine.require_gpu()
        gibibytes = (machine.memory_bytes or 0) / 2**30
        driver = machine.driver or "unknown: NVML cannot be asked"
        return f"{machine.gpu}, compute capability {machine.capability}, {gibibytes:.0f} GiB, driver {driver}"

    def _require(self, device: str) -> None:
        if device == "cuda":
            self._machine.require_gpu()

    def _subject(self) -> Subject:
        if self._taken is None:
            raise Skipped(f"there is no {self._options.arch}: see above")
        return self._taken

    def _rates(self, device: str) -> str:
        self._require(device)
        from deploy.gpu import rates

        self.rates[device] = rates.measure(device)
        return ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in self.rates[device].items()) + " · 10¹²/s"

    def _take(self) -> str:
        from deploy.gpu import subject

        self._taken = subject.take(self._options.arch, self._folder)
        return f"{self._taken.macs:,} multiply-accumulates an image, random weights"

    def _step(self, device: str) -> str:
        self._require(device)
        from deploy.gpu import training

        subject = self._subject()
        return training.step(subject.candidate.network, subject.candidate.image, subject.pixels, device)

    def _loop(self) -> str:
        self._machine.require_gpu()
        from deploy.gpu import training

        return training.loop(self._folder)

    def _export(self, precision: str) -> str:
        return self._subject().exported(cast("Precision", precision))

    def _cpu(self, precision: str) -> str:
        from deploy.gpu import engines

        return self._held(engines.cpu(self._subject(), precision, self._options.threads))

    def _cuda(self, precision: str) -> str:
        self._machine.require_gpu()
        from deploy.gpu import engines

        return self._held(engines.cuda(self._subject(), precision))

    def _tensorrt(self, precision: str) -> str:
        self._machine.require_gpu()
        from deploy.gpu import engines

        most = max(self._options.batches)
        return self._held(engines.tensorrt(self._subject(), precision, (1, min(TUNED, most), most)))

    def _held(self, engine: Engine) -> str:
        """Only what agrees with the CPU's float32 gets into the table."""
        from deploy.gpu import engines

        said = engines.agreement(engine, self._subject(), self._options.threads)
        self._engines.append(engine)
        return said

    def _triton(self, device: str) -> str:
        self._require(device)
        from deploy.gpu import serving

        folder = self._folder / f"triton-{device}"
        folder.mkdir()
        return serving.check(self._subject().candidate, folder, device)

    def _decode_on_cpu(self) -> str:
        from deploy.gpu import decoding

        self.decoding["cpu"] = decoding.cpu(self._subject().candidate.image)
        return f"{self.decoding['cpu']:,.0f} images/s by one core, from the file to the network's pixels"

    def _decode_on_gpu(self) -> str:
        self._machine.require_gpu()
        from deploy.gpu import decoding

        self.decoding["cuda"] = decoding.gpu(self._subject().candidate.image)
        return f"{self.decoding['cuda']:,.0f} images/s by the decode model, from the file to the network's pixels"

    def _table(self) -> str:
        if not self._engines:
            raise Skipped("nothing computes here: see above")
        from deploy.gpu import table

        subject = self._subject()
        rates = self.rates.get("cuda", {})
        self.entries = table.measure(self._engines, self._options.batches, subject.pixels, subject.macs, rates)
        return f"{len(self.entries)} entries"
