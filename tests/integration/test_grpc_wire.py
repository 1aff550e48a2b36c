"""gRPC byte by byte, through hyper's h2: what grpc's own client never sends, and what the server does by itself."""

from __future__ import annotations

import contextlib
import gzip
import signal
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.models import png
from tests.rpc import as_dict
from tests.server import Server, is_right, picture

CLASSIFY, STREAM = "/fovea.v1.Classifier/Classify", "/fovea.v1.Classifier/ClassifyStream"
MESSAGE = pb.ClassifyRequest(images=[png(picture(3))], model="tiny").SerializeToString()


def framed(message: bytes, compressed: bool = False) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4) + message


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> str | None:
        return (self.trailers or self.headers).get("grpc-status")

    @property
    def code(self) -> str | None:
        return (self.trailers or self.headers).get("fovea-code")


class Wire:
    """One connection; it never closes a window by itself."""

    def __init__(self, address: str, *, reads: bool = True, window: int = 65_535) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.local_settings = h2.settings.Settings(
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self.reads = reads
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(self, path: str = CLASSIFY, headers: Sequence[tuple[str, str]] = (), **replaced: str) -> int:
        number: int = self.h2.get_next_available_stream_id()
        pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        usual = {"content-type": "application/grpc", "te": "trailers"}
        given = {**pseudo, **usual, **{name.replace("_", "-"): value for name, value in replaced.items()}}
        if method := given.pop("method", None):
            given[":method"] = method
        self.h2.send_headers(number, [*given.items(), *headers])
        self.answers[number] = Answer()
        self.flush()
        return number

    def send(self, number: int, data: bytes, end: bool = True) -> None:
        while data:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if not room:
                self.listen()
                continue
            self.h2.send_data(number, data[:room])
            data = data[room:]
            self.flush()
        if end:
            self.h2.end_stream(number)
            self.flush()

    def listen(self) -> None:
        """Take what comes next."""
        data = self.socket.recv(65536)
        self.closed = not data
        for event in self.h2.receive_data(data) if data else []:
            answer = self.answers.get(getattr(event, "stream_id", None) or 0, Answer())
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.body += event.data
                if self.reads and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers = dict(event.headers)
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = event.error_code
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
        self.flush()

    def answer(self, number: int) -> Answer:
        """When it has ended."""
        answer = self.answers[number]
        while not (answer.ended or answer.reset is not None or self.closed):
            self.listen()
        return answer

    def ask(self, body: bytes, **headers: str) -> Answer:
        number = self.open(**headers)
        self.send(number, body)
        return self.answer(number)


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    opened = Wire(server.grpc)
    yield opened
    opened.socket.close()


def right(answer: Answer) -> bool:
    """Whether one message came, and is the picture's class."""
    response = pb.ClassifyResponse.FromString(answer.body[5:])
    return answer.status == "0" and is_right(as_dict(response)["predictions"][0], picture(3))


def test_an_answer(wire: Wire) -> None:
    answer = wire.ask(framed(MESSAGE), x_request_id="mine-1")
    assert right(answer)
    assert answer.headers[":status"] == "200"
    assert answer.headers["content-type"] == "application/grpc"
    assert "gzip" in answer.headers["grpc-accept-encoding"]
    assert answer.trailers["x-request-id"] == "mine-1"


def test_a_message_byte_by_byte(wire: Wire) -> None:
    number = wire.open()
    body = framed(MESSAGE)
    for start in range(len(body)):
        wire.send(number, body[start : start + 1], end=start == len(body) - 1)
    assert right(wire.answer(number))


@pytest.mark.parametrize(("encoding", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages(wire: Wire, encoding: str, packed: Callable[[bytes], bytes]) -> None:
    assert right(wire.ask(framed(packed(MESSAGE), compressed=True), grpc_encoding=encoding))
    assert right(wire.ask(framed(MESSAGE), grpc_encoding=encoding))  # each message says whether it is
    answer = wire.ask(framed(packed(MESSAGE)[:-3], compressed=True), grpc_encoding=encoding)
    assert (answer.status, answer.code) == ("3", "invalid_request")
    bomb = framed(packed(bytes(50_000_000)), compressed=True)
    answer = wire.ask(bomb, grpc_encoding=encoding)
    assert (answer.status, answer.code) == ("8", "too_large")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (framed(MESSAGE, compressed=True), {"grpc_encoding": "snappy"}, "12", "unknown_encoding"),
        (framed(MESSAGE, compressed=True), {}, "12", "unknown_encoding"),
        (b"", {}, "3", "invalid_request"),
        (framed(MESSAGE)[:-1], {}, "3", "invalid_request"),
        (framed(MESSAGE)[:3], {}, "3", "invalid_request"),
        (framed(MESSAGE), {"grpc_timeout": "soon"}, "3", "invalid_request"),
        (framed(MESSAGE), {"grpc_timeout": "123456789S"}, "3", "invalid_request"),
        (framed(MESSAGE), {"x_large": "y" * 20_000}, "8", "too_large"),
        (b"\0\xff\xff\xff\xff" + MESSAGE, {}, "8", "too_large"),
    ],
)
def test_what_is_no_call(wire: Wire, body: bytes, headers: dict[str, str], status: str, code: str) -> None:
    answer = wire.ask(body, **headers)
    assert (answer.status, answer.code) == (status, code)
    assert right(wire.ask(framed(MESSAGE)))


def test_what_is_no_grpc(wire: Wire) -> None:
    assert wire.ask(b"{}", content_type="application/json").headers[":status"] == "415"
    assert wire.ask(b"", method="GET").headers[":status"] == "405"
    assert right(wire.ask(framed(MESSAGE), content_type="application/grpc+proto"))


def test_http_1_is_told_what_this_is(server: Server) -> None:
    host, _, port = server.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"gRPC" in said


@pytest.mark.parametrize("unit", ["100m", "100000u", "99999999n"])
def test_the_server_keeps_a_deadline_that_the_client_does_not(server: Server, wire: Wire, unit: str) -> None:
    number = wire.open(grpc_timeout=unit)  # and sends nothing
    started = time.monotonic()
    answer = wire.answer(number)
    assert (answer.status, answer.code) == ("4", "deadline_exceeded")
    assert 0.05 < time.monotonic() - started < 2
    number = wire.open(STREAM, grpc_timeout=unit)
    assert wire.answer(number).status == "4"
    server.wait_until(lambda: server.metrics()("inflight", transport="grpc") == 0)


def test_messages_wait_as_they_came(server: Server, wire: Wire) -> None:
    """A window full of bombs is one bomb at a time, and one of empty messages is not an endless queue."""
    bomb = framed(gzip.compress(bytes(20_000_000)), compressed=True)
    number = wire.open(STREAM, grpc_encoding="gzip")
    before = memory(server)
    with contextlib.suppress(h2.exceptions.StreamClosedError):  # it may be refused before all has been sent
        wire.send(number, bomb * 20)
    assert wire.answer(number).status == "8"
    assert memory(server) - before < 60e6
    wire.socket.close()
    idle = Wire(server.grpc, reads=False, window=0)
    number = idle.open(STREAM)
    idle.socket.settimeout(0.5)
    assert flood(idle, number, framed(b""), 30_000_000) < 5_000_000
    idle.socket.close()


def memory(server: Server) -> float:
    """Resident bytes."""
    (line,) = [
        line
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    return int(line.split()[1]) * 1024


def test_a_message_that_does_not_come_is_not_waited_for(repository: Path, launch: Callable[..., Server]) -> None:
    server = launch(repository, default_timeout_ms=200, max_timeout_ms=300)
    wire = Wire(server.grpc)
    answer = wire.answer(wire.open())
    assert (answer.status, answer.code) == ("4", "deadline_exceeded")
    wire.socket.close()


def test_refused_calls_are_in_the_log_with_their_request_id(server: Server, wire: Wire) -> None:
    wire.ask(b"", path="/no.such/Method", x_request_id="find-me")
    line = server.wait_log(lambda line: "/no.such/Method" in line["message"], 5)
    assert line["request_id"] == "find-me"


def test_what_cannot_be_answered_by_the_deadline_is_refused_at_once(wire: Wire) -> None:
    slow = pb.ClassifyRequest(images=[png(picture(3))], model="slow").SerializeToString()
    assert wire.ask(framed(slow)).status == "0"  # what took a while just now would take it again
    answer = wire.ask(framed(slow), grpc_timeout="10m")
    assert (answer.status, answer.code) == ("8", "overloaded")


def test_a_cancelled_call_is_over(server: Server, wire: Wire) -> None:
    slow = pb.ClassifyRequest(images=[png(picture(3))], model="slow").SerializeToString()
    before = server.metrics()("requests_total", transport="grpc", code="client_gone")
    waiting, asking = wire.open(), wire.open()
    wire.send(asking, framed(slow))
    server.wait_until(lambda: server.metrics()("inflight", transport="grpc") == 2)
    for number in (waiting, asking):
        wire.h2.reset_stream(number, 8)
    wire.flush()
    server.wait_until(lambda: server.metrics()("inflight", transport="grpc") == 0)
    assert server.metrics()("requests_total", transport="grpc", code="client_gone") == before + 2


def flood(wire: Wire, number: int, message: bytes, most: int = 50_000_000) -> int:
    """Send a message as often as the server lets one; gives the bytes."""
    sent = 0
    while sent < most:
        room = min(wire.h2.local_flow_control_window(number), wire.h2.max_outbound_frame_size)
        if room >= len(message):
            many = message * (room // len(message))
            wire.h2.send_data(number, many)
            sent += len(many)
            wire.flush()
            continue
        try:
            wire.listen()
        except TimeoutError:
            return sent
    return sent


def test_a_client_that_does_not_read_is_not_read_from(server: Server) -> None:
    """Answers that nobody takes hold the stream up; other calls on the connection go on when there is room."""
    wire = Wire(server.grpc, reads=False, window=1000)
    number = wire.open(STREAM)
    one = framed(pb.ClassifyStreamRequest(image=bytes(10_000), model="tiny").SerializeToString())
    wire.socket.settimeout(0.5)
    sent = flood(wire, number, one)
    assert sent < 8_000_000
    assert server.metrics()("inflight", transport="grpc") == 1
    wire.socket.settimeout(10)
    wire.reads = True
    wire.h2.acknowledge_received_data(1000, number)
    wire.h2.end_stream(number)
    wire.flush()
    answer = wire.answer(number)
    assert answer.status == "0"
    assert answer.body.count(b"unsupported_format") == sent // len(one)
    wire.socket.close()


def test_a_drain_is_told(repository: Path, launch: Callable[..., Server]) -> None:
    server = launch(repository)
    wire = Wire(server.grpc)
    slow = pb.ClassifyRequest(images=[png(picture(3))], model="slow").SerializeToString()
    number = wire.open()
    wire.send(number, framed(slow))
    server.wait_until(lambda: server.metrics()("inflight", transport="grpc") == 1)
    server.process.send_signal(signal.SIGTERM)
    # hyper's h2 reads nothing after a GOAWAY: what is left is looked for in the bytes.
    said = b"".join(iter(lambda: wire.socket.recv(65536), b""))
    assert said.index(b"the server is shutting down") < said.index(b"grpc-status")
    wire.socket.close()
    assert server.process.wait(10) == 0
