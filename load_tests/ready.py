"""Time from starting the gateway to its being ready, and its memory then and under load: `python -m load_tests.ready`.

After a first start, which is not counted, each run starts a server of its own and asks every model for single images,
one after the other, and then for forms so large that batches are full. Memory is that of the one process. Exit status
1: an answer was not 200.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from load_tests import figures
from load_tests.gateway import ROOT
from load_tests.pictures import photograph

PORT = 8320
START_SECONDS = 120.0
START_AIM = 2.0  # seconds
FORM_IMAGES = 64  # as many as a request may hold, unless the server is told otherwise; no batch is larger
SINGLE_A_FORM = 20  # single images for each such form
BOUNDARY = "a-boundary-that-no-image-holds"


@dataclass(frozen=True)
class Run:
    """One start; memory in megabytes (10⁶ bytes).

    Attributes:
        seconds: Until `/readyz` answered 200.
        ready: Resident memory at that moment.
        singles: After single images.
        forms: After full batches.
        peak: The most there ever was, while the models were being loaded as a rule.
    """

    seconds: float
    ready: float
    singles: float
    forms: float
    peak: float


def memory(pid: int, name: str = "VmRSS") -> float:
    """Megabytes of a process; of its peak with the name `VmHWM`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e6  # type: ignore[index]


@contextlib.contextmanager
def started(repository: Path, database: str) -> Iterator[tuple[float, int]]:
    """A server that is ready: how many seconds that took, and its process id."""
    command = [sys.executable, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "0", "--no-access-log"]
    command += ["--model-repository", str(repository)]
    began = time.monotonic()
    environment = os.environ | {"FOVEA_DATABASE_URL": database}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    raise SystemExit("error: the gateway did not become ready") from None
                time.sleep(0.005)
        yield time.monotonic() - began, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def ask(models: list[str], body: bytes, kind: str, times: int) -> None:
    """Send the same request so many times to each model, one after the other."""
    line = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    for model in models:
        for _ in range(times):
            line.request("POST", f"/v1/models/{model}/classify?timeout_ms=120000", body, {"content-type": kind})
            answer = line.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SystemExit(f"error: {model} answered {answer.status}: {text[:200]!r}")
    line.close()


def served_models(repository: Path) -> tuple[list[str], float]:
    """Names of the models that are ready, and the megabytes of the files of all versions that are."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=5) as answer:
        models = json.load(answer)["models"]
    folders = [
        repository / model["name"] / version["version"]
        for model in models
        for version in model["versions"]
        if version["state"] == "ready"
    ]
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return [model["name"] for model in models if model["state"] == "ready"], size / 1e6


def run(repository: Path, database: str, requests: int) -> tuple[Run, float]:
    """Start once, load it, and end it; also gives the megabytes of weights."""
    image = photograph((640, 480))
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    form = (head + image + b"\r\n") * FORM_IMAGES + f"--{BOUNDARY}--\r\n".encode()
    with started(repository, database) as (seconds, pid):
        ready = memory(pid)
        names, weights = served_models(repository)
        ask(names, image, "image/jpeg", requests)
        singles = memory(pid)
        ask(names, form, f"multipart/form-data; boundary={BOUNDARY}", requests // SINGLE_A_FORM)
        return Run(seconds, ready, singles, memory(pid), memory(pid, "VmHWM")), weights


def report(runs: list[Run], weights: float, requests: int) -> str:
    """Medians, beside what is aimed at."""

    def middle(name: str) -> float:
        return statistics.median(getattr(each, name) for each in runs)

    seconds = [each.seconds for each in runs]
    aim = 2 * weights + 200
    return "\n".join(
        (
            f"ready after {min(seconds):.2f} to {max(seconds):.2f} s, median {middle('seconds'):.2f}"
            f" (aim: {START_AIM:g}); {len(runs)} runs",
            f"weights {weights:.0f} MB; aim of the memory: 2 × weights + 200 MB = {aim:.0f} MB",
            "",
            "| resident memory, MB | median | ÷ aim |",
            "| --- | --- | --- |",
            *(
                f"| {text} | {middle(name):.0f} | {middle(name) / aim:.2f} |"
                for text, name in (
                    ("ready", "ready"),
                    (f"after {requests} single images for each model", "singles"),
                    (f"after {requests // SINGLE_A_FORM} forms of {FORM_IMAGES} images for each", "forms"),
                    ("peak", "peak"),
                )
            ),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.ready", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--runs", type=int, default=5, help="5 unless given")
    parser.add_argument("--requests", type=int, default=200, help="single images for each model; 200 unless given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/ready.db"
        with started(repository, database):
            pass  # it makes the database, and reads files that nobody has read
        found = [run(repository, database, arguments.requests) for _ in range(arguments.runs)]
    runs, weights = [each for each, _ in found], found[0][1]
    print(report(runs, weights, arguments.requests))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python -m load_tests.ready", *sys.argv[1:]])
        document = {
            "command": command,
            **figures.machine(),
            "weights": weights,
            "runs": [asdict(each) for each in runs],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
