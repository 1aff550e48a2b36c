"""The Open Inference Protocol over HTTP, asked by clients that know nothing of Fovea."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.http import InferInput, InferRequestedOutput

from service import __version__
from tests.models import png, publish_tiny, tiny_logits, tiny_weights
from tests.server import Pixels, Server, expected, picture
from tests.triton import Triton, needs_triton

Launch = Callable[..., Server]
Client = tritonclient.http.InferenceServerClient

OUTPUTS = ("logits", "features", "cam", "activations")


def connected(server: Server) -> Client:
    return Client(server.url.removeprefix("http://"))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connected(server) as one:
        yield one


def pictures(*numbers: int) -> Pixels:
    return np.stack([picture(number) for number in numbers])


def pixels_input(pixels: Pixels, *, binary: bool = True) -> InferInput:
    return InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def files_input(*files: bytes) -> InferInput:
    data = np.array(files, object).reshape(-1, 1)
    return InferInput("encoded_image", list(data.shape), "BYTES").set_data_from_numpy(data)


def close(found: NDArray[Any] | None, wanted: NDArray[Any]) -> bool:
    return found is not None and found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-4)


# What there is.


def test_health_and_metadata(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny.encoded", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("huge")
    assert client.get_server_metadata() == {
        "name": "fovea",
        "version": __version__,
        "extensions": [
            "binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics",
        ],
    }  # fmt: skip
    assert client.get_model_metadata("tiny") == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "features", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "cam", "datatype": "FP32", "shape": [-1, 3, 4, 4]},
            {"name": "activations", "datatype": "FP32", "shape": [-1, 3, 4, 4]},
        ],
    }
    encoded = client.get_model_metadata("tiny.encoded", "1")
    assert encoded["inputs"] == [{"name": "encoded_image", "datatype": "BYTES", "shape": [-1, 1]}]
    assert encoded["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]


def test_the_config_is_tritons(client: Client) -> None:
    config = client.get_model_config("tiny")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("tiny", "onnxruntime", 4)
    assert config["version_policy"] == {"specific": {"versions": [1]}}
    (image,) = config["input"]
    assert (image["name"], image["data_type"], image["dims"]) == ("image", "TYPE_UINT8", [8, 8, 3])
    assert [(each["name"], each["dims"]) for each in config["output"]] == [
        ("logits", [3]), ("features", [3]), ("cam", [3, 4, 4]), ("activations", [3, 4, 4]),
    ]  # fmt: skip
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert json.loads(config["parameters"]["labels"]["string_value"]) == ["label-0", "label-1", "label-2"]
    (file,) = client.get_model_config("tiny.encoded")["input"]
    assert (file["data_type"], file["dims"]) == ("TYPE_STRING", [1])


# Inference.


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_to_every_output(client: Client, binary: bool) -> None:
    pixels = pictures(1, 2, 3)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    found = client.infer("tiny", [pixels_input(pixels, binary=binary)], outputs=wanted, request_id="my-id")
    answer = found.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "my-id")
    assert [output["name"] for output in answer["outputs"]] == list(OUTPUTS)
    features = pixels.mean(axis=(1, 2)) / 255
    activations = np.broadcast_to(features[:, :, None, None], (3, 3, 4, 4))
    best = np.argsort(-tiny_logits(pixels), axis=1)
    assert close(found.as_numpy("logits"), tiny_logits(pixels))
    assert close(found.as_numpy("features"), features)
    assert close(found.as_numpy("activations"), activations)
    assert close(found.as_numpy("cam"), np.einsum("nca,nahw->nchw", tiny_weights().T[best], activations))


def test_no_outputs_listed_are_the_logits_as_binary_data(client: Client) -> None:
    found = client.infer("tiny", [pixels_input(pictures(4))])
    (output,) = found.get_response()["outputs"]
    assert output == {
        "name": "logits", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12},
    }  # fmt: skip
    assert "id" not in found.get_response()
    assert close(found.as_numpy("logits"), tiny_logits(pictures(4)))


def test_each_output_as_it_asks(client: Client) -> None:
    outputs = [
        InferRequestedOutput("features", binary_data=False),
        InferRequestedOutput("cam"),
        InferRequestedOutput("logits", binary_data=False),
    ]
    found = client.infer("tiny", [pixels_input(pictures(5))], outputs=outputs)
    assert ["data" in output for output in found.get_response()["outputs"]] == [True, False, True]
    assert close(found.as_numpy("logits"), tiny_logits(pictures(5)))
    assert found.as_numpy("cam") is not None


def test_files_to_calibrated_probabilities(client: Client) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(np.full((64, 80, 3), (250, 10, 10), np.uint8)).save(jpeg, "JPEG", quality=95)
    found = client.infer("tiny.encoded", [files_input(png(picture(1)), jpeg.getvalue(), png(picture(2)))])
    assert found.get_response()["model_name"] == "tiny.encoded"
    probabilities = found.as_numpy("probabilities")
    assert close(probabilities[[0, 2]], np.stack([expected(picture(1)), expected(picture(2))]))
    assert np.allclose(probabilities[1], expected(np.full((8, 8, 3), (250, 10, 10), np.uint8)), atol=0.02)
    flat = InferInput("encoded_image", [1], "BYTES").set_data_from_numpy(np.array([png(picture(6))], object))
    assert close(client.infer("tiny.encoded", [flat]).as_numpy("probabilities"), expected(picture(6))[None])


def test_classes_in_place_of_numbers(client: Client) -> None:
    pixels = pictures(7, 8)
    outputs = [InferRequestedOutput("logits", class_count=2), InferRequestedOutput("features")]
    found = client.infer("tiny", [pixels_input(pixels)], outputs=outputs)
    logits = tiny_logits(pixels)
    for row, strings in enumerate(found.as_numpy("logits")):
        values, indices, labels = zip(*(text.decode().split(":") for text in strings), strict=True)
        assert list(map(int, indices)) == np.argsort(-logits[row])[:2].tolist()
        assert [float(value) for value in values] == pytest.approx(np.sort(logits[row])[:0:-1][:2], abs=1e-4)
        assert labels == tuple(f"label-{index}" for index in indices)
    assert found.as_numpy("features").shape == (2, 3)
    for binary in (True, False):  # more classes than there are
        output = InferRequestedOutput("probabilities", binary_data=binary, class_count=9)
        asked = client.infer("tiny.encoded", [files_input(png(pixels[0]))], outputs=[output])
        assert asked.as_numpy("probabilities").shape == (1, 3)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_both_ways(server: Server, client: Client, algorithm: str) -> None:
    found = client.infer(
        "tiny",
        [pixels_input(pictures(1, 2))],
        outputs=[InferRequestedOutput(name) for name in OUTPUTS],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert close(found.as_numpy("logits"), tiny_logits(pictures(1, 2)))
    body, length = Client.generate_request_body([pixels_input(pictures(1))])
    headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": algorithm}
    answer = server.client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert answer.headers["content-encoding"] == algorithm
    assert int(answer.headers["inference-header-content-length"]) == len(answer.content) - 12  # before compression


async def test_the_asynchronous_client(server: Server) -> None:
    async with tritonclient.http.aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("tiny"))["versions"] == ["1"]
        assert (await client.get_model_config("tiny.encoded"))["platform"] == "fovea"
        assert any(entry["name"] == "tiny.encoded" for entry in await client.get_model_repository_index())
        found = await client.infer("tiny", [pixels_input(pictures(3))], request_compression_algorithm="gzip")
        assert close(found.as_numpy("logits"), tiny_logits(pictures(3)))
        found = await client.infer("tiny.encoded", [files_input(png(picture(3)))])
        assert close(found.as_numpy("probabilities"), expected(picture(3))[None])
        with pytest.raises(tritonclient.http.InferenceServerException, match="no model 'huge'"):
            await client.infer("huge", [pixels_input(pictures(3))])


def test_a_client_written_from_the_protocol_alone(server: Server) -> None:
    """Nothing but the REST definition, the binary data extension and the standard library."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        use_the_protocol(connection)


def use_the_protocol(connection: http.client.HTTPConnection) -> None:
    def ask(method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        length = response.getheader("Inference-Header-Content-Length")
        return json.loads(content if length is None else content[: int(length)]), content[int(length or 0) :]

    assert ask("GET", "/v2/health/live")[0]["live"] is True
    assert ask("GET", "/v2/models/tiny/ready")[0] == {"name": "tiny", "ready": True}
    metadata, _ = ask("GET", "/v2/models/tiny/versions/1")
    (tensor,) = metadata["inputs"]
    shape = [2 if size == -1 else size for size in tensor["shape"]]
    pixels = pictures(9, 10)
    request = {
        "id": "42",
        "inputs": [{"name": tensor["name"], "shape": shape, "datatype": "UINT8", "data": pixels.tolist()}],
        "outputs": [{"name": "logits"}],
    }
    as_json = {"Content-Type": "application/json"}
    answer, _ = ask("POST", "/v2/models/tiny/infer", json.dumps(request).encode(), as_json)
    assert (answer["id"], answer["outputs"][0]["shape"]) == ("42", [2, 3])
    assert np.allclose(answer["outputs"][0]["data"], tiny_logits(pixels).reshape(-1), atol=1e-4)

    file = png(picture(9))
    raw = struct.pack("<I", len(file)) + file
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "encoded_image",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer, rest = ask("POST", "/v2/models/tiny.encoded/infer", head + raw, headers)
    assert answer["outputs"][0]["parameters"]["binary_data_size"] == len(rest)
    assert np.allclose(struct.unpack("<3f", rest), expected(picture(9)), atol=1e-5)


def test_files_as_base64_in_json(server: Server) -> None:
    files = [base64.b64encode(png(picture(number))).decode() for number in (1, 2)]
    tensor = {"name": "encoded_image", "shape": [2, 1], "datatype": "BYTES", "data": files}
    answer = server.client.post("/v2/models/tiny.encoded/infer", json={"inputs": [tensor]}).json()
    assert np.allclose(answer["outputs"][0]["data"], np.concatenate([expected(picture(1)), expected(picture(2))]))


# Statistics and metrics: exact changes.


def counts(client: Client, model: str) -> dict[str, Any]:
    (one,) = client.get_inference_statistics(model, "1")["model_stats"]
    assert (one["name"], one["version"]) == (model, "1")
    found = {name: duration["count"] for name, duration in one["inference_stats"].items()}
    found |= {name: one[name] for name in ("inference_count", "execution_count")}
    return found | {each["batch_size"]: each["compute_infer"]["count"] for each in one["batch_stats"]}


def changes(client: Client, model: str, work: Callable[[], object]) -> dict[Any, int]:
    before = counts(client, model)
    work()
    found = {name: count - before.get(name, 0) for name, count in counts(client, model).items()}
    return {name: change for name, change in found.items() if change}


def once(requests: int) -> dict[Any, int]:
    return dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), requests)


def test_statistics_count_requests_images_and_batches(server: Server, client: Client) -> None:
    def three() -> None:
        client.infer("tiny", [pixels_input(pictures(1))])
        client.infer("tiny", [pixels_input(pictures(1, 2, 3))])

    assert changes(client, "tiny", three) == once(2) | {"inference_count": 4, "execution_count": 2, 1: 1, 3: 1}
    assert changes(client, "tiny.encoded", three) == {}

    def files() -> None:
        client.infer("tiny.encoded", [files_input(png(picture(1)))])
        server.classify(picture(1))  # the same model, asked otherwise
        with pytest.raises(tritonclient.http.InferenceServerException):
            client.infer("tiny.encoded", [files_input(b"no image")])

    assert changes(client, "tiny.encoded", files) == once(2) | {
        "inference_count": 2, "execution_count": 2, "fail": 1, 1: 2,
    }  # fmt: skip
    everything = client.get_inference_statistics()["model_stats"]
    assert {one["name"] for one in everything} >= {"tiny", "tiny.encoded", "slow"}
    (one,) = client.get_inference_statistics("tiny")["model_stats"]
    times = {name: duration["ns"] for name, duration in one["inference_stats"].items()}
    parts = sum(times[name] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < times["compute_infer"] <= parts <= times["success"] + times["fail"]


def test_a_request_is_counted_as_any_other(server: Server, client: Client) -> None:
    before = server.metrics()
    client.infer("tiny", [pixels_input(pictures(1, 2))], headers={"X-Request-Id": "seen-in-the-log"})
    client.infer("tiny.encoded", [files_input(png(picture(1)))])
    with pytest.raises(tritonclient.http.InferenceServerException):
        client.infer("huge", [pixels_input(pictures(1))])
    after = server.metrics()

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert change("requests_total", transport="http", model="tiny", code="ok") == 2
    assert change("requests_total", transport="http", model="unknown", code="unknown_model") == 1
    assert change("queue_seconds_count", model="tiny") == change("batch_size_sum", model="tiny") == 3
    assert change("decode_seconds_count", model="tiny") == change("predictions_total", model="tiny") == 1
    assert server.wait_log(lambda line: line.get("request_id") == "seen-in-the-log")["images"] == 2


# Versions, the repository, routes, heads.


def test_versions_index_load_and_unload(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", seed=1)
    server = launch(tmp_path / "models")
    with connected(server) as client:
        assert client.get_model_metadata("tiny")["versions"] == ["1", "2"]
        for version, seed, answered in (("", 1, "2"), ("1", 0, "1"), ("2", 1, "2")):
            found = client.infer("tiny", [pixels_input(pictures(1))], model_version=version)
            assert found.get_response()["model_version"] == answered
            assert close(found.as_numpy("logits"), tiny_logits(pictures(1), seed=seed))
        index = client.get_model_repository_index()
        assert [(one["name"], one["version"], one["state"]) for one in index] == [
            (name, version, "READY") for version in ("1", "2") for name in ("tiny", "tiny.encoded")
        ]
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert not client.is_model_ready("tiny.encoded")
        assert {(one["state"], one["reason"]) for one in client.get_model_repository_index()} == {
            ("UNAVAILABLE", "it is unloaded until it is loaded again")
        }
        with pytest.raises(tritonclient.http.InferenceServerException) as refused:
            client.infer("tiny", [pixels_input(pictures(1))])
        assert refused.value.status() == "503"
        assert server.client.post("/v2/repository/index", json={"ready": True}).json() == []
        client.load_model("tiny")
        assert client.is_model_ready("tiny", "1")
        for name, config in (("tiny", "{}"), ("tiny.encoded", None), ("huge", None)):
            with pytest.raises(tritonclient.http.InferenceServerException):
                client.load_model(name, config=config)


def test_loading_needs_the_permission_to_change_the_server(repository: Path, launch: Launch) -> None:
    server = launch(repository, admin=False)
    for call in ("load", "unload"):
        answer = server.client.post(f"/v2/repository/models/tiny/{call}")
        assert answer.status_code == 403
        assert "FOVEA_ADMIN" in answer.json()["error"]
    assert server.client.post("/v2/repository/index").status_code == 200


def test_a_route_is_used_like_a_model(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", seed=1)
    server = launch(tmp_path / "models")
    route = {"primary": "tiny:1", "canary": {"model": "tiny:2", "weight": 0.5}, "shadow": "tiny:2"}
    assert server.client.put("/v1/routes/r", json=route).status_code == 200
    with connected(server) as client:
        assert client.get_model_metadata("r")["versions"] == []
        assert client.get_model_metadata("r.encoded")["name"] == "r.encoded"
        assert {("r", "", "READY"), ("r.encoded", "", "READY")} <= {
            (one["name"], one["version"], one["state"]) for one in client.get_model_repository_index()
        }
        versions = set()
        for number in range(20):
            headers = {"X-Request-Id": f"id-{number}"}
            logits = client.infer("r", [pixels_input(pictures(number))], headers=headers)
            files = client.infer("r.encoded", [files_input(png(picture(number)))], headers=headers)
            version = logits.get_response()["model_version"]
            assert (logits.get_response()["model_name"], files.get_response()["model_version"]) == ("tiny", version)
            assert close(logits.as_numpy("logits"), tiny_logits(pictures(number), seed=int(version) - 1))
            versions.add(version)
        assert versions == {"1", "2"}
        done = client.get_inference_statistics("r")["model_stats"]
        assert {(one["name"], one["version"]) for one in done} == {("r", "1"), ("r", "2")}
        assert sum(one["inference_count"] for one in done) == 20
        for call, says in ((client.unload_model, "route"), (client.infer, "chooses the version")):
            with pytest.raises(tritonclient.http.InferenceServerException, match=says):
                call("r") if call == client.unload_model else call("r", [pixels_input(pictures(1))], "1")
    made = server.client.get("/v1/routes/r").json()["counts"]
    assert made["requests"] == 40
    server.wait_until(lambda: server.client.get("/v1/routes/r").json()["counts"]["compared"] > 0)


def test_a_taught_head_takes_files(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models")
    server = launch(tmp_path / "models")
    assert server.client.put("/v1/heads/shades", json={"backbone": "tiny"}).status_code == 201
    for label, level in (("dark", 30), ("light", 220)):
        files = [("image", png(np.full((8, 8, 3), level + shade, np.uint8))) for shade in range(12)]
        answer = server.client.post("/v1/heads/shades/examples", params={"label": label}, files=files)
        assert answer.status_code == 200, answer.text
    assert server.client.post("/v1/heads/shades/fit").status_code == 200
    light = png(np.full((8, 8, 3), 225, np.uint8))
    with connected(server) as client:
        assert client.get_model_metadata("shades.encoded")["outputs"][0]["shape"] == [-1, 2]
        output = InferRequestedOutput("probabilities", class_count=1)
        found = client.infer("shades.encoded", [files_input(light)], outputs=[output])
        assert found.as_numpy("probabilities")[0, 0].decode().endswith(":1:light")
        assert client.get_inference_statistics("shades.encoded")["model_stats"][0]["inference_count"] == 1
        for call in (client.unload_model, client.load_model, client.get_model_metadata):
            with pytest.raises(tritonclient.http.InferenceServerException, match="taught head"):
                call("shades")


@needs_triton
@pytest.mark.timeout(180)
def test_in_front_of_triton(tmp_path: Path) -> None:
    """The same questions to the gateway and to Triton behind it have the same answers."""
    publish_tiny(tmp_path / "models")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    with Triton(tmp_path / "models", tmp_path).start() as triton:
        settings = {"backend": "triton", "triton_url": triton.grpc_url, "poll_seconds": 0.2}
        with Server(nothing, nothing, **settings).start() as gateway, connected(gateway) as client:
            with Client(triton.http_url.removeprefix("http://")) as behind:
                theirs, ours = behind.get_model_metadata("tiny"), client.get_model_metadata("tiny")
                assert [each | {"shape": tuple(each["shape"])} for each in theirs["inputs"]] == [
                    each | {"shape": tuple(each["shape"])} for each in ours["inputs"]
                ]
                asked = {
                    "inputs": [pixels_input(pictures(1, 2))],
                    "outputs": [InferRequestedOutput("logits"), InferRequestedOutput("cam")],
                }
                answers = [each.infer("tiny", **asked) for each in (behind, client)]
                for name in ("logits", "cam"):
                    assert close(answers[1].as_numpy(name), answers[0].as_numpy(name))
                both = {one["name"] for one in behind.get_inference_statistics("tiny")["model_stats"]}
                assert both == {"tiny"}
            found = client.infer("tiny.encoded", [files_input(png(picture(1)))])
            assert close(found.as_numpy("probabilities"), expected(picture(1))[None])
            client.unload_model("tiny")
            assert not client.is_model_ready("tiny")
            client.load_model("tiny")
            assert client.is_model_ready("tiny")
