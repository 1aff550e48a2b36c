"""One request over any transport: its id, what becomes of it, and where that is counted and logged."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time

from service.access.ring import Caller
from service.errors import Forbidden, FoveaError, RateExceeded, Unauthorized
from service.logs import access
from service.metrics import Metrics
from service.tracing.trace import Trace, Tracer

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

_OWN = ("backend_failed", "backend_unavailable", "deadline_exceeded", "internal")  # faults of the server's

# Why a call is refused that the server could have answered, as the metric names it.
_REFUSALS: dict[type[FoveaError], str] = {Unauthorized: "unauthorized", Forbidden: "forbidden", RateExceeded: "rate"}

# Request ids made here: random for the process, then counted; randomness for each would be a system call.
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count(1)


class Exchange:
    """One request and what becomes of it, for the log and the metrics.

    Args:
        given: The id that the client chose; one is made if there is none, or if it could do harm in a log.

    Attributes:
        request_id: The id.
        arrived: `time.monotonic` seconds.
        inference: It asks a model, and is counted.
        model: Set once the request is known to be for a model that exists.
        images: How many it held.
        code: "ok", an error code, or "client_gone".
        caller: Whose key came with it; None where none is needed.
        refused: Why it was, if it was for its key or for want of one.
        trace: What is told of it, if it is traced.
    """

    __slots__ = ("arrived", "caller", "code", "images", "inference", "model", "refused", "request_id", "trace")

    def __init__(self, given: str | None = None) -> None:
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.request_id = given
        else:
            self.request_id = f"{_PROCESS}{next(_numbers):08x}"
        self.arrived = time.monotonic()
        self.inference = False
        self.model = "unknown"
        self.images = 0
        self.code = "ok"
        self.caller: Caller | None = None
        self.refused: str | None = None
        self.trace: Trace | None = None

    def note(self, error: FoveaError) -> None:
        """Note what the client is told."""
        self.code = error.code
        self.refused = _REFUSALS.get(type(error))

    def fail(self, error: Exception) -> FoveaError:
        """Note what went wrong, and log what is the server's own fault; gives what the client is told."""
        told = error if isinstance(error, FoveaError) else None
        if told is None:
            log.error("unexpected failure", exc_info=error)
            told = FoveaError(unexpected(self))
        elif told.__cause__ and told.code in _OWN:
            log.error("%s", told.message, exc_info=told.__cause__)
        self.note(told)
        return told


class Accounts:
    """Counts and logs the exchanges of one transport.

    Args:
        transport: Its name, a label of the metrics.
        metrics: Where they are counted.
        tracer: Makes their traces, if they are to have any.
    """

    def __init__(self, transport: str, metrics: Metrics, tracer: Tracer | None) -> None:
        self._transport = transport
        self._metrics = metrics
        self.tracer = tracer
        self.inflight = metrics.under_way(transport)
        self._refused = {reason: metrics.refused.labels(transport, reason) for reason in _REFUSALS.values()}

    def count(self, exchange: Exchange) -> float:
        """Count what has been answered, by model if it asked one, and end its trace; gives the seconds it took."""
        seconds = time.monotonic() - exchange.arrived
        if exchange.refused is not None:
            self._refused[exchange.refused].inc()
        if exchange.trace is not None:
            _end(exchange, exchange.trace)
        if exchange.inference:
            # Clients are told `overloaded` either way; but here they do too much, and not the server too little.
            code = "rate" if exchange.refused == "rate" else exchange.code
            self._metrics.request(self._transport, exchange.model, code).inc()
            self._metrics.seconds(self._transport, exchange.model).observe(seconds)
        return seconds

    def close(self, exchange: Exchange, line: str, *values: object) -> None:
        """Count an exchange that was in flight, and log it with a line like `%s %s %d`."""
        self.inflight.dec()
        record(exchange, self.count(exchange), line, *values)


def record(exchange: Exchange, seconds: float, line: str, *values: object) -> None:
    """Write a line of the access log."""
    extras = {"ms": round(seconds * 1000, 2), "code": exchange.code, "images": exchange.images}
    if exchange.caller is not None:
        extras["key"] = exchange.caller.id
    if exchange.trace is not None:
        extras["trace_id"] = exchange.trace.id
    access(line, values, extras)


def _end(exchange: Exchange, trace: Trace) -> None:
    trace.note({"fovea.request_id": exchange.request_id, "fovea.code": exchange.code, "fovea.images": exchange.images})
    if exchange.caller is not None:
        trace.note({"fovea.key": exchange.caller.id})
    trace.end(None if exchange.code == "ok" else exchange.code, failed=exchange.code in _OWN)


def unexpected(exchange: Exchange) -> str:
    """What a client is told of a failure that nobody foresaw."""
    return f"an unexpected failure; the server's log has it under request id {exchange.request_id}"
