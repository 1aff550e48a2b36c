"""The Open Inference Protocol over gRPC: unmodified tritonclient, blocking and asyncio, and one made from its text."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.models import png, tiny_logits
from tests.rpc import Failure, Rpc
from tests.server import Pixels, Server, expected, picture

Launch = Callable[..., Server]

INFER = "/inference.GRPCInferenceService/ModelInfer"
PIXELS = np.stack([picture(number) for number in range(3)])


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as made:
        yield made


def pixels(images: Pixels = PIXELS, module: Any = triton) -> Any:
    made = module.InferInput("image", images.shape, "UINT8")
    made.set_data_from_numpy(images)
    return made


def files(*images: bytes, shape: list[int] | None = None, module: Any = triton) -> Any:
    made = module.InferInput("encoded_image", shape or [len(images), 1], "BYTES")
    made.set_data_from_numpy(np.array(images, object).reshape(shape or [len(images), 1]))
    return made


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as raised:
        call()
    return str(raised.value.status()).removeprefix("StatusCode."), str(raised.value.message())


# What there is.


def test_what_clients_look_at_first(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert [client.is_model_ready(name) for name in ("tiny", "tiny.encoded", "nobody")] == [True, True, False]
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "7")
    metadata = client.get_server_metadata()
    assert metadata.name == "fovea"
    assert "shared_memory" not in " ".join(metadata.extensions)


def test_metadata_and_config_say_what_infer_takes(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("tiny", as_json=True)
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "3"]}]
    assert [output["name"] for output in metadata["outputs"]] == ["logits", "features", "cam", "activations"]
    encoded = client.get_model_metadata("tiny.encoded", as_json=True)
    assert encoded["inputs"] == [{"name": "encoded_image", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert encoded["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": ["-1", "3"]}]
    config = client.get_model_config("tiny").config
    assert (config.name, config.max_batch_size) == ("tiny", 4)
    assert json.loads(config.parameters["labels"].string_value) == ["label-0", "label-1", "label-2"]
    assert refusal(lambda: client.get_model_config("nobody"))[0] == "NOT_FOUND"


def test_the_index_lists_every_model_twice(client: triton.InferenceServerClient) -> None:
    models = client.get_model_repository_index().models
    assert {(each.name, each.state) for each in models} >= {("tiny", "READY"), ("tiny.encoded", "READY")}


# Inference.


def test_tensors(client: triton.InferenceServerClient) -> None:
    answer = client.infer("tiny", [pixels()], request_id="r-1")
    assert np.allclose(answer.as_numpy("logits"), tiny_logits(PIXELS), atol=1e-5)
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r-1", "tiny", "1")
    assert [output.name for output in response.outputs] == ["logits"]


def test_the_outputs_that_are_asked_for_in_their_order(client: triton.InferenceServerClient) -> None:
    names = ["activations", "features", "logits", "cam"]
    outputs = [triton.InferRequestedOutput(name) for name in names]
    answer = client.infer("tiny", [pixels()], model_version="1", outputs=outputs)
    assert [output.name for output in answer.get_response().outputs] == names
    shapes = {name: answer.as_numpy(name).shape for name in names}
    assert shapes == {"activations": (3, 3, 4, 4), "features": (3, 3), "logits": (3, 3), "cam": (3, 3, 4, 4)}
    assert np.allclose(answer.as_numpy("features"), PIXELS.mean((1, 2)) / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [[3, 1], [3]])
def test_files(client: triton.InferenceServerClient, shape: list[int]) -> None:
    answer = client.infer("tiny.encoded", [files(*map(png, PIXELS), shape=shape)])
    assert np.allclose(answer.as_numpy("probabilities"), [expected(image) for image in PIXELS], atol=1e-6)
    assert answer.get_response().model_name == "tiny.encoded"


def test_a_jpeg(client: triton.InferenceServerClient) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(3)).save(buffer, "JPEG", quality=100, subsampling=0)
    found = client.infer("tiny.encoded", [files(buffer.getvalue())]).as_numpy("probabilities")
    assert np.allclose(found, [expected(picture(3))], atol=0.02)


def test_classification(client: triton.InferenceServerClient) -> None:
    logits = tiny_logits(PIXELS)
    found = client.infer("tiny", [pixels()], outputs=[triton.InferRequestedOutput("logits", class_count=2)])
    rows = found.as_numpy("logits")
    assert rows.shape == (3, 2)
    for row, values in zip(rows, logits, strict=True):
        for text, index in zip(row, np.argsort(-values, kind="stable"), strict=False):
            value, number, label = text.decode().split(":")
            assert (int(number), label) == (index, f"label-{index}")
            assert float(value) == pytest.approx(values[index], abs=1e-4)


def test_statistics_change_by_exactly_what_was_asked(client: triton.InferenceServerClient) -> None:
    def look() -> Any:
        (found,) = client.get_inference_statistics("tiny").model_stats
        return found

    before = look()
    client.infer("tiny", [pixels()])
    client.infer("tiny", [pixels(PIXELS[:1])])
    refusal(lambda: client.infer("tiny", [pixels(np.zeros((5, 8, 8, 3), np.uint8))]))
    after = look()
    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        one, other = (getattr(look.inference_stats, part) for look in (before, after))
        assert other.count - one.count == 2
        assert other.ns > one.ns
    sizes = {each.batch_size for each in after.batch_stats}
    assert {1, 3} <= sizes
    assert refusal(lambda: client.get_inference_statistics("nobody"))[0] == "NOT_FOUND"


# Streams.


def test_a_stream_is_answered_in_order_errors_too(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(8):
        model = "nobody" if number == 5 else "tiny"
        client.async_stream_infer(model, [pixels(PIXELS[number % 3][None])], request_id=str(number))
    found = [answers.get(timeout=20) for _ in range(8)]
    client.stop_stream()
    for number, (result, error) in enumerate(found):
        if number == 5:
            assert "nobody" in str(error)
        else:
            assert result.get_response().id == str(number)
            assert np.allclose(result.as_numpy("logits"), tiny_logits(PIXELS[number % 3][None]), atol=1e-5)


async def test_the_asyncio_client(server: Server) -> None:
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        assert await client.is_server_ready()
        answer = await client.infer("tiny", [pixels(module=triton_aio)])
        assert np.allclose(answer.as_numpy("logits"), tiny_logits(PIXELS), atol=1e-5)

        async def requests() -> Any:
            for number in range(3):
                yield {
                    "model_name": "tiny",
                    "inputs": [pixels(PIXELS[number][None], triton_aio)],
                    "request_id": str(number),
                }

        ids = [result.get_response().id async for result, error in client.stream_infer(requests()) if error is None]
        assert ids == ["0", "1", "2"]


# Errors.


@pytest.mark.parametrize(
    ("model", "given", "status", "detail"),
    [
        ("nobody", pixels(), "NOT_FOUND", "nobody"),
        ("tiny", files(b""), "INVALID_ARGUMENT", "'image'"),
        ("tiny", pixels(np.zeros((1, 9, 8, 3), np.uint8)), "INVALID_ARGUMENT", "8, 8, 3"),
        ("tiny", pixels(np.zeros((5, 8, 8, 3), np.uint8)), "RESOURCE_EXHAUSTED", "4"),
        ("tiny.encoded", files(png(PIXELS[0]), b"hello"), "INVALID_ARGUMENT", "1"),
        ("tiny.encoded", files(bytes(200_001)), "RESOURCE_EXHAUSTED", "200000"),
        ("tiny.encoded", files(bytes(400_001)), "RESOURCE_EXHAUSTED", "400000"),
        ("glass", pixels(np.full((1, 8, 8, 3), 255, np.uint8)), "INTERNAL", "log"),
    ],
)
def test_refusals(client: triton.InferenceServerClient, model: str, given: Any, status: str, detail: str) -> None:
    found, message = refusal(lambda: client.infer(model, [given]))
    assert found == status
    assert detail in message


def test_what_is_not_served_is_unimplemented(client: triton.InferenceServerClient) -> None:
    assert refusal(lambda: client.register_system_shared_memory("a", "/b", 1))[0] == "UNIMPLEMENTED"
    assert refusal(client.get_trace_settings)[0] == "UNIMPLEMENTED"


def test_a_timeout_in_the_request(client: triton.InferenceServerClient) -> None:
    started = time.monotonic()
    found, _ = refusal(lambda: client.infer("slow", [pixels(PIXELS[:1])], timeout=50_000))  # microseconds
    assert found in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < 1


def message(**options: Any) -> pb.ModelInferRequest:
    """A request of one black image, whose contents are to be filled in."""
    made = pb.ModelInferRequest(model_name="tiny", **options)
    made.inputs.add(name="image", datatype="UINT8", shape=[1, 8, 8, 3])
    return made


def test_typed_contents_as_well_as_raw(server: Server) -> None:
    typed, raw = message(), message(raw_input_contents=[PIXELS[1].tobytes()])
    typed.inputs[0].contents.uint_contents.extend(PIXELS[1].ravel().tolist())
    with Rpc(server) as rpc:
        answers = [rpc.raw(INFER, each.SerializeToString()) for each in (typed, raw)]
    for answer in answers:
        assert isinstance(answer, bytes), answer
        (data,) = pb.ModelInferResponse.FromString(answer).raw_output_contents
        assert np.allclose(np.frombuffer(data, "<f4"), tiny_logits(PIXELS[1][None])[0], atol=1e-5)


def broken() -> Iterator[tuple[pb.ModelInferRequest, str]]:
    yield message(), "elements"
    both = message(raw_input_contents=[bytes(192)])
    both.inputs[0].contents.uint_contents.append(0)
    yield both, "either"
    yield message(raw_input_contents=[bytes(191)]), "192 bytes"
    yield message(raw_input_contents=[bytes(192)] * 2), "raw_input_contents has 2"
    elsewhere = message()
    elsewhere.inputs[0].contents.int_contents.extend([0] * 192)
    yield elsewhere, "uint_contents"
    too_much = message()
    too_much.inputs[0].contents.uint_contents.extend([256] * 192)
    yield too_much, "UINT8"
    half = message()
    half.inputs[0].datatype = "FP16"
    yield half, "raw_input_contents"
    shared = message()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    yield shared, "shared memory"
    negative = message(raw_input_contents=[bytes(192)])
    negative.outputs.add(name="logits").parameters["classification"].int64_param = -1
    yield negative, "classification"
    timeout = message(raw_input_contents=[bytes(192)])
    timeout.parameters["timeout"].string_param = "soon"
    yield timeout, "timeout"
    yield message(raw_input_contents=[bytes(192)], model_version="x"), "x"


@pytest.mark.parametrize(("request_", "detail"), list(broken()))
def test_malformed_requests(server: Server, request_: pb.ModelInferRequest, detail: str) -> None:
    with Rpc(server) as rpc:
        found = rpc.raw(INFER, request_.SerializeToString())
    assert isinstance(found, Failure), found
    assert found.code in ("invalid_request", "unknown_model")
    assert detail in found.detail


# Loading and unloading.


def test_loading_and_unloading(repository: Path, launch: Launch) -> None:
    server = launch(repository)
    with triton.InferenceServerClient(server.grpc) as client:
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert refusal(lambda: client.infer("tiny", [pixels()]))[0] == "UNAVAILABLE"
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        assert refusal(lambda: client.load_model("nobody"))[0] == "NOT_FOUND"
        assert refusal(lambda: client.load_model("tiny", config="{}"))[0] == "INVALID_ARGUMENT"


def test_loading_where_it_is_not_taken(repository: Path, launch: Launch) -> None:
    server = launch(repository, admin=False)
    with triton.InferenceServerClient(server.grpc) as client:
        for call in (client.load_model, client.unload_model):
            status, detail = refusal(lambda call=call: call("tiny"))  # type: ignore[misc]
            assert status == "PERMISSION_DENIED"
            assert "FOVEA_ADMIN" in detail
        assert client.is_model_ready("tiny")


# A client made from the protocol's definition alone, in a process that has never heard of tritonclient.

PROTOCOL = """
syntax = "proto3";
package inference;

service GRPCInferenceService {
  rpc ServerLive(ServerLiveRequest) returns (ServerLiveResponse) {}
  rpc ServerReady(ServerReadyRequest) returns (ServerReadyResponse) {}
  rpc ModelReady(ModelReadyRequest) returns (ModelReadyResponse) {}
  rpc ServerMetadata(ServerMetadataRequest) returns (ServerMetadataResponse) {}
  rpc ModelMetadata(ModelMetadataRequest) returns (ModelMetadataResponse) {}
  rpc ModelInfer(ModelInferRequest) returns (ModelInferResponse) {}
}

message ServerLiveRequest {}
message ServerLiveResponse { bool live = 1; }
message ServerReadyRequest {}
message ServerReadyResponse { bool ready = 1; }
message ModelReadyRequest { string name = 1; string version = 2; }
message ModelReadyResponse { bool ready = 1; }
message ServerMetadataRequest {}
message ServerMetadataResponse { string name = 1; string version = 2; repeated string extensions = 3; }
message ModelMetadataRequest { string name = 1; string version = 2; }
message ModelMetadataResponse {
  message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }
  string name = 1;
  repeated string versions = 2;
  string platform = 3;
  repeated TensorMetadata inputs = 4;
  repeated TensorMetadata outputs = 5;
}
message ModelInferRequest {
  message InferInputTensor {
    string name = 1;
    string datatype = 2;
    repeated int64 shape = 3;
    map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  message InferRequestedOutputTensor { string name = 1; map<string, InferParameter> parameters = 2; }
  string model_name = 1;
  string model_version = 2;
  string id = 3;
  map<string, InferParameter> parameters = 4;
  repeated InferInputTensor inputs = 5;
  repeated InferRequestedOutputTensor outputs = 6;
  repeated bytes raw_input_contents = 7;
}
message ModelInferResponse {
  message InferOutputTensor {
    string name = 1;
    string datatype = 2;
    repeated int64 shape = 3;
    map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  string model_name = 1;
  string model_version = 2;
  string id = 3;
  map<string, InferParameter> parameters = 4;
  repeated InferOutputTensor outputs = 5;
  repeated bytes raw_output_contents = 6;
}
message InferParameter {
  oneof parameter_choice { bool bool_param = 1; int64 int64_param = 2; string string_param = 3; }
}
message InferTensorContents {
  repeated bool bool_contents = 1;
  repeated int32 int_contents = 2;
  repeated int64 int64_contents = 3;
  repeated uint32 uint_contents = 4;
  repeated uint64 uint64_contents = 5;
  repeated float fp32_contents = 6;
  repeated double fp64_contents = 7;
  repeated bytes bytes_contents = 8;
}
"""

CLIENT = """
import struct, sys
import grpc
import open_inference_pb2 as pb, open_inference_pb2_grpc as services

stub = services.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
image = open(sys.argv[2], "rb").read()
assert stub.ServerLive(pb.ServerLiveRequest()).live and stub.ServerReady(pb.ServerReadyRequest()).ready
assert stub.ModelReady(pb.ModelReadyRequest(name="tiny")).ready
(given,) = stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny.encoded")).inputs
request = pb.ModelInferRequest(model_name="tiny.encoded", id="7")
tensor = request.inputs.add(name=given.name, datatype=given.datatype, shape=[1, 1])
tensor.contents.bytes_contents.append(image)
answer = stub.ModelInfer(request)
assert answer.id == "7" and answer.outputs[0].shape == [1, 3], answer
print(*struct.unpack("<3f", answer.raw_output_contents[0]))
try:
    stub.ModelInfer(pb.ModelInferRequest(model_name="nobody"))
except grpc.RpcError as error:
    assert error.code() is grpc.StatusCode.NOT_FOUND and "nobody" in error.details()
else:
    raise AssertionError("nobody answered")
assert "tritonclient" not in sys.modules
"""


def test_a_client_made_from_the_protocols_definition_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "open_inference.proto").write_text(PROTOCOL)
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "image.png").write_bytes(png(picture(5)))
    protoc = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        "--python_out=.",
        "--grpc_python_out=.",
        "open_inference.proto",
    ]
    subprocess.run(protoc, cwd=tmp_path, check=True, timeout=60)
    command = [sys.executable, "client.py", server.grpc, "image.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [float(value) for value in done.stdout.split()] == pytest.approx(expected(picture(5)).tolist(), abs=1e-6)


def test_messages_may_be_as_large_as_a_request(repository: Path, launch: Launch) -> None:
    """Beyond the four megabytes that gRPC would take by itself."""
    server = launch(repository, max_images=64)
    with grpc.insecure_channel(server.grpc) as channel:
        large = message(raw_input_contents=[bytes(192)])
        large.raw_input_contents[0] = png(picture(6)) + bytes(6_000_000)
        large.model_name = "tiny.encoded"
        large.inputs[0].name, large.inputs[0].datatype = "encoded_image", "BYTES"
        large.inputs[0].ClearField("shape")
        large.inputs[0].shape.append(1)
        data = large.raw_input_contents[0]
        large.raw_input_contents[0] = len(data).to_bytes(4, "little") + data
        answer = channel.unary_unary(INFER)(large.SerializeToString(), timeout=20)
    (found,) = pb.ModelInferResponse.FromString(answer).raw_output_contents
    assert np.allclose(np.frombuffer(found, "<f4"), expected(picture(6)), atol=1e-6)
