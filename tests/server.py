"""The real server in a process of its own, and what a test wants to know about it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from service.calibration import probabilities
from tests.models import png, tiny_logits, tiny_spec

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 20.0
RUNNING: list[Server] = []  # a failing test shows their logs

Pixels = NDArray[np.uint8]


class Samples:
    """One look at `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == f"fovea_{name}" and labels.items() <= sample.labels.items()
        )

    def labels(self, label: str) -> set[str]:
        """All values of a label, over all metrics."""
        return {sample.labels[label] for sample in self._samples if label in sample.labels}


class Server:
    """`python -m service serve` on free ports.

    Args:
        repository: The models.
        folder: Where its log goes; also its working directory, so that no `.env` but the test's is read.
        settings: `FOVEA_*` variables, in lower case and without the prefix.
    """

    def __init__(self, repository: Path, folder: Path, **settings: object) -> None:
        self.repository = repository
        self._folder = folder
        self._settings = {"log_format": "json", "grpc_port": 0, "poll_seconds": 0.05, "drain_delay": 0, **settings}
        self._log = folder / "server.log"
        self.process: subprocess.Popen[bytes]
        self.port = 0
        self.grpc = ""  # host:port
        self.tls: ssl.SSLContext | None = None  # of clients, where the server speaks it
        self.client: httpx.Client

    def start(self, ready: bool = True) -> Server:
        """Start it, and unless told otherwise wait until it is ready."""
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--model-repository", str(self.repository)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self._folder, env=environment(**self._settings), stderr=log)
        RUNNING.append(self)
        line = self.wait_log(lambda line: "listening on http" in line["message"], START_SECONDS)
        self.port = int(line["message"].rpartition(":")[2])
        if self._settings["grpc_port"] != "off":
            line = self.wait_log(lambda line: "listening on grpc" in line["message"], START_SECONDS)
            self.grpc = line["message"].rpartition("/")[2]
        self.client = httpx.Client(base_url=self.url, timeout=20, verify=self.tls or True)
        if ready:
            self.wait_until(self.ready, START_SECONDS)
        return self

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def stop(self) -> int:
        """End it and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.client.close()
        if self in RUNNING:
            RUNNING.remove(self)
        return self.process.returncode

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Asking.

    def metrics(self) -> Samples:
        return Samples(self.client.get("/metrics").text)

    def models(self) -> dict[str, dict[str, Any]]:
        """`/v1/models` by name, `versions` by version."""
        answer = self.client.get("/v1/models").json()["models"]
        return {
            model["name"]: model | {"versions": {each["version"]: each for each in model["versions"]}}
            for model in answer
        }

    def classify(self, pixels: Pixels, model: str = "tiny", **query: object) -> httpx.Response:
        path = f"/v1/models/{model}/classify"
        params = {name: str(value) for name, value in query.items()}
        return self.client.post(path, content=png(pixels), params=params, headers={"content-type": "image/png"})

    def log_text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def log(self) -> list[dict[str, Any]]:
        """Whole lines only: the last one may be on its way."""
        return [json.loads(line) for line in self.log_text().splitlines(keepends=True) if line.endswith("}\n")]

    def wait_log(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 5.0) -> dict[str, Any]:
        """The first line of the log that is wanted."""
        give_up = time.monotonic() + seconds
        while True:
            for line in self.log():
                if wanted(line):
                    return line
            assert self.process.poll() is None, f"the server ended: {self.log_text()}"
            assert time.monotonic() < give_up, f"no such line in the log: {self.log_text()}"
            time.sleep(0.02)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the server ended: {self.log_text()}"
            assert time.monotonic() < give_up, "it never came true"
            time.sleep(0.02)


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these `FOVEA_*` variables and no others."""
    bare = {name: value for name, value in os.environ.items() if not name.upper().startswith("FOVEA_")}
    ours = {f"FOVEA_{name.upper()}": str(value) for name, value in settings.items()}
    return bare | ours | {"PYTHONPATH": str(ROOT)}


# Images of the tiny model, and the answers it owes for them.


def picture(number: int, size: int = 8) -> Pixels:
    """A colour of its own for each of a million numbers; close numbers have colours far apart."""
    mixed = number * 7_919 % 2**24
    colour = [mixed & 255, mixed >> 8 & 255, mixed >> 16]
    return np.full((size, size, 3), colour, np.uint8)


def expected(pixels: Pixels, labels: int = 3, seed: int = 0) -> NDArray[np.floating[Any]]:
    """The calibrated probabilities of the tiny model of that seed, `[K]`, in numpy."""
    return probabilities(tiny_logits(pixels[None], labels, seed)[0], tiny_spec().calibration.temperature)


def is_right(prediction: dict[str, Any], pixels: Pixels, seed: int = 0) -> bool:
    """Whether all of a prediction's classes carry the probabilities of exactly these pixels."""
    probs = expected(pixels, seed=seed)
    found = {each["index"]: each["probability"] for each in prediction["classes"]}
    order = [each["index"] for each in prediction["classes"]]
    return order == np.argsort(-probs, kind="stable")[: len(order)].tolist() and all(
        abs(found[index] - probs[index]) < 2e-6 for index in found
    )
