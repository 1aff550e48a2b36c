"""Throughput and latency of the gateway beside its peers, in one run on one machine: `make bench`.

    make peers                                                # the others, each in an environment of its own
    make triton-setup                                         # and a Triton
    make bench ARGS="--model resnet18 --save build/bench/resnet18.json"

Each contestant is started alone, asked once for the right answer, warmed up, loaded, and stopped; rounds alternate, so
that a machine that slows down slows all of them. What is printed are medians over the rounds, and of ratios medians of
those within each round; absolute figures belong to the machine they were taken on. Needs wrk, and h2load for gRPC
(Debian: `apt-get install wrk nghttp2-client`).

All run the same graph on the same image, prepared in the same way, with batching where they have it, and have all
cores; peers that are not installed are left out. ONNX Runtime alone is a loop around the graph, in batches, with pixels
that are there: no HTTP, no decoding. Triton driven directly gets pixels, too.

What is under way when the time is up counts for nobody, at most as many images as there are connections: with a large
network let a turn take ten seconds (`--seconds 10`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from load_tests import grpc, triton, wrk
from load_tests.bench_report import ALONE, Measurement, report, save
from load_tests.contestants import CORES, Contestant, contestants, running
from load_tests.gateway import predictions, spent
from load_tests.locust_users.http_client import multipart
from load_tests.peers.network import prepared
from load_tests.subjects import SUBJECTS, Subject, graph
from load_tests.wrk import Load

BATCH = 8  # of ONNX Runtime alone
WARM_UP_SECONDS = 2.0
SETTLE_SECONDS = 1.0  # for what a server still computes for the connections of the warm-up


class Alone:
    """ONNX Runtime on a model file, on all cores."""

    def __init__(self, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        # As the gateway has it. Threads that spin gained 1 % in the best batch, and lost on a machine with other work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options)
        self.shape: list[int] = self._session.get_inputs()[0].shape[1:]

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`[N, K]` of `[N, H, W, C]`."""
        found: NDArray[np.float32] = self._session.run(["logits"], {"image": pixels})[0]
        return found

    def measure(self, pixels: NDArray[np.uint8], seconds: float) -> Measurement:
        """Images a second, in batches of one image."""
        batch = np.repeat(pixels[None], BATCH, 0)
        for _ in range(3):
            self.logits(batch)
        took: list[float] = []
        started, cpu = time.monotonic(), time.process_time()
        while (began := time.monotonic()) - started < seconds:
            self.logits(batch)
            took.append((time.monotonic() - began) * 1000)
        images = len(took) * BATCH
        p50, p99 = np.percentile(took, (50, 99)).tolist()
        cpu = (time.process_time() - cpu) / images * 1e6
        return Measurement(images / (time.monotonic() - started), p50, p99, 0, cpu)


class Course:
    """What every contestant has to do.

    Args:
        subject: What is classified.
        seconds: Of load.
        connections: At once.
        folder: For scripts.
        messages: Of our gRPC service.
    """

    def __init__(self, subject: Subject, seconds: float, connections: int, folder: Path, messages: Any) -> None:
        self.subject = subject
        self._seconds = seconds
        self._connections = connections
        self._folder = folder
        self._messages = messages
        self._image = subject.image.read_bytes()
        self.alone = Alone(graph(subject.repository, subject.name))
        self.pixels = prepared(Image.open(subject.image), self.alone.shape, subject.resize_to or 0)
        self._top = self._best(self.alone)
        self._top_int8 = self._best(Alone(graph(subject.int8, subject.name))) if subject.int8 else self._top

    def measure(self, contestant: Contestant) -> Measurement:
        """One round; raises SystemExit if it does not start or says something else than ONNX Runtime."""
        body, kind = multipart([self._image]) if contestant.form else (self._image, self.subject.kind)
        contestant = replace(contestant, headers={"Content-Type": kind})
        asked = None if contestant.client == "tensors" else body
        with contextlib.ExitStack() as stack:
            started = [contestant] if contestant.behind is None else [contestant.behind, contestant]
            pids = [stack.enter_context(running(each, asked if each is contestant else None)) for each in started]
            top = self._top_int8 if contestant.int8 else self._top
            if asked is not None:
                _check(contestant, contestant.ask(asked), top)
            self._load(contestant, body, top, min(WARM_UP_SECONDS, self._seconds))
            time.sleep(SETTLE_SECONDS)
            before = sum(map(spent, pids))
            found = self._load(contestant, body, top, self._seconds)
            cpu = (sum(map(spent, pids)) - before) / max(1.0, found.rate * self._seconds) * 1e6
        return Measurement(*found, cpu)

    def _best(self, network: Alone) -> int:
        return int(network.logits(self.pixels[None])[0].argmax())

    def _load(self, contestant: Contestant, body: bytes, top: int, seconds: float) -> Load:
        if contestant.client == "tensors":
            asking = triton.tensors(self.subject.name, seconds, self._connections, pixels=self.pixels[None], top=top)
            return asyncio.run(asking)
        if contestant.client == "h2load":
            return self._call(contestant, top, seconds)
        sent, script = self._folder / "body", self._folder / "post.lua"
        sent.write_bytes(body)
        script.write_text(wrk.wrk_script(sent, contestant.headers["Content-Type"], top=top))
        return wrk.load(contestant.url, script, seconds, self._connections)

    def _call(self, contestant: Contestant, top: int, seconds: float) -> Load:
        """h2load does not look into answers: one is looked at before, and the gateway counts what it has predicted."""
        model, address = self.subject.name, f"127.0.0.1:{contestant.grpc_port}"
        first = grpc.top(address, self._messages, model, self._image)[0].index
        if first != top:
            raise SystemExit(f"error: {contestant.name} says {first} and not {top}")
        way = grpc.unary(f"http://{address}{grpc.CLASSIFY}", self._messages, model, [self._image], self._connections)
        server = f"http://127.0.0.1:{contestant.port}"
        before, began = predictions(server, model), time.monotonic()
        took = grpc.load(way, self._folder, seconds)
        seconds = time.monotonic() - began
        right = int(predictions(server, model) - before)
        p50, p99 = np.percentile(took, (50, 99)).tolist()
        return Load(right / seconds, p50, p99, max(0, len(took) - right))


def _check(contestant: Contestant, answer: bytes, top: int) -> None:
    """The first answer, before anything is timed."""
    found = re.search(rb'"index":\s*(\d+)', answer)
    if not found or int(found[1]) != top:
        raise SystemExit(f"error: {contestant.name} does not say {top} first: {answer[:200].decode(errors='replace')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SUBJECTS, default="lenet5", help="and the image that belongs to it")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=5, help="of load, per contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes of each contestant (default: one for each core)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants beside the gateway, as they are printed")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write all rounds there, and a plot beside it")
    arguments = parser.parse_args()
    wrk.wanted()
    subject = SUBJECTS[arguments.model]()
    ours, *others = contestants(subject, arguments.workers)
    names = [entry.name for entry in others]
    if unknown := set(arguments.only or ()) - {*names, ALONE}:
        raise SystemExit(f"error: there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    entries = [ours, *(entry for entry in others if not arguments.only or entry.name in arguments.only)]
    rounds: dict[str, list[Measurement]] = {name: [] for name in (*(entry.name for entry in entries), ALONE)}
    with tempfile.TemporaryDirectory() as folder, grpc.messages() as messages:
        course = Course(subject, arguments.seconds, arguments.connections, Path(folder), messages)
        for number in range(arguments.rounds):
            for entry in entries:
                print(f"round {number + 1} of {arguments.rounds}: {entry.name}", file=sys.stderr)
                rounds[entry.name].append(course.measure(entry))
            rounds[ALONE].append(course.alone.measure(course.pixels, arguments.seconds))
    caption = f"{subject.name}, {subject.image.name}, {arguments.connections} connections"
    print(f"\n{caption}, medians of {arguments.rounds} rounds\n")
    print(report(rounds))
    if arguments.save:
        save(rounds, caption, arguments.save)


if __name__ == "__main__":
    main()
