"""What the passes over exported graphs need to know of them."""

from __future__ import annotations

import onnx

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
