"""The part of an ONNX graph that some of its outputs take.

ONNX Runtime computes all of a graph, whichever outputs it is asked for, and so does its option that promises
otherwise (`only_execute_path_to_fetches`, 1.31: not a microsecond less). What nobody asks for has to be cut out.

Of ONNX's format only the fields that matter here are described; protobuf keeps the others as they are.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto

_MESSAGES: dict[str, dict[str, tuple[int, str | None]]] = {  # name: number, and the message that it holds if not text
    "Value": {"name": (1, None)},
    "Attribute": {"g": (6, "Graph"), "graphs": (11, "Graph")},
    "Node": {"input": (1, None), "output": (2, None), "attribute": (5, "Attribute")},
    "Graph": {"node": (1, "Node"), "output": (12, "Value")},
    "Model": {"graph": (7, "Graph")},
}


def cut(model: bytes, outputs: Set[str]) -> bytes:
    """The model with only some of its outputs, and only the nodes that these take.

    Args:
        model: A serialised `ModelProto` whose nodes are in topological order, as ONNX wants them.
        outputs: Names of the outputs that stay.
    """
    parsed = _MODEL.FromString(model)
    (graph,) = parsed.graph
    kept = [value for value in graph.output if value.name[0] in outputs]
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    _replace(graph.output, kept)
    _replace(graph.node, nodes[::-1])
    cut_out: bytes = parsed.SerializeToString()
    return cut_out


def _replace(field: Any, kept: list[Any]) -> None:
    copies = [type(message).FromString(message.SerializeToString()) for message in kept]
    del field[:]
    field.extend(copies)


def _reads(node: Any) -> Iterator[str]:
    """The values that a node takes, those included that its branches take from around it."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.g, *attribute.graphs):
            yield from (value.name[0] for value in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def _model() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="fovea/onnx.proto", package="fovea.onnx", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, held) in fields.items():
            message.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED,
                type=_Field.TYPE_STRING if held is None else _Field.TYPE_MESSAGE,
                type_name=held and f".fovea.onnx.{held}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fovea.onnx.Model"))


_MODEL = _model()
