"""A tiny model under the whole artefact contract, made with nothing but numpy and onnx: for tests without torch.

The maps are the image's 2×2 means, the features their spatial means (so the model is a linear classifier of
the mean colour), and the activation maps of a label its weights times the maps.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export import repository as model_repository
from export.replay import MODEL_FILE, sha256
from service.spec import Accuracy, Calibration, Golden, ImageSpec, ModelSpec, Weights

CHANNELS = 3
GAIN = 8.0  # mean colours differ little; this makes some predictions confident


def png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]` as an encoded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_weights(labels: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """The classifier of mean colours, float32 `[3, K]`; the first three labels are red, green and blue for seed 0."""
    weights = np.random.default_rng(seed).normal(0, 0.25, (CHANNELS, labels))
    diagonal = min(CHANNELS, labels)
    weights[range(diagonal), range(diagonal)] += 1
    return (GAIN * weights).astype(np.float32)


def tiny_logits(pixels: NDArray[np.uint8], labels: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """What the tiny model gives for uint8 `[N, H, W, 3]`, in numpy: float32 `[N, K]`."""
    return (pixels.astype(np.float32).mean(axis=(1, 2)) / 255) @ tiny_weights(labels, seed)


def tiny_model(path: Path, labels: int = 3, size: int = 8, seed: int = 0, work: int = 0) -> None:
    """Write the model.

    Args:
        path: Of the ONNX file.
        labels: K.
        size: Height and width of the image; even.
        seed: Of the weights.
        work: Rounds of idle arithmetic per batch, of about a millisecond each: a model that takes its time.
    """
    weights = tiny_weights(labels, seed)
    maps = min(5, labels)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["activations"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["activations"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["logits" if not work else "prompt_logits"]),
        helper.make_node("TopK", ["logits", "maps"], ["top", "classes"]),
        helper.make_node("Gather", ["rows", "classes"], ["chosen"]),
        helper.make_node("Einsum", ["chosen", "activations"], ["cam"], equation="nca,nahw->nchw"),
    ]
    constants = [
        numpy_helper.from_array(np.float32(255), "full"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.ascontiguousarray(weights.T), "rows"),
        numpy_helper.from_array(np.array([maps], np.int64), "maps"),
    ]
    if work:
        nodes[7:7] = _work(constants, work)
    half = size // 2
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, CHANNELS])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", labels]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", CHANNELS]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", maps, half, half]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["N", CHANNELS, half, half]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def rounds_of(seconds: float) -> int:
    """How many rounds of idle arithmetic take about that long on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        tiny_model(path, work=20)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        session.run(["logits"], {"image": np.zeros((1, 8, 8, CHANNELS), np.uint8)})
        taken.append(time.perf_counter() - started)
    return round(20 * seconds / min(taken))


def tiny_spec(name: str = "tiny", labels: int = 3, size: int = 8, seed: int = 0) -> ModelSpec:
    """The spec of that model, version 1, without hashes of files: `files` names the model file only."""
    colours = np.random.default_rng(1).integers(0, 256, (3, size, size, CHANNELS), np.uint8)
    colours[0, :, :, 0] = 255  # red enough to be sure of
    golden = tuple(
        Golden(name=f"golden-{index}.png", data=png(pixels), logits=tuple(map(float, logits)))
        for index, (pixels, logits) in enumerate(zip(colours, tiny_logits(colours, labels, seed), strict=True))
    )
    return ModelSpec(
        name=name,
        version="1",
        architecture="tiny",
        weights=Weights(source=f"random (seed {seed})"),
        image=ImageSpec(height=size, width=size, channels=3, resize="stretch", interpolation="bilinear"),
        labels=tuple(f"label-{index}" for index in range(labels)),
        features=CHANNELS,
        maps=(CHANNELS, size // 2, size // 2),
        places=(1, 1),
        parameters=CHANNELS * labels,
        macs=CHANNELS * labels,
        accuracy=Accuracy(data="nothing", images=1, top1=1.0),
        calibration=Calibration(temperature=1.5, conformal_quantile=0.8, abstain_above_energy=0.0),
        golden=golden,
        files={MODEL_FILE: "0" * 64},
    )


def publish_tiny(
    repository: Path, name: str = "tiny", labels: int = 3, size: int = 8, seed: int = 0, work: int = 0
) -> ModelSpec:
    """Publish the tiny model as the next version of `name`, really: staged, replayed and renamed into place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        tiny_model(path, labels, size, seed, work)
        spec = tiny_spec(name, labels, size, seed).model_copy(update={"files": {MODEL_FILE: sha256(path)}})
        return model_repository.publish(repository, spec, Path(folder))


def _work(constants: list[TensorProto], rounds: int) -> list[onnx.NodeProto]:
    """Nodes that multiply matrices in a loop and add nothing to the logits."""
    side = 384
    constants += [
        numpy_helper.from_array(np.zeros((side, side), np.float32), "matrix"),
        numpy_helper.from_array(np.array(rounds, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("MatMul", ["state_in", "matrix"], ["state_out"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [side, side]),
        ],
    )
    return [
        helper.make_node("Loop", ["rounds", "go", "matrix"], ["state"], body=body),
        helper.make_node("ReduceSum", ["state"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["prompt_logits", "nothing"], ["logits"]),
    ]
