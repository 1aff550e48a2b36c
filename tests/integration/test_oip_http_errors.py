"""What the Open Inference Protocol's HTTP transport refuses, and how: `{"error": "…"}`, whatever was sent."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferInput, InferRequestedOutput

from service.transports.http.oip_bodies import MAX_JSON_BYTES, MAX_JSON_CONTAINERS
from tests.models import png, publish_tiny
from tests.server import Server, picture
from tests.wire import wire

IMAGE = picture(1)[None]
PNG = png(picture(1))


def tensor(**changed: Any) -> dict[str, Any]:
    found = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": IMAGE.ravel().tolist()} | changed
    return {name: value for name, value in found.items() if value is not None}


def request(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or (tensor(),)), **more}


def binary(size: int, **changed: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changed)


def file(size: int, shape: list[int]) -> dict[str, Any]:
    return binary(size, name="encoded_image", datatype="BYTES", shape=shape)


def post(server: Server, body: bytes | dict[str, Any], model: str = "tiny", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/v2/models/{model}/infer", content=content, headers=named)


def with_data(document: dict[str, Any], data: bytes, length: int | None = None) -> tuple[bytes, str]:
    """A body, and the header that says how long its JSON is."""
    head = json.dumps(document).encode()
    return head + data, str(len(head) if length is None else length)


def error(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    return answer.status_code, body["error"]


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"\xff\xd8", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"inputs":{}}', 400, "takes one input, 'image'; the request has none"),
        (b'{"inputs":[1]}', 400, "inputs must be a list of objects"),
        (request(tensor(), tensor()), 400, "takes one input"),
        (request(*[tensor()] * 9), 413, "at most 8"),
        (request(tensor(name="picture")), 400, "the request has 'picture'"),
        (request(tensor(name=7)), 400, "must have a name"),
        (request(tensor(datatype=None)), 400, "must have a datatype"),
        (request(tensor(datatype="UINT7")), 400, "there is no datatype 'UINT7'"),
        (request(tensor(datatype="FP32")), 400, "is UINT8, not FP32"),
        (request(tensor(datatype="FP16")), 400, "FP16 cannot be sent as JSON"),
        (request(tensor(data=None)), 400, "neither data nor a binary_data_size"),
        (request(tensor(data="AAAA")), 400, "data must be a list"),
        (request(tensor(data=[256] * 192)), 400, "no UINT8"),
        (request(tensor(shape=None)), 400, "shape"),
        (request(tensor(shape=[1, 8, 8, -3])), 400, "no size: -3"),
        (request(tensor(shape=[1, 8, 8])), 400, "takes 64 elements, and there are 192"),
        (request(tensor(shape=[1, 192])), 400, "[N, 8, 8, 3]"),
        (request(tensor(shape=[3, 8, 8, 1])), 400, "[N, 8, 8, 3]"),
        (request(tensor(shape=[0, 8, 8, 3], data=[])), 400, "holds no image"),
        (request(tensor(shape=[5, 8, 8, 3], data=[0] * 960)), 413, "5 images"),
        (request(tensor(shape=[0, 2**30, 2**30, 2**30], data=[])), 400, "absurd"),
        (request(binary(192)), 400, "0 bytes are left"),
        (request(tensor(parameters={"shared_memory_region": "x"})), 400, "shared memory"),
        (request(id=7), 400, "id must be text"),
        (request(parameters=[]), 400, "must be an object"),
        (request(parameters={"timeout": "soon"}), 400, "microseconds"),
        (request(parameters={"binary_data_output": 1}), 400, "true or false"),
        (request(outputs=[{"name": "class"}]), 400, "there are logits, features, cam, activations"),
        (request(outputs=[{"name": "logits"}, {"name": "logits"}]), 400, "twice"),
        (request(outputs=[{"name": "logits", "parameters": {"classification": -1}}]), 400, "number of classes"),
        (request(outputs=[{"name": "cam", "parameters": {"classification": 2}}]), 400, "'cam'"),
        (request(outputs=[{"name": "cam", "parameters": {"shared_memory_region": "x"}}]), 400, "shared memory"),
        (request(outputs=[{}]), 400, "must have a name"),
    ],
)
def test_malformed_requests(server: Server, document: bytes | dict[str, Any], status: int, says: str) -> None:
    found, message = error(post(server, document))
    assert (found, says in message) == (status, True), message


@pytest.mark.parametrize(
    ("document", "data", "length", "says"),
    [
        (request(binary(192)), b"\0" * 191, None, "binary_data_size of 'image' is 192; 191 bytes are left"),
        (request(binary(192)), b"\0" * 193, None, "1 bytes behind the JSON belong to no input"),
        (request(binary(-1)), b"\0", None, "binary_data_size"),
        (request(binary(2**80)), b"\0", None, "binary_data_size"),
        (request(binary(4)), b"\0" * 4, None, "takes 192 bytes, and there are 4"),
        (request(binary(192) | {"data": [1]}), b"\0" * 192, None, "has data, and binary data as well"),
        (request(binary(192)), b"\0" * 192, 10_000, "must be the length of the JSON"),
        (request(binary(192)), b"\0" * 192, 0, "must be the length of the JSON"),
        (request(binary(192)), b"\0" * 192, -4, "must be the length of the JSON"),
        (request(binary(192)), b"\0" * 192, 20, "not JSON"),
    ],
)
def test_lengths_that_lie(server: Server, document: dict[str, Any], data: bytes, length: int | None, says: str) -> None:
    body, header = with_data(document, data, length)
    status, message = error(post(server, body, inference_header_content_length=header))
    assert (status, says in message) == (400, True), message


def test_files_that_cannot_be_classified(server: Server) -> None:
    def send(*files: bytes, shape: list[int] | None = None) -> tuple[int, str]:
        raw = b"".join(struct.pack("<I", len(one)) + one for one in files)
        body, header = with_data(request(file(len(raw), shape or [len(files), 1])), raw)
        return error(post(server, body, "tiny.encoded", inference_header_content_length=header))

    assert send(b"no image")[0] == 415
    assert send(PNG[:-20])[0] == 422
    status, message = send(PNG, PNG, PNG[:-20], b"no image")
    assert (status, message.startswith("image 2: ")) == (422, True)
    assert send(PNG, shape=[2, 1])[0] == send(PNG, PNG, shape=[1, 2])[0] == send(shape=[0, 1])[0] == 400
    assert send(*[b""] * 5)[0] == 413
    text = tensor(name="encoded_image", datatype="BYTES", shape=[1, 1], data=["not base64!"])
    assert error(post(server, request(text), "tiny.encoded"))[0] == 400
    assert error(post(server, request(), "tiny.encoded")) == (
        400, "tiny.encoded takes one input, 'encoded_image'; the request has 'image'",
    )  # fmt: skip


def test_more_than_is_read_or_written(server: Server, tmp_path: Path, launch: Callable[..., Server]) -> None:
    nested = b'{"inputs":[' + b"[]," * MAX_JSON_CONTAINERS + b"{}]}"
    status, message = error(post(server, nested))
    assert (status, "flat lists" in message) == (413, True)
    status, message = error(post(server, b" " * 400_001))
    assert (status, "at most 400000" in message) == (413, True)
    publish_tiny(tmp_path / "models", labels=2100)
    roomy = launch(tmp_path / "models")
    long = json.dumps(request(tensor(data=[0] * (MAX_JSON_BYTES // 4), shape=[1]))).encode()
    assert "takes 1 elements" in error(post(roomy, long))[1]  # read as a whole
    status, message = error(post(roomy, b" " * (MAX_JSON_BYTES + 1)))
    assert (status, "binary data" in message) == (413, True)
    images = tensor(shape=[64, 8, 8, 3], data=[0] * (64 * 192))
    for classes, status in ((256, 200), (257, 413)):
        output = {"name": "logits", "parameters": {"classification": classes}}
        assert post(roomy, request(images, outputs=[output])).status_code == status
    status, message = error(post(roomy, request(images)))
    assert (status, "134400 numbers" in message) == (413, True)
    assert post(roomy, request(images, parameters={"binary_data_output": True})).status_code == 200


def test_compression_that_is_none_or_too_much(server: Server) -> None:
    good = json.dumps(request()).encode()
    assert post(server, gzip.compress(good), content_encoding="gzip").status_code == 200
    bomb = gzip.compress(bytes(400_001))
    assert len(bomb) < 1000
    for body, encoding, status in (
        (bomb, "gzip", 413),
        (zlib.compress(bytes(2**24)), "deflate", 413),
        (good, "gzip", 400),
        (gzip.compress(good), "deflate", 400),
        (gzip.compress(good)[:-4], "gzip", 400),
        (gzip.compress(good) + b"more", "gzip", 400),
        (good, "br", 415),
    ):
        assert error(post(server, body, content_encoding=encoding))[0] == status, (encoding, len(body))


def test_too_late_and_too_much(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        slow = InferInput("image", [1, 8, 8, 3], "UINT8").set_data_from_numpy(IMAGE)
        before = time.monotonic()
        with pytest.raises(tritonclient.http.InferenceServerException) as refused:
            client.infer("slow", [slow], timeout=20_000)  # microseconds
        assert refused.value.status() in ("429", "504")
        assert time.monotonic() - before < 5
        with pytest.raises(tritonclient.http.InferenceServerException) as refused:
            client.infer("slow", [slow], query_params={"timeout_ms": 20})
        assert refused.value.status() in ("429", "504")
        outputs = [InferRequestedOutput("logits")]
        assert client.infer("slow", [slow], outputs=outputs, timeout=0).as_numpy("logits") is not None
    status, message = error(server.client.post("/v2/models/tiny/infer?top_k=1", json=request()))
    assert (status, "timeout_ms" in message) == (400, True)


def test_paths_and_methods(server: Server) -> None:
    for method, path, status in (
        ("GET", "/v2/models", 404),
        ("GET", "/v2/nothing/here", 404),
        ("POST", "/v2/models//infer", 404),
        ("GET", "/v2/models/tiny/versions", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2/models/tiny", 405),
        ("DELETE", "/v2/health/live", 405),
        ("GET", "/v2/models/huge", 404),
        ("GET", "/v2/models/huge/stats", 404),
        ("GET", "/v2/models/tiny/versions/2/stats", 404),
        ("GET", "/v2/models/tiny/versions/x/config", 404),
        ("GET", "/v2/models/huge.encoded/ready", 404),
        ("POST", "/v2/models/huge/infer", 404),
        ("POST", "/v2/repository/models/huge/load", 404),
        ("POST", "/v2/repository/models/tiny.encoded/unload", 400),
    ):
        answer = server.client.request(method, path)
        assert error(answer)[0] == status, path
        assert (status == 405) == ("allow" in answer.headers)
    assert server.client.head("/v2/health/ready").status_code == server.client.get("/v2/").status_code == 200
    assert error(server.client.post("/v2/repository/index", content=b"[]"))[0] == 400
    assert server.client.get("/v3").json()["code"] == "not_found"  # elsewhere errors are problem details


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(-5, 400), st.integers(0, 300))
def test_whatever_is_sent_is_answered(server: Server, noise: bytes, length: int, cut: int) -> None:
    raw = struct.pack("<I", len(PNG)) + PNG
    body, _ = with_data(request(file(len(raw), [1, 1])), raw)
    mixed = body[:cut] + noise + body[cut + len(noise) :]
    for model in ("tiny", "tiny.encoded"):
        answer = post(server, mixed, model, inference_header_content_length=str(length))
        assert answer.status_code in (200, 400, 413, 415, 422), answer.text
        assert set(answer.json()) == {"error"} or answer.status_code == 200


async def test_a_client_that_goes_away_is_not_waited_for(server: Server) -> None:
    body = json.dumps(request(id="gone")).encode()
    head = "POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\nx-request-id: v2-gone\r\n"
    async with wire(server.port) as line:
        await line.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.sleep(0.05)
        line.cut()
    found = await asyncio.to_thread(server.wait_log, lambda entry: entry.get("request_id") == "v2-gone")
    assert (found["code"], found["images"]) == ("client_gone", 1)
