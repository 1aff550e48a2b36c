"""Hold a version's files against its own spec: hashes, output shapes, and golden images from bytes to probabilities.

The gateway does the same whenever it loads a version. Doing it on the staged files keeps out of the repository
whatever the gateway would refuse.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime

from export import to_tensorrt
from export.errors import DriftError
from service.golden import Drifted, golden_batch, golden_difference
from service.preprocess import Preprocessor
from service.spec import ModelSpec

onnxruntime.disable_telemetry_events()

MODEL_FILE = "model.onnx"
PLAN_FILE = "model.plan"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def session(path: Path, threads: int = 2) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU that leaves idle cores alone and keeps quiet; for a plan, TensorRT's like.

    Raises:
        DriftError: ONNX Runtime cannot load the file.
        TensorRTError: TensorRT cannot load the plan.
    """
    if path.name == PLAN_FILE:
        return to_tensorrt.Plan(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise DriftError(f"{path.name} does not load in ONNX Runtime: {error}") from error


def model_file(spec: ModelSpec) -> str:
    """The name of the file that computes."""
    return MODEL_FILE if spec.tensorrt is None else PLAN_FILE


def check(spec: ModelSpec, folder: Path) -> None:
    """Check a version's directory against its spec.

    Args:
        spec: Of the version.
        folder: Its directory.

    Raises:
        DriftError: A file is missing or altered, an output has another shape or type, or a golden image
            gives other probabilities than the spec says.
        TensorRTError: A plan was built for another TensorRT or GPU than are here.
    """
    for name, expected in spec.files.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise DriftError(f"{spec.name}: {name} is not the file that was verified; publish again")
    batch = golden_batch(spec, Preprocessor(spec.image))
    if spec.tensorrt is not None:
        to_tensorrt.require(spec.tensorrt)
    runner = session(folder / model_file(spec))
    shapes = spec.output_shapes
    outputs = dict(zip(shapes, runner.run(list(shapes), {"image": batch}), strict=True))
    for name, shape in shapes.items():
        found = outputs[name]
        if found.shape != (len(batch), *shape) or found.dtype != np.float32:
            raise DriftError(f"{spec.name}: {name} is {found.dtype} {found.shape[1:]}, the spec says float32 {shape}")
    try:
        golden_difference(spec, outputs["logits"])
    except Drifted as drifted:
        raise DriftError(f"{spec.name}: {drifted}") from drifted
