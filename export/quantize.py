"""int8 by static quantization: ranges from real images, formats by what they gain here, accuracy as the gate.

Weights are quantized per output channel to 7 bits, activations per tensor to 8. Seven, because x86 processors without
VNNI add products of 8 bits in pairs in saturating 16 bits (`vpmaddubsw`): 2·255·127 overflows there, 2·255·64 does not.
So an artefact computes the same on every processor up to rounding, and what is measured on one holds on the others; it
is no slower. On x86 activations are unsigned: signed ones gain nothing there.

Kept in float: casting and scaling of pixels, whatever only `cam` needs, and the last fully connected layer, whose error
would be the logits' own and whose share of the arithmetic is small. If accuracy suffers, the first and the last layer
with weights stay in float as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization as ort
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export import calibrate, replay, throughput
from export.errors import QuantizationError
from export.graphs import WEIGHTED, before_weights

MAX_LOSS = 0.005  # of held-out accuracy
BATCH = 8
WORTHWHILE = 1.05  # a format has to beat the one before it by more than noise, or the same command gives other bytes
FLOAT = "fp32"  # what the figures call the graph that is quantized

# What is quantized only between layers that are: else converting there and back would cost more than it gains.
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")
MOVING = (
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)  # values stay as they are

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """A way to write a quantized graph down.

    Attributes:
        name: For people.
        arguments: Of `onnxruntime.quantization.quantize_static`.
    """

    name: str
    arguments: Mapping[str, Any]


UNSIGNED = {"activation_type": ort.QuantType.QUInt8}
CPU = (
    Format("QDQ U8S8", {"quant_format": ort.QuantFormat.QDQ, **UNSIGNED}),
    Format("QOperator U8S8", {"quant_format": ort.QuantFormat.QOperator, **UNSIGNED}),
)
TENSORRT = (  # it takes explicit, signed, symmetric quantization, and biases in float
    Format(
        "QDQ S8S8 symmetric",
        {
            "quant_format": ort.QuantFormat.QDQ,
            "activation_type": ort.QuantType.QInt8,
            "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
        },
    ),
)


@dataclass(frozen=True)
class Judge:
    """Held-out images that say whether a quantized graph is still good.

    Attributes:
        pixels: uint8 `[M, H, W, C]`.
        labels: int64 `[M]`; None: nobody knows them, and agreement with the float graph's top class stands in for
            accuracy.
    """

    pixels: Pixels
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Trial:
    """What one format came to.

    Attributes:
        format: Its name, and what stayed in float if that was more than usual.
        images_per_second: On this machine: batches of 8, two threads, all outputs.
        ratio: That, over the float graph's.
        accuracy: On the judge's images; or agreement with the float graph.
        loss: How much more the float graph has.
    """

    format: str
    images_per_second: float
    ratio: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Quantization:
    """The figures of a quantization.

    Attributes:
        chosen: The format that was written; None: all lose too much, and nothing was written.
        trials: All that were tried, the float graph first.
        measure: "accuracy" or "agreement".
        images: How many judged.
    """

    chosen: Trial | None
    trials: tuple[Trial, ...]
    measure: str
    images: int

    def refusal(self) -> QuantizationError:
        """What to say where nothing was chosen: by how much each format misses."""
        losses = "; ".join(f"{trial.format}: {100 * trial.loss:.2f}" for trial in self.trials if trial.format != FLOAT)
        return QuantizationError(
            f"int8 may cost {100 * MAX_LOSS:.1f} points of {self.measure} and costs more, on {self.images} images: "
            f"{losses}; publish it as fp32 or fp16, or calibrate on more images"
        )


def quantize(
    path: Path,
    out: Path,
    calibration: Pixels,
    judge: Judge,
    formats: Sequence[Format] = CPU,
    console: Console | None = None,
) -> Quantization:
    """Write the fastest int8 form of a graph that loses at most half a point.

    The same images give the same bytes for a format. Which format wins is measured; close ones are decided by the order
    of `formats`.

    Args:
        path: A float32 ONNX file under the artefact contract.
        out: Where the int8 file goes.
        calibration: Real images that give the ranges of activations, uint8 `[M, H, W, C]`; a few hundred.
        judge: Other images.
        formats: To be tried.
        console: Where the progress bar goes; none if None.

    Raises:
        DriftError: ONNX Runtime cannot load the file.
    """
    measure = "agreement" if judge.labels is None else "accuracy"
    truth = calibrate.logits_of(path, judge.pixels).argmax(axis=1) if judge.labels is None else judge.labels
    trials: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory(prefix="fovea-") as name, _progress(console) as progress:
        folder = Path(name)
        fused, ranges = folder / "fused.onnx", folder / "ranges.json"
        fuse(path, fused)
        reader = _Reader(calibration, progress)
        for ends_in_float in (False, True):
            suffix = ", first and last layer float" if ends_in_float else ""
            files = {form.name + suffix: folder / f"{form.name}{ends_in_float}.onnx" for form in formats}
            for form, file in zip(formats, files.values(), strict=True):
                write(fused, file, form, reader, ranges, ends_in_float)
            found = _try({FLOAT: path, **files}, judge.pixels, truth)
            for trial in found.values():
                trials.setdefault(trial.format, trial)
            passed = [trial for trial in found.values() if trial.format != FLOAT and trial.loss <= MAX_LOSS]
            if passed:
                chosen = _fastest(passed)
                out.write_bytes(files[chosen.format].read_bytes())
                return Quantization(chosen, tuple(trials.values()), measure, len(truth))
    return Quantization(None, tuple(trials.values()), measure, len(truth))


def fuse(path: Path, out: Path) -> None:
    """Prepare a graph for quantization: what is constant is folded, every tensor has a shape, every bias one layer."""
    quant_pre_process(path, out, skip_symbolic_shape=True)
    model = onnx.load(out)
    constants = {each.name: each for each in model.graph.initializer}
    taken = set()
    for node in model.graph.node:
        if node.op_type in WEIGHTED and len(node.input) == 3:
            bias = node.input[2]
            # Equal constants are one by now, but a quantized bias has its layer's scale, and ONNX Runtime's quantizer
            # would give the first one's to all in the QOperator format.
            if bias in taken and bias in constants:
                node.input[2] = f"{bias} of {node.name}"
                model.graph.initializer.add().CopyFrom(constants[bias])
                model.graph.initializer[-1].name = node.input[2]
            taken.add(bias)
    onnx.save(model, out)


def write(fused: Path, out: Path, form: Format, reader: _Reader, ranges: Path, ends_in_float: bool = False) -> None:
    """Write a graph in one format.

    Args:
        fused: What `fuse` made.
        out: The quantized file; the same inputs give the same bytes.
        form: The format.
        reader: Calibration images; read only while `ranges` is missing.
        ranges: File of the activations' ranges.
        ends_in_float: Keep the first and the last layer with weights in float.

    Raises:
        QuantizationError: Nothing was quantized, or the result is not under the artefact contract.
    """
    ort.quantize_static(
        fused,
        out,
        reader,
        per_channel=True,
        reduce_range=True,
        weight_type=ort.QuantType.QInt8,
        op_types_to_quantize=[*WEIGHTED, *BETWEEN],
        nodes_to_exclude=kept_in_float(onnx.load(fused).graph, ends_in_float),
        calibration_cache_path=ranges,
        **{**form.arguments, "extra_options": {"MatMulConstBOnly": True, **form.arguments.get("extra_options", {})}},
    )
    model = onnx.load(out)
    del model.metadata_props[:]
    if not any(each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1 for each in model.graph.initializer):
        raise QuantizationError(
            "int8 would leave the network as it is: its only layer with weights makes the logits, and stays float; "
            "publish it as fp32"
        )
    outputs = {each.name: each.type.tensor_type.elem_type for each in model.graph.output}
    if outputs != dict.fromkeys((each.name for each in onnx.load(fused).graph.output), onnx.TensorProto.FLOAT):
        raise QuantizationError(f"quantization changed the graph's outputs: {outputs}")
    out.write_bytes(model.SerializeToString(deterministic=True))


def kept_in_float(graph: onnx.GraphProto, ends_in_float: bool = False) -> list[str]:
    """Names of the nodes that are not to be quantized.

    Args:
        graph: Under the artefact contract, sorted; nodes have names, tensors types.
        ends_in_float: The first and the last node with weights are among them.
    """
    makers = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()  # for the logits
    waiting = ["logits"]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.input
    scaling, pixels = before_weights(graph)
    integers = {each.name for each in graph.value_info if each.type.tensor_type.elem_type != onnx.TensorProto.FLOAT}
    kept = {node.name for node in graph.node if node.name not in needed or integers.intersection(node.output)}
    kept.update(scaling)
    weighted = [node for node in graph.node if node.name in needed and node.op_type in WEIGHTED]
    if weighted and (ends_in_float or weighted[-1].op_type != "Conv"):
        kept.add(weighted[-1].name)
    if ends_in_float:
        kept.update(node.name for node in weighted if pixels.intersection(node.input))
    return sorted(kept | _among_floats(graph, kept))


def _among_floats(graph: onnx.GraphProto, kept: Collection[str]) -> set[str]:
    """Names of the nodes of `BETWEEN` that something else than quantized nodes feeds, given what stays in float."""
    found = set()
    quantized = {
        "",
        *(each.name for each in graph.initializer),
    }  # tensors that are, or that any node takes as they come
    for node in graph.node:
        fed = node.op_type in WEIGHTED or quantized.issuperset(node.input)
        if fed and node.name not in kept and node.op_type in (*WEIGHTED, *BETWEEN, *MOVING):
            quantized.update(node.output)
        elif node.op_type in BETWEEN:
            found.add(node.name)
    return found


def _try(files: Mapping[str, Path], pixels: Pixels, truth: NDArray[np.int64]) -> dict[str, Trial]:
    """Measure files side by side; one of them is the float graph."""
    batch = np.resize(pixels, (BATCH, *pixels.shape[1:]))
    rates = throughput.images_per_second({name: replay.session(path) for name, path in files.items()}, batch)
    shares = {
        name: float((calibrate.logits_of(path, pixels).argmax(axis=1) == truth).mean()) for name, path in files.items()
    }
    return {
        name: Trial(name, rates[name], rates[name] / rates[FLOAT], shares[name], shares[FLOAT] - shares[name])
        for name in files
    }


def _fastest(trials: Sequence[Trial]) -> Trial:
    chosen = trials[0]
    for trial in trials[1:]:
        if trial.ratio > WORTHWHILE * chosen.ratio:
            chosen = trial
    return chosen


class _Reader:
    """Calibration images in batches, as `quantize_static` wants them.

    Args:
        pixels: uint8 `[M, H, W, C]`.
        progress: Shows how many have been read.
    """

    def __init__(self, pixels: Pixels, progress: Progress) -> None:
        self._batches = iter(np.split(pixels, range(BATCH, len(pixels), BATCH)))
        self._progress = progress
        self._task = progress.add_task("calibrate", total=len(pixels))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        self._progress.advance(self._task, len(batch))
        return {"image": batch}


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
