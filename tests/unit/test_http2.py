"""The server's side of HTTP/2 against hyper's h2 as the client, and against clients that break the rules."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.transports.grpc.http2 import connection as http2
from service.transports.grpc.http2 import frames
from service.transports.grpc.http2.connection import STREAM_WINDOW, WINDOW, Connection, Stream
from service.transports.grpc.http2.headers import Decoder, Headers, encode, status

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x"), ("te", "trailers")]
BLOCK = hpack.Encoder().encode(REQUEST)
BEGIN = frames.PREFACE + frames.settings({})


@dataclass
class Heard:
    """What a server heard on one stream. Satisfies `Receiver`."""

    stream: Stream
    headers: Headers
    body: bytes = b""
    whole: bool = False
    lost: bool = False
    drains: int = 0
    hungry: bool = True

    def received(self, data: bytes) -> None:
        self.body += data
        if self.hungry:
            self.stream.consumed(len(data))

    def ended(self) -> None:
        self.whole = True

    def broken(self) -> None:
        self.lost = True

    def drained(self) -> None:
        self.drains += 1


@dataclass
class Talk:
    """A server, and what it has heard and said."""

    max_streams: int = 100
    said: bytearray = field(default_factory=bytearray)
    heard: list[Heard] = field(default_factory=list)
    hungry: bool = True

    def __post_init__(self) -> None:
        self.server = Connection(self.said.extend, self._opened, max_streams=self.max_streams)
        self.server.start()

    def _opened(self, stream: Stream, headers: Headers) -> Heard:
        self.heard.append(Heard(stream, headers, hungry=self.hungry))
        return self.heard[-1]

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that was said since the last time."""
        found, data = [], bytes(self.said)
        self.said.clear()
        while data:
            length = int.from_bytes(data[:3])
            found.append((data[3], data[4], int.from_bytes(data[5:9]), data[9 : 9 + length]))
            data = data[9 + length :]
        return found

    def ended(self) -> int | None:
        """The error code of GOAWAY, if that was said."""
        found = [payload for kind, _, _, payload in self.frames() if kind == frames.GOAWAY]
        return int.from_bytes(found[0][4:8]) if found else None


class Client:
    """hyper's h2 at the other end."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def exchange(self) -> None:
        """Let both say all they have to say."""
        while True:
            data = self.h2.data_to_send()
            self.talk.server.receive(data)
            said = bytes(self.talk.said)
            self.talk.said.clear()
            if not said and not data:
                return
            self.events += self.h2.receive_data(said)

    def ask(self, body: bytes, headers: Sequence[tuple[str, str]] = REQUEST) -> int:
        number: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, headers)
        while body:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(body))
            if not room:
                self.exchange()
                continue
            self.h2.send_data(number, body[:room])
            body = body[room:]
        self.h2.end_stream(number)
        self.exchange()
        return number

    def data(self, number: int) -> bytes:
        """Of a response so far; what was read may be sent again."""
        found = b""
        for event in [each for each in self.events if isinstance(each, h2.events.DataReceived)]:
            if event.stream_id == number:
                found += event.data
                self.events.remove(event)
                if event.flow_controlled_length and number in self.h2.streams:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, number)
        return found

    def trailers(self, number: int) -> dict[str, str] | None:
        for event in self.events:
            if isinstance(event, h2.events.TrailersReceived) and event.stream_id == number:
                return dict(event.headers)
        return None


HEAD = status(200) + encode((b"content-type", b"application/grpc"))
LAST = encode((b"grpc-status", b"0"))


def test_large_bodies_both_ways() -> None:
    talk = Talk()
    client = Client(talk)
    sent, answer = bytes(range(256)) * 12_000, bytes(reversed(range(256))) * 10_000  # 3 MB, three windows
    number = client.ask(sent)
    (heard,) = talk.heard
    assert (heard.body, heard.whole) == (sent, True)
    heard.stream.send(HEAD, answer, LAST)
    assert heard.stream.pending > 2_000_000  # the client's windows are small
    got = b""
    for _ in range(1000):
        client.exchange()
        got += client.data(number)
        if client.trailers(number):
            break
    assert got == answer
    assert client.trailers(number) == {"grpc-status": "0"}
    assert heard.drains == 1
    assert not talk.server.streams


def test_responses_take_turns_within_the_connections_window() -> None:
    talk = Talk()
    client = Client(talk)
    numbers = [client.ask(b"?") for _ in range(3)]
    for heard in talk.heard:
        heard.stream.send(HEAD, bytes(60_000), LAST)
    client.exchange()
    first = {number: len(client.data(number)) for number in numbers}
    assert sum(first.values()) == frames.FIRST_WINDOW
    assert client.trailers(numbers[0]) is not None or min(first.values()) > 0
    left = {number: 60_000 - length for number, length in first.items()}
    while any(left.values()):
        client.exchange()
        for number in numbers:
            left[number] -= len(client.data(number))
    assert not talk.server.streams


def test_a_window_that_shrinks() -> None:
    """SETTINGS may make a stream's window negative (RFC 9113, section 6.9.2)."""
    talk = Talk()
    talk.server.receive(BEGIN + frames.frame(frames.HEADERS, 5, 1, BLOCK))
    talk.heard[0].stream.send(HEAD, bytes(40_000))
    talk.server.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 10_000}))
    talk.heard[0].stream.send(None, b"x" * 100, LAST)
    talk.frames()
    talk.server.receive(frames.numbered(frames.WINDOW_UPDATE, 1, 30_000))  # now it is 0
    assert talk.frames() == []
    talk.server.receive(frames.numbered(frames.WINDOW_UPDATE, 1, 60))
    assert [(kind, len(payload)) for kind, _, _, payload in talk.frames()] == [(frames.DATA, 60)]
    talk.server.receive(frames.numbered(frames.WINDOW_UPDATE, 1, 60))
    assert [kind for kind, *_ in talk.frames()] == [frames.DATA, frames.HEADERS]


def test_who_is_not_listened_to_has_to_wait() -> None:
    """What nobody has read is not replaced: a client can send a window's worth, and no more."""
    talk = Talk(hungry=False)
    client = Client(talk)
    number = client.h2.get_next_available_stream_id()
    client.h2.send_headers(number, REQUEST)
    client.exchange()
    sent = 0
    while room := min(client.h2.local_flow_control_window(number), client.h2.max_outbound_frame_size):
        client.h2.send_data(number, bytes(room))
        sent += room
        client.exchange()
    assert sent == STREAM_WINDOW
    assert len(client.ask(b"another") and talk.heard[1].body) == 7  # others do not wait for it
    talk.heard[0].stream.consumed(sent)
    client.exchange()
    assert client.h2.local_flow_control_window(number) == STREAM_WINDOW


def test_who_answers_early_is_not_sent_the_rest() -> None:
    talk = Talk()
    talk.server.receive(BEGIN + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, BLOCK))
    talk.frames()
    talk.heard[0].stream.send(None, trailers=HEAD + LAST)
    kinds = [(kind, flags & 1) for kind, flags, _, _ in talk.frames()]
    assert kinds == [(frames.HEADERS, frames.END_STREAM), (frames.RST_STREAM, 0)]
    talk.server.receive(frames.frame(frames.DATA, 0, 1, bytes(1000)) + frames.frame(frames.DATA, 1, 1, b"more"))
    talk.server.receive(frames.frame(frames.HEADERS, frames.END_HEADERS | 1, 3, BLOCK))
    assert (talk.heard[0].body, talk.heard[1].whole, talk.ended()) == (b"", True, None)


@given(st.data())
def test_it_does_not_matter_how_the_bytes_are_cut(data: st.DataObject) -> None:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for body in (b"", b"one", bytes(40_000)):
        number = client.get_next_available_stream_id()
        if body:
            client.send_headers(number, [*REQUEST, ("x-long", "y" * 20_000)])  # and its continuation
        else:
            client.send_headers(number, REQUEST, priority_weight=3)
        for start in range(0, len(body), 16_000):
            client.send_data(number, body[start : start + 16_000], pad_length=7)
        client.end_stream(number)
    client.ping(b"12345678")
    talked = client.data_to_send()
    at_once, in_parts = Talk(), Talk()
    at_once.server.receive(talked)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(talked)), max_size=12)))
    for start, stop in zip([0, *cuts], [*cuts, len(talked)], strict=True):
        in_parts.server.receive(talked[start:stop])
    assert in_parts.said == at_once.said
    assert [(one.headers, one.body, one.whole) for one in in_parts.heard] == [
        (one.headers, one.body, one.whole) for one in at_once.heard
    ]
    assert [len(one.body) for one in at_once.heard] == [0, 3, 40_000]


Fields = list[tuple[str, str]]
NAMES = st.sampled_from(["a", "b", "grpc-timeout", "x-request-id"])
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from(["1", "2", "3" * 100])), max_size=4)


@given(st.lists(st.tuples(FIELDS, st.sampled_from([None, None, 0, 100, 4096])), max_size=20))
def test_what_is_remembered_of_header_blocks_is_never_out_of_date(
    blocks: list[tuple[list[tuple[str, str]], int | None]],
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for fields, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        expected = {name.encode(): value.encode() for name, value in [*REQUEST, *fields]}
        assert decoder.decode(encoder.encode([*REQUEST, *fields])).values == expected


HEADERS = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, BLOCK)
MANY = http2.IDLE_FRAMES + 1
BROKEN_OFF = BEGIN + frames.frame(frames.HEADERS, 0, 1)
WHOLE = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, BLOCK)


def bare(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream, payload)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (BEGIN + HEADERS + bare(frames.DATA, frames.PADDED, 1, b"\x05abc"), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.HEADERS, 4, 2, BLOCK), frames.PROTOCOL_ERROR),
        (BEGIN + WHOLE.replace(b"\0\0\0\1", b"\0\0\0\5") + WHOLE, frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (BEGIN + bare(frames.HEADERS, 4, 1, b"\x80"), frames.COMPRESSION_ERROR),
        (BEGIN + bare(frames.HEADERS, 4, 1, b"\x3f\xe2\x1f"), frames.COMPRESSION_ERROR),  # a table of 4097 bytes
        (BEGIN + bare(frames.HEADERS, 0, 1, BLOCK) + bare(frames.DATA, 0, 1), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.HEADERS, 0, 1, BLOCK) + bare(frames.CONTINUATION, 4, 3), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.CONTINUATION, 4, 1), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.HEADERS, 4 | frames.WITH_PRIORITY, 1, b"abc"), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.PRIORITY, 0, 1, b"abc"), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.RST_STREAM, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.SETTINGS, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
        (BEGIN + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
        (BEGIN + frames.settings({frames.MAX_FRAME_SIZE: 100}), frames.PROTOCOL_ERROR),
        (BEGIN + frames.settings({frames.ENABLE_PUSH: 2}), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.PUSH_PROMISE, 4, 1, BLOCK), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.PING, 0, 0, b"1234567"), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.WINDOW_UPDATE, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
        (BEGIN + bare(frames.WINDOW_UPDATE, 0, 0, b"123"), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR),
        (BEGIN + bare(frames.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), frames.PROTOCOL_ERROR),
        (BEGIN + struct.pack(">HBBBL", 2**12, 0, frames.DATA, 0, 1), frames.FRAME_SIZE_ERROR),
        (BEGIN + bare(frames.PING, 0, 0, bytes(8)) * MANY, frames.ENHANCE_YOUR_CALM),
        (BEGIN + frames.settings({}) * MANY, frames.ENHANCE_YOUR_CALM),
        (BEGIN + HEADERS + bare(frames.DATA, 0, 1) * MANY, frames.ENHANCE_YOUR_CALM),
        (BROKEN_OFF + bare(frames.CONTINUATION, 0, 1) * MANY, frames.ENHANCE_YOUR_CALM),
        (BROKEN_OFF + bare(frames.CONTINUATION, 0, 1, bytes(16_000)) * 3, frames.ENHANCE_YOUR_CALM),
        (BEGIN + bare(frames.HEADERS, 4, 1, bytes(100_000)), frames.ENHANCE_YOUR_CALM),
        (BEGIN + HEADERS + bare(frames.DATA, 0, 1, bytes(2**17)) * (WINDOW // 2**17 + 1), None),  # which is given back
    ],
)  # fmt: skip
def test_what_ends_the_connection(sent: bytes, code: int | None) -> None:
    talk = Talk()
    talk.server.receive(sent)
    assert talk.server.finished == (code is not None)
    assert talk.ended() == code
    assert all(heard.lost for heard in talk.heard) or code is None
    talk.server.receive(WHOLE)
    assert talk.frames() == [] or code is None


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (WHOLE + bare(frames.DATA, 0, 1, b"x"), frames.STREAM_CLOSED),
        (WHOLE + WHOLE, frames.STREAM_CLOSED),
        (HEADERS + HEADERS, frames.PROTOCOL_ERROR),  # trailers that do not end it
        (HEADERS + bare(frames.WINDOW_UPDATE, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
        (HEADERS + bare(frames.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR),
        *(
            (bare(frames.HEADERS, 5, 1, hpack.Encoder().encode(fields)), frames.PROTOCOL_ERROR)
            for fields in (
                REQUEST[1:],
                [*REQUEST, (":path", "/again")],
                [*REQUEST[:2], (":path", ""), *REQUEST[3:]],
                [*REQUEST, (":unknown", "x")],
                [*REQUEST, (":protocol", "websocket")],
                [("te", "trailers"), *REQUEST[:4]],
                [*REQUEST, ("connection", "close")],
                [*REQUEST, ("te", "gzip")],
            )
        ),
        (bare(frames.HEADERS, 5, 1, BLOCK + b"\0\1A\1x"), frames.PROTOCOL_ERROR),  # a capital letter
    ],
)
def test_what_ends_a_stream(sent: bytes, code: int) -> None:
    talk = Talk()
    talk.server.receive(BEGIN + sent)
    reset = [(number, payload) for kind, _, number, payload in talk.frames() if kind == frames.RST_STREAM]
    assert reset == [(1, code.to_bytes(4))]
    assert not talk.server.finished
    assert all(heard.lost for heard in talk.heard)
    talk.server.receive(bare(frames.HEADERS, 5, 3, BLOCK))
    assert talk.heard[-1].whole


def test_pings_on_answers_are_no_flood() -> None:
    """grpc-go sends one with each first frame of data, to measure the way there and back."""
    talk = Talk()
    talk.server.receive(BEGIN + frames.numbered(frames.WINDOW_UPDATE, 0, 2**20))
    for number in range(1, 4 * MANY, 2):
        talk.server.receive(bare(frames.HEADERS, 5, number, BLOCK))
        talk.heard.pop().stream.send(HEAD, b"answer", LAST)
        talk.server.receive(bare(frames.PING, 0, 0, bytes(8)))
    assert not talk.server.finished


def test_streams_that_end_by_the_clients_own_fault_are_counted() -> None:
    talk = Talk()
    talk.server.receive(BEGIN)
    for number in range(1, 2 * MANY + 2, 2):
        talk.server.receive(HEADERS.replace(b"\0\0\0\1", number.to_bytes(4), 1) + frames.numbered(8, number, 0))
    assert talk.ended() == frames.ENHANCE_YOUR_CALM


def test_many_settings_and_many_streams_that_wait_take_no_time() -> None:
    talk = Talk(max_streams=3000)
    talk.server.receive(BEGIN + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    for number in range(1, 6000, 2):
        talk.server.receive(bare(frames.HEADERS, 5, number, BLOCK))
        talk.heard[-1].stream.send(HEAD, b"answer", LAST)
    started = time.process_time()
    entries = b"".join(struct.pack(">HL", frames.INITIAL_WINDOW_SIZE, 0) for _ in range(20_000))
    talk.server.receive(bare(frames.SETTINGS, 0, 0, entries))
    talk.server.receive(frames.numbered(frames.WINDOW_UPDATE, 0, 1) * 20_000)
    assert time.process_time() - started < 1  # 19 s, when each walked over all streams
    assert not talk.server.finished
    talk.frames()
    talk.server.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    assert sum(kind == frames.DATA for kind, *_ in talk.frames()) == 3000


def test_more_streams_than_are_taken_at_once() -> None:
    talk = Talk(max_streams=2)
    talk.server.receive(BEGIN + b"".join(bare(frames.HEADERS, 5, number, BLOCK) for number in (1, 3, 5)))
    assert [payload for kind, _, _, payload in talk.frames() if kind == frames.RST_STREAM] == [
        frames.REFUSED_STREAM.to_bytes(4)
    ]
    talk.heard[0].stream.send(None, trailers=HEAD + LAST)
    talk.server.receive(bare(frames.HEADERS, 5, 7, BLOCK))
    assert len(talk.heard) == 3


def test_a_client_that_cancels() -> None:
    talk = Talk()
    client = Client(talk)
    number = client.ask(b"x")
    client.h2.reset_stream(number)
    client.exchange()
    assert talk.heard[0].lost
    talk.heard[0].stream.send(HEAD, b"too late", LAST)
    assert talk.frames() == []
    assert not talk.server.streams


@pytest.mark.parametrize("aware", [True, False])
def test_a_drain(aware: bool) -> None:
    """What the client opens before it knows is taken; what it opens later it may ask elsewhere."""
    talk = Talk()
    client = Client(talk)
    client.ask(b"before")
    talk.server.drain()
    number = client.h2.get_next_available_stream_id()
    client.h2.send_headers(number, REQUEST, end_stream=True)
    talk.server.receive(client.h2.data_to_send())
    assert len(talk.heard) == 2
    if aware:  # by hand: to hyper's h2 a connection is over with the first GOAWAY
        talk.server.receive(frames.frame(frames.PING, frames.ACK, 0, http2.DRAINING))
    else:
        talk.server.close()
    talk.frames()
    talk.server.receive(bare(frames.HEADERS, 5, 99, hpack.Encoder().encode(REQUEST)))
    assert [(kind, payload) for kind, _, _, payload in talk.frames()] == [
        (frames.RST_STREAM, frames.REFUSED_STREAM.to_bytes(4))
    ]
    for heard in talk.heard:
        assert not talk.server.finished
        heard.stream.send(None, trailers=HEAD + LAST)
    assert talk.server.finished


def test_a_paused_transport_gets_no_more_data() -> None:
    talk = Talk()
    talk.server.receive(BEGIN + WHOLE)
    talk.frames()
    talk.server.paused = True
    talk.heard[0].stream.send(HEAD, b"data", LAST)
    assert [kind for kind, *_ in talk.frames()] == [frames.HEADERS]
    talk.server.paused = False
    talk.server.pump()
    assert [kind for kind, *_ in talk.frames()] == [frames.DATA, frames.HEADERS]


def test_a_long_literal() -> None:
    fields = [(b"grpc-message", b"m" * length) for length in (0, 126, 127, 128, 254, 255, 1000, 20_000)]
    found = hpack.Decoder().decode(encode(*fields), raw=True)
    assert [tuple(each) for each in found] == fields
