"""The shapes of load, for locust: so many users that one is free for each arrival, and a pacer that wakes them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from random import Random

import gevent
from locust import LoadTestShape
from locust.env import Environment

from load_tests.arrivals import Level, Pacer, arrivals
from load_tests.locust_users.outcomes import Record, Wrong
from load_tests.locust_users.target import Target

SPARE = 1.5  # users for each request that may be under way
FEWEST = 3  # users of a kind
GRACE = 30.0  # seconds for the last answers
PROGRESS = 1.0 if sys.stdout.isatty() else 10.0  # seconds between two lines


class OpenLoop(LoadTestShape):
    """Locust's part in it: the number of users, which stays the same, and the end.

    Args:
        environment: Locust's, with its users, whose numbers this sets.
        levels: The load.
        patience: Seconds after which an answer is of no use.
        seed: Of the arrivals.
    """

    abstract = True  # locust would make one of its own

    def __init__(self, environment: Environment, levels: Sequence[Level], patience: float, seed: int) -> None:
        super().__init__()
        self.runner = environment.runner
        self._environment = environment
        self._levels = levels
        self._seed = seed
        self._shares = {each.__name__: float(each.weight) for each in environment.user_classes}
        # By Little's law as many are under way as arrive while one is answered, and none takes longer than is waited.
        most = SPARE * max(level.rate for level in levels) * patience / sum(self._shares.values())
        for each in environment.user_classes:
            each.fixed_count = max(FEWEST, math.ceil(most * each.weight * each.crowd))
        self._users = sum(each.fixed_count for each in environment.user_classes)
        self._target: Target
        self._pacer: Pacer | None = None
        self._ended: float | None = None
        environment.events.spawning_complete.add_listener(self._start)
        environment.events.test_stopping.add_listener(self._stop)

    def prepare(self, target: Target) -> None:
        """Before each run."""
        random = Random(self._seed)
        self._target, self._ended = target, None
        self._pacer = target.pacer = Pacer(arrivals(self._levels, random), self._shares, Random(self._seed + 1))

    def tick(self) -> tuple[int, float] | None:
        """The number of users and how many to start in a second; None when everything was answered."""
        if self._pacer and self._pacer.done:
            self._ended = self._ended or time.monotonic()
            answered = self._target.journal.tally.total() >= self._pacer.given
            if answered or time.monotonic() > self._ended + GRACE:
                self._report_lost(self._pacer)
                return None
        return self._users, self._users

    def _start(self, **_: object) -> None:
        if self._pacer and self._pacer.began is None:
            gevent.spawn(self._pacer.run)
            gevent.spawn(self._progress, self._pacer)

    def _stop(self, **_: object) -> None:
        if self._pacer:
            self._pacer.close()

    def _report_lost(self, pacer: Pacer) -> None:
        for kind, due in pacer.lost:
            error = Wrong("not sent: too many were waiting for a free user")
            self._target.journal.add(Record(kind, "not sent", 0, True, "failed", due, due, due))
            self._environment.events.request.fire(
                request_type=kind, name="not sent", response_time=0, response_length=0, exception=error, context={}
            )

    def _progress(self, pacer: Pacer) -> None:
        """Tell how far it is."""
        end = "  \r" if sys.stdout.isatty() else "\n"
        whole = sum(level.seconds for level in self._levels)
        while not pacer.done:
            gevent.sleep(PROGRESS)
            now, tally = min(pacer.now(), whole), self._target.journal.tally
            counts = ", ".join(f"{tally[each]} {each}" for each in ("right", "refused", "late", "failed"))
            print(f"{now:.0f} of {whole:.0f} s, {self._rate(now):g}/s: {counts}", end=end, flush=True)
        print(flush=True)

    def _rate(self, now: float) -> float:
        for level in self._levels:
            now -= level.seconds
            if now <= 0:
                return level.rate
        return self._levels[-1].rate
