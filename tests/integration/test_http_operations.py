"""Health, metrics, models and the OpenAPI document of a real server."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from service import __version__
from tests.models import png, tiny_spec
from tests.server import Server, picture

RAW = {"content-type": "application/octet-stream"}
GOOD = png(picture(0))


# Health.


def test_alive_and_ready(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}
    answer = server.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


# Metrics: exact changes.


def test_one_request_is_counted_once_everywhere(server: Server) -> None:
    before = server.metrics()
    best = server.classify(picture(1)).json()["predictions"][0]["classes"][0]
    after = server.metrics()

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert change("requests_total", transport="http", model="tiny", code="ok") == change("requests_total") == 1
    assert change("predictions_total", model="tiny", label=best["label"]) == change("predictions_total") == 1
    for histogram in (
        "request_seconds",
        "decode_seconds",
        "queue_seconds",
        "infer_seconds",
        "batch_size",
        "confidence",
    ):
        assert change(f"{histogram}_count", model="tiny") == 1
    assert change("batch_size_count", model="tiny") == change("batch_size_sum", model="tiny") == 1
    assert change("confidence_sum", model="tiny") == pytest.approx(best["probability"], abs=1e-5)
    assert change("rejected_total") == 0
    assert after("queue_depth", model="tiny") == 0
    assert after("inflight", transport="http") == 1  # the question itself


def test_several_images_make_one_request_and_one_batch(server: Server) -> None:
    before = server.metrics()
    images = [png(picture(number)) for number in range(2)] + [b"no image", GOOD[:-4]]
    body = {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}
    assert server.client.post("/v1/models/tiny/classify", json=body).status_code == 200
    after = server.metrics()

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert change("requests_total", code="ok") == 1
    assert change("predictions_total", model="tiny") == 2
    assert (change("batch_size_count", model="tiny"), change("batch_size_sum", model="tiny")) == (1, 2)
    assert change("rejected_total", reason="unsupported_format") == 1
    assert change("rejected_total", reason="invalid_image") == 1
    assert change("rejected_total") == 2


def test_embedding_makes_no_prediction(server: Server) -> None:
    before = server.metrics()
    assert server.client.post("/v1/models/tiny/embed", content=GOOD, headers=RAW).status_code == 200
    after = server.metrics()
    assert after("predictions_total") == before("predictions_total")
    assert after("requests_total", model="tiny", code="ok") - before("requests_total", model="tiny", code="ok") == 1


def test_looking_counts_nothing(server: Server) -> None:
    before = server.metrics()
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/tiny", "/nowhere", "/openapi.json"):
        server.client.get(path)
    assert server.metrics()("requests_total") == before("requests_total")


def test_the_exposition_is_what_prometheus_reads(server: Server) -> None:
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    metrics = server.metrics()
    assert metrics("model_ready", model="tiny", version="1") == 1
    for name in ("request_seconds_bucket", "batch_size_bucket", "queue_depth", "inflight", "abstained_total"):
        assert f"fovea_{name}" in answer.text
    assert "process_resident_memory_bytes" in answer.text


# Models.


def test_the_list_of_models(server: Server) -> None:
    models = server.models()
    assert list(models) == ["glass", "slow", "tiny"]
    tiny = models["tiny"]
    assert (tiny["kind"], tiny["state"], tiny["version"], tiny["architecture"], tiny["labels"]) == (
        "model",
        "ready",
        "1",
        "tiny",
        3,
    )
    version = tiny["versions"]["1"]
    assert (version["state"], version["problem"]) == ("ready", None)
    assert 0 <= version["golden_difference"] < 1e-5


def test_the_card_holds_the_whole_spec_but_the_golden_bytes(server: Server) -> None:
    card = server.client.get("/v1/models/tiny").json()
    spec = tiny_spec().model_dump(mode="json", exclude={"files": True, "golden": {"__all__": {"data"}}})
    assert {name: value for name, value in card["spec"].items() if name != "files"} == spec
    assert re.fullmatch("[0-9a-f]{64}", card["spec"]["files"]["model.onnx"])


# OpenAPI.


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    return server.client.get("/openapi.json").json()


def resolve(document: Any, schema: Any) -> Any:
    while isinstance(schema, dict) and "$ref" in schema:
        node: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    return schema


def test_every_reference_leads_somewhere(document: Any) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert isinstance(resolve(document, node), dict)
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == __version__
    walk(document)


def test_operations_are_named_once_and_described(document: Any) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for operation in operations)
    assert all(set(path) <= {"get", "post", "put", "delete"} for path in document["paths"].values())


def test_every_parameter_of_a_path_is_declared_once(document: Any) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = operation.get("parameters", [])
            in_path = [each["name"] for each in declared if each["in"] == "path"]
            assert sorted(in_path) == sorted(re.findall(r"{(\w+)}", path))
            assert len({(each["in"], each["name"]) for each in declared}) == len(declared)
            assert all("schema" in each for each in declared)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models/{model}/classify", "/v1/models/{model}/embed"])
def test_inference_is_documented_whole(document: Any, path: str) -> None:
    operation = document["paths"][path]["post"]
    assert set(operation["requestBody"]["content"]) >= {
        "application/octet-stream",
        "image/*",
        "multipart/form-data",
        "application/json",
    }
    query = {each["name"] for each in operation["parameters"] if each["in"] == "query"}
    assert query == ({"timeout_ms", "version"} | ({"top_k", "explain"} if "classify" in path else set()))
    assert set(operation["responses"]) == {
        "200", "400", "401", "404", "413", "415", "422", "429", "502", "503", "504",
    }  # fmt: skip
    for status, response in operation["responses"].items():
        (content_type, content), *_ = response["content"].items()
        schema = resolve(document, content["schema"])
        assert content_type == ("application/json" if status == "200" else "application/problem+json")
        assert "code" in schema["properties"] or status == "200"


def test_the_example_of_a_request_is_answered_in_the_documented_shape(server: Server, document: Any) -> None:
    operation = document["paths"]["/v1/models/{model}/classify"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = server.client.post("/v1/models/tiny/classify", json=example)
    assert answer.status_code == 200
    schema = resolve(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    promised = schema["examples"][0]
    found = answer.json()
    assert set(found) == set(promised) == set(schema["properties"])
    assert set(found["predictions"][0]) == set(promised["predictions"][0])
    assert set(found["predictions"][0]["classes"][0]) == set(promised["predictions"][0]["classes"][0])
    assert set(found["predictions"][0]["timings_ms"]) == set(promised["predictions"][0]["timings_ms"])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/healthz"])
def test_what_is_answered_has_the_documented_fields(server: Server, document: Any, path: str) -> None:
    template = path.replace("tiny", "{model}")
    schema = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(server.client.get(path).json()) == set(resolve(document, schema)["properties"])


def test_the_documentation_page_needs_nothing_from_elsewhere(server: Server) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert not source.startswith(("http:", "https:", "//")), source
        assert server.client.get(source).status_code == 200


def test_a_load_balancer_may_ask_with_head(server: Server) -> None:
    for path in ("/healthz", "/readyz"):
        answer = server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
