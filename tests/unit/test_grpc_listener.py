"""gRPC's connections over time: those that are idle, and those whose other end has gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from service.transports.grpc import listener
from service.transports.grpc.http2 import frames
from service.transports.grpc.http2.connection import Stream
from service.transports.grpc.http2.headers import Headers, encode, status
from service.transports.grpc.listener import Listener
from tests.unit.test_http2 import BEGIN, BLOCK

KEEPALIVE, IDLE = 0.1, 0.5


class Quick:
    """Answers at the end. Satisfies `Receiver`."""

    def __init__(self, stream: Stream, headers: Headers) -> None:
        del headers
        self._stream = stream

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None:
        self._stream.send(None, trailers=status(200) + encode((b"grpc-status", b"0")))

    def broken(self) -> None: ...

    def drained(self) -> None: ...


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(listener, "KEEPALIVE_SECONDS", KEEPALIVE)
    monkeypatch.setattr(listener, "GREETING_SECONDS", KEEPALIVE)
    monkeypatch.setattr(listener, "IDLE_SECONDS", IDLE)
    listening = socket.create_server(("127.0.0.1", 0))
    taking = Listener(Quick, max_streams=10)
    await taking.start(listening, None)
    yield listening.getsockname()[1]
    await taking.stop(0.1)


async def lived(port: int, *, greets: bool = True, pongs: bool = True, calls: float = 0.0) -> float:
    """Seconds until the server has closed a connection whose client calls for so long, and answers pings or not."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = loop.time()
    if greets:
        writer.write(BEGIN)
    number = 1
    try:
        while True:
            if loop.time() - started < calls:
                writer.write(frames.frame(frames.HEADERS, 5, number, BLOCK))
                number += 2
            try:
                async with asyncio.timeout(KEEPALIVE / 3):
                    data = await reader.read(65536)
            except TimeoutError:
                continue
            if not data:
                break
            if pongs and (place := data.find(b"\0\0\x08\x06\0\0\0\0\0")) >= 0:
                writer.write(frames.frame(frames.PING, frames.ACK, 0, data[place + 9 : place + 17]))
    except ConnectionResetError:
        pass
    writer.close()
    return loop.time() - started


async def test_who_says_nothing_is_not_waited_for(port: int) -> None:
    assert await lived(port, greets=False) < 3 * KEEPALIVE


async def test_who_has_vanished_is_noticed(port: int) -> None:
    assert KEEPALIVE < await lived(port, pongs=False) < IDLE


async def test_who_wants_nothing_any_more_is_let_go(port: int) -> None:
    assert IDLE <= await lived(port) < IDLE + 4 * KEEPALIVE


async def test_who_calls_now_and_then_stays(port: int) -> None:
    assert await lived(port, calls=3 * IDLE) >= 4 * IDLE - KEEPALIVE
