"""How long a head takes to fit, and what classification loses meanwhile: `python -m load_tests.heads_fit`.

Everything over HTTP, on the bundled backbone: heads are taught drawn shapes and fitted several times. Then wrk asks
LeNet-5, in turns alone and with the largest head being fitted again and again; beside the ratio of the rates stands the
share of the machine that the fits took. Needs wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from load_tests.gateway import ROOT, processor_seconds
from load_tests.wrk import load, wrk_script

PORT = 8330
URL = f"http://127.0.0.1:{PORT}"
BACKBONE, MODEL = "letters", "lenet5-digits"
CLASSES = 10
CHUNK = 1000  # images in a zip


def call(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Any:
    request = urllib.request.Request(URL + path, body, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read() or b"null")


def shape(kind: int, number: int) -> bytes:
    """A PNG of a shape, one for each kind, somewhere and with noise for each number."""
    drawn = np.kron(np.random.default_rng(kind).integers(0, 2, (4, 4)), np.ones((5, 5))) * 200
    random = np.random.default_rng([kind, number])
    canvas = random.normal(20, 15, (32, 32))
    top, left = random.integers(0, 12, 2)
    canvas[top : top + 20, left : left + 20] += drawn
    file = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def teach(head: str, examples: int) -> None:
    call("PUT", f"/v1/heads/{head}", json.dumps({"backbone": BACKBONE}).encode())
    for start in range(0, examples, CHUNK):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as zipped:
            for number in range(start, min(start + CHUNK, examples)):
                zipped.writestr(f"shape {number % CLASSES}/{number}.png", shape(number % CLASSES, number))
        call("POST", f"/v1/heads/{head}/examples?timeout_ms=120000", archive.getvalue(), "application/zip")


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[int]:
    """The server from when it is ready, with heads of its own; yields its process id."""
    command = [sys.executable, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "off", "--no-access-log"]
    environment = {**os.environ, "FOVEA_DATABASE_URL": f"sqlite:///{folder}/heads.db"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    try:
        for _ in range(600):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{URL}/readyz", timeout=5).close()
                break
            if process.poll() is not None:
                raise SystemExit(f"error: the gateway did not start:\n{(folder / 'log').read_text()[-2000:]}")
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def fits_of(server: int) -> float:
    """Processor seconds so far of the process that fits for a server; 0 if there is none."""
    for task in Path(f"/proc/{server}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "fit_process" in Path(f"/proc/{child}/cmdline").read_text():
                return processor_seconds(int(child))
    return 0.0


class Fitting:
    """Fits a head again and again, on a thread, while inside."""

    def __init__(self, head: str) -> None:
        self.took: list[float] = []
        self._head, self._stop = head, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Fitting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.took.append(call("POST", f"/v1/heads/{self._head}/fit")["seconds"])


def meanwhile(server: int, head: str, script: Path, seconds: float, rounds: int) -> None:
    """Print what wrk gets with and without fits."""
    url, cores = f"{URL}/v1/models/{MODEL}/classify", len(os.sched_getaffinity(0))
    ratios, shares, took = [], [], []
    load(url, script, 2, 16)  # warm-up
    for _ in range(rounds):
        alone, _, quick, _ = load(url, script, seconds, 16)
        with Fitting(head) as fitting:
            before = fits_of(server)
            rate, _, slow, failed = load(url, script, seconds, 16)
            shares.append((fits_of(server) - before) / (cores * seconds))
        ratios.append(rate / alone)
        took += fitting.took
        print(
            f"alone {alone:.0f}/s, p99 {quick:.1f} ms; with fits {rate:.0f}/s, p99 {slow:.1f} ms, {failed} failed;"
            f" fits had {100 * shares[-1]:.0f} % of {cores} cores and took"
            f" {', '.join(f'{each:.1f}' for each in fitting.took)} s"
        )
    print(
        f"medians: {statistics.median(ratios):.2f} of the rate with {100 * statistics.median(shares):.0f} % of the"
        f" machine fitting; a fit took {statistics.median(took):.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[100, 1000], help="sizes of heads, rising")
    parser.add_argument("--fits", type=int, default=5, help="of each head")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, gateway(Path(name)) as server:
        for examples in arguments.examples:
            began = time.monotonic()
            teach(f"shapes-{examples}", examples)
            taught = time.monotonic() - began
            took = [call("POST", f"/v1/heads/shapes-{examples}/fit") for _ in range(arguments.fits)]
            seconds = ", ".join(f"{each['seconds']:.2f}" for each in took)
            print(f"{examples} examples of {CLASSES} classes: taught in {taught:.1f} s; fitted in {seconds} s")
        script = Path(name) / "ask.lua"
        script.write_text(wrk_script(ROOT / "docs/images/seven.png", "image/png"))
        meanwhile(server, f"shapes-{arguments.examples[-1]}", script, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
