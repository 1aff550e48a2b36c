"""What is cut out of a graph: all that the outputs that stay do without, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from service.backends.graph import cut


def model() -> bytes:
    """`double`, `sum` of it and of what a branch takes from around it, and `costly`, which nobody needs."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])

    def branch(name: str, taken: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Neg", [taken], [f"{name}_out"])], name, [], [value(f"{name}_out")])

    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("Exp", ["x"], ["costly_part"]),
        helper.make_node("Abs", ["x"], ["magnitude"]),
        helper.make_node("Mul", ["costly_part", "double"], ["costly"]),
        helper.make_node(
            "If", ["yes"], ["chosen"], then_branch=branch("then", "magnitude"), else_branch=branch("else", "double")
        ),
        helper.make_node("Add", ["double", "chosen"], ["sum"]),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    outputs = [value("double"), value("costly"), value("sum")]
    graph = helper.make_graph(nodes, "test", [value("x")], outputs, [yes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(made)
    whole: bytes = made.SerializeToString()
    return whole


def test_what_stays_gives_what_it_gave() -> None:
    x = np.array([-1.0, 2.0], np.float32)
    less = cut(model(), {"double", "sum"})
    onnx.checker.check_model(onnx.load_from_string(less))
    session = onnxruntime.InferenceSession(less, providers=["CPUExecutionProvider"])
    double, total = session.run(["double", "sum"], {"x": x})
    assert double.tolist() == [-2.0, 4.0]
    assert total.tolist() == [-3.0, 2.0]  # the branch's Abs, which only the branch reads, is still there


def test_what_nobody_needs_is_gone() -> None:
    left = onnx.load_from_string(cut(model(), {"double"}))
    assert [value.name for value in left.graph.output] == ["double"]
    assert [node.op_type for node in left.graph.node] == ["Add"]
    assert [value.name for value in left.graph.input] == ["x"]
