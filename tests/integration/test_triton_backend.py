"""The gateway in front of the real Triton: right answers, or honest errors whatever befalls it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.spec import read_config
from tests.models import publish_tiny
from tests.server import Server, is_right, picture
from tests.triton import Triton, needs_triton

pytestmark = [needs_triton, pytest.mark.timeout(180)]

PROMPT = 0.5  # seconds beyond its deadline by which a request must have been answered, on a busy machine


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_tiny(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def triton(models: Path, tmp_path: Path) -> Iterator[Triton]:
    with Triton(models, tmp_path).start() as running:
        yield running


@pytest.fixture
def gateway(triton: Triton, tmp_path: Path) -> Iterator[Server]:
    """It shares no disk with Triton."""
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with Server(nothing, nothing, backend="triton", triton_url=triton.grpc_url, poll_seconds=0.2).start() as running:
        yield running


@dataclass
class Load:
    """Clients that ask without pause, and all that they were told."""

    gateway: Server
    timeout_ms: int = 3000
    seeds: dict[str, int] = field(default_factory=lambda: {"1": 0})
    codes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def __enter__(self) -> Load:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        import httpx

        with httpx.Client(base_url=self.gateway.url, timeout=30) as client:
            while not self._ended.is_set():
                number += 4
                pixels = picture(number)
                started = time.monotonic()
                answer = client.post(
                    "/v1/classify",
                    params={"timeout_ms": self.timeout_ms},
                    json={"images": [{"b64": _b64(pixels)}]},
                )
                self.slowest = max(self.slowest, time.monotonic() - started)
                body = answer.json()
                self.codes.append(body.get("code", "ok"))
                if answer.status_code == 200:
                    if not is_right(body["predictions"][0], pixels, self.seeds[body["version"]]):
                        self.wrong.append(answer.text)
                else:
                    time.sleep(0.01)
                if "triton" in answer.text.lower().replace("triton cannot be reached", "").replace(
                    "before triton answered", ""
                ):
                    self.wrong.append(answer.text)


def _b64(pixels: object) -> str:
    import base64

    from tests.models import png

    return base64.b64encode(png(pixels)).decode()  # type: ignore[arg-type]


def test_answers_are_those_of_the_embedded_backend(triton: Triton, gateway: Server, models: Path) -> None:
    card = gateway.models()["tiny"]
    assert card["versions"]["1"]["state"] == "ready"
    assert gateway.client.get("/v1/models/tiny").json()["spec"]["labels"] == ["label-0", "label-1", "label-2"]
    for number in range(20):
        pixels = picture(number)
        answer = gateway.classify(pixels).json()
        assert is_right(answer["predictions"][0], pixels)
    many = gateway.client.post(
        "/v1/classify", json={"images": [{"b64": _b64(picture(number))} for number in range(40)]}
    ).json()
    assert all(is_right(each, picture(number)) for number, each in enumerate(many["predictions"]))
    embedding = gateway.client.post("/v1/models/tiny/embed", json={"images": [{"b64": _b64(picture(1))}]}).json()
    assert len(embedding["predictions"][0]["features"]) == 3
    assert gateway.metrics()("model_ready", model="tiny", version="1") == 1


def test_triton_killed_under_load(triton: Triton, gateway: Server) -> None:
    with Load(gateway) as load:
        time.sleep(0.5)
        triton.kill()
        gateway.wait_until(lambda: not gateway.ready(), 3)
        time.sleep(0.5)
        before = len(load.codes)
        triton.restart()
        gateway.wait_until(gateway.ready, 10)
        time.sleep(0.5)
    assert load.wrong == []
    assert set(load.codes) == {"ok", "backend_unavailable"}
    assert load.codes[-1] == "ok"
    assert before > 20  # refused at once, they did not wait
    assert load.slowest < 3 + PROMPT


def test_triton_frozen_under_load(triton: Triton, gateway: Server) -> None:
    with Load(gateway, timeout_ms=800) as load:
        time.sleep(0.5)
        triton.stop()
        gateway.wait_until(lambda: not gateway.ready(), 5)
        triton.resume()
        gateway.wait_until(gateway.ready, 10)
        time.sleep(0.5)
    assert load.wrong == []
    assert (
        {"ok", "deadline_exceeded"}
        <= set(load.codes)
        <= {"ok", "deadline_exceeded", "backend_unavailable", "overloaded"}
    )
    assert load.codes[-1] == "ok"
    assert load.slowest < 0.8 + PROMPT


def test_a_slow_model_costs_its_own_requests_only(triton: Triton, gateway: Server, models: Path) -> None:
    publish_tiny(models, "slow", work=800)
    assert triton.load("slow").status_code == 200
    gateway.wait_until(lambda: gateway.models().get("slow", {}).get("state") == "ready", 30)
    started = time.monotonic()
    answer = gateway.classify(picture(1), model="slow", timeout_ms=100)
    assert answer.json()["code"] in ("deadline_exceeded", "overloaded")
    assert time.monotonic() - started < 0.1 + PROMPT
    assert gateway.ready()
    assert gateway.classify(picture(1)).status_code == 200


def test_a_triton_that_comes_back_with_another_model_is_not_trusted(
    triton: Triton, gateway: Server, models: Path, tmp_path: Path
) -> None:
    good, file = tmp_path / "good.onnx", models / "tiny" / "1" / "model.onnx"
    shutil.copyfile(file, good)
    publish_tiny(tmp_path / "other", seed=5)
    triton.kill()
    shutil.copyfile(tmp_path / "other" / "tiny" / "1" / "model.onnx", file)
    with Load(gateway) as load:
        triton.restart()
        gateway.wait_until(lambda: "golden image" in str(gateway.models()["tiny"]["versions"]["1"].get("problem")), 10)
        time.sleep(0.5)
        assert "ok" not in load.codes
        assert not gateway.ready()
        shutil.copyfile(good, file)
        triton.restart()
        gateway.wait_until(gateway.ready, 15)
        time.sleep(0.3)
    assert load.wrong == []
    assert load.codes[-1] == "ok"


def test_a_new_version_under_load_fails_no_request_and_rolls_back(
    triton: Triton, gateway: Server, models: Path, tmp_path: Path
) -> None:
    with Load(gateway, seeds={"1": 0, "2": 7}) as load:
        time.sleep(0.3)
        publish_tiny(models, seed=7)
        assert triton.load("tiny").status_code == 200
        gateway.wait_until(lambda: gateway.classify(picture(1)).json()["version"] == "2", 10)
        for version, expects in (("1", "1"), (None, "2"), ("1", "1")):
            card = gateway.client.put("/v1/models/tiny/version", json={"version": version}).json()
            assert (card["version"], card["pinned"]) == (expects, version)
            assert gateway.classify(picture(1)).json()["version"] == expects  # at once
            time.sleep(0.3)
        shutil.rmtree(models / "tiny" / "2")  # nobody is at version 2 any more: Triton may take it away
        assert gateway.client.post("/v1/models/tiny/load").status_code == 200
        gateway.wait_until(lambda: "2" not in gateway.models()["tiny"]["versions"], 10)
        time.sleep(0.3)
    assert load.wrong == []
    assert set(load.codes) == {"ok"}
    assert len(load.codes) > 50
    assert set(read_config(models / "tiny" / "config.pbtxt").specs) == {"1", "2"}


def test_models_are_loaded_and_unloaded_through_the_gateway(triton: Triton, gateway: Server, models: Path) -> None:
    with Load(gateway) as load:
        time.sleep(0.3)
        card = gateway.client.post("/v1/models/tiny/unload")
        assert (card.status_code, card.json()["state"]) == (200, "unloaded")
        assert not gateway.ready()
        time.sleep(0.5)
        assert gateway.classify(picture(1)).json()["code"] == "backend_unavailable"
        assert gateway.client.post("/v1/models/tiny/load").json()["state"] == "ready"
        time.sleep(0.3)
    assert load.wrong == []
    assert set(load.codes) == {"ok", "backend_unavailable"}  # what was accepted before was answered
    assert load.codes[-1] == "ok"
    assert gateway.metrics()("model_load_failures_total") == 0  # nothing failed: it was wanted so
    publish_tiny(models, "new", seed=3)
    assert gateway.client.post("/v1/models/new/load").json()["version"] == "1"
    assert is_right(gateway.classify(picture(1), "new").json()["predictions"][0], picture(1), 3)
    publish_tiny(models, "broken")
    (models / "broken" / "1" / "model.onnx").write_bytes(b"nothing")
    for model, code in (("broken", "backend_failed"), ("nobody", "unknown_model"), ("..", "not_found")):
        answer = gateway.client.post(f"/v1/models/{model}/load".replace("..", "%2e%2e%2ftiny"))
        assert answer.json()["code"] == code
        assert "protobuf" not in answer.text.lower()
        assert str(models) not in answer.text
    assert gateway.client.post("/v1/models/nobody/unload").json()["code"] == "unknown_model"
    triton.kill()
    for call in ("load", "unload"):
        answer = gateway.client.post(f"/v1/models/tiny/{call}")
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")


def test_a_route_over_triton(triton: Triton, gateway: Server, models: Path) -> None:
    publish_tiny(models, seed=7)
    assert gateway.client.post("/v1/models/tiny/load").json()["version"] == "2"
    route = {"primary": "tiny:1", "canary": {"model": "tiny:2", "weight": 0.5}, "shadow": "tiny:2"}
    assert gateway.client.put("/v1/routes/r", json=route).json()["problems"] == []

    def asked(request_id: int) -> str:
        answer = gateway.client.post(
            "/v1/models/r/classify",
            json={"images": [{"b64": _b64(picture(request_id))}]},
            headers={"x-request-id": f"id-{request_id}"},
        ).json()
        assert is_right(answer["predictions"][0], picture(request_id), 0 if answer["version"] == "1" else 7)
        return str(answer["version"])

    versions = [asked(number) for number in range(40)]
    assert versions == [asked(number) for number in range(40)]
    assert set(versions) == {"1", "2"}
    by_primary = 2 * versions.count("1")

    def counts() -> dict[str, int]:
        found: dict[str, int] = gateway.client.get("/v1/routes/r").json()["counts"]
        return found

    gateway.wait_until(lambda: counts()["compared"] + counts()["dropped"] == by_primary)
    assert counts()["compared"] > 0
    shutil.rmtree(models / "tiny" / "2")  # the canary goes: the primary stands in for it
    assert gateway.client.post("/v1/models/tiny/load").status_code == 200
    gateway.wait_until(lambda: "2" not in gateway.models()["tiny"]["versions"], 10)
    assert {asked(number) for number in range(40)} == {"1"}
    assert counts()["fallbacks"] > 0


def test_a_triton_that_is_down_is_not_hammered(triton: Triton, gateway: Server) -> None:
    triton.kill()
    gateway.wait_until(lambda: not gateway.ready(), 5)
    knocks = 0
    with socket.create_server(("127.0.0.1", triton.grpc_port)) as listener, Load(gateway) as load:
        listener.settimeout(0.2)
        ended = time.monotonic() + 2
        while time.monotonic() < ended:
            try:
                listener.accept()[0].close()
            except TimeoutError:
                continue
            knocks += 1
    assert len(load.codes) > 40
    assert set(load.codes) == {"backend_unavailable"}
    assert knocks <= 30


def test_a_gateway_that_is_there_first_waits_for_triton(models: Path, tmp_path: Path) -> None:
    triton = Triton(models, tmp_path)
    settings = {"backend": "triton", "triton_url": triton.grpc_url, "poll_seconds": 0.2}
    with Server(models, tmp_path, **settings).start(ready=False) as gateway:
        assert gateway.client.get("/readyz").json()["reasons"][0].startswith("Triton")
        assert gateway.classify(picture(1)).json()["code"] == "backend_unavailable"
        with triton.start():
            gateway.wait_until(gateway.ready, 10)
            assert gateway.classify(picture(1)).status_code == 200
