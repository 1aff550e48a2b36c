"""fp16, for GPUs: weights and arithmetic in half precision; pixels stay uint8, outputs float32.

Scaling of pixels stays in float32: its constants, rounded, would shift every image alike. So does the distance from the
training images, whose squares may be beyond what half precision holds. All between is half, and the graph says so
tensor by tensor, so ONNX Runtime and TensorRT's strongly typed networks take it as it stands
(`onnxruntime.transformers.float16` leaves nodes unsorted, and rounds between those that it is told to leave alone). On
a CPU ONNX Runtime converts to float32 and back around every layer: right, and slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import GraphError
from export.graphs import after_outputs, before_weights

FLOAT_INPUTS = {"Resize": (2,)}  # the scales, which ONNX wants in float32 whatever is resized
SUFFIX = "_half"


def to_half(path: Path, out: Path) -> None:
    """Write a float32 graph in half precision.

    Args:
        path: A float32 ONNX file under the artefact contract.
        out: Where the fp16 file goes; the same input gives the same bytes.

    Raises:
        GraphError: A weight is beyond what half precision holds, or the result is not valid.
    """
    model = onnx.load(path)
    graph = model.graph
    constants = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    outputs = {each.name for each in graph.output}
    unscaled, pixels = before_weights(graph)
    untouched = {*unscaled, *after_outputs(graph)}

    halved: dict[str, None] = {}  # float32 constants that are read in half, in order
    cast: set[str] = set()  # tensors made of pixels that have a half copy by now
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in untouched or node.op_type == "Shape":
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if index in FLOAT_INPUTS.get(node.op_type, ()):
                continue
            if name in constants:
                halved[name] = None
            elif name in pixels:
                if name not in cast:
                    nodes.append(_cast(name, name + SUFFIX, TensorProto.FLOAT16))
                    cast.add(name)
            elif name not in outputs:
                continue
            node.input[index] = name + SUFFIX
        _halve_attributes(node)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = name + SUFFIX
                nodes.append(_cast(name + SUFFIX, name, TensorProto.FLOAT))

    read = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    kept += [_halve(constants[name], name + SUFFIX) for name in halved]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the network cannot be written in half precision: {error}") from error
    out.write_bytes(model.SerializeToString(deterministic=True))


def _cast(name: str, to: str, kind: TensorProto.DataType) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], name=f"cast_{to}", to=kind)


def _halve(tensor: TensorProto, name: str) -> TensorProto:
    """A float32 tensor in half precision, under another name."""
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if (np.isinf(half) & np.isfinite(values)).any():
        raise GraphError(
            f"{tensor.name or name} has values up to {np.abs(values[np.isfinite(values)]).max():.3g}, beyond the 65504 "
            "of half precision; publish it as fp32"
        )
    return numpy_helper.from_array(half, name)


def _halve_attributes(node: onnx.NodeProto) -> None:
    """Where a node says that it makes float32, or says nothing and means it, have it say half."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_halve(attribute.t, attribute.t.name))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
