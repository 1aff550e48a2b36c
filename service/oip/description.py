"""What a model looks like to a client of the Open Inference Protocol: its metadata, and a model config as Triton's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2 as pb

from service.errors import UnknownModel
from service.spec import Contract, ModelSpec

PIXELS = "image"  # UINT8 [N, H, W, channels]
FILES = "encoded_image"  # BYTES [N, 1]
PROBABILITIES = "probabilities"  # FP32 [N, K], calibrated

_CONFIG_TYPES = {"UINT8": pb.TYPE_UINT8, "BYTES": pb.TYPE_STRING, "FP32": pb.TYPE_FP32}


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output.

    Attributes:
        shape: With the batch dimension; -1 stands for any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model.

    Attributes:
        versions: Those that can be asked for; none of a route, which chooses.
        platform: What runs it.
    """

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


def metadata(name: str, spec: Contract, versions: Sequence[str], *, encoded: bool) -> ModelMetadata:
    """Describe a model.

    Args:
        name: That it was asked for by.
        spec: Of the version that would answer.
        versions: That serve.
        encoded: Whether this is about the model that takes files, or the one that takes tensors.

    Raises:
        UnknownModel: It is a taught head, which takes files only.
    """
    if encoded:
        inputs = [TensorMetadata(FILES, "BYTES", (-1, 1))]
        outputs = [TensorMetadata(PROBABILITIES, "FP32", (-1, len(spec.labels)))]
        return ModelMetadata(name, versions, "fovea", inputs, outputs)
    network = network_of(spec)
    image = network.image
    inputs = [TensorMetadata(PIXELS, "UINT8", (-1, image.height, image.width, image.channels))]
    outputs = [TensorMetadata(output, "FP32", (-1, *shape)) for output, shape in network.output_shapes.items()]
    return ModelMetadata(name, versions, "tensorrt_plan" if network.tensorrt else "onnxruntime_onnx", inputs, outputs)


def config(model: ModelMetadata, spec: Contract, max_images: int) -> pb.ModelConfig:
    """A model as Triton would configure it; the labels of its classes are a JSON list among the parameters.

    Args:
        model: Its metadata.
        spec: Of the version that would answer.
        max_images: In one request; larger batches are never asked of a client, smaller ones are put together here.
    """
    found = pb.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend={"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime"}.get(model.platform, model.platform),
        max_batch_size=max_images,
        dynamic_batching=pb.ModelDynamicBatching(),
        input=[
            pb.ModelInput(name=each.name, data_type=_CONFIG_TYPES[each.datatype], dims=each.shape[1:])
            for each in model.inputs
        ],
        output=[
            pb.ModelOutput(name=each.name, data_type=_CONFIG_TYPES[each.datatype], dims=each.shape[1:])
            for each in model.outputs
        ],
        parameters={"labels": pb.ModelParameter(string_value=json.dumps(spec.labels, ensure_ascii=False))},
    )
    found.version_policy.specific.versions.extend(map(int, model.versions))
    return found


def config_json(model: pb.ModelConfig) -> dict[str, Any]:
    """A model config as Triton writes it in JSON: every field, whole numbers as numbers."""
    found: dict[str, Any] = MessageToDict(
        model, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _mend_numbers(found, pb.ModelConfig.DESCRIPTOR)
    return found


def network_of(spec: Contract) -> ModelSpec:
    """A spec as that of a network, which takes tensors.

    Raises:
        UnknownModel: It is that of a taught head.
    """
    if isinstance(spec, ModelSpec):
        return spec
    raise UnknownModel(f"{spec.name} is a taught head, which takes files, not tensors: ask {spec.name}.encoded")


def _mend_numbers(found: dict[str, Any], descriptor: Descriptor) -> None:
    """Make whole numbers of the text that protobuf's JSON has in place of 64-bit ones."""
    for field in descriptor.fields:
        if field.name not in found or (field.message_type and field.message_type.GetOptions().map_entry):
            continue
        value = found[field.name]
        values = value if isinstance(value, list) else [value]
        if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
            found[field.name] = [int(each) for each in values] if isinstance(value, list) else int(value)
        elif field.message_type:
            for each in values:
                _mend_numbers(each, field.message_type)
