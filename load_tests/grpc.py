"""gRPC beside HTTP: images a second through the native service, and through multipart.

Run `python -m load_tests.grpc`. Both are loaded by the same program, h2load (of nghttp2; Debian: apt-get install
nghttp2-client), in turns, so that whatever else the machine does falls on both. What counts is what the server says it
predicted: a gRPC status is nothing that h2load looks at. The first answer of each way is compared with the others'.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc

from load_tests.gateway import ROOT, Gateway, predictions, processor_seconds, served
from load_tests.locust_users.http_client import multipart

PROTO = ROOT / "service/transports/grpc/proto"
CLASSIFY = "/fovea.v1.Classifier/Classify"
STREAM_IMAGES = 100  # of one stream, which is then ended and begun anew
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


@dataclass
class Way:
    """One way in.

    Attributes:
        name: For the table.
        images: In one request, or in one message of a stream.
        url: Where requests go.
        body: Of a request.
        headers: Of a request.
        connections: At once, each with one request under way.
        rates: Images a second, a round each.
        cpu: Microseconds of the server's processor time an image, likewise.
    """

    name: str
    images: int
    url: str
    body: bytes
    headers: tuple[str, ...]
    connections: int
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, server: Gateway, model: str, folder: Path, seconds: float) -> None:
        """One round."""
        before, cpu, began = predictions(server.url, model), processor_seconds(server.process.pid), time.monotonic()
        load(self, folder, seconds)
        took = time.monotonic() - began
        images = predictions(server.url, model) - before
        if not images:
            raise SystemExit(f"error: {self.name}: nothing was predicted")
        self.rates.append(images / took)
        self.cpu.append((processor_seconds(server.process.pid) - cpu) / images * 1e6)


def load(way: Way, folder: Path, seconds: float) -> list[float]:
    """Let h2load ask for so many seconds; milliseconds of each answer, of whatever status."""
    body, log = folder / "body", folder / "log"
    body.write_bytes(way.body)
    log.unlink(missing_ok=True)
    command = [
        "h2load",
        "-c",
        str(way.connections),
        "-m1",
        "-D",
        f"{seconds:g}",
        "-d",
        str(body),
        "--log-file",
        str(log),
    ]
    command += [] if CLASSIFY in way.url else ["--h1"]
    for header in way.headers:
        command += ["-H", header]
    subprocess.run([*command, way.url], check=True, capture_output=True)
    return [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]


@contextlib.contextmanager
def messages() -> Iterator[Any]:
    """The native service's messages, compiled from its definition as a client would."""
    with tempfile.TemporaryDirectory() as folder:
        if protoc.main(["", f"-I{PROTO}", f"--python_out={folder}", "fovea/v1/classifier.proto"]):
            raise SystemExit(f"error: {PROTO} cannot be compiled")
        sys.path.insert(0, folder)
        try:
            yield importlib.import_module("fovea.v1.classifier_pb2")
        finally:
            sys.path.remove(folder)


def framed(message: Any) -> bytes:
    """A message as it goes over the wire: behind a byte that says it is not compressed, and its length."""
    data: bytes = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def unary(url: str, pb: Any, model: str, images: Sequence[bytes], connections: int) -> Way:
    """The native service's call, at its URL."""
    body = framed(pb.ClassifyRequest(images=images, model=model))
    name = f"gRPC Classify, {_images(len(images))}"
    return Way(name, len(images), url, body, GRPC_HEADERS, connections)


def ways(server: Gateway, pb: Any, model: str, image: bytes, several: int, connections: int) -> list[Way]:
    """HTTP first; gRPC is compared with it."""
    http = f"{server.url}/v1/models/{model}/classify"
    rpc = f"http://{server.grpc}{CLASSIFY}"

    def form(images: int) -> Way:
        body, media = multipart([image] * images)
        return Way(f"HTTP multipart, {_images(images)}", images, http, body, (f"content-type: {media}",), connections)

    stream = framed(pb.ClassifyStreamRequest(image=image, model=model)) * STREAM_IMAGES
    streams = max(1, connections // 4)
    return [
        form(1),
        unary(rpc, pb, model, [image], connections),
        Way(f"gRPC ClassifyStream, {streams} streams", 1, f"{rpc}Stream", stream, GRPC_HEADERS, streams),
        form(several),
        unary(rpc, pb, model, [image] * several, connections),
    ]


def _images(number: int) -> str:
    return "one image" if number == 1 else f"{number} images"


def top(address: str, pb: Any, model: str, image: bytes) -> Any:
    """The classes that the native service at host:port names, best first."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
        return ask(pb.ClassifyRequest(images=[image], model=model), timeout=20).predictions[0].classes


def check(server: Gateway, pb: Any, model: str, image: bytes) -> None:
    """Both ways must say the same, and not nothing."""
    ours = top(server.grpc, pb, model, image)
    url = f"{server.url}/v1/models/{model}/classify"
    answer = json.load(urllib.request.urlopen(urllib.request.Request(url, image, method="POST"), timeout=20))
    theirs = answer["predictions"][0]["classes"]
    if [(each.label, each.probability) for each in ours] != [(each["label"], each["probability"]) for each in theirs]:
        raise SystemExit(f"error: gRPC says {ours} and HTTP {theirs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--model", default="lenet5-digits")
    parser.add_argument("--image", type=Path, default=ROOT / "docs/images/seven.png")
    parser.add_argument("--images", type=int, default=8, help="in the requests of several")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3, help="of load, per way and round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not shutil.which("h2load"):
        raise SystemExit("error: h2load is not installed; Debian: apt-get install nghttp2-client")
    image = arguments.image.read_bytes()
    with (
        messages() as pb,
        tempfile.TemporaryDirectory() as name,
        served(arguments.repository.resolve(), Path(name) / "log") as server,
    ):
        check(server, pb, arguments.model, image)
        entries = ways(server, pb, arguments.model, image, arguments.images, arguments.connections)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for way in entries:
                way.measure(server, arguments.model, Path(name), arguments.seconds)
    report(entries, arguments)


def report(entries: list[Way], arguments: argparse.Namespace) -> None:
    """Print medians, and how each way compares with multipart of as many images, round by round."""
    print(
        f"\n{arguments.model}, h2load with {arguments.connections} connections, medians of {arguments.rounds} rounds\n"
    )
    print("| | images/s | ÷ multipart | µs of processor each | ÷ multipart |")
    print("| --- | --- | --- | --- | --- |")
    for way in entries:
        base = next(each for each in entries if each.images == way.images)
        rate, cpu = statistics.median(way.rates), statistics.median(way.cpu)
        rates = statistics.median(mine / its for mine, its in zip(way.rates, base.rates, strict=True))
        costs = statistics.median(mine / its for mine, its in zip(way.cpu, base.cpu, strict=True))
        print(f"| {way.name} | {rate:,.0f} | {rates:.2f} | {cpu:.0f} | {costs:.2f} |")


if __name__ == "__main__":
    main()
