"""How fast graphs run, measured so that other work on the machine spoils it least: in turns, and by medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from service.spec import OUTPUTS

ROUNDS = 7
LEAST = 0.1  # seconds that a round spends on each entry: one interruption of a short call must not matter

Key = TypeVar("Key")


def seconds(runs: Mapping[Key, Callable[[], object]], rounds: int = ROUNDS, least: float = LEAST) -> dict[Key, float]:
    """Seconds that one call takes, the median of rounds in which all entries take turns.

    What slows the machine for a while slows all entries alike then, and ratios between them hold.

    Args:
        runs: What to time, by any key.
        rounds: Turns of each.
        least: Seconds that each turn lasts at least; short calls are repeated.
    """
    repeats = {}
    for key, run in runs.items():
        run()  # allocates
        started = time.perf_counter()
        run()
        repeats[key] = max(1, round(least / max(time.perf_counter() - started, 1e-9)))
    taken: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            started = time.perf_counter()
            for _ in range(repeats[key]):
                run()
            taken[key].append((time.perf_counter() - started) / repeats[key])
    return {key: float(np.median(each)) for key, each in taken.items()}


def images_per_second(
    sessions: Mapping[Key, InferenceSession], batch: NDArray[np.uint8], rounds: int = ROUNDS, least: float = LEAST
) -> dict[Key, float]:
    """Throughput of graphs under the artefact contract, with all their outputs.

    Args:
        sessions: By any key.
        batch: uint8 `[N, H, W, C]`.
        rounds: As in `seconds`.
        least: As in `seconds`.
    """

    def runner(session: InferenceSession) -> Callable[[], object]:
        return lambda: session.run(list(OUTPUTS), {"image": batch})

    found = seconds({key: runner(session) for key, session in sessions.items()}, rounds, least)
    return {key: len(batch) / each for key, each in found.items()}
