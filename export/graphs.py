"""What the passes over exported graphs need to know of them."""

from __future__ import annotations

import onnx

from service.spec import DISTANCE

WEIGHTED = ("Conv", "Gemm", "MatMul")


def before_weights(graph: onnx.GraphProto) -> tuple[list[str], set[str]]:
    """What is done to pixels before the first layer with weights: casting, scaling, layout.

    Args:
        graph: Under the artefact contract, sorted; nodes have names.

    Returns:
        The names of those nodes, and of `image` and the tensors that they make of it.
    """
    nodes, tensors = [], {"image"}
    for node in graph.node:
        if node.op_type not in (*WEIGHTED, "Shape") and tensors.intersection(node.input):
            nodes.append(node.name)
            tensors.update(node.output)
    return nodes, tensors


def after_outputs(graph: onnx.GraphProto) -> set[str]:
    """The names of the nodes that make an output of another one: `distance` of `features`.

    Args:
        graph: Under the artefact contract; nodes have names.
    """
    makers = {output: node for node in graph.node for output in node.output}
    outputs = {each.name for each in graph.output}
    found: set[str] = set()
    waiting = [DISTANCE] if DISTANCE in outputs else []
    while waiting:
        node = makers[waiting.pop()]
        found.add(node.name)
        waiting += [name for name in node.input if name in makers and name not in outputs]
    return found
