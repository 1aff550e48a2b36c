"""What keys and traces cost: the gateway without them beside itself with them, in one run on one machine.

Run `python -m load_tests.costs keys` or `… traces`. All servers run from the first round to the
last, and are loaded in turns of a second or two; each turn is compared with that of the first server in the same round,
so that whatever else the machine does falls on both. Traces go to a collector in this very process, which throws them
away. Needs wrk (Debian: `apt-get install wrk`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from load_tests.contestants import Contestant, running
from load_tests.gateway import ROOT, processor_seconds
from load_tests.wrk import load, wrk_script

SERVE = [sys.executable, "-m", "service", "serve", "--grpc-port", "off"]
PORT = 8310  # and those after it
RATE = "10000/second"  # the highest there is: nothing is refused for it
SAMPLED = "0.01"  # of the requests


@dataclass
class Turns:
    """What a server did in each round.

    Attributes:
        rates: Right answers a second.
        cpu: Microseconds of its processor time an answer.
        failed: Answers that were not 2xx, in all.
    """

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failed: int = 0


def keys(folder: Path, path: str) -> list[Contestant]:
    """Without keys, with one, with one that has a rate."""
    without = _database(folder / "none.db")
    some = _database(folder / "keys.db")
    return [
        Contestant("without keys", SERVE, path, without),
        Contestant("with a key", SERVE, path, some, _key(some)),
        Contestant(f"with a key of {RATE}", SERVE, path, some, _key(some, "--rate", RATE)),
    ]


def traces(folder: Path, path: str, collector: str) -> list[Contestant]:
    """Without traces, of one request in a hundred, of every request."""
    off = _database(folder / "none.db")
    all_of_them = {**off, "FOVEA_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    some = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": SAMPLED}
    return [
        Contestant("without traces", SERVE, path, off),
        Contestant(f"traces of {float(SAMPLED):.0%}", SERVE, path, all_of_them | some),
        Contestant("traces of all", SERVE, path, all_of_them),
    ]


def _database(file: Path) -> dict[str, str]:
    return {"FOVEA_DATABASE_URL": f"sqlite:///{file}"}


def _key(database: dict[str, str], *options: str) -> dict[str, str]:
    """Make a key, and give the header that it is sent in."""
    command = [sys.executable, "-m", "service", "keys", "create", "--name", "load", *options]
    made = subprocess.run(command, cwd=ROOT, env=os.environ | database, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(made.stderr)
    return {"Authorization": f"Bearer {made.stdout.strip()}"}


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """A collector that throws everything away; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def compete(entries: list[Contestant], image: Path, rounds: int, seconds: int, connections: int) -> list[Turns]:
    """Load them in turns."""
    found = [Turns() for _ in entries]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for number, given in enumerate(entries):
            port = PORT + number
            entry = replace(given, port=port, command=[*given.command, "--port", str(port)])
            script = folder / f"{number}.lua"
            script.write_text(wrk_script(image, f"image/{image.suffix[1:]}", entry.headers))
            pid = stack.enter_context(running(entry, image.read_bytes()))
            servers.append((f"http://127.0.0.1:{port}{entry.path}", script, pid))
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}" if number else "warming up", file=sys.stderr)
            for turns, (url, script, pid) in zip(found, servers, strict=True):
                before = processor_seconds(pid)
                rate, _, _, failed = load(url, script, seconds, connections)
                if number:
                    turns.rates.append(rate)
                    turns.cpu.append((processor_seconds(pid) - before) / max(1.0, rate * seconds) * 1e6)
                    turns.failed += failed
    return found


def report(names: list[str], found: list[Turns]) -> None:
    """Print medians over the rounds; of the ratios within each round the quartiles, too."""
    print("| | right answers/s | ÷ the first | µs of processor each | ÷ the first | failed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, turns in zip(names, found, strict=True):
        rate, cpu = statistics.median(turns.rates), statistics.median(turns.cpu)
        rates, cpus = _ratios(turns.rates, found[0].rates), _ratios(turns.cpu, found[0].cpu)
        print(f"| {name} | {rate:,.0f} | {rates} | {cpu:.0f} | {cpus} | {turns.failed} |")


def _ratios(theirs: list[float], first: list[float]) -> str:
    low, middle, high = statistics.quantiles([one / other for one, other in zip(theirs, first, strict=True)])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("keys", "traces"))
    parser.add_argument("--model", default="lenet5-digits")
    parser.add_argument("--image", type=Path, default=ROOT / "docs/images/seven.png")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=1, help="of load, per server and round; whole ones, for wrk")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("error: wrk is not installed; Debian: apt-get install wrk")
    path = f"/v1/models/{arguments.model}/classify"
    with tempfile.TemporaryDirectory() as folder, sink() as collector:
        entries = keys(Path(folder), path) if arguments.what == "keys" else traces(Path(folder), path, collector)
        image = arguments.image.resolve()
        found = compete(entries, image, arguments.rounds, arguments.seconds, arguments.connections)
    print(f"\n{arguments.model}, wrk with {arguments.connections} connections, {arguments.rounds} rounds\n")
    report([entry.name for entry in entries], found)


if __name__ == "__main__":
    main()
