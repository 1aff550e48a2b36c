"""Calls: deadlines, limits, errors to statuses, and how each is counted.

Messages come and go as bytes, so that what does not parse is our error and not the library's. A call is counted from
its first byte on: while its message is on its way it is in flight.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from service.access.rates import Pending
from service.errors import BackendUnavailable, DeadlineExceeded, FoveaError, InvalidRequest, TooLarge
from service.logs import request_id_context
from service.metrics import Metrics
from service.tracing.trace import Tracer
from service.transports.exchange import Accounts, Exchange
from service.transports.grpc import traced
from service.transports.grpc.rpc import Rpc
from service.transports.grpc.statuses import STATUSES, trailers

RETRY_AFTER = 1.0  # seconds, where nothing says how long it will take
# A client whose time is over says so shortly before the server, to which the call took a while, knows it.
CLOCK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """What calls may take.

    Attributes:
        max_calls: At once; a stream is one.
        max_message_bytes: Of one message, either way.
        default_timeout: Seconds, for calls without a deadline.
        max_timeout: Seconds that any work may take.
    """

    max_calls: int
    max_message_bytes: int
    default_timeout: float
    max_timeout: float


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        name: `/package.Service/Method`.
        answer: Answers; `async (call, request) -> response`, or of streams `async (call) -> None`.
        streams: It reads and writes as it likes, not one message each way.
        inference: It asks a model.
        open: It takes no key.
    """

    name: str
    answer: Callable[..., Awaitable[Any]]
    streams: bool = False
    inference: bool = False
    open: bool = False


class InFlight:
    """The calls that are being answered.

    Args:
        limits: What calls may take.
        metrics: Where they are counted.
        tracer: Makes their traces, if they are to have any.

    Attributes:
        closing: The server stops: streams are read no more.
    """

    def __init__(self, limits: Limits, metrics: Metrics, tracer: Tracer | None) -> None:
        self.limits = limits
        self.accounts = Accounts("grpc", metrics, tracer)
        self.calls: set[Call] = set()
        self.closing = False

    def close_streams(self) -> None:
        """Read no more from any stream; what has been read is answered."""
        self.closing = True
        for call in tuple(self.calls):
            if isinstance(call, StreamCall):
                call.close_reading()

    def cut(self) -> None:
        """Answer every call that is still there with an error, at once."""
        for call in tuple(self.calls):
            call.cut()


class Call(Exchange, ABC):
    """One call. Satisfies `Owner`.

    Args:
        others: In flight with it.
        method: That was called.
        rpc: It, as it came.

    Attributes:
        carrier: What came with it of the trace that it belongs to, if traces are sent.
    """

    __slots__ = ("_cut", "_late", "_others", "_rpc", "_task", "carrier", "method")

    def __init__(self, others: InFlight, method: Method, rpc: Rpc) -> None:
        given = rpc.metadata.get(b"x-request-id")
        super().__init__(None if given is None else given.decode("latin-1"))
        self.method = method
        self.carrier: traced.Carrier = {}
        self.inference = method.inference
        self._others = others
        self._rpc = rpc
        self._cut = False
        self._late = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Count it from now on, until it ends in whatever way."""
        self._others.calls.add(self)
        self._others.accounts.inflight.inc()

    def start(self) -> None:
        """Answer it."""
        self._task = asyncio.get_running_loop().create_task(self._settle())
        self._task.add_done_callback(self._ended)

    def readable(self) -> None:
        """Whoever reads knows."""

    def gone(self) -> None:
        """The client is, or does not want to know any more."""
        self._break_off()

    def late(self) -> None:
        """Its deadline has passed."""
        self._late = True
        self._break_off()

    def cut(self) -> None:
        """Answer it with an error, at once: the server cannot wait any longer."""
        self._cut = True
        self._break_off()

    def _break_off(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self._ended()

    def _ended(self, task: asyncio.Task[None] | None = None) -> None:
        """Nothing is done for it any more. If it has not been closed it was broken off, perhaps before it began."""
        del task
        if self not in self._others.calls:
            return
        self.code = self.why_cancelled()
        if self._cut:
            self._refuse(BackendUnavailable("the server is shutting down", retry_after=RETRY_AFTER))
        elif self._late:
            self._refuse(DeadlineExceeded("the deadline passed before there was an answer"))
        else:
            self._close()

    @property
    def _latest(self) -> float | None:
        """The call's own deadline, on the clock of `time.monotonic`."""
        return None if self._rpc.timeout is None else self.arrived + self._rpc.timeout

    def allowed(self, part: Exchange | None = None) -> float | None:
        """Seconds that the call's own deadline leaves, from the arrival of the call or of one message of its stream."""
        return None if (latest := self._latest) is None else latest - (part or self).arrived

    def deadline(self, part: Exchange | None = None, timeout: float | None = None) -> float:
        """When an answer is of no use any more, on the clock of `time.monotonic`.

        Args:
            part: One message of a stream, if it is that.
            timeout: Seconds that the message states.
        """
        limits = self.limits
        given = [seconds for seconds in (timeout, self.allowed(part)) if seconds is not None]
        return (part or self).arrived + min([limits.max_timeout, *(given or [limits.default_timeout])])

    @property
    def limits(self) -> Limits:
        return self._others.limits

    def why_cancelled(self) -> str:
        """The code of work that was cancelled."""
        if self._cut:
            return "backend_unavailable"
        latest = self._latest
        late = self._late or (latest is not None and time.monotonic() > latest - CLOCK_SECONDS)
        return "deadline_exceeded" if late else "client_gone"

    async def _settle(self) -> None:
        """Answer; what goes wrong becomes a status."""
        request_id_context.set(self.request_id)  # the task is this call's: nobody else sees it
        self._trace()
        try:
            answer = await self._answer()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
            self._refuse(self.fail(error))
        else:
            self._close()
            self._send(answer)

    def refuse(self, error: FoveaError) -> None:
        """Answer it with an error, without having looked at its message."""
        self._trace()
        self._refuse(self.fail(error))

    def _refuse(self, told: FoveaError) -> None:
        self._close()
        metadata = (("x-request-id", self.request_id), *trailers(told))
        self._rpc.finish(STATUSES[told.code], told.message, metadata)

    def _trace(self) -> None:
        """Begin its span, if it is to have one."""
        if (tracer := self._others.accounts.tracer) is not None and not self.method.open:
            self.carrier = traced.carrier_of(self._rpc.metadata)
            if not self.method.streams:
                traced.begin(tracer, self, self.method.name, self.carrier)

    @abstractmethod
    async def _answer(self) -> bytes:
        """What is sent last, if not nothing."""

    @abstractmethod
    def _send(self, answer: bytes) -> None:
        """Send what is sent last."""

    def _checked(self, message: bytes) -> bytes:
        most = self._others.limits.max_message_bytes
        if len(message) > most:
            raise TooLarge(f"the answer has {len(message)} bytes; a message may have {most}")
        return message

    def _close(self) -> None:
        """Before the client can know that it was answered, so that nobody sees counts from before it."""
        self._others.calls.discard(self)
        traced.finish(self, STATUSES[self.code].value[0])
        before = request_id_context.set(self.request_id)  # it may not be its own task that ends it
        self._others.accounts.close(self, "%s %s", self.method.name, STATUSES[self.code].name)
        request_id_context.reset(before)


class UnaryCall(Call):
    """One message each way.

    Attributes:
        pending: What has to be waited for before the call is taken.
    """

    __slots__ = ("pending",)

    def __init__(self, others: InFlight, method: Method, rpc: Rpc) -> None:
        super().__init__(others, method, rpc)
        self.pending: Pending | None = None

    def readable(self) -> None:
        """Its message has come: only now there is something to do."""
        if self._task is None and self in self._others.calls:
            self.start()

    async def _answer(self) -> bytes:
        if self.pending is not None:
            await self.pending()
        if (latest := self._latest) is not None and latest <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the request had arrived")
        request = await self._rpc.read()
        if request is None:
            raise InvalidRequest("the call has no message")
        return self._checked(await self.method.answer(self, request))

    def _send(self, answer: bytes) -> None:
        self._rpc.reply(answer, (("x-request-id", self.request_id),))


class StreamCall(Call):
    """Messages both ways.

    Attributes:
        closed: The server reads no more.
    """

    __slots__ = ("_said_all", "closed")

    def __init__(self, others: InFlight, method: Method, rpc: Rpc) -> None:
        super().__init__(others, method, rpc)
        self.closed = False
        self._said_all = False  # the client, which reads what is left and then knows how it ended

    async def _answer(self) -> bytes:
        if not self._others.closing:
            await self.method.answer(self)
        if self._others.closing and not self._said_all:
            raise BackendUnavailable("the server is shutting down", retry_after=RETRY_AFTER)
        return b""

    def _send(self, answer: bytes) -> None:
        del answer
        self._rpc.finish(grpc.StatusCode.OK, "", (("x-request-id", self.request_id),))

    async def read(self) -> bytes | None:
        """The next message; None when there is none any more, or the server reads no more.

        Raises:
            FoveaError: It is too large, or no message.
        """
        message = await self._rpc.read()
        self._said_all = message is None and not self.closed
        return message

    def close_reading(self) -> None:
        """Read no more."""
        self.closed = True
        self._rpc.close_reading()

    async def charge(self) -> None:
        """Count a message on the caller's key: each is a request.

        Raises:
            RateExceeded: The key has asked as often as it may.
            Unauthorized: It was revoked since the stream began.
        """
        if self.caller is not None and (pending := self.caller.charge()) is not None:
            await pending()

    async def write(self, message: bytes) -> None:
        """Send a message, as fast as the client reads.

        Raises:
            TooLarge: It is.
        """
        await self._rpc.write(self._checked(message))

    @contextmanager
    def part(self) -> Iterator[Exchange]:
        """One message of the stream, which is counted as a request when it has been answered."""
        part = Exchange(self.request_id)
        part.inference = True
        if (tracer := self._others.accounts.tracer) is not None:
            traced.begin(tracer, part, self.method.name, self.carrier)
        try:
            yield part
        except asyncio.CancelledError:
            part.code = self.why_cancelled()
            raise
        finally:
            traced.finish(part, STATUSES[part.code].value[0])
            self._others.accounts.count(part)
            self.images += part.images

    async def answer_in_order(self, one: Callable[[bytes], Awaitable[bytes]], at_once: int) -> None:
        """Answer each message by one, in order.

        Args:
            one: Answers a message. Whatever goes wrong is in its answer.
            at_once: Messages that are read before the oldest of them has been answered; at that many the client is
                made to wait.
        """
        places = asyncio.Semaphore(at_once)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        working: set[asyncio.Task[Any]] = set()

        async def take() -> None:
            try:
                while True:
                    await places.acquire()
                    if (message := await self.read()) is None:
                        return
                    task = asyncio.ensure_future(one(message))
                    working.add(task)
                    answers.put_nowait(task)
            finally:
                answers.put_nowait(None)

        taking = asyncio.create_task(take())
        working.add(taking)
        try:
            while (task := await answers.get()) is not None:
                await self.write(await task)
                working.discard(task)
                places.release()
            await taking
        finally:
            for task in working:
                task.cancel()
