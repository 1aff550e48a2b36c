"""Routes, rolling back and forward, loading and unloading on a real server."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients import hammering
from tests.models import png, publish_tiny
from tests.server import Server, expected, is_right, picture

Launch = Callable[..., Server]
SEEDS = {"1": 0, "2": 1}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with two versions of `tiny` that often disagree."""
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", seed=1)
    return tmp_path / "models"


def ask(server: Server, number: int, request_id: str | None = None, model: str = "r") -> Any:
    headers = {"x-request-id": request_id} if request_id else {}
    answer = server.client.post(f"/v1/models/{model}/classify", content=png(picture(number)), headers=headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == "tiny"
    assert is_right(body["predictions"][0], picture(number), SEEDS[body["version"]])
    return body["version"]


def put(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    return server.client.put(path, content=content, headers=headers)


def counts(server: Server) -> Any:
    return server.client.get("/v1/routes/r").json()["counts"]


# Routes.


def test_a_route_with_canary_and_shadow_from_making_to_deleting(models: Path, launch: Launch) -> None:
    server = launch(models)
    route = {"primary": "tiny:1", "canary": {"model": "tiny:2", "weight": 0.25}, "shadow": "tiny:2"}
    assert server.client.get("/v1/routes").json() == {"routes": []}
    made = put(server, "/v1/routes/r", route)
    assert made.status_code == 200
    assert {name: made.json()[name] for name in route} == route
    asked = 80
    versions: list[str] = []
    for number in [*range(asked), *range(asked)]:
        versions.append(ask(server, number, f"id-{number}"))
        if number % 16 == 0:  # the shadow is given time: it should see everything
            server.wait_until(lambda: counts(server)["compared"] == versions.count("1"))
    assert versions[:asked] == versions[asked:]
    canary = versions[:asked].count("2")
    assert 8 <= canary <= 32
    by_primary = [number for number in range(asked) if versions[number] == "1"]
    differ = sum(expected(picture(n)).argmax() != expected(picture(n), seed=1).argmax() for n in by_primary)
    assert 0 < differ < len(by_primary)
    server.wait_until(lambda: counts(server)["compared"] == 2 * len(by_primary))
    found = counts(server)
    assert (found["disagreements"], found["dropped"]) == (2 * differ, 0)
    assert (found["requests"], found["canary"], found["canary_share"]) == (2 * asked, 2 * canary, canary / asked)
    metrics = server.metrics()
    assert metrics("shadow_total", route="r") == found["compared"]
    assert metrics("shadow_disagreements_total", route="r") == found["disagreements"]
    assert metrics("requests_total", model="tiny", code="ok") == 2 * asked
    assert metrics("predictions_total", model="tiny") == 2 * asked  # shadows predict nothing
    embedded = server.client.post("/v1/models/r/embed", content=png(picture(1)))
    assert embedded.json()["model"] == "tiny"
    assert [each["name"] for each in server.client.get("/v1/routes").json()["routes"]] == ["r"]
    assert server.client.delete("/v1/routes/r").status_code == 204
    for gone in (
        server.client.get("/v1/routes/r"),
        server.client.delete("/v1/routes/r"),
        server.classify(picture(1), "r"),
    ):
        assert (gone.status_code, gone.json()["code"]) == (404, "unknown_model")
    assert "r" not in server.metrics().labels("route")


@pytest.mark.parametrize(
    ("name", "body", "code", "word"),
    [
        ("r", "", "invalid_request", "JSON"),
        ("r", "[]", "invalid_request", "object"),
        ("r", {}, "invalid_request", "primary"),
        ("r", {"primary": "tiny", "surplus": 1}, "invalid_request", "surplus"),
        ("r", {"primary": "tiny", "canary": {"model": "tiny", "weight": 1.5}}, "invalid_request", "canary.weight"),
        ("r", {"primary": "tiny", "canary": {"model": "tiny", "weight": "0.5"}}, "invalid_request", "canary.weight"),
        ("r", '{"primary": "tiny", "canary": {"model": "tiny", "weight": NaN}}', "invalid_request", "canary.weight"),
        ("r", {"primary": "nobody"}, "unknown_model", "nobody"),
        ("r", {"primary": "tiny", "shadow": "tiny:9"}, "unknown_model", "9"),
        ("tiny", {"primary": "glass"}, "invalid_request", "there is a model"),
        ("r" * 70, {"primary": "tiny"}, "invalid_request", "64"),
        ("r", '{"primary": "' + "x" * 20_000 + '"}', "too_large", "bytes"),
    ],
)
def test_what_is_no_route(server: Server, name: str, body: Any, code: str, word: str) -> None:
    answer = put(server, f"/v1/routes/{name}", body)
    assert answer.json()["code"] == code
    assert word in answer.json()["detail"]
    assert server.client.get("/v1/routes").json() == {"routes": []}


def test_a_route_names_no_versions_and_hides_a_model_that_comes_later(models: Path, launch: Launch) -> None:
    server = launch(models)
    put(server, "/v1/routes/r", {"primary": "tiny:1"})
    assert server.classify(picture(1), "r", version="1").json()["code"] == "invalid_request"
    publish_tiny(models, "r", seed=5)
    server.wait_until(lambda: "r" in server.models())
    assert ask(server, 1) == "1"
    assert "model r" in server.client.get("/v1/routes/r").json()["problems"][0]
    assert "route" in server.models()["r"]["problem"]
    server.client.delete("/v1/routes/r")
    assert server.classify(picture(1), "r").json()["model"] == "r"


def test_a_route_may_be_the_default_and_outlives_a_restart_with_the_pins(
    models: Path, launch: Launch, tmp_path: Path
) -> None:
    settings = {"database_url": f"sqlite:///{tmp_path}/shared.db", "default_model": "r"}
    server = launch(models, **settings)
    assert put(server, "/v1/routes/r", {"primary": "tiny"}).status_code == 200
    assert put(server, "/v1/models/tiny/version", {"version": "1"}).status_code == 200
    server.process.kill()
    server.process.wait()
    server = launch(models, **settings)
    assert server.client.post("/v1/classify", content=png(picture(1))).json()["version"] == "1"
    assert server.models()["tiny"]["pinned"] == "1"


# Rolling back and forward.


def test_rolling_back_and_forward_under_load_fails_no_request(models: Path, launch: Launch) -> None:
    server = launch(models)
    with hammering(server, SEEDS) as records:
        for version, expects in (("1", "1"), (None, "2"), ("1", "1"), ("2", "2")):
            answer = put(server, "/v1/models/tiny/version", {"version": version})
            assert answer.status_code == 200
            assert (answer.json()["version"], answer.json()["pinned"]) == (expects, version)
            assert ask(server, 1, model="tiny") == expects  # at once
            time.sleep(0.1)
    assert [record.wrong for record in records] == [[], [], []]
    assert all({version for _, version in record.answers} == {"1", "2"} for record in records)


def test_a_pin_holds_whatever_is_published_and_is_stood_in_for_when_it_breaks(models: Path, launch: Launch) -> None:
    server = launch(models)
    assert put(server, "/v1/models/tiny/version", {"version": "1"}).status_code == 200
    for seed in (2, 3):  # two newer ones are kept anyway: the first would have to go
        publish_tiny(models, seed=seed)
    server.wait_until(lambda: "4" in server.models()["tiny"]["versions"])
    time.sleep(0.2)
    assert ask(server, 1, model="tiny") == "1"
    card = server.models()["tiny"]
    assert (card["version"], card["pinned"], card["problem"]) == ("1", "1", None)
    shutil.rmtree(models / "tiny" / "1")
    server.wait_until(lambda: server.models()["tiny"]["version"] == "4")
    card = server.client.get("/v1/models/tiny").json()
    assert card["pinned"] == "1"
    assert "pinned version 1 does not serve" in card["problem"]
    assert server.classify(picture(1)).json()["version"] == "4"
    assert put(server, "/v1/models/tiny/version", {"version": None}).json()["problem"] is None


@pytest.mark.parametrize(
    ("model", "body", "code"),
    [
        ("tiny", {"version": "9"}, "unknown_model"),
        ("tiny", {"version": ""}, "unknown_model"),
        ("nobody", {"version": "1"}, "unknown_model"),
        ("nobody", {"version": None}, "unknown_model"),
        ("tiny", {"version": 1}, "invalid_request"),
        ("tiny", {}, "invalid_request"),
    ],
)
def test_what_cannot_be_pinned(server: Server, model: str, body: Any, code: str) -> None:
    assert put(server, f"/v1/models/{model}/version", body).json()["code"] == code
    assert server.models()["tiny"]["pinned"] is None


# Loading and unloading.


def test_a_model_stays_unloaded_until_it_is_loaded(models: Path, launch: Launch) -> None:
    publish_tiny(models, "other")
    server = launch(models)
    unloaded = server.client.post("/v1/models/tiny/unload")
    assert (unloaded.status_code, unloaded.json()["state"]) == (200, "unloaded")
    publish_tiny(models, seed=2)
    time.sleep(0.3)  # several looks
    answer = server.classify(picture(1))
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert "unloaded" in answer.json()["detail"]
    assert server.classify(picture(1), "other").status_code == 200
    assert server.ready()
    assert server.metrics()("model_ready", model="tiny") == 0
    assert server.stop() == 0
    server.start()
    assert server.classify(picture(1)).json()["code"] == "backend_unavailable"
    assert server.models()["tiny"]["state"] == "unloaded"
    loaded = server.client.post("/v1/models/tiny/load")
    assert (loaded.status_code, loaded.json()["version"]) == (200, "3")
    assert server.classify(picture(1)).status_code == 200
    for call in ("load", "unload"):
        assert server.client.post(f"/v1/models/nobody/{call}").json()["code"] == "unknown_model"


def test_unloading_answers_what_was_accepted(models: Path, launch: Launch) -> None:
    server = launch(models)
    with hammering(server, SEEDS) as records:
        time.sleep(0.1)
        server.client.post("/v1/models/tiny/unload")
        server.client.post("/v1/models/tiny/load")
        time.sleep(0.1)
    assert {status for record in records for status, _ in record.answers} <= {200, 503}
    assert all(record.answers[-1] == (200, "2") for record in records)


def test_loading_what_is_broken_says_so(models: Path, launch: Launch) -> None:
    publish_tiny(models, "broken")
    (models / "broken" / "1" / "model.onnx").write_bytes(b"nothing")
    server = launch(models)
    answer = server.client.post("/v1/models/broken/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert "SHA-256" in answer.json()["detail"]


# Who may.


def test_only_an_operator_changes_anything(models: Path, launch: Launch) -> None:
    server = launch(models, host="0.0.0.0", insecure=True)
    calls = [
        ("PUT", "/v1/routes/r", {"primary": "tiny"}),
        ("DELETE", "/v1/routes/r", None),
        ("PUT", "/v1/models/tiny/version", {"version": "1"}),
        ("POST", "/v1/models/tiny/load", None),
        ("POST", "/v1/models/tiny/unload", None),
    ]
    for method, path, body in calls:
        answer = server.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "FOVEA_ADMIN" in answer.json()["detail"]
    assert server.client.get("/v1/routes").json() == {"routes": []}
    assert ask(server, 1, model="tiny") == "2"
    server = launch(models, host="0.0.0.0", admin=True, insecure=True)
    assert server.client.put("/v1/routes/r", json={"primary": "tiny"}).status_code == 200
    page = {"sec-fetch-site": "cross-site"}  # a page on another site, in the operator's own browser
    assert server.client.post("/v1/models/tiny/unload", headers=page).json()["code"] == "forbidden"


def test_new_calls_are_documented_with_examples_that_work(models: Path, launch: Launch) -> None:
    server = launch(models)
    document = server.client.get("/openapi.json").json()

    def example(path: str) -> Any:
        content = document["paths"][path]["put"]["requestBody"]["content"]["application/json"]
        return content["schema"]["examples"][0]

    assert put(server, "/v1/models/tiny/version", example("/v1/models/{model}/version")).status_code == 200
    route = json.loads(json.dumps(example("/v1/routes/{name}")).replace("lenet5-digits", "tiny"))
    card = put(server, "/v1/routes/r", route).json()
    promised = document["components"]["schemas"]["RouteCard"]["examples"][0]
    assert card.keys() == promised.keys()
    assert card["counts"].keys() == promised["counts"].keys()
    calls = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert {
        ("get", "/v1/routes"),
        ("delete", "/v1/routes/{name}"),
        ("post", "/v1/models/{model}/load"),
        ("post", "/v1/models/{model}/unload"),
    } <= calls
    for method, path in calls:
        assert "HTTPValidationError" not in json.dumps(document["paths"][path][method]) or path == "/v1/models/{model}"
