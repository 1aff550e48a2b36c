"""One client's connection: its streams, and how much either side may send on them.

What breaks the rules ends its stream or the connection. Frames of streams that have ended may still have been on their
way: they are let pass.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from service.transports.grpc.http2 import frames
from service.transports.grpc.http2.frames import ConnectionFault, StreamFault
from service.transports.grpc.http2.headers import MAX_BYTES, NO_TABLE, Decoder, Headers

STREAM_WINDOW = 2**20  # bytes that a client may send on a stream before any is used up
WINDOW = 2**24  # and on the connection, where what has come is used up at once
MAX_FRAME = 2**17
MAX_HEADER_LIST = 16 * 1024  # bytes, as the protocol counts them, that clients are told
MAX_WHY = 200  # characters of what a client is told when the connection ends
# Frames that carry nothing: in so many seconds a client may send so many.
IDLE_FRAMES = 5000
IDLE_SECONDS = 10.0
DRAINING = b"draining"  # of the ping whose answer says that the client knows

_LENGTHS = {  # a frame's length, where it is fixed
    frames.PRIORITY: 5,
    frames.RST_STREAM: 4,
    frames.PING: 8,
    frames.WINDOW_UPDATE: 4,
}


class Receiver(Protocol):
    """Hears of what comes on one stream."""

    def received(self, data: bytes) -> None:
        """More of the request's body. `Stream.consumed` says when the client may send as much again."""

    def ended(self) -> None:
        """The request is whole."""

    def broken(self) -> None:
        """The stream is gone: nothing can be read or sent."""

    def drained(self) -> None:
        """What had to wait for the client to take it has been sent."""


class Connection:
    """One connection; what is to be sent is handed to `write`.

    Args:
        write: Sends bytes.
        opened: Hears of each request: its stream and its headers; gives who hears of the rest.
        max_streams: That a client may have open at once.

    Attributes:
        streams: The open ones, by number.
        finished: Nothing more can come of it: it is to be closed when what was written has been sent.
        paused: What was written has not been sent for so long that no more data should be added.
        greeted: The client has said that this is HTTP/2.
        highest: Number of a stream that the client has opened; 0 if there was none.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        opened: Callable[[Stream, Headers], Receiver],
        *,
        max_streams: int,
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.finished = False
        self.paused = False
        self.greeted = False
        self.highest = 0
        self.max_frame = frames.SMALLEST_MAX_FRAME
        self.window = frames.FIRST_WINDOW
        self.first_window = frames.FIRST_WINDOW
        self._write = write
        self._opened = opened
        self._max_streams = max_streams
        self._decoder = Decoder()
        self._rest = b""
        self._told = False  # that our header blocks use no table
        self._last: int | None = None  # that is taken, once the server stops
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags and what has come of a header block
        self._credit = WINDOW
        self._waiting: OrderedDict[int, Stream] = OrderedDict()  # streams with data that may be sent in their turn
        self._out: list[bytes] = []
        self._receiving = False
        self._idle_frames = 0
        self._idle_since = 0.0

    def start(self) -> None:
        """Say what is taken here."""
        told = {
            frames.MAX_CONCURRENT_STREAMS: self._max_streams,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_FRAME_SIZE: MAX_FRAME,
            frames.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
        }
        grown = frames.numbered(frames.WINDOW_UPDATE, 0, WINDOW - frames.FIRST_WINDOW)
        self.write(frames.settings(told) + grown)

    def write(self, data: bytes) -> None:
        """Send; while data is received, together with what else there is to send."""
        if self._receiving:
            self._out.append(data)
        else:
            self._write(data)

    def receive(self, data: bytes) -> None:
        """Take what has come."""
        if self.finished:
            return
        self._receiving = True
        try:
            self._parse(self._rest + data if self._rest else data)
        except ConnectionFault as fault:
            self.write(frames.goaway(self.highest, fault.code, str(fault)[:MAX_WHY]))
            self.lose()
        finally:
            self._receiving = False
            if self._out:
                out = b"".join(self._out)
                self._out.clear()
                self._write(out)

    def lose(self) -> None:
        """The connection is gone, or no good any more."""
        self.finished = True
        for stream in tuple(self.streams.values()):
            stream.gone()
            stream.receiver.broken()

    def ping(self, data: bytes = b"\0" * 8) -> None:
        self.write(frames.frame(frames.PING, 0, 0, data))

    def drain(self) -> None:
        """Ask the client to open no more streams; those that it opens before it knows are taken."""
        self.write(frames.goaway(frames.LARGEST_WINDOW, frames.NO_ERROR, "the server is shutting down"))
        self.ping(DRAINING)

    def close(self) -> None:
        """Take no stream that is not there yet; the connection is finished when those are."""
        if self._last is None and not self.finished:
            self._last = self.highest
            self.finished |= not self.streams
            self.write(frames.goaway(self._last, frames.NO_ERROR, "the server is shutting down"))

    # What comes.

    def _parse(self, data: bytes) -> None:
        start, end = 0, len(data)
        if not self.greeted:
            if not data.startswith(frames.PREFACE[:end]):
                raise ConnectionFault(frames.PROTOCOL_ERROR, "this is no HTTP/2")
            start = len(frames.PREFACE)
            self.greeted = end >= start
        while end - start >= frames.HEAD_BYTES and not self.finished:
            length = data[start] << 16 | data[start + 1] << 8 | data[start + 2]
            if length > MAX_FRAME:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes; {MAX_FRAME} are taken")
            body = start + frames.HEAD_BYTES
            stop = body + length
            if stop > end:
                break
            number = int.from_bytes(data[start + 5 : body]) & 0x7FFFFFFF
            try:
                self._frame(data[start + 3], data[start + 4], number, data[body:stop])
            except StreamFault as fault:
                self._break(number, fault.code)
            start = stop
        self._rest = data[start:] if self.greeted else data

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block was broken off")
        if kind == frames.DATA:
            self._data(number, flags, payload)
        elif kind == frames.HEADERS:
            self._headers(number, flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "clients push nothing")
        else:
            self._idle()
            self._control(kind, flags, number, payload)

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != _LENGTHS.get(kind, len(payload)):
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, f"a frame of kind {kind} has {len(payload)} bytes")
        if (kind in (frames.SETTINGS, frames.PING, frames.GOAWAY)) != (number == 0) and kind <= frames.GOAWAY:
            raise ConnectionFault(frames.PROTOCOL_ERROR, f"a frame of kind {kind} on stream {number}")
        if kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif payload == DRAINING:
                self.close()
        elif kind == frames.RST_STREAM:
            self._known(number)
            if (stream := self.streams.get(number)) is not None:
                stream.gone()
                stream.receiver.broken()
        # GOAWAY: the client opens no more streams, and closes the connection when it likes. PRIORITY is of no use any
        # more (RFC 9113, section 5.3.2), and what is unknown is to be ignored.

    def _idle(self) -> None:
        now = time.monotonic()
        if now - self._idle_since > IDLE_SECONDS:
            self._idle_since, self._idle_frames = now, 0
        self._idle_frames += 1
        if self._idle_frames > IDLE_FRAMES:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _known(self, number: int) -> None:
        if number > self.highest or number % 2 == 0:
            raise ConnectionFault(frames.PROTOCOL_ERROR, f"there has been no stream {number}")

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        self._known(number)
        length = len(payload)
        self._credit -= length
        if self._credit < 0:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "more was sent than the connection takes")
        if self._credit <= WINDOW // 2:
            self.write(frames.numbered(frames.WINDOW_UPDATE, 0, WINDOW - self._credit))
            self._credit = WINDOW
        data = frames.unpadded(payload, flags)
        if not data and not flags & frames.END_STREAM:
            self._idle()
        stream = self.streams.get(number)
        if stream is None:
            return
        stream.take(length)
        if length > len(data):
            stream.consumed(length - len(data))
        if data:
            stream.receiver.received(data)
        if flags & frames.END_STREAM:
            stream.end()

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        block = frames.unpadded(payload, flags)
        if flags & frames.WITH_PRIORITY:
            if len(block) < 5:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "HEADERS are shorter than their priority")
            block = block[5:]
        _check_length(block)
        if flags & frames.END_HEADERS:
            self._whole(number, flags, block)
        else:
            self._block = (number, flags, bytearray(block))
            self._idle()

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "there is no header block to continue")
        self._idle()
        number, given, block = self._block
        block += payload
        _check_length(block)
        if flags & frames.END_HEADERS:
            self._block = None
            self._whole(number, given, bytes(block))

    def _whole(self, number: int, flags: int, block: bytes) -> None:
        """A header block has come: a request's, or trailers, which mean nothing in gRPC."""
        headers = self._decoder.decode(block)  # whatever it is for: the table has to know
        if (stream := self.streams.get(number)) is not None:
            if not flags & frames.END_STREAM:
                raise StreamFault(frames.PROTOCOL_ERROR)
            stream.take(0)
            stream.end()
            return
        if number % 2 == 0 or (number <= self.highest and b":method" in headers.values):
            raise ConnectionFault(frames.PROTOCOL_ERROR, f"stream {number} cannot be opened")
        if number <= self.highest:
            return
        self.highest = number
        if self._last is not None or len(self.streams) >= self._max_streams:
            raise StreamFault(frames.REFUSED_STREAM)
        if headers.malformed:
            raise StreamFault(frames.PROTOCOL_ERROR)
        stream = self.streams[number] = Stream(self, number)
        stream.receiver = self._opened(stream, headers)
        if flags & frames.END_STREAM:
            stream.end()

    def _break(self, number: int, code: int) -> None:
        self._idle()  # or streams could be opened and ended without end
        if (stream := self.streams.get(number)) is not None:
            stream.reset(code)
            stream.receiver.broken()
        else:
            self.write(frames.numbered(frames.RST_STREAM, number, code))

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "SETTINGS were acknowledged with settings")
            return
        for setting, value in dict(frames.read_settings(payload)).items():  # of those that come twice the last
            if setting == frames.INITIAL_WINDOW_SIZE:
                if value > frames.LARGEST_WINDOW:
                    raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
                more = value - self.first_window
                self.first_window = value
                for stream in self.streams.values():
                    stream.grow(more)
                    self.wait(stream)
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.SMALLEST_MAX_FRAME <= value <= frames.LARGEST_MAX_FRAME:
                    raise ConnectionFault(frames.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self.max_frame = value
            elif setting == frames.ENABLE_PUSH and value > 1:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.pump()

    def _window_update(self, number: int, payload: bytes) -> None:
        if number:
            self._known(number)
        more = frames.number(payload)
        stream = self.streams.get(number)
        if more == 0:
            if number:
                raise StreamFault(frames.PROTOCOL_ERROR)
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a window was enlarged by nothing")
        if stream is not None:
            if stream.window + more > frames.LARGEST_WINDOW:
                raise StreamFault(frames.FLOW_CONTROL_ERROR)
            stream.window += more
            self.wait(stream)
        elif number == 0:
            self.window += more
            if self.window > frames.LARGEST_WINDOW:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "the connection's window is too large")
        self.pump()

    # What goes.

    def greeting(self) -> bytes:
        """What stands before the fields of a header block."""
        if self._told:
            return b""
        self._told = True
        return NO_TABLE

    def wait(self, stream: Stream) -> None:
        """The stream has data, if any, that can be sent in its turn."""
        if stream.pending:
            self._waiting[stream.number] = stream

    def forget(self, stream: Stream) -> None:
        """The stream has ended."""
        self.streams.pop(stream.number, None)
        self._waiting.pop(stream.number, None)
        if self._last is not None and not self.streams:
            self.finished = True

    def answered(self) -> None:
        """Data has gone; clients ping when it comes, to measure the way there and back."""
        if self._idle_frames:
            self._idle_frames -= 1

    def pump(self) -> None:
        """Send what had to wait, in turns; a stream whose own window is closed waits for that alone."""
        while self._waiting and self.window > 0 and not self.paused:
            _, stream = self._waiting.popitem(last=False)
            if stream.push() and stream.pending:
                self.wait(stream)


def _check_length(block: bytes | bytearray) -> None:
    if len(block) > MAX_BYTES:
        raise ConnectionFault(frames.ENHANCE_YOUR_CALM, f"a header block has more than {MAX_BYTES} bytes")


class Stream:
    """One request and its response.

    Args:
        connection: Its connection.
        number: Its own.

    Attributes:
        receiver: Hears of what comes.
        window: Bytes that may still be sent, as far as the stream is concerned.
        pending: Bytes that wait for the client to take them.
        whole: The request is.
        over: Nothing can be sent any more.
    """

    __slots__ = ("_connection", "_credit", "_owed", "_queue", "_trailers", "number", "over", "pending", "receiver",
                 "whole", "window")  # fmt: skip

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self.receiver: Receiver
        self.window = connection.first_window
        self.pending = 0
        self.whole = False
        self.over = False
        self._connection = connection
        self._credit = STREAM_WINDOW
        self._owed = 0
        self._queue: list[memoryview] = []
        self._trailers: bytes | None = None

    # What comes.

    def take(self, length: int) -> None:
        """So many bytes have come.

        Raises:
            StreamFault: They may not.
        """
        if self.whole:
            raise StreamFault(frames.STREAM_CLOSED)
        self._credit -= length
        if self._credit < 0:
            raise StreamFault(frames.FLOW_CONTROL_ERROR)

    def consumed(self, length: int) -> None:
        """The client may send as much again."""
        self._owed += length
        if self._owed >= STREAM_WINDOW // 2 and not (self.whole or self.over):
            self._credit += self._owed
            self._connection.write(frames.numbered(frames.WINDOW_UPDATE, self.number, self._owed))
            self._owed = 0

    def end(self) -> None:
        """The request is whole."""
        self.whole = True
        self.receiver.ended()

    def gone(self) -> None:
        """There is nothing to be sent any more, and nobody to send it to."""
        self.over = True
        self.pending = 0
        self._queue.clear()
        self._connection.forget(self)

    # What goes.

    def send(self, head: bytes | None, data: bytes = b"", trailers: bytes | None = None) -> None:
        """Send a part of the response, or all of it; data waits until the client takes it, and trailers for the data.

        Args:
            head: The encoded header block of the response, if it has not been sent yet.
            data: Of the body.
            trailers: The encoded header block that ends the response; without head and data, its only one.
        """
        if self.over:
            return
        connection = self._connection
        parts: list[bytes] = []
        if head is not None:
            parts.append(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, connection.greeting() + head))
        length = len(data)
        if (
            data
            and not (self.pending or connection.paused)
            and length <= min(self.window, connection.window, connection.max_frame)
        ):
            self.window -= length
            connection.window -= length
            parts.append(frames.frame(frames.DATA, 0, self.number, data))
            connection.answered()
        elif data:
            self._queue.append(memoryview(data))
            self.pending += length
            connection.wait(self)
        if trailers is not None and self.pending:
            self._trailers = trailers
        elif trailers is not None:
            parts.append(self._last(trailers))
        if parts:
            connection.write(b"".join(parts))
        if self.pending:
            connection.pump()

    def grow(self, more: int) -> None:
        """The client takes more, or less, of every stream.

        Raises:
            ConnectionFault: That is too much.
        """
        self.window += more
        if self.window > frames.LARGEST_WINDOW:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "a stream's window is too large")

    def push(self) -> bool:
        """Send one frame of what waits; gives whether it could be."""
        connection = self._connection
        room = min(self.window, connection.window, connection.max_frame)
        if room <= 0 or not self._queue:
            return False
        data = self._queue[0]
        if len(data) > room:
            self._queue[0], data = data[room:], data[:room]
        else:
            del self._queue[0]
        self.window -= len(data)
        connection.window -= len(data)
        self.pending -= len(data)
        connection.write(frames.frame(frames.DATA, 0, self.number, data))
        connection.answered()
        if not self.pending:
            if self._trailers is not None:
                connection.write(self._last(self._trailers))
            self.receiver.drained()
        return True

    def _last(self, trailers: bytes) -> bytes:
        """The end of the response; a client that is still sending is told that nobody listens."""
        self.over = True
        flags = frames.END_HEADERS | frames.END_STREAM
        end = frames.frame(frames.HEADERS, flags, self.number, self._connection.greeting() + trailers)
        if not self.whole:
            end += frames.numbered(frames.RST_STREAM, self.number, frames.NO_ERROR)
        self._connection.forget(self)
        return end

    def reset(self, code: int) -> None:
        """End it without a response."""
        if not self.over:
            self.gone()
            self._connection.write(frames.numbered(frames.RST_STREAM, self.number, code))
