"""Throughput by engine, precision and batch, and how much of the GPU's matrix rate it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.gpu.engines import CPU, Engine
from export import throughput

ROUNDS, LEAST = 3, 0.05
CPU_BATCH = 8  # images: throughput of a CPU has settled by then, and larger batches take minutes
WANTED = ["logits"]  # what a request without explanations needs


@dataclass(frozen=True)
class Entry:
    """What batches of one size came to, pixels in the machine's memory to logits there.

    Attributes:
        engine: Name.
        precision: Of arithmetic.
        batch: Images.
        images_per_second: Of whole batches, one after another.
        milliseconds: Of one batch, median.
        share: Of the GPU's matrix rate of that precision, a multiply-accumulate counting as two operations; None: the
            rate is unknown, or this is a CPU, where PyTorch's matrix products are no limit: ONNX Runtime's ResNet-18
            computes at three times their rate on an AMD processor.
    """

    engine: str
    precision: str
    batch: int
    images_per_second: float
    milliseconds: float
    share: float | None


def measure(
    engines: Sequence[Engine],
    batches: Sequence[int],
    pixels: NDArray[np.uint8],
    macs: int,
    rates: Mapping[str, float],
) -> list[Entry]:
    """Measure all engines; those with the same batch take turns. Those on the CPU get small batches only.

    Args:
        engines: That agree with the CPU.
        batches: Images.
        pixels: To make batches of, uint8 `[M, H, W, C]`.
        macs: Multiply-accumulates for one image.
        rates: Of the GPU, by precision: operations per second.
    """
    entries = []
    for size in sorted(batches):
        batch = np.resize(pixels, (size, *pixels.shape[1:]))
        taking = [each for each in engines if each.name != CPU or size <= CPU_BATCH]
        seconds = throughput.seconds({index: _runner(each, batch) for index, each in enumerate(taking)}, ROUNDS, LEAST)
        for index, engine in enumerate(taking):
            rate = None if engine.name == CPU else rates.get(engine.precision)
            images = size / seconds[index]
            share = None if rate is None else 2 * macs * images / rate
            entries.append(Entry(engine.name, engine.precision, size, images, 1000 * seconds[index], share))
    return sorted(entries, key=lambda each: (each.engine, each.precision, each.batch))


def _runner(engine: Engine, batch: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: engine.session.run(WANTED, {"image": batch})
