"""gRPC over HTTP/2: messages in a stream's body, compressed or not, deadlines, and the status at the end.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from collections import deque
from typing import Protocol
from urllib.parse import quote_from_bytes

import grpc

from service.errors import FoveaError, InvalidRequest, TooLarge
from service.transports.grpc.http2 import frames, headers
from service.transports.grpc.http2.connection import MAX_HEADER_LIST, STREAM_WINDOW, Stream
from service.transports.grpc.http2.headers import Headers

CONTENT_TYPE = b"application/grpc"
MAX_DETAIL = 1024  # characters of a status's message
MESSAGE_BYTES = 128  # that a message takes which waits, beside its own

_PREFIX = struct.Struct(">BL")
_HEAD = headers.status(200) + headers.encode((b"content-type", CONTENT_TYPE))
_ENCODINGS = headers.encode((b"grpc-accept-encoding", b"identity, deflate, gzip"))
_OK = headers.encode((b"grpc-status", b"0"))
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# What zlib calls each encoding.
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}

Trailers = tuple[tuple[str, str], ...]


class UnknownEncoding(FoveaError):
    code = "unknown_encoding"


def not_grpc(request: Headers) -> int | None:
    """The HTTP status with which a request is answered that is no gRPC; None if it is."""
    if request.values[b":method"] != b"POST":
        return 405
    return None if request.values.get(b"content-type", b"").startswith(CONTENT_TYPE) else 415


class Owner(Protocol):
    """Hears of what happens to a call."""

    def readable(self) -> None:
        """There is a message, or the end, or a fault: `Rpc.read` does not wait."""

    def gone(self) -> None:
        """The client is, or does not want to know any more."""

    def late(self) -> None:
        """Its deadline has passed."""


class Rpc:
    """One call on one stream. Satisfies `Receiver`.

    Args:
        stream: Its stream.
        request: Its headers.
        max_bytes: Of a message; a longer one is refused as soon as it says how long it is.
        patience: Seconds that a client may take to send a call's only message, and to take an answer.

    Attributes:
        method: `/package.Service/Method`.
        metadata: That came with it.
        timeout: Seconds that the client gives it; None if it waits for as long as it takes.
        whole: The client has said all.
    """

    __slots__ = ("_begun", "_buffer", "_closed", "_error", "_header_bytes", "_held", "_max_bytes", "_messages",
                 "_owner", "_patience", "_reader", "_sender", "_stream", "_timer", "_unread", "metadata", "method",
                 "timeout", "whole")  # fmt: skip

    def __init__(self, stream: Stream, request: Headers, *, max_bytes: int, patience: float) -> None:
        self.metadata = request.values
        self.method = request.values[b":path"].decode("latin-1")
        self.timeout: float | None = None
        self.whole = False
        self._stream = stream
        self._max_bytes = max_bytes
        self._patience = patience
        self._owner: Owner
        self._begun = False  # the response
        self._closed = False  # to what is still to be read
        self._error: FoveaError | None = None
        self._buffer = bytearray()
        self._messages: deque[tuple[bytes, bool]] = deque()  # and whether they are compressed
        self._unread = 0  # bytes of them
        self._header_bytes = request.bytes
        self._held = 0  # bytes that the client may not send again yet
        self._reader: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, owner: Owner) -> None:
        """Have somebody hear of it from now on.

        Raises:
            FoveaError: Its headers make no sense.
        """
        self._owner = owner
        if self._header_bytes > MAX_HEADER_LIST:
            raise TooLarge(f"the metadata has {self._header_bytes} bytes; at most {MAX_HEADER_LIST} are taken")
        given = self.metadata.get(b"grpc-timeout")
        if given is not None:
            found = _TIMEOUT.fullmatch(given)
            if found is None:
                raise InvalidRequest("grpc-timeout must be up to eight digits and a unit")
            self.timeout = int(found[1]) * _SECONDS[found[2]]
            self._timer = asyncio.get_running_loop().call_later(self.timeout, owner.late)

    def expect(self) -> None:
        """The message has to come while the server is patient, unless the call has a deadline of its own."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._owner.late)

    # What comes.

    def received(self, data: bytes) -> None:
        if self._closed or self._error is not None:
            self._stream.consumed(len(data))
            return
        self._held += len(data)
        buffer = self._buffer
        buffer += data
        try:
            start = self._split(buffer)
        except FoveaError as error:
            self._fail(error)
            return
        if start:
            del buffer[:start]
            self._wake()
        self._give()

    def _split(self, buffer: bytearray) -> int:
        """Take the whole messages; gives where the rest begins."""
        start = 0
        while len(buffer) - start >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(buffer, start)
            if length > self._max_bytes:
                raise TooLarge(f"the request has {length} bytes; a message may have {self._max_bytes}")
            stop = start + _PREFIX.size + length
            if stop > len(buffer):
                break
            message = bytes(memoryview(buffer)[start + _PREFIX.size : stop])
            self._messages.append((message, bool(compressed)))
            self._unread += len(message) + MESSAGE_BYTES
            start = stop
        return start

    def _decompressed(self, message: bytes) -> bytes:
        encoding = self.metadata.get(b"grpc-encoding", b"identity")
        if (bits := _WINDOW_BITS.get(encoding)) is None:
            raise UnknownEncoding(
                f"messages are not taken in {encoding[:40].decode('latin-1')!r}; gzip and deflate are"
            )
        unzip = zlib.decompressobj(bits)
        try:
            found = unzip.decompress(message, self._max_bytes)
        except zlib.error as error:
            raise InvalidRequest(f"the message cannot be decompressed: {error}") from None
        if unzip.unconsumed_tail:
            raise TooLarge(f"the request has more bytes, decompressed; a message may have {self._max_bytes}")
        if not unzip.eof:
            raise InvalidRequest("the message cannot be decompressed: it is incomplete")
        return found

    def ended(self) -> None:
        self.whole = True
        if self._buffer and self._error is None:
            self._fail(InvalidRequest("the last message is incomplete"))
        self._wake()

    def _fail(self, error: FoveaError) -> None:
        self._error = error
        self._buffer.clear()
        self._wake()

    def _wake(self) -> None:
        """There is a message, or the end, or a fault."""
        if self.timeout is None and not self._closed:
            self._stop_clock()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        self._owner.readable()

    def _give(self) -> None:
        """Let the client send as much again, unless much has not been read."""
        if self._held and self._unread < STREAM_WINDOW:
            held, self._held = self._held, 0
            self._stream.consumed(held)

    def broken(self) -> None:
        self._stop_clock()
        self._forget()
        for waiter in (self._reader, self._sender):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._owner.gone()

    def drained(self) -> None:
        if self._sender is not None and not self._sender.done():
            self._sender.set_result(None)
        if self._stream.over:
            self._stop_clock()

    async def read(self) -> bytes | None:
        """The next message; None when there is none any more, or `close_reading` was called.

        Raises:
            FoveaError: What came is no message.
        """
        while not self._closed:
            if self._messages:
                message, compressed = self._messages.popleft()
                self._unread -= len(message) + MESSAGE_BYTES
                self._give()
                return self._decompressed(message) if compressed else message
            if self._error is not None:
                raise self._error
            if self.whole:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return None

    def close_reading(self) -> None:
        """Read no more."""
        self._closed = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # What goes.

    async def write(self, message: bytes) -> None:
        """Send a message, as fast as the client reads."""
        head = None if self._begun else _HEAD + _ENCODINGS
        self._begun = True
        self._stream.send(head, _PREFIX.pack(0, len(message)) + message)
        while self._stream.pending:
            self._sender = asyncio.get_running_loop().create_future()
            await self._sender

    def reply(self, message: bytes, metadata: Trailers) -> None:
        """Send the only message, and the end."""
        self._begun = True
        data = _PREFIX.pack(0, len(message)) + message
        self._stream.send(_HEAD + _ENCODINGS, data, _OK + _fields(metadata))
        self._finished()

    def finish(self, status: grpc.StatusCode, detail: str, metadata: Trailers) -> None:
        """Send the end: after messages, or alone."""
        last = headers.encode((b"grpc-status", b"%d" % status.value[0]))
        if detail:
            text = quote_from_bytes(detail[:MAX_DETAIL].encode(), safe=_PLAIN)
            last += headers.encode((b"grpc-message", text.encode()))
        last += _fields(metadata)
        self._stream.send(None, trailers=last if self._begun else _HEAD + _ENCODINGS + last)
        self._finished()

    def _finished(self) -> None:
        """A client that does not take its answer does not keep it here for ever."""
        self._forget()
        self._stop_clock()
        if self._stream.pending:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._stream.reset, frames.CANCEL)

    def _forget(self) -> None:
        """Nothing is read any more: what has come would stay until the next collection of garbage."""
        self._closed = True
        self._messages.clear()
        self._buffer = bytearray()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


# Characters that a status's message holds as they are: printable ASCII but the percent sign.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def _fields(metadata: Trailers) -> bytes:
    return headers.encode(*((name.encode(), value.encode()) for name, value in metadata))
