"""gRPC's port: connections on asyncio's transports, kept alive, closed when idle, and drained."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable

from service.transports.grpc.http2 import frames
from service.transports.grpc.http2.connection import Connection, Receiver, Stream
from service.transports.grpc.http2.headers import Headers
from service.workers.accepting import Acceptor, Held

# A peer that has vanished without a word is noticed after two to three such spans: in one it said nothing, in the next
# it did not answer a ping either.
KEEPALIVE_SECONDS = 30.0
IDLE_SECONDS = 300.0  # of a connection without a call, which is then closed; clients connect again by themselves
GREETING_SECONDS = 20.0  # for a connection to say that it is HTTP/2
AWARE_SECONDS = 1.0  # for a client to answer that it knows of the drain

_HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks gRPC.\n"

Opened = Callable[[Stream, Headers], Receiver]


class Listener:
    """Takes connections; nothing runs before `start`.

    Args:
        opened: Hears of each request.
        max_streams: That one connection may have open at once.
    """

    def __init__(self, opened: Opened, *, max_streams: int) -> None:
        self._opened = opened
        self._max_streams = max_streams
        self._connections: set[_Protocol] = set()
        self._empty = asyncio.Event()
        self._server: asyncio.Server | Acceptor | None = None

    async def start(self, listening: socket.socket, tls: ssl.SSLContext | None, held: Held | None = None) -> None:
        """Take connections from now on; where other processes do, too, each its share."""
        if held is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._connection, sock=listening, ssl=tls)
            return
        self._server = Acceptor(listening, self._connection, tls, count=lambda: len(self._connections), held=held)
        self._server.start()

    async def stop(self, patience: float) -> None:
        """Take no more, and wait until those that are there have ended.

        Args:
            patience: Seconds, after which they are ended.
        """
        if self._server is None:
            return
        self._server.close()
        if isinstance(self._server, Acceptor):
            await self._server.settled(AWARE_SECONDS)
        for protocol in tuple(self._connections):
            protocol.drain()
        try:
            async with asyncio.timeout(patience):
                while self._connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for protocol in tuple(self._connections):
                protocol.abort()

    def _connection(self) -> _Protocol:
        return _Protocol(self._opened, self._max_streams, self._connections, self._empty)


class _Protocol(asyncio.Protocol):
    """One connection on its transport."""

    def __init__(self, opened: Opened, max_streams: int, others: set[_Protocol], empty: asyncio.Event) -> None:
        self._http2 = Connection(self._write, opened, max_streams=max_streams)
        self._others = others
        self._empty = empty
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._heard = time.monotonic()
        self._called = self._heard  # when there was a call last, as far as was looked
        self._highest = 0  # stream, then
        self._greeted = False
        self._pinged = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._others.add(self)
        self._timer = asyncio.get_running_loop().call_later(GREETING_SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            self._greeted = True
            if not data.startswith(frames.PREFACE[: len(data)]):
                self._transport.write(_HTTP_1)
                self._transport.close()
                return
            self._http2.start()
        self._heard = time.monotonic()
        self._pinged = False
        self._http2.receive(data)
        self._close_if_finished()

    def eof_received(self) -> None:
        """Nothing more can come, and calls need both ways."""

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._timer.cancel()
        self._others.discard(self)
        self._http2.lose()
        if not self._others:
            self._empty.set()

    def pause_writing(self) -> None:
        self._http2.paused = True
        self._transport.pause_reading()  # what is asked would be answered, and the answers kept

    def resume_writing(self) -> None:
        self._http2.paused = False
        self._transport.resume_reading()
        self._http2.pump()

    def drain(self) -> None:
        """Finish what has been accepted, and close."""
        if not self._http2.greeted:
            self._transport.close()
            return
        self._http2.drain()
        asyncio.get_running_loop().call_later(AWARE_SECONDS, self._http2.close)

    def abort(self) -> None:
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._http2.finished:
            self._transport.close()

    def _look(self) -> None:
        """See whether the client is there still, and wants anything."""
        now = time.monotonic()
        if self._http2.streams or self._http2.highest != self._highest:
            self._called, self._highest = now, self._http2.highest
        if not self._http2.greeted or (self._pinged and now - self._heard >= KEEPALIVE_SECONDS):
            self._transport.abort()
            return
        if now - self._called >= IDLE_SECONDS:
            self._http2.close()
        elif now - self._heard >= KEEPALIVE_SECONDS:
            self._pinged = True
            self._http2.ping()
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self._look)
