"""Sends one request again and again over HTTP/1.1, in an open or a closed loop, with as little work as Python allows.

It shares its machine with the server that it loads, so nothing here is a task or a future of its own: a line is a
connection with at most one request under way, and what its answer is worth is settled where it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SWEEP_SECONDS = 0.05  # how late, at most, a request that nobody answers is given up
TOGETHER = 16  # requests sent in a row by a sender that is behind, before it reads answers again

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_INFER = re.compile(rb'"infer":([0-9.e+-]+)')
_TOP = re.compile(rb'"(?:label|index)": ?"?[^",}]+"?[,}]')


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in milliseconds.

    Attributes:
        kind: "right", "refused" (429 or 503), "expired" (504, or the deadline of one image of several passed), "silent"
            (no answer within the patience), "unsent" (all connections were taken) or "failed: …".
        taken: From sending, or from asking for a new connection, to the whole answer.
        waited: From when it was due to when it was sent.
        infer: That its batch took, if the answer says so.
    """

    kind: str
    taken: float
    waited: float = 0.0
    infer: float = 0.0


@dataclass(frozen=True)
class Request:
    """What is sent, and for how long an answer is of use.

    Attributes:
        head: Its request line and headers, with a place for the milliseconds of the deadline, if it states one.
        body: What follows.
        images: How many that holds.
        deadline: Seconds.
        patience: Seconds beyond that until it is given up.
    """

    head: str
    body: bytes
    images: int
    deadline: float
    patience: float

    def encoded(self, deadline: float) -> bytes:
        """As it is sent when it has so many seconds."""
        return self.head.format(f"{deadline * 1000:g}").encode() + self.body


def response(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of a response; None if it is not whole yet, or does not say how long it is."""
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end) if end >= 4 else None
    if length is None or len(data) < end + int(length[1]):
        return None
    return int(data[9:12]), data[end:]


class _Line(asyncio.Protocol):
    def __init__(self, sender: Sender, data: bytes, waited: float) -> None:
        self.sent = time.perf_counter()
        self.waited = waited
        self.transport: Any = None
        self._sender = sender
        self._first = data
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._first)

    def send(self, data: bytes, waited: float) -> None:
        self.sent = time.perf_counter()
        self.waited = waited
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._answer:
            data = self._answer + data
        found = response(data)
        self._answer = data if found is None else b""
        if found is not None:
            self._sender.answered(self, *found)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._sender.lost(self)


class Sender:
    """Loads a server on this machine.

    Args:
        port: Of the server.
        request: That is sent.
        connections: To it at most; a request that finds all taken is not sent.

    Attributes:
        connections: The same; may be changed between two loads.
    """

    def __init__(self, port: int, request: Request, connections: int) -> None:
        self.connections = connections
        self._port = port
        self._request = request
        self._data = b""
        self._right = b""  # stands in every right answer
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._lines = 0
        self._outcomes: list[Outcome] = []
        self._again_until = 0.0  # of a closed loop
        self._give_up = 0.0
        self._sweeper: asyncio.TimerHandle

    async def learn(self) -> None:
        """Ask once: later answers with the same top class are right.

        Raises:
            SystemExit: The answer is none.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request.encoded(30.0))
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        writer.close()
        found = _TOP.search(body)
        if int(head[9:12]) != 200 or not found:
            raise SystemExit(f"error: port {self._port} answers {head[9:12]!r} {body[:200]!r}")
        self._right = found[0]

    async def closed_loop(self, seconds: float, clients: int, deadline: float) -> float:
        """Right answers a second to so many clients that ask without a pause, with that deadline in seconds."""
        self._begin(deadline)
        began = time.perf_counter()
        self._again_until = began + seconds
        with self._sweeping():
            for _ in range(clients):
                self._start(0.0)
            await self._settled()
        right = sum(each.kind == "right" for each in self._outcomes)
        return right / (time.perf_counter() - began)

    async def open_loop(self, times: Sequence[float]) -> list[Outcome]:
        """One request at each of these seconds, whatever becomes of those before it."""
        self._begin(self._request.deadline)
        began = time.perf_counter()
        with self._sweeping():
            for number, due in enumerate(times):
                if (wait := began + due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                elif number % TOGETHER == 0:
                    await asyncio.sleep(0)
                self._start(max(0.0, time.perf_counter() - began - due) * 1000)
            await self._settled()
        return self._outcomes

    def close(self) -> None:
        """Hang up."""
        for line in self._idle:
            line.transport.close()

    def _begin(self, deadline: float) -> None:
        self._outcomes = []
        self._again_until = 0.0
        self._data = self._request.encoded(deadline)
        self._give_up = deadline + self._request.patience

    async def _settled(self) -> None:
        """Wait for what is under way."""
        while self._busy or self._connecting or time.perf_counter() < self._again_until:  # noqa: ASYNC110 - no task waits
            await asyncio.sleep(SWEEP_SECONDS)

    def _start(self, waited: float) -> None:
        while self._idle:
            line = self._idle.pop()
            if not line.transport.is_closing():
                self._busy.add(line)
                line.send(self._data, waited)
                return
        if self._lines >= self.connections:
            self._outcomes.append(Outcome("unsent", 0.0, waited))
            return
        self._lines += 1
        task = asyncio.get_running_loop().create_task(self._connect(_Line(self, self._data, waited)))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, line: _Line) -> None:
        self._busy.add(line)
        try:
            async with asyncio.timeout(self._give_up):
                await asyncio.get_running_loop().create_connection(lambda: line, "127.0.0.1", self._port)
        except (OSError, TimeoutError) as error:
            self._busy.discard(line)
            self._lines -= 1
            kind = "silent" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
            self._outcomes.append(Outcome(kind, 0.0, line.waited))

    @contextlib.contextmanager
    def _sweeping(self) -> Iterator[None]:
        self._sweep()
        try:
            yield
        finally:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        now = time.perf_counter()
        for line in [each for each in self._busy if now - each.sent > self._give_up and each.transport]:
            self._busy.discard(line)
            self._outcomes.append(Outcome("silent", 0.0, line.waited))
            line.transport.abort()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    # What lines call.

    def answered(self, line: _Line, status: int, body: bytes) -> None:
        """Note what an answer is worth, and ask again in a closed loop."""
        now = time.perf_counter()
        if line not in self._busy:
            return  # given up
        self._busy.discard(line)
        taken = (now - line.sent) * 1000
        self._outcomes.append(self._judged(status, body, taken, line.waited))
        if now < self._again_until and not line.transport.is_closing():
            self._busy.add(line)
            line.send(self._data, 0.0)
        else:
            self._idle.append(line)

    def lost(self, line: _Line) -> None:
        """Note that the server has hung up; where it had not answered, that is a failure."""
        self._lines -= 1
        if line in self._busy:
            self._busy.discard(line)
            self._outcomes.append(Outcome("failed: hung up", 0.0, line.waited))
            if time.perf_counter() < self._again_until:
                self._start(0.0)

    def _judged(self, status: int, body: bytes, taken: float, waited: float) -> Outcome:
        images = self._request.images
        right = body.count(self._right)
        if status == 200 and right == images:
            infer = _INFER.search(body)
            return Outcome("right", taken, waited, float(infer[1]) if infer else 0.0)
        if status in (429, 503):
            return Outcome("refused", taken, waited)
        if status == 504 or (status == 200 and right + body.count(b"error:deadline_exceeded") == images):
            return Outcome("expired", taken, waited)
        return Outcome(f"failed: {status} {body[:120]!r}", taken, waited)
