"""When requests arrive, whatever becomes of those before them.

A load is a row of levels, each a rate for some seconds. Requests arrive as a Poisson process of that rate, which is
what many independent users look like. The process is drawn from a seed and a clock alone: no answer, slow or missing,
moves an arrival. `Pacer` hands each to whoever waits for it; one that finds everybody busy waits, and its latency is
counted from when it was due, so that a server that stalls is not spared the requests that it kept from being sent
("coordinated omission", Gil Tene).
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 1.0  # seconds at the first rate, in which connections are opened
SPIKES = 3
MOST_WAITING = 10_000  # arrivals of one kind that may wait for a user


@dataclass(frozen=True)
class Level:
    """A stretch of the load.

    Attributes:
        rate: Arrivals a second, on average.
        seconds: How long.
        counted: Whether it is part of the figures; the warm-up is not.
    """

    rate: float
    seconds: float
    counted: bool = True


def steps(rates: Sequence[float], seconds: float) -> list[Level]:
    """One rate after the other, for so long each."""
    return [Level(rate, seconds) for rate in rates]


def spikes(rates: Sequence[float], seconds: float) -> list[Level]:
    """The first rate with short spikes of the second, a quarter as long as the calm before and after each.

    Raises:
        ValueError: If there are not two rates.
    """
    if len(rates) != 2:
        raise ValueError("spikes take two rates: the usual one and that of the spikes")
    calm, spike = Level(rates[0], seconds), Level(rates[1], seconds / 4)
    return [calm, *(level for _ in range(SPIKES) for level in (spike, calm))]


def poisson(rates: Sequence[float], seconds: float) -> list[Level]:
    """One rate all the time.

    Raises:
        ValueError: If there is not one rate.
    """
    if len(rates) != 1:
        raise ValueError("poisson takes one rate; for several, one after the other, there are steps")
    return steps(rates, seconds)


SHAPES = {"steps": steps, "spikes": spikes, "poisson": poisson}


def shaped(shape: str, rates: Sequence[float], seconds: float) -> list[Level]:
    """The levels of a shape, behind a warm-up.

    Raises:
        ValueError: If the rates do not suit the shape, or a figure is not above zero.
    """
    if not rates or min(*rates, seconds, 1) <= 0:
        raise ValueError("rates and seconds must be above zero")
    levels = SHAPES[shape](rates, seconds)
    return [Level(levels[0].rate, WARM_UP, counted=False), *levels]


def arrivals(levels: Sequence[Level], random: random.Random) -> Iterator[float]:
    """Seconds from the start at which requests are due: a Poisson process whose rate follows the levels.

    A process of rate 1 on the time scale in which every level is as long as it has arrivals on average (Çinlar,
    Introduction to Stochastic Processes, 1975, 4.7).
    """
    began, expected, due = 0.0, 0.0, random.expovariate(1.0)
    for level in levels:
        while due < expected + level.rate * level.seconds:
            yield began + (due - expected) / level.rate
            due += random.expovariate(1.0)
        began += level.seconds
        expected += level.rate * level.seconds


class Closed(Exception):
    """There are no more arrivals."""


class Pacer:
    """Hands out arrivals, each to a user of its kind, when they are due.

    Each arrival's kind is drawn by the shares, so the arrivals of each kind are a Poisson process too, however busy the
    users of another kind are. Works with threads and, where the standard library is patched, with gevent's greenlets.

    Args:
        times: Seconds from the start, in order.
        shares: Of each kind of user in the arrivals.
        random: Draws the kinds.

    Attributes:
        began: When the clock (`time.monotonic`) was at zero; None before.
        lost: Kind and time of arrivals that were dropped because `MOST_WAITING` of their kind waited already.
        given: How many were handed out, taken or not.
        done: Whether all have been handed out or dropped.
    """

    def __init__(self, times: Iterator[float], shares: Mapping[str, float], random: random.Random) -> None:
        self.began: float | None = None
        self.lost: list[tuple[str, float]] = []
        self.given = 0
        self.done = False
        self._times = times
        self._kinds, self._weights = list(shares), list(shares.values())
        self._random = random
        self._waiting: dict[str, queue.SimpleQueue[float | None]] = {kind: queue.SimpleQueue() for kind in shares}
        self._closed = False

    def run(self) -> None:
        """Hand out all arrivals; returns after the last, or when closed."""
        self.began = time.monotonic()
        for due in self._times:
            if (wait := self.began + due - time.monotonic()) > 0:
                time.sleep(wait)
            if self._closed:
                break
            (kind,) = self._random.choices(self._kinds, self._weights)
            if self._waiting[kind].qsize() < MOST_WAITING:
                self.given += 1
                self._waiting[kind].put(due)
            else:
                self.lost.append((kind, due))
        self.done = True

    def take(self, kind: str) -> float:
        """Wait for an arrival of that kind; when it was due, in seconds from the start.

        Raises:
            Closed: No more will come.
        """
        due = self._waiting[kind].get()
        if due is None or self._closed:
            self._waiting[kind].put(None)  # for the next one that waits
            raise Closed
        return due

    def now(self) -> float:
        """Seconds from the start."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    def close(self) -> None:
        """End everybody's waiting; what was not taken is dropped."""
        self._closed = True
        for each in self._waiting.values():
            each.put(None)
