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
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc

from load_tests.bench import ROOT, processor_seconds

PROTO = ROOT / "service/transports/grpc/proto"
SERVICE = "/fovea.v1.Classifier"
BOUNDARY = "a-boundary-that-no-image-holds"
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

    def load(self, server: Server, folder: Path, seconds: float) -> None:
        """One round."""
        body = folder / "body"
        body.write_bytes(self.body)
        command = ["h2load", "-c", str(self.connections), "-m1", "-D", f"{seconds:g}", "-d", str(body)]
        command += [] if SERVICE in self.url else ["--h1"]
        for header in self.headers:
            command += ["-H", header]
        before, cpu, began = server.predictions(), processor_seconds(server.process.pid), time.monotonic()
        subprocess.run([*command, self.url], check=True, capture_output=True)
        took = time.monotonic() - began
        images = server.predictions() - before
        if not images:
            raise SystemExit(f"error: {self.name}: nothing was predicted")
        self.rates.append(images / took)
        self.cpu.append((processor_seconds(server.process.pid) - cpu) / images * 1e6)


class Server:
    """The gateway on free ports; a context.

    Args:
        repository: Of the models.
        model: Whose predictions are counted.
    """

    def __init__(self, repository: Path, model: str) -> None:
        self.model = model
        self.port, self.grpc_port = _free_ports()
        command = [sys.executable, "-m", "service", "serve", "--model-repository", str(repository)]
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        self.process = subprocess.Popen([*command, *ports], cwd=ROOT, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self._get("/readyz")
                return self
            time.sleep(0.1)
        raise SystemExit("error: the gateway did not become ready")

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def predictions(self) -> float:
        """Images of the model so far."""
        start = 'fovea_predictions_total{label="'
        lines = self._get("/metrics").decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith(start) and f'model="{self.model}"' in line
        )

    def _get(self, path: str) -> bytes:
        answer: bytes = urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10).read()
        return answer


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


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


def ways(server: Server, pb: Any, image: bytes, several: int, connections: int) -> list[Way]:
    """HTTP first; gRPC is compared with it."""
    http = f"http://127.0.0.1:{server.port}/v1/models/{server.model}/classify"
    rpc = f"http://127.0.0.1:{server.grpc_port}{SERVICE}"

    def multipart(images: int) -> Way:
        part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i.png"\r\n\r\n'.encode()
        body = (part + image + b"\r\n") * images + f"--{BOUNDARY}--\r\n".encode()
        headers = (f"content-type: multipart/form-data; boundary={BOUNDARY}",)
        return Way(f"HTTP multipart, {_images(images)}", images, http, body, headers, connections)

    def unary(images: int) -> Way:
        body = framed(pb.ClassifyRequest(images=[image] * images, model=server.model))
        return Way(f"gRPC Classify, {_images(images)}", images, f"{rpc}/Classify", body, GRPC_HEADERS, connections)

    stream = framed(pb.ClassifyStreamRequest(image=image, model=server.model)) * STREAM_IMAGES
    streams = max(1, connections // 4)
    return [
        multipart(1),
        unary(1),
        Way(f"gRPC ClassifyStream, {streams} streams", 1, f"{rpc}/ClassifyStream", stream, GRPC_HEADERS, streams),
        multipart(several),
        unary(several),
    ]


def _images(number: int) -> str:
    return "one image" if number == 1 else f"{number} images"


def check(server: Server, pb: Any, image: bytes) -> None:
    """Both ways must say the same, and not nothing."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask = channel.unary_unary(
            f"{SERVICE}/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        ours = ask(pb.ClassifyRequest(images=[image], model=server.model), timeout=20).predictions[0].classes
    url = f"http://127.0.0.1:{server.port}/v1/models/{server.model}/classify"
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
        tempfile.TemporaryDirectory() as folder,
        Server(arguments.repository.resolve(), arguments.model) as server,
    ):
        check(server, pb, image)
        entries = ways(server, pb, image, arguments.images, arguments.connections)
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for way in entries:
                way.load(server, Path(folder), arguments.seconds)
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
