"""What all users have in common: they send when something is due, and write down what became of it."""

from __future__ import annotations

import time

from locust import User, task
from locust.exception import StopUser

from load_tests.arrivals import Closed
from load_tests.locust_users.http_client import Http
from load_tests.locust_users.outcomes import Exchange, Late, Record, Refused, Wrong
from load_tests.locust_users.target import Target

PAUSE = 0.5  # seconds that a user of a closed loop rests after an answer, on average


class Paced(User):
    """Sends one exchange for each arrival of its kind, or in a closed loop one after the other with pauses.

    In locust's figures refusals are rows of the type `refused`, and answers that came too late ones of the type `late`,
    by transport: neither are failures. Latencies count from when the request was due.

    Attributes:
        crowd: Share of the users that there are in an open loop for so many arrivals.
    """

    abstract = True
    crowd = 1.0

    def on_start(self) -> None:
        self.target: Target = self.environment.target
        self.random = self.target.random
        self.http = Http(self.target.host, self.target.key)

    def on_stop(self) -> None:
        self.http.close()

    def wait_time(self) -> float:
        """Seconds of rest; a paced user rests in waiting for an arrival."""
        return 0.0 if self.target.pacer else self.random.expovariate(1 / PAUSE)

    def exchange(self) -> Exchange:
        """What is sent next."""
        raise NotImplementedError

    @task
    def arrive(self) -> None:
        pacer = self.target.pacer
        try:
            due = pacer.take(type(self).__name__) if pacer else None
        except Closed:
            raise StopUser from None
        self.perform(self.exchange(), due)

    def now(self) -> float:
        """Seconds from the start, or on some clock in a closed loop."""
        pacer = self.target.pacer
        return pacer.now() if pacer else time.monotonic()

    def perform(self, exchange: Exchange, due: float | None = None) -> None:
        """Send something and write down what became of it.

        Args:
            exchange: The request.
            due: When it arrived, by `now`; None: just now.
        """
        sent = self.now()
        due = sent if due is None else due
        size, outcome, error = 0, "right", None
        try:
            size = exchange.send()
        except Refused:
            outcome = "refused"
        except Late:
            outcome = "late"
        except Wrong as wrong:
            outcome, error = "failed", wrong
        except (LookupError, TypeError, AttributeError) as broken:
            outcome, error = "failed", Wrong(f"an answer of another form: {broken!r}")
        done = self.now()
        self.target.journal.add(
            Record(exchange.transport, exchange.name, exchange.images, exchange.timed, outcome, due, sent, done)
        )
        excused = outcome in {"refused", "late"}
        self.environment.events.request.fire(
            request_type=outcome if excused else exchange.transport,
            name=exchange.transport if excused else exchange.name,
            response_time=(done - due) * 1000,
            response_length=size,
            exception=error,
            context={},
        )
