"""The gateway in front of the real Triton: right answers, or honest errors whatever befalls it."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.spec import read_config
from tests.clients import Record, hammering
from tests.faults import drifted, install, publish_poisonable, stage
from tests.models import png, publish_tiny
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


def told(records: list[Record]) -> list[str]:
    """The code of every answer, "ok" where there was one, of each client in order.

    What was no right answer was an honest error, without a word of Triton's own.
    """
    for text in (text for record in records for text in record.wrong):
        assert "code" in json.loads(text), text
        words = text.lower().replace("triton cannot be reached", "").replace("before triton answered", "")
        assert "triton" not in words, text
    return ["ok" if status == 200 else code for record in records for status, code in record.answers]


def well(records: list[Record]) -> bool:
    """Whether the last answer to everybody was a right one."""
    return all(record.answers[-1][0] == 200 for record in records)


def json_of(*numbers: int) -> dict[str, list[dict[str, str]]]:
    """The body of a request for several pictures."""
    return {"images": [{"b64": base64.b64encode(png(picture(number))).decode()} for number in numbers]}


def test_answers_are_those_of_the_embedded_backend(triton: Triton, gateway: Server, models: Path) -> None:
    card = gateway.models()["tiny"]
    assert card["versions"]["1"]["state"] == "ready"
    assert gateway.client.get("/v1/models/tiny").json()["spec"]["labels"] == ["label-0", "label-1", "label-2"]
    for number in range(20):
        pixels = picture(number)
        answer = gateway.classify(pixels).json()
        assert is_right(answer["predictions"][0], pixels)
    many = gateway.client.post("/v1/classify", json=json_of(*range(40))).json()
    assert all(is_right(each, picture(number)) for number, each in enumerate(many["predictions"]))
    embedding = gateway.client.post("/v1/models/tiny/embed", json=json_of(1)).json()
    assert len(embedding["predictions"][0]["features"]) == 3
    assert gateway.metrics()("model_ready", model="tiny", version="1") == 1


def test_triton_killed_under_load(triton: Triton, gateway: Server) -> None:
    with hammering(gateway, {"1": 0}, timeout_ms=3000) as records:
        time.sleep(0.5)
        triton.kill()
        gateway.wait_until(lambda: not gateway.ready(), 3)
        time.sleep(0.5)
        before = sum(len(record.answers) for record in records)
        triton.restart()
        gateway.wait_until(gateway.ready, 10)
        time.sleep(0.5)
    assert set(told(records)) == {"ok", "backend_unavailable"}
    assert well(records)
    assert before > 20  # refused at once, they did not wait
    assert max(record.slowest for record in records) < 3 + PROMPT


def test_triton_frozen_under_load(triton: Triton, gateway: Server) -> None:
    with hammering(gateway, {"1": 0}, timeout_ms=800) as records:
        time.sleep(0.5)
        triton.stop()
        gateway.wait_until(lambda: not gateway.ready(), 5)
        triton.resume()
        gateway.wait_until(gateway.ready, 10)
        time.sleep(0.5)
    codes = set(told(records))
    assert {"ok", "deadline_exceeded"} <= codes <= {"ok", "deadline_exceeded", "backend_unavailable", "overloaded"}
    assert well(records)
    assert max(record.slowest for record in records) < 0.8 + PROMPT


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
    with hammering(gateway, {"1": 0}) as records:
        triton.restart()
        gateway.wait_until(lambda: "golden image" in str(gateway.models()["tiny"]["versions"]["1"].get("problem")), 10)
        time.sleep(0.5)
        assert "ok" not in told(records)
        assert not gateway.ready()
        shutil.copyfile(good, file)
        triton.restart()
        gateway.wait_until(gateway.ready, 15)
        time.sleep(0.3)
    assert "ok" in told(records)
    assert well(records)


def test_a_new_version_under_load_fails_no_request_and_rolls_back(
    triton: Triton, gateway: Server, models: Path, tmp_path: Path
) -> None:
    with hammering(gateway, {"1": 0, "2": 7}) as records:
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
    codes = told(records)
    assert set(codes) == {"ok"}
    assert len(codes) > 50
    assert set(read_config(models / "tiny" / "config.pbtxt").specs) == {"1", "2"}


def test_models_are_loaded_and_unloaded_through_the_gateway(triton: Triton, gateway: Server, models: Path) -> None:
    with hammering(gateway, {"1": 0}) as records:
        time.sleep(0.3)
        card = gateway.client.post("/v1/models/tiny/unload")
        assert (card.status_code, card.json()["state"]) == (200, "unloaded")
        assert not gateway.ready()
        time.sleep(0.5)
        assert gateway.classify(picture(1)).json()["code"] == "backend_unavailable"
        assert gateway.client.post("/v1/models/tiny/load").json()["state"] == "ready"
        time.sleep(0.3)
    assert set(told(records)) == {"ok", "backend_unavailable"}  # what was accepted before was answered
    assert well(records)
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


def test_a_new_version_that_drifts_is_refused_and_the_one_before_serves_on(
    triton: Triton, gateway: Server, models: Path, tmp_path: Path
) -> None:
    staged = stage(models, tmp_path / "beside", "other")
    drifted(staged)
    assert gateway.client.post("/v1/models/other/load").json()["version"] == "1"
    install(staged, models / "other", "2")
    assert gateway.client.post("/v1/models/other/load").json()["version"] == "1"
    versions = gateway.models()["other"]["versions"]
    assert {version: each["state"] for version, each in versions.items()} == {"1": "ready", "2": "failed"}
    assert "golden image" in versions["2"]["problem"]
    assert is_right(gateway.classify(picture(1), "other").json()["predictions"][0], picture(1))
    assert gateway.classify(picture(1), "other", version="2").json()["code"] == "backend_unavailable"


def test_of_a_batch_only_the_guilty_image_fails(triton: Triton, gateway: Server, models: Path) -> None:
    publish_poisonable(models, "glass")
    assert gateway.client.post("/v1/models/glass/load").json()["state"] == "ready"
    white = base64.b64encode(png(np.full((8, 8, 3), 255, np.uint8))).decode()
    body = {"images": [json_of(1)["images"][0], {"b64": white}, json_of(2)["images"][0]]}
    first, guilty, last = gateway.client.post("/v1/models/glass/classify", json=body).json()["predictions"]
    assert is_right(first, picture(1))
    assert is_right(last, picture(2))
    assert guilty["error"]["code"] == "backend_failed"
    assert "Gather" not in str(guilty)  # what ONNX Runtime said about it
    assert gateway.wait_log(lambda line: "Gather" in line["message"])


def test_a_route_over_triton(triton: Triton, gateway: Server, models: Path) -> None:
    publish_tiny(models, seed=7)
    assert gateway.client.post("/v1/models/tiny/load").json()["version"] == "2"
    route = {"primary": "tiny:1", "canary": {"model": "tiny:2", "weight": 0.5}, "shadow": "tiny:2"}
    assert gateway.client.put("/v1/routes/r", json=route).json()["problems"] == []

    def asked(request_id: int) -> str:
        answer = gateway.client.post(
            "/v1/models/r/classify",
            json=json_of(request_id),
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
    with socket.create_server(("127.0.0.1", triton.grpc_port)) as listener, hammering(gateway, {}) as records:
        listener.settimeout(0.2)
        ended = time.monotonic() + 2
        while time.monotonic() < ended:
            try:
                listener.accept()[0].close()
            except TimeoutError:
                continue
            knocks += 1
    codes = told(records)
    assert len(codes) > 40
    assert set(codes) == {"backend_unavailable"}
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
