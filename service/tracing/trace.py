"""What the parts of the service tell about a request that is traced, whoever collects it.

A request is traced if `current` has a trace; it has none unless traces are sent and the sampler took this request. So
where none are sent, each place that could tell something asks for a context variable and goes on.

Times are those of `time.monotonic`, in seconds: most spans are told when they are over, from what was measured anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol

from service.errors import FoveaError

Attributes = Mapping[str, str | int | float]
Metadata = tuple[tuple[str, str], ...]


class Call(Protocol):
    """A call to another server, which has its own spans of it.

    Attributes:
        metadata: What tells it whose they are.
    """

    @property
    def metadata(self) -> Metadata: ...

    def end(self, error: str | None) -> None:
        """It is over; `error` is the code of what went wrong."""
        ...


class Trace(Protocol):
    """A request that is traced.

    Attributes:
        id: 32 hexadecimal digits, by which it is found.
    """

    @property
    def id(self) -> str: ...

    def note(self, attributes: Attributes) -> None:
        """Say something of the request as a whole."""
        ...

    def span(
        self,
        name: str,
        began: float,
        ended: float,
        attributes: Attributes,
        error: str | None = None,
        link: Call | None = None,
    ) -> None:
        """Tell of a part of the request that is over.

        Args:
            name: What was done.
            began: When.
            ended: When.
            attributes: What else there is to say.
            error: The code of what went wrong.
            link: A call, of another request perhaps, in which this was done too.
        """
        ...

    def call(self, name: str, attributes: Attributes) -> Call:
        """Another server is asked from now on."""
        ...

    def rename(self, name: str) -> None:
        """Say what the request was, if that was not known when it began."""
        ...

    def end(self, error: str | None, *, failed: bool) -> None:
        """The request has been answered.

        Args:
            error: The code of what went wrong.
            failed: By the server's fault.
        """
        ...


class Tracer(Protocol):
    """Where traces come from, and go."""

    def start(self) -> None:
        """Take traces from now on."""
        ...

    def begin(self, name: str, carrier: Mapping[str, str], began: float, attributes: Attributes) -> Trace | None:
        """A request has arrived; None if it is not to be traced.

        Args:
            name: What it is.
            carrier: Its headers `traceparent` and `tracestate`, as far as it has them.
            began: When it arrived.
            attributes: What else there is to say.
        """
        ...

    async def close(self) -> None:
        """Send what is left, within a short time."""
        ...


HEADERS = ("traceparent", "tracestate")  # W3C Trace Context: https://www.w3.org/TR/trace-context/

current: ContextVar[Trace | None] = ContextVar("trace", default=None)
outgoing: ContextVar[Metadata | None] = ContextVar("outgoing", default=None)  # metadata of calls to another server


class Waiting:
    """An image of a traced request that waits for its row.

    Args:
        trace: The request's.
        row: What it waits for, a `Row`.
        enqueued: Since when.

    Attributes:
        begun: When its batch began to run.
        call: What its batch was answered in, if another server runs it.
        carries: The call is this very image's: it stands in its trace already.
    """

    __slots__ = ("_enqueued", "_trace", "begun", "call", "carries")

    def __init__(self, trace: Trace, row: asyncio.Future[Any], enqueued: float) -> None:
        self._trace = trace
        self._enqueued = enqueued
        self.begun: float | None = None
        self.call: Call | None = None
        self.carries = False
        row.add_done_callback(self._done)

    def ask(self, images: int) -> Call:
        """Have another server's spans belong to this image's request."""
        self.carries = True
        return self._trace.call("infer", _batch(images))

    def _done(self, future: asyncio.Future[Any]) -> None:
        now = time.monotonic()
        failure = None if future.cancelled() else future.exception()
        if future.cancelled() or failure is not None:
            code = code_of(failure)
            if self.begun is None:
                self._trace.span("queue", self._enqueued, now, {}, code)
                return
            self._trace.span("queue", self._enqueued, self.begun, {})
            if not self.carries:
                self._trace.span("infer", self.begun, now, {}, code, self.call)
            return
        row = future.result()
        begun = self._enqueued + row.queue_seconds
        self._trace.span("queue", self._enqueued, begun, {})
        if not self.carries:
            self._trace.span("infer", begun, begun + row.infer_seconds, _batch(row.batch_size), None, self.call)


@contextmanager
def asking(images: Sequence[Waiting | None]) -> Iterator[None]:
    """A batch is sent to another server: the first of its images that is traced lends it its trace."""
    traced = [image for image in images if image is not None]
    if not traced:
        yield
        return
    call = traced[0].ask(len(images))
    for image in traced:
        image.call = call
    before = outgoing.set(call.metadata)
    try:
        yield
    except BaseException as error:
        call.end(code_of(error))
        raise
    else:
        call.end(None)
    finally:
        outgoing.reset(before)


def span(name: str, attributes: Attributes) -> AbstractContextManager[None]:
    """A part of the current request, which nothing is told of unless it is traced."""
    trace = current.get()
    return _NOTHING if trace is None else _Span(trace, name, attributes)


class _Span:
    __slots__ = ("_attributes", "_began", "_name", "_trace")

    def __init__(self, trace: Trace, name: str, attributes: Attributes) -> None:
        self._trace = trace
        self._name = name
        self._attributes = attributes

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        code = None if error is None else code_of(error)
        self._trace.span(self._name, self._began, time.monotonic(), self._attributes, code)


_NOTHING = contextlib.nullcontext()


def code_of(error: BaseException | None) -> str:
    """The code of what went wrong; None stands for a client that has gone."""
    if isinstance(error, FoveaError):
        return error.code
    return "client_gone" if error is None or isinstance(error, asyncio.CancelledError) else "internal"


def _batch(images: int) -> Attributes:
    return {"fovea.batch.size": images}
