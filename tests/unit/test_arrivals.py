"""The open loop: arrivals are a Poisson process of the rates that were asked for, whatever becomes of the requests."""

from __future__ import annotations

import threading
import time
from random import Random

import numpy as np
import pytest

from load_tests.arrivals import MOST_WAITING, WARM_UP, Closed, Level, Pacer, arrivals, shaped


def test_one_rate_gives_a_poisson_process() -> None:
    rate, seconds = 50.0, 400.0
    times = np.array(list(arrivals([Level(rate, seconds)], Random(1))))
    gaps = np.diff(times)
    deviation = 1 / np.sqrt(len(gaps))  # of a mean of that many exponential gaps, relative
    assert abs(gaps.mean() * rate - 1) < 4 * deviation
    assert abs(gaps.std() * rate - 1) < 8 * deviation
    # The share of gaps beyond any length falls exponentially.
    for multiple in (0.1, 1, 3):
        assert abs((gaps > multiple / rate).mean() - np.exp(-multiple)) < 4 * deviation
    # No gap tells of the next, and numbers in equal windows vary as much as they are large.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 * deviation
    counts = np.histogram(times, np.arange(0, seconds + 1))[0]
    assert abs(counts.var() / counts.mean() - 1) < 0.3


def test_the_rate_follows_the_levels() -> None:
    levels = [Level(10, 50), Level(400, 5), Level(0.5, 20), Level(100, 30)]
    times = np.array(list(arrivals(levels, Random(2))))
    assert (np.diff(times) > 0).all()
    ends = np.cumsum([0, *(level.seconds for level in levels)])
    for level, count in zip(levels, np.histogram(times, ends)[0], strict=True):
        expected = level.rate * level.seconds
        assert abs(count - expected) < 4 * np.sqrt(expected), level
    assert times[-1] < ends[-1]


def test_the_seed_alone_decides() -> None:
    levels = shaped("spikes", [20, 200], 4)
    assert list(arrivals(levels, Random(3))) == list(arrivals(levels, Random(3)))
    assert list(arrivals(levels, Random(3))) != list(arrivals(levels, Random(4)))


def test_shapes() -> None:
    assert shaped("steps", [5, 10], 3) == [Level(5, WARM_UP, counted=False), Level(5, 3), Level(10, 3)]
    assert [level.rate for level in shaped("spikes", [5, 50], 4)[1:]] == [5, 50, 5, 50, 5, 50, 5]
    for shape, rates in (("spikes", [5.0]), ("poisson", [5.0, 6.0]), ("steps", []), ("steps", [5.0, -1.0])):
        with pytest.raises(ValueError, match="rate"):
            shaped(shape, rates, 4)


def handed_out(users: int, seconds_each: float) -> tuple[list[float], float]:
    """When arrivals were due that so many users took, each busy for so long; and how long handing them out took."""
    times = list(arrivals([Level(100, 0.5)], Random(5)))
    pacer = Pacer(iter(times), {"user": 1.0}, Random(0))
    taken: list[float] = []

    def work() -> None:
        while True:
            try:
                taken.append(pacer.take("user"))
            except Closed:
                return
            time.sleep(seconds_each)

    workers = [threading.Thread(target=work) for _ in range(users)]
    for worker in workers:
        worker.start()
    began = time.monotonic()
    pacer.run()
    took = time.monotonic() - began
    give_up = time.monotonic() + 10
    while len(taken) < len(times) and time.monotonic() < give_up:
        time.sleep(0.01)
    pacer.close()
    for worker in workers:
        worker.join(5)
    assert pacer.given == len(times)
    return sorted(taken), took


def test_slow_answers_move_no_arrival() -> None:
    """Two users who need five times as long as they have get the same arrivals, due at the same times."""
    swift, _ = handed_out(users=2, seconds_each=0.0)
    slow, took = handed_out(users=2, seconds_each=0.1)
    assert slow == swift
    assert took < 2.0  # the users needed more than that


def test_users_of_one_kind_that_hang_keep_nothing_from_another() -> None:
    pacer = Pacer(arrivals([Level(400, 0.5)], Random(6)), {"stuck": 1.0, "free": 3.0}, Random(1))
    pacer.run()
    free = [pacer.take("free") for _ in range(pacer.given // 2)]
    assert free == sorted(free)
    pacer.close()
    with pytest.raises(Closed):
        pacer.take("stuck")


def test_what_nobody_takes_is_dropped_and_told() -> None:
    pacer = Pacer(iter([0.0] * (MOST_WAITING + 7)), {"user": 1.0}, Random(0))
    pacer.run()
    assert (pacer.given, pacer.lost) == (MOST_WAITING, [("user", 0.0)] * 7)
