"""Throughput and latency of the gateway beside its peers, in one run on one machine: `make bench`.

Each contestant is started alone, warmed up, loaded by wrk, and stopped; rounds alternate, so that a machine that slows
down slows all of them. What is printed are medians over the rounds and ratios to the gateway; absolute figures belong
to the machine they were taken on. Needs wrk (Debian: `apt-get install wrk`).
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = 8300

LUA = """
local file = io.open("{path}", "rb"); wrk.body = file:read("*a"); file:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "{type}"
"""


@dataclass(frozen=True)
class Contestant:
    """A server to load: its command, the path it answers at, and its environment beside ours."""

    name: str
    command: list[str]
    path: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """One round of one contestant.

    Attributes:
        rate: Right answers per second.
        p50, p99: Latency, milliseconds.
        failed: Answers that were not 2xx.
        cpu: Microseconds of processor time of the server per request.
    """

    rate: float
    p50: float
    p99: float
    failed: int
    cpu: float


def contestants(repository: Path, model: str) -> list[Contestant]:
    """The gateway first; every other is compared with it."""
    version = max((path.name for path in (repository / model).iterdir() if path.name.isdecimal()), key=int)
    python = sys.executable
    uvicorn = [python, "-m", "uvicorn", "--port", str(PORT), "--log-level", "warning", "--no-access-log"]
    peer = {"MODEL": str(repository / model / version / "model.onnx")}
    serve = [python, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "off"]
    serve += ["--model-repository", str(repository)]
    return [
        Contestant("fovea", serve, f"/v1/models/{model}/classify", {}),
        Contestant("fovea, no access log", [*serve, "--no-access-log"], f"/v1/models/{model}/classify", {}),
        Contestant("plain ASGI + ONNX Runtime", [*uvicorn, "load_tests.peers.plain_asgi:app"], "/", peer),
        Contestant("FastAPI as written first", [*uvicorn, "load_tests.peers.naive_fastapi:app"], "/", peer),
    ]


@contextlib.contextmanager
def running(contestant: Contestant, image: bytes) -> Iterator[int]:
    """Start the server, wait for its first right answer, and stop it at the end; yields its process id."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            contestant.command, cwd=ROOT, env={**os.environ, **contestant.environment}, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{PORT}{contestant.path}"
            for _ in range(300):
                time.sleep(0.1)
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(urllib.request.Request(url, image, method="POST"), timeout=5).read()
                    break
            else:
                log.seek(0)
                raise SystemExit(f"error: {contestant.name} did not start:\n{log.read().decode()}")
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


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


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(contestant: Contestant, image: Path, seconds: float, connections: int) -> Measurement:
    url = f"http://127.0.0.1:{PORT}{contestant.path}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script, running(contestant, image.read_bytes()) as pid:
        script.write(LUA.format(path=image, type=f"image/{image.suffix[1:]}"))
        script.flush()
        load(url, Path(script.name), min(2.0, seconds), connections)  # warm-up
        before = processor_seconds(pid)
        rate, p50, p99, failed = load(url, Path(script.name), seconds, connections)
        cpu = (processor_seconds(pid) - before) / max(1.0, rate * seconds) * 1e6
    return Measurement(rate, p50, p99, failed, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--model", default="lenet5-digits")
    parser.add_argument("--image", type=Path, default=ROOT / "docs/images/seven.png")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5, help="of load, per contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all rounds as JSON")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("error: wrk is not installed; Debian: apt-get install wrk")
    entries = contestants(arguments.repository.resolve(), arguments.model)
    rounds: dict[str, list[Measurement]] = {entry.name: [] for entry in entries}
    for number in range(arguments.rounds):
        for entry in entries:
            print(f"round {number + 1} of {arguments.rounds}: {entry.name}", file=sys.stderr)
            rounds[entry.name].append(
                measure(entry, arguments.image.resolve(), arguments.seconds, arguments.connections)
            )
    report(rounds, arguments.model, arguments.connections)
    if arguments.save:
        document = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "command": " ".join(sys.argv[1:]),
            "rounds": {name: [asdict(one) for one in measured] for name, measured in rounds.items()},
        }
        arguments.save.write_text(json.dumps(document, indent=1) + "\n")


def report(rounds: dict[str, list[Measurement]], model: str, connections: int) -> None:
    """Print medians, and for each contestant how the gateway compares."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(one, field) for one in rounds[name])

    ours = next(iter(rounds))
    print(f"\n{model}, wrk with {connections} connections, medians of {len(rounds[ours])} rounds\n")
    print("| | right answers/s | ours ÷ it | p50 ms | p99 ms | ours ÷ it | µs of processor each | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in rounds:
        rate, p99 = median(name, "rate"), median(name, "p99")
        failed = sum(one.failed for one in rounds[name])
        print(
            f"| {name} | {rate:,.0f} | {median(ours, 'rate') / rate:.2f} | {median(name, 'p50'):.2f} | {p99:.2f} |"
            f" {median(ours, 'p99') / p99:.2f} | {median(name, 'cpu'):.0f} | {failed} |"
        )


if __name__ == "__main__":
    main()
