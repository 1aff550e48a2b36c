"""fp16: everything behind the scaling of pixels in half precision, and the contract as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import parity, replay
from export.errors import GraphError
from export.half import to_half
from service.spec import OUTPUTS
from tests import convnet


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    path = tmp_path / "float.onnx"
    convnet.write(path)
    return path


def test_half_precision_keeps_the_contract(float_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    to_half(float_file, out)
    before, after = replay.session(float_file), replay.session(out)
    assert [(each.name, each.type, each.shape) for each in after.get_inputs()] == [
        ("image", "tensor(uint8)", ["N", convnet.SIZE, convnet.SIZE, convnet.CHANNELS])
    ]
    pixels = np.concatenate([convnet.images(6), np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)])
    expected = dict(zip(OUTPUTS, before.run(list(OUTPUTS), {"image": pixels}), strict=True))
    found = dict(zip(OUTPUTS, after.run(list(OUTPUTS), {"image": pixels}), strict=True))
    certain = parity.settled(expected["logits"], parity.TOLERANCES["fp16"])
    assert certain.any()
    for name in OUTPUTS:
        assert found[name].dtype == np.float32
        comparable = certain if name == "cam" else np.full(len(pixels), True)
        difference = parity.compare(name, found[name], expected[name], comparable, len(pixels))
        assert 0 < difference.relative < 5e-3 < parity.TOLERANCES["fp16"], name


def test_weights_are_halved_and_scaling_is_not(float_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    to_half(float_file, out)
    kinds = {each.name.removesuffix("_half"): each.data_type for each in onnx.load(out).graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"scale", "shift"}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16} == {
        "first",
        "first.bias",
        "second",
        "second.bias",
        "weight",
        "bias",
    }
    again = tmp_path / "again.onnx"
    to_half(float_file, again)
    assert again.read_bytes() == out.read_bytes()


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    convnet.write(path, largest=1e7)
    with pytest.raises(GraphError, match=r"first has values up to .*, beyond the 65504 of half precision"):
        to_half(path, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.parametrize("says", [True, False], ids=["with a value", "without"])
def test_constants_made_inside_the_graph_are_half_too(says: bool, float_file: Path, tmp_path: Path) -> None:
    model = onnx.load(float_file)
    options = {"value": numpy_helper.from_array(np.zeros(1, np.float32))} if says else {}
    gemm = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    model.graph.node[gemm].input[2] = "zeros"
    model.graph.node.insert(gemm, helper.make_node("ConstantOfShape", ["labels"], ["zeros"], name="zeros", **options))
    model.graph.initializer.append(numpy_helper.from_array(np.array([convnet.LABELS]), "labels"))
    onnx.save(model, float_file)
    to_half(float_file, tmp_path / "half.onnx")
    image = convnet.images(2)
    (expected,) = replay.session(float_file).run(["logits"], {"image": image})
    (found,) = replay.session(tmp_path / "half.onnx").run(["logits"], {"image": image})
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)


def test_an_operator_that_wants_float_is_named(float_file: Path, tmp_path: Path) -> None:
    model = onnx.load(float_file)
    options = {"value_floats": [0.0] * convnet.LABELS}  # which this pass does not know
    gemm = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    model.graph.node[gemm].input[2] = "zeros"
    model.graph.node.insert(gemm, helper.make_node("Constant", [], ["zeros"], name="zeros", **options))
    onnx.save(model, float_file)
    with pytest.raises(GraphError, match=r"cannot be written in half precision: .*Gemm"):
        to_half(float_file, tmp_path / "half.onnx")
