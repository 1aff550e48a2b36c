"""The gateway in front of Triton beside a client that sends tensors to the same Triton, in one run on one machine.

    make triton-setup
    .venv/bin/python -m load_tests.triton --model resnet18 --repository models --image photo.jpg

All have as many images in flight, against one Triton that stays up; rounds alternate. The tensor client (tritonclient,
gRPC, asyncio) sends tensors of the network's input size and asks for the logits: with the tensor in the message, in
shared memory, or made for each request from the encoded image, with Pillow on two threads, as one writes it without a
gateway. The gateway (under wrk) gets encoded images, decodes them or has Triton decode them, calibrates and answers in
JSON; and it gets the tensor client's tensors. Needs wrk, and the model published in the repository.

Beside the rate stands the processor time for each image, of Triton with its backends and of what is in front of it, and
how many images Triton ran at once. On a machine that is busy with other things, processor time tells more than rates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import shared_memory

from load_tests.contestants import TRITON_GRPC, TRITON_HTTP, running
from load_tests.contestants import Contestant as Server
from load_tests.contestants import triton as triton_server
from load_tests.gateway import processor_seconds, spent
from load_tests.peers.network import prepared
from load_tests.wrk import Load, load, wrk_script

GATEWAY, DECODING, TENSORS = 8313, 8314, 8315


@dataclass(frozen=True)
class Measurement:
    """One round of one contestant: images per second, milliseconds of processor time per image, images per batch."""

    rate: float
    triton: float
    front: float
    batch: float


class Contestant:
    """Something that has Triton classify images.

    Args:
        name: As it is printed.
        run: Loads Triton for so many seconds and gives images per second.
        front: The process in front of Triton; None for this one.
    """

    def __init__(self, name: str, run: Callable[[int], float], front: int | None) -> None:
        self.name = name
        self._run = run
        self._front = front
        self.rounds: list[Measurement] = []

    def measure(self, model: str, seconds: int, server: int) -> None:
        """Run for so many seconds, against the Triton that is a certain process."""
        before = self._used(server), executed(model)
        rate = self._run(seconds)
        time.sleep(0.2)  # Triton counts a request after answering it
        after = self._used(server), executed(model)
        images, batches = (late - early for late, early in zip(after[1], before[1], strict=True))
        used = [(late - early) * 1000 / max(images, 1) for late, early in zip(after[0], before[0], strict=True)]
        self.rounds.append(Measurement(rate, used[0], used[1], images / max(batches, 1)))

    def median(self, field: str) -> float:
        return statistics.median(getattr(one, field) for one in self.rounds)

    def _used(self, server: int) -> tuple[float, float]:
        front = time.process_time() if self._front is None else processor_seconds(self._front)
        return spent(server), front


def executed(model: str) -> tuple[int, int]:
    """Images and batches that Triton ever ran of a model."""
    with urllib.request.urlopen(f"http://127.0.0.1:{TRITON_HTTP}/v2/models/{model}/stats") as answer:
        (stats,) = json.load(answer)["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def decoded(encoded: bytes, side: int) -> NDArray[np.uint8]:
    """A tensor `[1, side, side, 3]` as torchvision's presets make it, but for the normalisation."""
    return prepared(Image.open(io.BytesIO(encoded)), (side, side, 3), round(side * 256 / 224))[None]


async def tensors(
    model: str,
    seconds: float,
    in_flight: int,
    *,
    port: int = TRITON_GRPC,
    shared: bool = False,
    encoded: bytes | None = None,
    pixels: NDArray[np.uint8] | None = None,
    top: int | None = None,
) -> Load:
    """What a tensor client gets, with its tensors in messages, in shared memory, or made from an image.

    Args:
        model: That is asked.
        seconds: How long.
        in_flight: Tensors at once.
        port: Of gRPC.
        shared: Tensors go through shared memory.
        encoded: An image that each tensor is made from anew.
        pixels: The tensor `[1, H, W, C]`; None: noise.
        top: Index of the class that a right answer puts first; None: every answer is right.
    """
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    threads = ThreadPoolExecutor(2)
    loop = asyncio.get_running_loop()
    metadata = await client.get_model_metadata(model)
    shape = [1, *(int(side) for side in metadata.inputs[0].shape[1:])]
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    wanted = [triton.InferRequestedOutput("logits")]
    took: list[float] = []  # milliseconds
    wrong = 0
    ends = time.monotonic() + seconds

    async def ask(number: int) -> None:
        nonlocal wrong
        image = triton.InferInput("image", shape, "UINT8")
        region = None
        if shared:
            name = f"load-test-{os.getpid()}-{number}"
            region = shared_memory.create_shared_memory_region(name, f"/{name}", pixels.nbytes)
            await client.register_system_shared_memory(name, f"/{name}", pixels.nbytes)
            image.set_shared_memory(name, pixels.nbytes)
        while (began := time.monotonic()) < ends:
            if encoded is not None:
                image.set_data_from_numpy(await loop.run_in_executor(threads, decoded, encoded, shape[1]))
            elif region is None:
                image.set_data_from_numpy(pixels)
            else:
                shared_memory.set_shared_memory_region(region, [pixels])
            answer = await client.infer(model, [image], outputs=wanted)
            took.append((time.monotonic() - began) * 1000)
            wrong += int(top is not None and answer.as_numpy("logits").argmax() != top)
        if region is not None:
            await asyncio.sleep(0.5)  # Triton may still hold on to the memory of what it has answered
            await client.unregister_system_shared_memory(name)
            shared_memory.destroy_shared_memory_region(region)

    await asyncio.gather(*map(ask, range(in_flight)))
    await client.close()
    threads.shutdown()
    p50, p99 = np.percentile(took, (50, 99)).tolist()
    return Load((len(took) - wrong) / seconds, p50, p99, wrong)


@contextlib.contextmanager
def contestants(options: argparse.Namespace, folder: Path) -> Iterator[tuple[int, list[Contestant]]]:
    """Triton's process id, and all that is measured in front of it; the first is what the others are held against."""
    serve = triton_server(options.repository.resolve(), options.model, "--decode")
    gateway = [sys.executable, "-m", "service", "serve", "--backend", "triton"]
    gateway += ["--triton-url", f"127.0.0.1:{TRITON_GRPC}", "--no-access-log"]
    script = folder / "post.lua"
    script.write_text(wrk_script(options.image.resolve(), "application/octet-stream"))

    def client(**how: Any) -> Callable[[int], float]:
        return lambda seconds: asyncio.run(tensors(options.model, seconds, options.in_flight, **how)).rate

    def through(port: int) -> Callable[[int], float]:
        url = f"http://127.0.0.1:{port}/v1/models/{options.model}/classify"
        return lambda seconds: load(url, script, seconds, options.in_flight).rate

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(serve, None))
        found = [Contestant("tensor client", client(), None)]
        found.append(Contestant("tensor client, shared memory", client(shared=True), None))
        found.append(Contestant("tensor client that decodes", client(encoded=options.image.read_bytes()), None))
        for name, port, where in (("gateway", GATEWAY, "gateway"), ("gateway, Triton decodes", DECODING, "triton")):
            command = [*gateway, "--port", str(port), "--decode-on", where]
            command += ["--grpc-port", str(TENSORS) if where == "gateway" else "off"]
            front = stack.enter_context(running(Server(name, command, "/readyz", {}, port=port), None))
            found.append(Contestant(name, through(port), front))
            if where == "gateway":
                found.append(Contestant("gateway, tensors", client(port=TENSORS), front))
        yield server, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="model repository")
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", type=Path, required=True, help="encoded image that the gateway gets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=16, help="images at once, of each contestant")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants(options, Path(folder)) as (server, entries),
    ):
        for number in range(options.rounds + 1):  # the first warms up
            for entry in entries:
                entry.measure(options.model, options.seconds if number else 2, server)
                if not number:
                    entry.rounds.clear()
            print(f"round {number} of {options.rounds}", file=sys.stderr)
    first = entries[0]
    print(f"{options.model}, {options.image.name}, {options.in_flight} in flight, medians of {options.rounds} rounds\n")
    print("| | images/s | ÷ tensor client | ms of processor: Triton | in front | tensor client's ÷ its | per batch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for entry in entries:
        whole, ours = (each.median("triton") + each.median("front") for each in (first, entry))
        print(
            f"| {entry.name} | {entry.median('rate'):.1f} | {entry.median('rate') / first.median('rate'):.2f} |"
            f" {entry.median('triton'):.2f} | {entry.median('front'):.2f} | {whole / ours:.2f} |"
            f" {entry.median('batch'):.1f} |"
        )


if __name__ == "__main__":
    main()
