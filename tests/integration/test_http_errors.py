"""The table of errors, row by row, against a real server: status, problem details, headers, counters."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.models import png
from tests.server import Server, is_right, picture

CLASSIFY = "/v1/models/tiny/classify"
RAW = {"content-type": "application/octet-stream"}
GOOD = png(picture(0))


def assert_problem(answer: httpx.Response, status: int, code: str, detail: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "code"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:fovea:error:{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert detail in problem["detail"]


def big(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


# 400


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b'{"images": []}'),
        ("application/json", b'{"images": [{"b64": "?"}]}'),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=X", b"--X--\r\n"),
    ],
)
def test_a_body_without_images_is_invalid_request(server: Server, content_type: str, body: bytes) -> None:
    assert_problem(
        server.client.post(CLASSIFY, content=body, headers={"content-type": content_type}), 400, "invalid_request"
    )


# 404, 405


@pytest.mark.parametrize("path", ["/v1/models/nobody/classify", "/v1/models/nobody/embed", "/v1/models/nobody"])
def test_an_unknown_model(server: Server, path: str) -> None:
    answer = server.client.get(path) if path.endswith("nobody") else server.client.post(path, content=GOOD)
    assert_problem(answer, 404, "unknown_model", "nobody")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("POST", "/v1/models/tiny/explode"),
        ("POST", "/v1/models//classify"),
        ("POST", "/v1/models/tiny/classify/more"),
        ("GET", "/v1/models/tiny%2Fclassify/x/y"),
    ],
)
def test_an_unknown_path(server: Server, method: str, path: str) -> None:
    assert_problem(server.client.request(method, path, content=b""), 404, "not_found")


@pytest.mark.parametrize(("method", "path", "allowed"), [
    ("GET", CLASSIFY, "POST"), ("PUT", CLASSIFY, "POST"), ("DELETE", "/v1/classify", "POST"),
    ("GET", "/v1/models/tiny/embed", "POST"), ("POST", "/v1/models", "GET"), ("POST", "/healthz", "GET"),
])  # fmt: skip
def test_another_method(server: Server, method: str, path: str, allowed: str) -> None:
    answer = server.client.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_head_has_the_headers_and_no_body(server: Server) -> None:
    answer = server.client.head(CLASSIFY)
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["x-request-id"]


# 413


def test_a_body_that_says_it_is_too_large(server: Server) -> None:
    assert_problem(server.client.post(CLASSIFY, content=b"\0" * 400_001, headers=RAW), 413, "too_large", "400000")


def test_a_chunked_body_that_turns_out_too_large(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(9):
            yield b"\0" * 50_000

    assert_problem(server.client.post(CLASSIFY, content=chunks(), headers=RAW), 413, "too_large", "400000")


def test_an_image_of_too_many_bytes(server: Server) -> None:
    assert_problem(
        server.client.post(CLASSIFY, content=GOOD + b"\0" * 200_001, headers=RAW), 413, "too_large", "200000"
    )


@pytest.mark.parametrize("size", [(1001, 1000), (1_000_000, 2), (60_000, 60_000)])
def test_an_image_of_too_many_pixels(server: Server, size: tuple[int, int]) -> None:
    data = bytearray(big(8, 8))
    data[16:24] = np.array(size, ">u4").tobytes()  # what the header says; nothing is decoded, so nothing else matters
    assert_problem(server.client.post(CLASSIFY, content=bytes(data), headers=RAW), 413, "too_large", "1000000")


def test_as_many_pixels_as_are_allowed(server: Server) -> None:
    assert server.client.post(CLASSIFY, content=big(1000, 1000), headers=RAW).status_code == 200


@pytest.mark.parametrize("kind", ["json", "multipart"])
def test_too_many_images(server: Server, kind: str) -> None:
    request: dict[str, Any] = {"files": [("image", GOOD)] * 5}
    if kind == "json":
        request = {"json": {"images": [{"b64": base64.b64encode(GOOD).decode()}] * 5}}
    assert_problem(server.client.post(CLASSIFY, **request), 413, "too_large", "4 images")


# 415, 422


@pytest.mark.parametrize("body", [b"hello", b"%PDF-1.7", b"<svg/>", b"GIF88a", b"\0" * 100])
def test_what_is_no_image(server: Server, body: bytes) -> None:
    assert_problem(server.client.post(CLASSIFY, content=body, headers=RAW), 415, "unsupported_format")


def test_another_content_type(server: Server) -> None:
    answer = server.client.post(CLASSIFY, content=GOOD, headers={"content-type": "text/plain"})
    assert_problem(answer, 415, "unsupported_format", "multipart/form-data")


@pytest.mark.parametrize("body", [b"", GOOD[:20], GOOD[:-5], GOOD[:40] + b"\0" + GOOD[41:]])
def test_a_broken_image(server: Server, body: bytes) -> None:
    assert_problem(server.client.post(CLASSIFY, content=body, headers=RAW), 422, "invalid_image")


# 429, 502, 504


def test_a_deadline_that_cannot_be_met_is_refused_at_once(server: Server) -> None:
    answer = server.classify(picture(0), "slow", timeout_ms=10)
    assert_problem(answer, 429, "overloaded", "deadline")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.elapsed.total_seconds() < 0.1  # it takes longer to answer than to refuse


def test_a_full_queue_refuses_what_comes_on_top(server: Server) -> None:
    """One runs, eight wait; of twenty at once at least seven find no place, and every answer is right."""
    with concurrent.futures.ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda number: server.classify(picture(number), "slow"), range(20)))
    taken = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert 8 <= len(taken) <= 13
    assert all(is_right(answers[number].json()["predictions"][0], picture(number)) for number in taken)
    for answer in answers:
        if answer.status_code != 200:
            assert_problem(answer, 429, "overloaded", "full")
            assert int(answer.headers["retry-after"]) >= 1


def test_a_backend_that_fails(server: Server) -> None:
    answer = server.classify(np.full((8, 8, 3), 255, np.uint8), "glass")
    assert_problem(answer, 502, "backend_failed")
    assert not any(word in answer.text for word in ("Gather", "onnx", "indices", "Traceback"))
    line = server.wait_log(
        lambda line: "exception" in line and line.get("request_id") == answer.headers["x-request-id"]
    )
    assert "Gather" in line["exception"]  # the log has what the client is not told


# Request ids.


@pytest.mark.parametrize("given", ["abc", "0af7651916cd43dd8448eb211c80319c", "A" * 128, "a.b_c:d/e+f=g@h-i"])
def test_a_request_id_is_taken_and_given_back(server: Server, given: str) -> None:
    for path in ("/healthz", "/nowhere"):
        assert server.client.get(path, headers={"x-request-id": given}).headers["x-request-id"] == given
    answer = server.client.post(CLASSIFY, content=GOOD, headers=RAW | {"x-request-id": given})
    assert answer.headers["x-request-id"] == given
    line = server.wait_log(lambda line: line.get("request_id") == given and CLASSIFY in line["message"])
    assert (line["code"], line["images"], line["level"]) == ("ok", 1, "info")
    assert line["ms"] > 0


@pytest.mark.parametrize("given", ["", "A" * 129, "a b", 'a"b', "a\tb", "ä".encode().decode("latin-1")])
def test_a_request_id_that_could_do_harm_is_replaced(server: Server, given: str) -> None:
    answer = server.client.get("/healthz", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert answer.headers["x-request-id"] not in ("", given)
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_made_request_ids_differ(server: Server) -> None:
    assert len({server.client.get("/healthz").headers["x-request-id"] for _ in range(20)}) == 20


# Counters.


def test_refusals_are_counted_to_the_one(server: Server) -> None:
    before = server.metrics()
    server.client.post(CLASSIFY, content=b"hello", headers=RAW)
    server.client.post(CLASSIFY, content=b"", headers=RAW)
    server.client.post(CLASSIFY, content=b"\0" * 400_001, headers=RAW)
    server.client.post(CLASSIFY + "?top_k=0", content=GOOD, headers=RAW)
    server.classify(picture(0), "slow", timeout_ms=10)
    server.client.post("/v1/models/nobody-1/classify", content=GOOD)
    after = server.metrics()

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    for code in ("unsupported_format", "invalid_image", "too_large"):
        assert change("requests_total", model="tiny", code=code) == 1
    assert change("requests_total", model="slow", code="overloaded") == 1
    assert change("requests_total", code="unknown_model") == 1
    assert change("requests_total", code="invalid_request") == 1
    assert change("requests_total") == 6
    assert change("rejected_total", reason="overloaded") == 1
    assert change("rejected_total", reason="invalid_image") == 1
    assert change("predictions_total") == 0


def test_several_images_refused_together_are_counted_each(server: Server) -> None:
    before = server.metrics()
    body = {"images": [{"b64": base64.b64encode(GOOD).decode()}] * 3}
    answer = server.client.post("/v1/models/slow/classify?timeout_ms=10", json=body)
    assert_problem(answer, 429, "overloaded")
    after = server.metrics()
    assert after("rejected_total", reason="overloaded") - before("rejected_total", reason="overloaded") == 3
    assert after("requests_total", code="overloaded") - before("requests_total", code="overloaded") == 1


def test_what_clients_write_never_becomes_a_label(server: Server) -> None:
    for number in range(30):
        server.client.post(f"/v1/models/evil-{number}/classify", content=GOOD)
        server.client.post(f"/v1/models/tiny/classify?version=evil-{number}", content=GOOD)
        server.client.get(f"/evil-{number}")
    text = server.client.get("/metrics").text
    assert "evil" not in text
    assert server.metrics().labels("model") <= {"tiny", "slow", "glass", "unknown"}


def test_a_path_cannot_forge_the_log(server: Server) -> None:
    server.client.get("/%0A%7B%22level%22:%22forged%22%7D")
    line = server.wait_log(lambda line: "forged" in line["message"])
    assert line["level"] == "info"
    assert all(json.loads(text) for text in server.log_text().splitlines()[:-1])
