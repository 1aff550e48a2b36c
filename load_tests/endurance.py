"""Ask a gateway a million things of every kind and watch its memory: `python -m load_tests.endurance`.

Starts a server of its own. Clients ask one thing after the other: classifications as raw bodies, forms and JSON, over
HTTP and gRPC, explanations, features, the Open Inference Protocol, bad input of several kinds, metrics and lists; on
connections that stay, on new ones, and on ones that are cut before the answer. Every status is checked.

Once the first tenth is through, and at the end, all connections are closed and what the server has open is counted.
Exit status 1: an answer had the wrong status; resident memory was ever 5 % above what it was after the first tenth; or
there are more open files or threads at the end. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from load_tests import figures
from load_tests.gateway import ROOT, Gateway, Usage, served
from load_tests.locust_users.http_client import multipart
from load_tests.sender import response

CLIENTS = 16
SAMPLES = 100  # looks at the server's memory
GROWTH = 0.05  # of memory, after the first tenth
SLACK = 2  # files or threads: one pool may not have been full
SETTLE_SECONDS = 3.0
PATIENCE_SECONDS = 30.0
LENET, LETTERS = "/v1/models/lenet5-digits", "/v1/models/letters"
JSON = "application/json"


class Line(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # of TCP

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        found = response(self._data)
        if found is not None and self._answer and not self._answer.done():
            self._data = b""
            self._answer.set_result(found)

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self._answer, seconds)


@dataclass(frozen=True)
class Question:
    """One kind of request.

    Attributes:
        name: For the list.
        weight: How often, beside the others.
        status: Of the right answer.
        data: The request as it is sent.
        connection: "kept", "new", or "cut": it goes away without waiting for the answer.
    """

    name: str
    weight: float
    status: int
    data: bytes
    connection: str = "kept"


def http(method: str, path: str, body: bytes = b"", kind: str = "image/png") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: endurance\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def questions(digit: bytes, letter: bytes) -> list[Question]:
    """All kinds over HTTP."""
    encoded = base64.b64encode(digit).decode()
    both = json.dumps({"images": [{"b64": encoded}, {"b64": encoded}]}).encode()
    tensor = {"name": "encoded_image", "datatype": "BYTES", "shape": [1, 1], "data": [encoded]}
    protocol = json.dumps({"inputs": [tensor]}).encode()
    classify = f"{LENET}/classify"
    raw = http("POST", classify, digit)
    return [
        Question("classify, raw", 30, 200, raw),
        Question("classify, raw, new connection", 6, 200, raw, "new"),
        Question("classify, raw, cut off", 3, 0, raw, "cut"),
        Question("classify, half a body, cut off", 2, 0, raw[:-40], "cut"),
        Question("classify, form of three", 8, 200, http("POST", classify, *multipart([digit] * 3))),
        Question("classify, JSON of two", 8, 200, http("POST", classify, both, JSON)),
        Question("classify, explained", 3, 200, http("POST", f"{classify}?explain=true", digit)),
        Question("classify, letters", 4, 200, http("POST", f"{LETTERS}/classify", letter)),
        Question("embed", 5, 200, http("POST", f"{LENET}/embed", digit)),
        Question("explain", 4, 200, http("POST", f"{LENET}/explain", digit)),
        Question("Open Inference Protocol", 5, 200, http("POST", "/v2/models/lenet5-digits.encoded/infer", protocol)),
        Question("no image", 3, 415, http("POST", classify, b"nothing of the kind")),
        Question("half an image", 3, 422, http("POST", classify, digit[: len(digit) // 2])),
        Question("broken JSON", 2, 400, http("POST", classify, b'{"images": [', JSON)),
        Question("unknown model", 2, 404, http("POST", "/v1/models/none/classify", digit)),
        Question("bad query", 2, 400, http("POST", f"{classify}?top_k=none", digit)),
        Question("no such page", 1, 404, http("GET", "/none")),
        Question("metrics", 1, 200, http("GET", "/metrics")),
        Question("models", 1, 200, http("GET", "/v1/models")),
        Question("ready", 2, 200, http("GET", "/readyz")),
    ]


def classifier(address: str) -> tuple[type[Any], type[Any]]:
    """The messages of a gRPC classification, as the server itself describes them."""
    pool = DescriptorPool()
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="fovea.v1.Classifier")
        for answer in stub.ServerReflectionInfo(iter([question]), timeout=PATIENCE_SECONDS):
            for file in answer.file_descriptor_response.file_descriptor_proto:
                pool.AddSerializedFile(file)
    request, response = (pool.FindMessageTypeByName(f"fovea.v1.Classify{kind}") for kind in ("Request", "Response"))
    return GetMessageClass(request), GetMessageClass(response)


@dataclass
class Clients:
    """Clients of one server.

    Args:
        gateway: The server.
        digit, letter: Images that it knows.
        draws: What is asked.
    """

    gateway: Gateway
    digit: bytes
    letter: bytes
    draws: random.Random
    asked: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        self._questions = questions(self.digit, self.letter)
        self._weights = [each.weight for each in self._questions]
        self._request, self._response = classifier(self.gateway.grpc)
        self._left = 0

    async def ask(self, count: int, watch: Callable[[], None], every: int) -> None:
        """So many requests, calling `watch` after so many of them; all connections are closed afterwards."""
        self._left, self._watch, self._every = count, watch, every
        async with grpc.aio.insecure_channel(self.gateway.grpc) as channel:
            call = channel.unary_unary(
                "/fovea.v1.Classifier/Classify", self._request.SerializeToString, self._response.FromString
            )
            await asyncio.gather(self._rpcs(call), *(self._requests() for _ in range(CLIENTS)))

    def _next(self) -> bool:
        if self._left == 0:
            return False
        self._left -= 1
        if self._left % self._every == 0:
            self._watch()
        return True

    async def _rpcs(self, call: Any) -> None:
        good = self._request(images=[self.digit], model="lenet5-digits")
        bad = self._request(images=[self.digit], model="none")
        while self._next():
            wanted, request = ("NOT_FOUND", bad) if self.draws.random() < 0.1 else ("OK", good)
            self.asked[f"gRPC, {wanted}"] += 1
            try:
                await call(request, timeout=PATIENCE_SECONDS)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            if status != wanted:
                self.wrong[f"gRPC: {status}, not {wanted}"] += 1

    async def _connect(self) -> Line:
        _, line = await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", self.gateway.port)
        return line

    async def _requests(self) -> None:
        kept = await self._connect()
        while self._next():
            (question,) = self.draws.choices(self._questions, self._weights)
            self.asked[question.name] += 1
            if kept.transport.is_closing():
                kept = await self._connect()
            line = kept if question.connection == "kept" else await self._connect()
            if question.connection == "cut":
                line.transport.write(question.data)
                await asyncio.sleep(self.draws.random() * 0.004)
                line.transport.abort()
                continue
            try:
                status, _ = await line.ask(question.data, PATIENCE_SECONDS)
            except (OSError, TimeoutError) as error:
                self.wrong[f"{question.name}: {type(error).__name__}"] += 1
                continue
            finally:
                if line is not kept:
                    line.transport.close()
            if status != question.status:
                self.wrong[f"{question.name}: {status}, not {question.status}"] += 1
        kept.transport.close()


@dataclass(frozen=True)
class Watched:
    """What was seen of the server.

    Attributes:
        samples: Requests so far, and what it took then.
        tenth, end: With no connection open, after the first tenth and at the end.
        seconds: All in all.
    """

    samples: Sequence[tuple[int, Usage]]
    tenth: Usage
    end: Usage
    seconds: float

    @property
    def growth(self) -> float:
        """Of memory: the most there ever was after the first tenth, over what there was then, less one."""
        tenth = len(self.samples) // 10
        return max(each.resident for _, each in self.samples[tenth:]) / self.tenth.resident - 1

    def complaints(self) -> list[str]:
        found = []
        if self.growth >= GROWTH:
            found.append(f"memory grew by {self.growth:.1%} after the first tenth")
        for name in ("descriptors", "threads"):
            before, after = getattr(self.tenth, name), getattr(self.end, name)
            if after > before + SLACK:
                found.append(f"there were {before} {name} after the first tenth, and {after} at the end")
        return found


async def watched(gateway: Gateway, clients: Clients, requests: int) -> Watched:
    """Ask all, and watch."""
    samples: list[tuple[int, Usage]] = []
    every = max(1, requests // SAMPLES)

    def watch() -> None:
        samples.append((clients.asked.total(), gateway.usage()))
        if len(samples) % 10 == 0:
            usage = samples[-1][1]
            print(f"{samples[-1][0]:>9} requests: {usage.resident:.1f} MB", file=sys.stderr)

    async def settled() -> Usage:
        await asyncio.sleep(SETTLE_SECONDS)
        return gateway.usage()

    began = time.monotonic()
    first = requests // 10
    await clients.ask(first, watch, every)
    tenth = await settled()
    await clients.ask(requests - first, watch, every)
    return Watched(samples, tenth, await settled(), time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.endurance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000, help="a million unless given; 1000 at least")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="that is served")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/endurance", help="folder; runs/endurance unless given")
    arguments = parser.parse_args()
    if arguments.requests < 1000:
        parser.error("--requests: 1000 at least, to look at the memory often enough")
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = ROOT / "load_tests/images"
    digit, letter = (images / name for name in ("lenet5-digits/7/seven.png", "letters/A/A.png"))
    with served(arguments.repository.resolve(), arguments.out / "server.log") as gateway:
        start = gateway.usage()
        clients = Clients(gateway, digit.read_bytes(), letter.read_bytes(), random.Random(arguments.seed))
        found = uvloop.run(watched(gateway, clients, arguments.requests))
    report(arguments, clients, start, found)
    complaints = [*found.complaints(), *(f"{count} times {what}" for what, count in clients.wrong.most_common(10))]
    if complaints:
        print("error:", *complaints, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def report(arguments: argparse.Namespace, clients: Clients, start: Usage, found: Watched) -> None:
    """Print the figures and write them all down."""
    print(f"{arguments.requests} requests in {found.seconds:.0f} s, {arguments.requests / found.seconds:.0f}/s")
    print("| | MB | open files | threads |\n| --- | --- | --- | --- |")
    for name, usage in (("ready", start), ("after a tenth", found.tenth), ("at the end", found.end)):
        print(f"| {name} | {usage.resident:.1f} | {usage.descriptors} | {usage.threads} |")
    print(f"memory after the first tenth: at most {found.growth:+.1%}")
    document = {
        "command": " ".join(["python -m load_tests.endurance", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        **figures.machine(),
        "seconds": found.seconds,
        "growth": found.growth,
        "asked": dict(clients.asked.most_common()),
        "wrong": dict(clients.wrong),
        "samples": [{"requests": count, **asdict(usage)} for count, usage in found.samples],
    }
    (arguments.out / "figures.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
