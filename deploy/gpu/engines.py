"""What computes: ONNX Runtime on the CPU, on CUDA, and TensorRT. The last two have not yet run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.gpu.rows import Failed, Skipped
from deploy.gpu.subject import TENSORRT_INT8, Subject
from export import parity, replay, to_tensorrt
from service.spec import OUTPUTS, Precision

CPU, CUDA, TENSORRT = "ONNX Runtime, CPU", "ONNX Runtime, CUDA", "TensorRT"
PROVIDER = "CUDAExecutionProvider"
# TF32 keeps as many digits as half precision does, so it is allowed as much.
ALLOWED: dict[str, Precision] = {"fp32": "fp32", "tf32": "fp16", "fp16": "fp16", "int8": "int8"}


class Session(Protocol):
    """ONNX Runtime's session, or `export.to_tensorrt.Plan`."""

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """The named outputs for `image`."""


@dataclass(frozen=True)
class Engine:
    """Something that computes in one precision.

    Attributes:
        name: `CPU`, `CUDA` or `TENSORRT`.
        precision: fp32, tf32, fp16 or int8: which rate of matrix products it is held against.
        session: That computes.
    """

    name: str
    precision: str
    session: Session


def cpu(subject: Subject, precision: str, threads: int) -> Engine:
    """ONNX Runtime on the CPU."""
    return Engine(CPU, precision, replay.session(_file(subject, precision), threads))


def cuda(subject: Subject, precision: str) -> Engine:
    """ONNX Runtime on the GPU; fp32 really is that, which ONNX Runtime has to be told.

    Raises:
        Skipped: This ONNX Runtime has no CUDA.
        Failed: It has, and fell back to the CPU, which it does in silence.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise Skipped(f"ONNX Runtime {onnxruntime.__version__} here is the CPU's build: install onnxruntime-gpu")
    path = _file(subject, "fp32" if precision == "tf32" else precision)
    onnxruntime.preload_dlls()  # CUDA's libraries, where they are Python packages
    options = {"use_tf32": "1" if precision == "tf32" else "0"}
    session = onnxruntime.InferenceSession(path, providers=[(PROVIDER, options), "CPUExecutionProvider"])
    if PROVIDER not in session.get_providers():
        raise Failed("ONNX Runtime could not load CUDA and fell back to the CPU: its words above say what is missing")
    return Engine(CUDA, precision, session)


def tensorrt(subject: Subject, precision: str, batch: tuple[int, int, int]) -> Engine:
    """A TensorRT plan, built here.

    Args:
        subject: The network.
        precision: fp32, fp16 or int8.
        batch: Images: the fewest, those that the plan is tuned for, and the most.

    Raises:
        ModuleNotFoundError: TensorRT is not installed.
        TensorRTError: TensorRT refuses the network.
    """
    importlib.import_module("tensorrt")  # where it is missing, the check is skipped
    path = _file(subject, TENSORRT_INT8 if precision == "int8" else precision)
    plan = path.with_name(f"{precision}-{replay.PLAN_FILE}")
    to_tensorrt.build(path, plan, subject.candidate.image, batch)
    return Engine(TENSORRT, precision, to_tensorrt.Plan(plan))


def agreement(engine: Engine, subject: Subject, threads: int) -> str:
    """Hold an engine against the fp32 file on the CPU, in batches of several sizes.

    Class activation maps are compared where the logits lie far enough apart for the classes to come in one order.

    Args:
        engine: Any.
        subject: The network.
        threads: Of the CPU.

    Returns:
        How far each output is from the reference.

    Raises:
        Failed: Too far.
        Skipped: There is no fp32 file.
    """
    tolerance = parity.TOLERANCES[ALLOWED[engine.precision]]
    reference = replay.session(_file(subject, "fp32"), threads)
    expected = dict(zip(OUTPUTS, reference.run(OUTPUTS, {"image": subject.pixels}), strict=True))
    everything = np.full(len(subject.pixels), True)
    comparable = dict.fromkeys(OUTPUTS, everything)
    comparable["cam"] = parity.settled(expected["logits"], min(tolerance, parity.SETTLED))
    worst = {name: 0.0 for name in OUTPUTS if comparable[name].any()}
    for size in parity.BATCHES:
        parts = [
            engine.session.run(OUTPUTS, {"image": subject.pixels[start : start + size]})
            for start in range(0, len(subject.pixels), size)
        ]
        found = dict(zip(OUTPUTS, zip(*parts, strict=True), strict=True))
        for name in worst:
            apart = parity.compare(name, np.concatenate(found[name]), expected[name], comparable[name], size)
            worst[name] = max(worst[name], apart.relative)
    said = "differs from the CPU by " + ", ".join(f"{name} {value:.1g}" for name, value in worst.items())
    said = f"{said}; {tolerance:g} is allowed"
    if max(worst.values()) > tolerance:
        raise Failed(said)
    return said


def _file(subject: Subject, name: str) -> Path:
    path = subject.file(name)
    if not path.exists():
        raise Skipped(f"there is no {name} file: see its export above")
    return path
