"""One version of one model, run alone in a fresh process: latency, throughput, memory, power. JSON on standard output.

    python -m export.measure model_repository/lenet5-digits 1 --threads 2 --batch-sizes 1 8

A process of its own, so that it holds this model's memory and no other's.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict

from export import replay, throughput
from export.power import Meter
from service.golden import golden_batch
from service.preprocess import Preprocessor
from service.spec import CONFIG_NAME, OUTPUTS, ModelSpec, read_config

ROUNDS = 5
SLOWEST = 2.0  # seconds: when a batch takes longer, larger ones are left out; throughput has long settled by then
STATUS = Path("/proc/self/status")
POWER = 2.0  # seconds of the largest batch while power is measured


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Batch(_Frozen):
    """What batches of one size came to; all outputs are computed."""

    images: int
    latency_ms: float  # of the whole batch, median
    images_per_second: float
    memory_bytes: int  # most that the process held up to here


class Measured(_Frozen):
    """What a version came to."""

    device: str  # "CPU" or "GPU"
    threads: int
    empty_bytes: int  # what the process held before the model was loaded
    batches: tuple[Batch, ...]  # ascending
    watts: float | None  # of the GPU, at the largest batch; None: not measured


def measure(folder: Path, spec: ModelSpec, batch_sizes: Sequence[int], threads: int) -> Measured:
    """Run a version. The process must be fresh, or the memory is that of what ran before.

    Args:
        folder: Of the version.
        spec: Of the version.
        batch_sizes: Images.
        threads: On a CPU.
    """
    images = golden_batch(spec, Preprocessor(spec.image))
    empty = memory_since_now()
    session, device = _session(folder / replay.model_file(spec), threads)

    def runner(size: int) -> Callable[[], object]:
        batch = np.resize(images, (size, *images.shape[1:]))
        return lambda: session.run(list(OUTPUTS), {"image": batch})

    runs: dict[int, Callable[[], object]] = {}
    memory = {}
    for size in sorted(batch_sizes):
        run = runner(size)
        run()
        started = time.perf_counter()
        run()
        runs[size], memory[size] = run, peak_memory()
        if time.perf_counter() - started > SLOWEST:
            break
    seconds = throughput.seconds(runs, ROUNDS)
    return Measured(
        device=device,
        threads=threads,
        empty_bytes=empty,
        batches=tuple(
            Batch(
                images=size,
                latency_ms=1000 * seconds[size],
                images_per_second=size / seconds[size],
                memory_bytes=memory[size],
            )
            for size in runs
        ),
        watts=_watts(runs[max(runs)]) if device == "GPU" else None,
    )


def memory_since_now() -> int:
    """The bytes that this process holds in memory; from now on `peak_memory` counts afresh."""
    if not STATUS.exists():
        return peak_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return _kibibytes("VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has held in memory."""
    if STATUS.exists():
        return _kibibytes("VmHWM")
    # Elsewhere than on Linux the peak cannot be set back, and so shows only what goes beyond start-up's.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kibibytes(key: str) -> int:
    """A line of the process's status, in bytes. Its resource usage would not do: it begins with its parent's peak."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"{STATUS} has no line {key}")


def _session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, str]:
    """On a GPU where ONNX Runtime really has one, else on the CPU."""
    if path.name == replay.PLAN_FILE:
        return replay.session(path), "GPU"
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        session = onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        if "CUDAExecutionProvider" in session.get_providers():  # it falls back to the CPU without a word
            return session, "GPU"
    return replay.session(path, threads), "CPU"


def _watts(run: Callable[[], object]) -> float | None:
    with Meter() as meter:
        started = time.perf_counter()
        while time.perf_counter() - started < POWER:
            run()
    return meter.watts


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m export.measure", description="Run one version of one model.")
    parser.add_argument("model", type=Path, help="its folder in the repository")
    parser.add_argument("version")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    spec = read_config(arguments.model / CONFIG_NAME, lenient=True).specs[arguments.version]
    found = measure(arguments.model / arguments.version, spec, arguments.batch_sizes, arguments.threads)
    json.dump(found.model_dump(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
