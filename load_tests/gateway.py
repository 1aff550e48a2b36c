"""A gateway of our own, on free ports and with a database of its own, and what the kernel says about its process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0


@dataclass(frozen=True)
class Usage:
    """Of a process at one moment.

    Attributes:
        resident: Megabytes (10⁶ bytes) of resident memory.
        descriptors: Open files, sockets among them.
        threads: How many.
        starved: Seconds, since it began, that its event loop was ready to run and no core was free.
    """

    resident: float
    descriptors: int
    threads: int
    starved: float


@dataclass(frozen=True)
class Gateway:
    """One that runs.

    Attributes:
        process: Its.
        port: Of HTTP.
        grpc: host:port of gRPC.
    """

    process: subprocess.Popen[bytes]
    port: int
    grpc: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def usage(self) -> Usage:
        """What it takes now; Linux only."""
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()

        def value(name: str) -> int:
            return int(re.search(rf"{name}:\s+(\d+)", status)[1])  # type: ignore[index]

        starved = int((folder / "schedstat").read_text().split()[1]) / 1e9  # of its first thread
        return Usage(value("VmRSS") * 1024 / 1e6, len(list((folder / "fd").iterdir())), value("Threads"), starved)


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


def predictions(url: str, model: str) -> float:
    """Images that a gateway has classified with a model so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    mine = [line for line in lines if line.startswith("fovea_predictions_total{") and f'model="{model}"' in line]
    return sum(float(line.split()[-1]) for line in mine)


def free_ports(number: int) -> list[int]:
    """So many that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(number)]


@contextlib.contextmanager
def served(repository: Path, log: Path) -> Iterator[Gateway]:
    """Start one, without its access log, and end it afterwards.

    Args:
        repository: The models.
        log: File of its log.

    Raises:
        SystemExit: It did not become ready.
    """
    ports = free_ports(2)
    command = [sys.executable, "-m", "service", "serve", "--port", str(ports[0]), "--grpc-port", str(ports[1])]
    command += ["--model-repository", str(repository), "--no-access-log"]
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        database = {"FOVEA_DATABASE_URL": f"sqlite:///{folder}/load.db"}
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **database}, stderr=output)
        try:
            _wait_ready(process, ports[0], log)
            yield Gateway(process, ports[0], f"127.0.0.1:{ports[1]}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"error: the server did not become ready; its log is {log}")
