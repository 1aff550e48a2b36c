"""A small convolutional network under the artefact contract, made with numpy and onnx alone: real layers, no torch.

Pixels are scaled, two convolutions make the maps, their means the features, and one linear layer the logits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE, CHANNELS, MAPS, LABELS, CAMS = 16, 3, 16, 8, 5


def images(number: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft colour gradients, nearer to photographs than noise is: uint8 `[number, 16, 16, 3]`."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (number, 3, 3, CHANNELS), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for each in coarse]
    )


def write(path: Path, largest: float = 1.0) -> None:
    """Write the network.

    Args:
        path: Of the ONNX file.
        largest: Factor on one of the weights.
    """
    random = np.random.default_rng(0)
    constants = {
        "scale": np.full(SIZE * CHANNELS, 1 / 127.5, np.float32),
        "shift": np.full(SIZE * CHANNELS, -1, np.float32),
        "rows": np.array([0, SIZE, SIZE * CHANNELS]),
        "pixels": np.array([0, SIZE, SIZE, CHANNELS]),
        "first": random.normal(0, 0.4, (8, CHANNELS, 3, 3)).astype(np.float32),
        "first.bias": random.normal(0, 0.1, 8).astype(np.float32),
        "second": random.normal(0, 0.2, (MAPS, 8, 3, 3)).astype(np.float32),
        "second.bias": random.normal(0, 0.1, MAPS).astype(np.float32),
        "weight": random.normal(0, 1, (LABELS, MAPS)).astype(np.float32),
        "bias": np.zeros(LABELS, np.float32),
        "places": np.array([2, 3]),
        "cams": np.array([CAMS]),
    }
    constants["first"][0, 0, 0, 0] *= largest
    steps = [
        ("Cast", ["image"], ["float"], {"to": TensorProto.FLOAT}),
        ("Reshape", ["float", "rows"], ["flat"], {}),
        ("Mul", ["flat", "scale"], ["scaled"], {}),
        ("Add", ["scaled", "shift"], ["shifted"], {}),
        ("Reshape", ["shifted", "pixels"], ["normal"], {}),
        ("Transpose", ["normal"], ["planes"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["planes", "first", "first.bias"], ["one"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["one"], ["two"], {}),
        ("MaxPool", ["two"], ["three"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["three", "second", "second.bias"], ["four"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["four"], ["activations"], {}),
        ("ReduceMean", ["activations", "places"], ["features"], {"keepdims": 0}),
        ("Gemm", ["features", "weight", "bias"], ["logits"], {"transB": 1}),
        ("TopK", ["logits", "cams"], ["best", "classes"], {}),
        ("Gather", ["weight", "classes"], ["chosen"], {}),
        ("Einsum", ["chosen", "activations"], ["cam"], {"equation": "nca,nahw->nchw"}),
    ]
    half = SIZE // 2
    outputs = {
        "logits": [LABELS],
        "features": [MAPS],
        "cam": [CAMS, half, half],
        "activations": [MAPS, half, half],
    }
    graph = helper.make_graph(
        [helper.make_node(kind, given, made, name=made[0], **options) for kind, given, made, options in steps],
        "convnet",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, CHANNELS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
