"""The gateway in front of Triton beside a client that sends tensors to the same Triton, in one run on one machine.

    make triton-setup
    .venv/bin/python -m load_tests.triton --model resnet18 --repository models --image photo.jpg

Both have as many images in flight, against one Triton that stays up; rounds alternate. The tensor client (tritonclient,
gRPC, asyncio) sends tensors of the network's input size and asks for the logits; the gateway (under wrk) gets encoded
images, decodes, calibrates and answers in JSON. Needs wrk, and the model published in the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton

from load_tests.bench import LUA, ROOT, load

HTTP, GRPC, METRICS, GATEWAY = 8310, 8311, 8312, 8313


@contextlib.contextmanager
def process(command: list[str], ready: str, log: Path) -> Iterator[None]:
    """A server, from when it answers 200 at a URL until the end."""
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(ready, timeout=5)
                    break
                if server.poll() is not None:
                    sys.exit(f"{command[2]} ended: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()


async def tensors(model: str, seconds: float, in_flight: int) -> float:
    """Images per second that a tensor client gets."""
    client = triton.InferenceServerClient(f"127.0.0.1:{GRPC}")
    metadata = await client.get_model_metadata(model)
    shape = [1, *(int(side) for side in metadata.inputs[0].shape[1:])]
    image = triton.InferInput("image", shape, "UINT8")
    image.set_data_from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    wanted = [triton.InferRequestedOutput("logits")]
    answered = 0
    ends = time.monotonic() + seconds

    async def ask() -> None:
        nonlocal answered
        while time.monotonic() < ends:
            await client.infer(model, [image], outputs=wanted)
            answered += 1

    started = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    rate = answered / (time.monotonic() - started)
    await client.close()
    return rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="model repository")
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", type=Path, required=True, help="encoded image that the gateway gets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--in-flight", type=int, default=16, help="images at once, of either client")
    options = parser.parse_args()
    python = sys.executable
    serve = [python, str(ROOT / "deploy/triton/serve.py"), "--repository", str(options.repository.resolve())]
    serve += ["--http-port", str(HTTP), "--grpc-port", str(GRPC), "--metrics-port", str(METRICS)]
    gateway = [python, "-m", "service", "serve", "--port", str(GATEWAY), "--grpc-port", "off", "--backend", "triton"]
    gateway += ["--triton-url", f"127.0.0.1:{GRPC}", "--no-access-log"]
    url = f"http://127.0.0.1:{GATEWAY}/v1/models/{options.model}/classify"
    found: dict[str, list[float]] = {"tensor client": [], "gateway": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "post.lua"
        script.write_text(LUA.format(path=options.image.resolve(), type="image/jpeg"))
        with (
            process(serve, f"http://127.0.0.1:{HTTP}/v2/models/{options.model}/ready", folder / "triton.log"),
            process(gateway, f"http://127.0.0.1:{GATEWAY}/readyz", folder / "gateway.log"),
        ):
            for number in range(options.rounds + 1):  # the first warms up
                seconds = options.seconds if number else 2
                direct = asyncio.run(tensors(options.model, seconds, options.in_flight))
                through, _, _, failed = load(url, script, seconds, options.in_flight)
                if number:
                    found["tensor client"].append(direct)
                    found["gateway"].append(through)
                    print(f"round {number}: tensor client {direct:.1f}/s, gateway {through:.1f}/s, {failed} failed")
    direct, through = (statistics.median(rates) for rates in found.values())
    print(f"{options.model}: tensor client {direct:.1f} images/s, gateway {through:.1f}, ratio {through / direct:.2f}")


if __name__ == "__main__":
    main()
