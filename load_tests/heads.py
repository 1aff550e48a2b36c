"""A thousand taught heads on one backbone: `python -m load_tests.heads`.

Teaches them over HTTP, each on shifted copies of a few drawn shapes, and then lets wrk ask all of them in turn, one of
them only, and the backbone itself. Prints the memory that each head took beside the size of its numbers, the ratios of
the rates, and the images in a batch. Needs wrk.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from load_tests.gateway import ROOT
from load_tests.wrk import load

PORT = 8320
URL = f"http://127.0.0.1:{PORT}"
BACKBONE = "letters"
EXAMPLES = 2  # images of each class
CLASSES = 10

_ASK = """
local file = io.open("{path}", "rb"); local body = file:read("*a"); file:close()
local headers = {{["Content-Type"] = "image/png"}}
local number = 0
request = function()
  number = (number + 1) % {heads}
  return wrk.format("POST", "/v1/models/{name}" .. {suffix} .. "/classify", headers, body)
end
"""


def picture(kind: int, number: int) -> bytes:
    """A PNG of a shape, another one for each kind, that is somewhere else for each number."""
    random = np.random.default_rng(kind)
    shape = np.kron(random.integers(0, 2, (4, 4)), np.ones((4, 4))) * 255
    canvas = np.zeros((32, 32), np.uint8)
    top, left = np.random.default_rng(1000 + number).integers(0, 16, 2)
    canvas[top : top + 16, left : left + 16] = shape
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    return file.getvalue()


def call(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    request = urllib.request.Request(URL + path, body, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: bytes = answer.read()
        return data


def resident(process: int) -> float:
    """Megabytes."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1000  # type: ignore[index]


def images_in_a_batch() -> tuple[float, float]:
    """Images and batches so far."""
    text = call("GET", "/metrics").decode()
    found = [re.search(rf'fovea_batch_size_{part}{{model="{BACKBONE}"}} (\S+)', text) for part in ("sum", "count")]
    return float(found[0][1]) if found[0] else 0.0, float(found[1][1]) if found[1] else 0.0


def teach(heads: int) -> None:
    """Make that many heads; each gets the same images, so that most of the time goes into fitting."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for kind in range(CLASSES):
            for number in range(EXAMPLES):
                zipped.writestr(f"shape {kind}/{number}.png", picture(kind, number))
    began = time.monotonic()
    for number in range(heads):
        call("PUT", f"/v1/heads/head-{number}", json.dumps({"backbone": BACKBONE}).encode())
        call("POST", f"/v1/heads/head-{number}/examples", archive.getvalue(), "application/zip")
        call("POST", f"/v1/heads/head-{number}/fit")
        if sys.stderr.isatty() and number % 10 == 9:
            left = (heads - number - 1) * (time.monotonic() - began) / (number + 1)
            print(f"\rtaught {number + 1} of {heads} heads, {left:.0f} s to go  ", end="", file=sys.stderr)
    print(f"taught {heads} heads in {time.monotonic() - began:.0f} s")


def ask(name: str, suffix: str, heads: int, image: Path, seconds: float, folder: Path) -> tuple[float, float, float]:
    """Right answers a second, 99th percentile in milliseconds, images in a batch."""
    script = folder / "ask.lua"
    script.write_text(_ASK.format(path=image, name=name, suffix=suffix, heads=heads))
    images, batches = images_in_a_batch()
    rate, _, p99, failed = load(URL, script, seconds, 32)
    if failed:
        raise SystemExit(f"error: {failed} requests to {name} failed")
    more_images, more_batches = images_in_a_batch()
    return rate, p99, (more_images - images) / (more_batches - batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "shape.png"
        image.write_bytes(picture(3, 77))
        serve = [sys.executable, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "off"]
        settings = {"FOVEA_DATABASE_URL": f"sqlite:///{folder}/heads.db", "FOVEA_MAX_HEADS": str(arguments.heads + 1)}
        with (folder / "log").open("wb") as log:
            command = ["env", *(f"{key}={value}" for key, value in settings.items()), *serve, "--no-access-log"]
            process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            for _ in range(600):
                time.sleep(0.1)
                try:
                    call("GET", "/readyz")
                    break
                except OSError:
                    continue
            teach(1)
            call("DELETE", "/v1/heads/head-0")
            before = resident(process.pid)
            teach(arguments.heads)
            grown = (resident(process.pid) - before) * 1000 / arguments.heads
            card = json.loads(call("GET", f"/v1/models/{BACKBONE}"))
            numbers = CLASSES * card["spec"]["features"] * 4 / 1000
            print(f"memory: {grown:.0f} KB a head; its weights alone are {numbers:.0f} KB")
            ways = {
                "all heads in turn": ("head-", "number", arguments.heads),
                "one head": ("head-0", '""', 1),
                "the backbone's own classes": (BACKBONE, '""', 1),
            }
            found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
            for _ in range(arguments.rounds):
                for way, (target, suffix, heads) in ways.items():
                    found[way].append(ask(target, suffix, heads, image, arguments.seconds, folder))
            middle = {way: np.median(np.array(values), axis=0) for way, values in found.items()}
            base = middle["the backbone's own classes"][0]
            print(f"{'':28} {'requests/s':>10} {'ratio':>6} {'p99 ms':>7} {'images a batch':>15}")
            for way, (rate, p99, batch) in middle.items():
                print(f"{way:28} {rate:10.0f} {rate / base:6.2f} {p99:7.1f} {batch:15.1f}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


if __name__ == "__main__":
    main()
