"""Triton's messages. In those for inference, pixels are copied into a request once, and out of an answer never.

protobuf would copy them three times on their way into a request. So only the head of a message is left to it, and the
tensor is appended as the protocol has it: the field's tag, its length, its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.backends.base import Outputs
from service.errors import BackendFailed, FoveaError, InvalidImage, TooLarge, UnsupportedFormat

INFER = "/inference.GRPCInferenceService/ModelInfer"
DECODER = "fovea-decode"  # the model in deploy/triton/decoding
FAILED = "the backend failed on this image; the server's log says more"

_TAG = bytes([pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])  # 2: bytes that a length precedes
_FLOATS = "FP32"
_REFUSALS = {refusal.code: refusal for refusal in (InvalidImage, TooLarge, UnsupportedFormat)}


def pixels_request(model: str, version: str, samples: Sequence[NDArray[np.uint8]], outputs: Iterable[str]) -> bytes:
    """Ask a network about prepared images.

    Args:
        model: Its name.
        version: Of the network.
        samples: Each uint8 `[H, W, C]`, C-contiguous.
        outputs: Names of the outputs wanted.
    """
    head = pb.ModelInferRequest(model_name=model, model_version=version)
    head.inputs.add(name="image", datatype="UINT8", shape=(len(samples), *samples[0].shape))
    return _message(head, [sample.data for sample in samples], outputs)


def files_request(parameters: dict[str, str], samples: Sequence[NDArray[np.uint8]], outputs: Iterable[str]) -> bytes:
    """Have the decode model prepare encoded images and ask a network about them.

    Args:
        parameters: What the decode model wants to know.
        samples: Each the uint8 `[bytes]` of a file.
        outputs: Names of the network's outputs wanted.
    """
    head = pb.ModelInferRequest(model_name=DECODER)
    head.inputs.add(name="encoded_image", datatype="BYTES", shape=(len(samples), 1))
    for name, value in parameters.items():
        head.parameters[name].string_param = value
    parts = [part for sample in samples for part in (memoryview(struct.pack("<I", len(sample))), sample.data)]
    return _message(head, parts, (*outputs, "error"))


def _message(head: pb.ModelInferRequest, parts: Sequence[memoryview], outputs: Iterable[str]) -> bytes:
    for name in outputs:
        head.outputs.add(name=name)
    return b"".join((head.SerializeToString(), _TAG, _varint(sum(part.nbytes for part in parts)), *parts))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def tensors(response: pb.ModelInferResponse, rows: int) -> Outputs:
    """Float outputs by name, `[rows, ...]`.

    Raises:
        ValueError: The response is not what the protocol promises.
    """
    found: dict[str, NDArray[np.generic]] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name == "error" and tensor.datatype == "BYTES":
            continue
        if tensor.datatype != _FLOATS:
            raise ValueError(f"output {tensor.name} is {tensor.datatype}, not {_FLOATS}")
        found[tensor.name] = np.frombuffer(raw, "<f4").reshape(tuple(tensor.shape))
    if any(len(values) != rows for values in found.values()):
        raise ValueError(f"a batch of {rows} came back with other numbers of rows")
    return found


def refusals(response: pb.ModelInferResponse, files: int) -> list[FoveaError | None]:
    """What the decode model found wrong with each file.

    Raises:
        ValueError: The response is not what the decode model promises.
    """
    names = [tensor.name for tensor in response.outputs]
    raw = response.raw_output_contents[names.index("error")]
    found: list[FoveaError | None] = []
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        code, _, message = raw[position + 4 : position + 4 + length].decode().partition(" ")
        found.append((_REFUSALS[code](message) if code in _REFUSALS else BackendFailed(FAILED)) if code else None)
        position += 4 + length
    if len(found) != files:
        raise ValueError(f"the decode model spoke of {len(found)} files, not of {files}")
    return found


def present(index: pb.RepositoryIndexResponse) -> dict[str, set[str]]:
    """Every model that Triton knows, with the versions that it has ready."""
    found: dict[str, set[str]] = {}
    for row in index.models:
        if row.name.startswith("."):  # something is being published
            continue
        versions = found.setdefault(row.name, set())
        if row.state == "READY" and row.version.isdecimal():
            versions.add(row.version)
    return found


def unloaded(index: pb.RepositoryIndexResponse) -> set[str]:
    """Models that are not loaded because nobody wants them to be."""
    return {row.name for row in index.models if row.reason == "unloaded" or row.state == "UNLOADING" or not row.state}


def instances(config: ModelConfig) -> int:
    """Batches that Triton runs at once."""
    found: int = sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)
    return max(found, 1)
