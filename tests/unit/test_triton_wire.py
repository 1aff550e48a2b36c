"""Triton's messages, built by hand, are those that protobuf builds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.backends import triton_wire as wire
from service.errors import BackendFailed, FoveaError, InvalidImage, TooLarge


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("side", [1, 6, 7, 80])  # 3, 108 and 147 bytes: lengths of one and of two bytes; then three
def test_pixels(count: int, side: int) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    expected = pb.ModelInferRequest(model_name="m", model_version="7")
    expected.inputs.add(name="image", datatype="UINT8", shape=batch.shape)
    expected.raw_input_contents.append(batch.tobytes())
    expected.outputs.add(name="logits")
    message = wire.pixels_request("m", "7", list(batch), ["logits"])
    assert pb.ModelInferRequest.FromString(message) == expected


def test_files() -> None:
    files = [b"one", b"", bytes(300)]
    samples = [np.frombuffer(file, np.uint8) for file in files]
    read = pb.ModelInferRequest.FromString(wire.files_request({"model": "m"}, samples, ["logits"]))
    assert (read.model_name, read.parameters["model"].string_param) == (wire.DECODER, "m")
    assert (read.inputs[0].datatype, list(read.inputs[0].shape)) == ("BYTES", [3, 1])
    assert deserialize_bytes_tensor(read.raw_input_contents[0]).tolist() == files
    assert [output.name for output in read.outputs] == ["logits", "error"]


def response(errors: list[bytes], *tensors: np.ndarray) -> pb.ModelInferResponse:
    found = pb.ModelInferResponse()
    found.outputs.add(name="error", datatype="BYTES", shape=(len(errors), 1))
    found.raw_output_contents.append(serialize_byte_tensor(np.array(errors, np.object_)).item() if errors else b"")
    for tensor in tensors:
        found.outputs.add(name="logits", datatype="FP32", shape=tensor.shape)
        found.raw_output_contents.append(tensor.tobytes())
    return found


def test_refusals_have_their_own_class_and_words_and_bugs_have_none() -> None:
    errors = ["", "too_large make it smaller – ½", "invalid_image", "backend_failed Traceback: secret", "nonsense"]
    found = wire.refusals(response([each.encode() for each in errors]), 5)
    assert [type(each) for each in found] == [type(None), TooLarge, InvalidImage, BackendFailed, BackendFailed]
    messages = [each.message for each in found if isinstance(each, FoveaError)]
    assert messages == ["make it smaller – ½", "", wire.FAILED, wire.FAILED]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_refusal_for_each_file(count: int) -> None:
    with pytest.raises(ValueError, match="2"):
        wire.refusals(response([b""] * count), 2)


def test_tensors_must_have_a_row_for_each_image() -> None:
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(wire.tensors(response([b""] * 2, logits), 2)["logits"], logits)
    with pytest.raises(ValueError, match="3"):
        wire.tensors(response([b""] * 3, logits), 3)
    whole = response([b""] * 2, logits)
    whole.outputs[1].datatype = "INT64"
    with pytest.raises(ValueError, match="INT64"):
        wire.tensors(whole, 2)


def test_a_length_that_lies() -> None:
    broken = response([b"x"])
    broken.raw_output_contents[0] = struct.pack("<I", 2**31) + b"x"
    with pytest.raises(ValueError):
        wire.refusals(broken, 2)
