"""`python -m load_tests.load` against real servers: quiet, overloaded, wrong, and with keys."""

from __future__ import annotations

import csv
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from load_tests.arrivals import arrivals, shaped
from tests.conftest import SLOW_ROUNDS
from tests.keys import bearer, made
from tests.models import png, publish_tiny
from tests.server import ROOT, Pixels, Server, environment, expected, picture

pytestmark = pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed")

Launch = Callable[..., Server]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Colours, in folders of what the tiny model says of them."""
    return known(tmp_path / "images", [picture(number) for number in (2, 3, 5, 8)])


def known(folder: Path, pictures: list[Pixels]) -> Path:
    for number, pixels in enumerate(pictures):
        label = folder / "tiny" / f"label-{expected(pixels).argmax()}"
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{number}.png").write_bytes(png(pixels))
    return folder


class Run:
    """One run of the command against a server, and what it left."""

    def __init__(self, server: Server, images: Path, out: Path, *options: str, key: str = "") -> None:
        command = [sys.executable, "-m", "load_tests.load", "--host", server.url, "--grpc", server.grpc]
        command += ["--images", str(images), "--out", str(out), *options]
        settings = {"FOVEA_KEY": key} if key else {}
        self.done = subprocess.run(
            command, cwd=ROOT, env=environment() | settings, capture_output=True, text=True, timeout=100
        )
        self.out = out
        self.figures: dict[str, Any] = {}
        self.records: list[dict[str, str]] = []
        if (out / "figures.json").exists():
            self.figures = json.loads((out / "figures.json").read_text())
            with (out / "requests.csv").open(newline="") as file:
                self.records = list(csv.DictReader(file))

    def names(self, outcome: str = "right") -> set[str]:
        return {f"{each['transport']} {each['name']}" for each in self.records if each["outcome"] == outcome}


def test_a_quiet_server_answers_everything_right(tmp_path: Path, images: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    server = launch(tmp_path / "models")
    run = Run(server, images, tmp_path / "out", "--rates", "60", "--seconds", "2", "--patience", "5")
    assert run.done.returncode == 0, run.done.stderr
    (level,) = run.figures["levels"]
    assert (level["refused"], level["failed"]) == (0, 0)
    assert level["good"] > 0.8 * level["offered"] > 30
    assert 0 < level["p50"] <= level["p95"] <= level["p99"]
    # The offered load was that of the seed, to the last request.
    due = list(arrivals(shaped("steps", [60], 2), Random(0)))
    assert sorted(float(each["due"]) for each in run.records)[: len(due)] == due
    # Everybody was there: both transports, all ways to send images, nonsense, and a teacher.
    parts = ("HTTP classify raw", "HTTP classify multipart", "HTTP classify JSON", "HTTP bad: ", "HTTP make head")
    for part in (*parts, "gRPC Classify, one image", "gRPC ClassifyStream"):
        assert any(name.startswith(part) for name in run.names()), part
    assert server.client.get("/v1/heads").json()["heads"] == []
    # What is written says where it comes from, and not who measured it.
    assert run.figures["cpu"]
    assert run.figures["versions"]["locust"]
    assert run.figures["command"].startswith("python -m load_tests.load --host http://127.0.0.1")
    assert socket.gethostname() not in json.dumps(run.figures).split('"')
    assert "classify multipart" in (run.out / "report.html").read_text()
    assert (run.out / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_refusals_of_an_overloaded_server_are_no_failures(tmp_path: Path, images: Path, launch: Launch) -> None:
    """They do not keep requests from being sent, either."""
    publish_tiny(tmp_path / "models", work=SLOW_ROUNDS)
    server = launch(tmp_path / "models", threads=1)
    options = ["--users", "HttpClassify,GrpcClassify", "--rates", "60,150", "--seconds", "2", "--patience", "0.4"]
    run = Run(server, images, tmp_path / "out", *options)
    assert run.done.returncode == 0, run.done.stderr
    last = run.figures["levels"][-1]
    assert last["refused"] > 0
    assert last["failed"] == 0
    assert last["good"] < last["offered"]
    assert sorted(float(each["due"]) for each in run.records) == list(
        arrivals(shaped("steps", [60, 150], 2), Random(0))
    )


def test_wrong_answers_make_it_fail(tmp_path: Path, launch: Launch) -> None:
    """A model of the same name that has learnt something else."""
    colours = [picture(number) for number in range(200)]
    differing = [one for one in colours if expected(one).argmax() != expected(one, seed=1).argmax()]
    publish_tiny(tmp_path / "models", seed=1)
    images = known(tmp_path / "images", differing[:2])
    options = ["--users", "HttpClassify,GrpcClassify", "--shape", "poisson", "--rates", "30", "--seconds", "1"]
    run = Run(launch(tmp_path / "models"), images, tmp_path / "out", *options)
    assert run.done.returncode == 1, run.done.stderr
    assert "error: answers were wrong or missing:" in run.done.stderr
    assert "instead of label-" in run.done.stderr
    assert {name.split()[0] for name in run.names("failed")} == {"HTTP", "gRPC"}
    assert run.figures["levels"][0]["good"] == 0


@pytest.mark.slow
def test_a_teacher_and_a_vandal_with_a_key(tmp_path: Path, images: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    database = f"sqlite:///{tmp_path}/keys.db"
    key = made(database, "admin")
    server = launch(tmp_path / "models", ready=False, database_url=database)
    options = ["--users", "Teacher,Vandal", "--shape", "poisson", "--rates", "60", "--seconds", "3"]
    run = Run(server, images, tmp_path / "out", *options, key=key)
    assert run.done.returncode == 0, run.done.stderr
    assert {"HTTP fit head", "HTTP classify with head", "HTTP delete head"} <= run.names()
    assert {"HTTP bad: wrong key", "gRPC bad: wrong key"} <= run.names()
    assert server.client.get("/v1/heads", headers=bearer(key)).json()["heads"] == []
    assert not any(key in path.read_text() for path in run.out.glob("*.json"))


@pytest.mark.slow
def test_without_the_key_that_is_needed_nothing_is_measured(tmp_path: Path, images: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    database = f"sqlite:///{tmp_path}/keys.db"
    key = made(database, "infer")
    server = launch(tmp_path / "models", ready=False, database_url=database)
    for given, complaint in (
        (key, "the server takes no teaching with this key"),
        ("", "put a valid key into FOVEA_KEY"),
    ):
        run = Run(server, images, tmp_path / "out", "--users", "Teacher", key=given)
        assert run.done.returncode == 2
        assert complaint in run.done.stderr
        assert run.figures == {}
