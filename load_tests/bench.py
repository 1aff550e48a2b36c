"""Throughput and latency of the gateway beside its peers, in one run on one machine: `make bench`.

Each contestant is started alone, warmed up, loaded by wrk, and stopped; rounds alternate, so that a machine that slows
down slows all of them. What is printed are medians over the rounds and ratios to the gateway; absolute figures belong
to the machine they were taken on. Needs wrk (Debian: `apt-get install wrk`).

Peers run the same graph on the same images, with batching where they have it, each in an environment of its own under
build/peers (`python -m load_tests.peers.install`); those that are not installed are left out. ONNX Runtime alone is a
loop around the graph, in batches, with pixels that are there: no HTTP, no decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime

from load_tests.peers.install import ENVIRONMENTS, READY

ROOT = Path(__file__).resolve().parent.parent
PORT = 8300
BENTO = "load_tests.peers.with_bentoml"
QUIET = {  # no line for each request, no statistics sent home, no token in the user's home
    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
BOUNDARY = "a-boundary-that-no-image-holds"

LUA = """
local file = io.open("{path}", "rb"); wrk.body = file:read("*a"); file:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "{type}"
{headers}
"""


def wrk_script(body: Path, kind: str, headers: dict[str, str] | None = None) -> str:
    """What has wrk post a file of a certain type, with further headers."""
    lines = "; ".join(f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items())
    return LUA.format(path=body, type=kind, headers=lines)


@dataclass(frozen=True)
class Contestant:
    """A server to load: its command, the path it answers at, its environment beside ours, and headers to send it.

    Attributes:
        form: It takes the image in a form, not as the body.
        port: That it listens on.
    """

    name: str
    command: list[str]
    path: str
    environment: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)
    form: bool = False
    port: int = PORT


@dataclass(frozen=True)
class Measurement:
    """One round of one contestant.

    Attributes:
        rate: Right answers per second.
        p50, p99: Latency, milliseconds.
        failed: Answers that were not 2xx.
        cpu: Microseconds of processor time of the server and its children per request.
    """

    rate: float
    p50: float
    p99: float
    failed: int
    cpu: float


def contestants(repository: Path, model: str, workers: int) -> list[Contestant]:
    """The gateway first; every other is compared with it. All have so many processes that infer, peers with a thread
    each."""
    version = max((path.name for path in (repository / model).iterdir() if path.name.isdecimal()), key=int)
    python = sys.executable
    uvicorn = [python, "-m", "uvicorn", "--port", str(PORT), "--log-level", "warning", "--no-access-log"]
    uvicorn += ["--workers", str(workers)]
    graph = str(repository / model / version / "model.onnx")
    peer = {"MODEL": graph, "WORKERS": str(workers), "PORT": str(PORT), "PYTHONPATH": str(ROOT), **QUIET}
    serve = [python, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "off"]
    serve += ["--model-repository", str(repository), "--workers", str(workers)]
    return [
        Contestant("fovea", serve, f"/v1/models/{model}/classify", {}),
        Contestant("fovea, no access log", [*serve, "--no-access-log"], f"/v1/models/{model}/classify", {}),
        Contestant("plain ASGI + ONNX Runtime", [*uvicorn, "load_tests.peers.plain_asgi:app"], "/", peer),
        Contestant("FastAPI as written first", [*uvicorn, "load_tests.peers.naive_fastapi:app"], "/", peer),
        *(
            Contestant(name, [str(ENVIRONMENTS / folder / "bin" / command[0]), *command[1:]], path, peer, form=form)
            for name, folder, command, path, form in (
                ("mosec", "mosec", ["python", "-m", "load_tests.peers.with_mosec"], "/inference", False),
                ("LitServe", "litserve", ["python", "-m", "load_tests.peers.with_litserve"], "/", True),
                ("BentoML", "bentoml", ["bentoml", "serve", f"{BENTO}:Gateway", "--port", str(PORT)], "/", False),
                ("Ray Serve", "ray", ["python", "-m", "load_tests.peers.with_ray_serve"], "/", False),
            )
            if (ENVIRONMENTS / folder / READY).exists()
        ),
    ]


@contextlib.contextmanager
def running(contestant: Contestant, body: bytes) -> Iterator[int]:
    """Start the server, wait for its first right answer, and stop it at the end; yields its process id."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            contestant.command, cwd=ROOT, env={**os.environ, **contestant.environment}, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{contestant.port}{contestant.path}"
            for _ in range(600):
                time.sleep(0.1)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    request = urllib.request.Request(url, body, contestant.headers, method="POST")
                    urllib.request.urlopen(request, timeout=5).read()
                    break
            else:
                log.seek(0)
                raise SystemExit(f"error: {contestant.name} did not start:\n{log.read().decode()}")
            yield process.pid
        finally:
            children = list(family(process.pid))
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for pid in children:  # what it has left behind
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def load(url: str, script: Path, seconds: float, connections: int) -> tuple[float, float, float, int]:
    """Let wrk load a URL: right answers a second, median and 99th percentile in milliseconds, failures."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, took = re.search(r"(\d+) requests in ([\d.]+)s", text).groups()  # type: ignore[union-attr]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    bad = int(failed.group(1)) if failed else 0
    return (int(count) - bad) / float(took), _milliseconds(text, "50%"), _milliseconds(text, "99%"), bad


def _milliseconds(text: str, percentile: str) -> float:
    value, unit = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def family(pid: int) -> Iterator[int]:
    """A process and what it has started."""
    yield pid
    with contextlib.suppress(OSError):  # it may have ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def spent(pid: int) -> float:
    """Seconds of processor time of a process and its children so far."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += processor_seconds(each)
    return total


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(contestant: Contestant, image: Path, seconds: float, connections: int) -> Measurement:
    url = f"http://127.0.0.1:{PORT}{contestant.path}"
    body, kind = image.read_bytes(), f"image/{image.suffix[1:].replace('jpg', 'jpeg')}"
    if contestant.form:
        body, kind = _form(body, image.name, kind)
    contestant = replace(contestant, headers={"Content-Type": kind, **contestant.headers})
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        tempfile.NamedTemporaryFile("wb") as sent,
        running(contestant, body) as pid,
    ):
        sent.write(body)
        sent.flush()
        script.write(wrk_script(Path(sent.name), kind, contestant.headers))
        script.flush()
        load(url, Path(script.name), min(2.0, seconds), connections)  # warm-up
        before = spent(pid)
        rate, p50, p99, failed = load(url, Path(script.name), seconds, connections)
        cpu = (spent(pid) - before) / max(1.0, rate * seconds) * 1e6
    return Measurement(rate, p50, p99, failed, cpu)


def _form(image: bytes, name: str, kind: str) -> tuple[bytes, str]:
    """The image as a form's field `image`, and that body's type."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    body = f"{head}Content-Type: {kind}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={BOUNDARY}"


def alone(model: Path, seconds: float, batch: int = 8) -> float:
    """Images a second of ONNX Runtime alone, on all cores."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options)
    pixels = np.zeros((batch, *session.get_inputs()[0].shape[1:]), np.uint8)
    for _ in range(3):
        session.run(["logits"], {"image": pixels})
    started, images = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        session.run(["logits"], {"image": pixels})
        images += batch
    return images / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--model", default="lenet5-digits")
    parser.add_argument("--image", type=Path, default=ROOT / "docs/images/seven.png")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5, help="of load, per contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of each contestant")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants beside the gateway")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all rounds as JSON")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("error: wrk is not installed; Debian: apt-get install wrk")
    ours, *others = contestants(arguments.repository.resolve(), arguments.model, arguments.workers)
    entries = [ours, *(entry for entry in others if not arguments.only or entry.name in arguments.only)]
    graph = next(iter((arguments.repository / arguments.model).glob("*/model.onnx")))
    rounds: dict[str, list[Measurement]] = {entry.name: [] for entry in entries}
    bare: list[float] = []
    for number in range(arguments.rounds):
        bare.append(alone(graph, arguments.seconds))
        for entry in entries:
            print(f"round {number + 1} of {arguments.rounds}: {entry.name}", file=sys.stderr)
            rounds[entry.name].append(
                measure(entry, arguments.image.resolve(), arguments.seconds, arguments.connections)
            )
    what = f"{arguments.model}, {arguments.image.name}, {arguments.workers} processes each"
    report(rounds, what, arguments.connections, statistics.median(bare))
    if arguments.save:
        document = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "command": " ".join(sys.argv[1:]),
            "onnxruntime_alone": bare,
            "rounds": {name: [asdict(one) for one in measured] for name, measured in rounds.items()},
        }
        arguments.save.write_text(json.dumps(document, indent=1) + "\n")


def report(rounds: dict[str, list[Measurement]], what: str, connections: int, bare: float | None = None) -> None:
    """Print medians, and for each contestant how the first compares; the last line, if it was measured, is of ONNX
    Runtime alone, in images a second."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(one, field) for one in rounds[name])

    ours = next(iter(rounds))
    print(f"\n{what}, wrk with {connections} connections, medians of {len(rounds[ours])} rounds\n")
    print("| | right answers/s | ours ÷ it | p50 ms | p99 ms | ours ÷ it | µs of processor each | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in rounds:
        rate, p99 = median(name, "rate"), median(name, "p99")
        failed = sum(one.failed for one in rounds[name])
        print(
            f"| {name} | {rate:,.0f} | {median(ours, 'rate') / rate:.2f} | {median(name, 'p50'):.2f} | {p99:.2f} |"
            f" {median(ours, 'p99') / p99:.2f} | {median(name, 'cpu'):.0f} | {failed} |"
        )
    if bare is not None:
        print(f"| ONNX Runtime alone | {bare:,.0f} | {median(ours, 'rate') / bare:.2f} | | | | | |")


if __name__ == "__main__":
    main()
