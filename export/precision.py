"""From the exported float32 graph to the precision that is published, and how closely its golden images are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from export import calibrate, quantize, to_tensorrt
from export.data import Dataset
from export.errors import QuantizationError
from export.half import to_half
from export.quantize import Judge, Pixels, Quantization
from export.triton_config import Deployment
from service.calibration import probabilities
from service.errors import FoveaError
from service.preprocess import Preprocessor
from service.spec import Golden, ImageSpec, Precision

CALIBRATION_IMAGES = 512
CALIBRATION_DRAWINGS = 64  # each comes in many guises
FEWEST_IMAGES = 32  # in a folder
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# How far a probability of a golden image may be from PyTorch's, wherever the version is loaded.
GOLDEN_TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2}
# For int8 that is what quantization costs these images, and beside it what rounding differs between processors: at most
# 0.06 for 719 digits through LeNet-5, ResNet-18 and MobileNetV2, ONNX Runtime's AVX2 kernels against exact arithmetic.
MARGIN = 0.06
STEADY = 0.2  # an image that quantization moves further than this is near a border, and shows nothing about drift


@dataclass(frozen=True)
class Form:
    """The form in which a network is published.

    Attributes:
        precision: Of weights and arithmetic.
        plan: Publish a TensorRT plan instead of ONNX.
        calibration: Folder of images for int8, where there is no data set.
        batch: Of a plan: the fewest images, those that it is tuned for, and the most.
        deployment: What is wanted of Triton, where that is not the default.
    """

    precision: Precision = "fp32"
    plan: bool = False
    calibration: Path | None = None
    batch: tuple[int, int, int] = to_tensorrt.BATCH
    deployment: Deployment = field(default_factory=Deployment)


def lower(path: Path, form: Form, dataset: Dataset | None, image: ImageSpec, console: Console | None = None) -> None:
    """Bring a float32 ONNX file to the precision of a form, where it lies.

    Args:
        path: The file.
        form: What it is to become.
        dataset: Images to calibrate on and to judge by, for int8.
        image: The image contract.
        console: Where progress and figures go; nowhere if None.

    Raises:
        GraphError: It cannot be written in half precision.
        QuantizationError: int8 costs too much accuracy, or there are no images to calibrate on.
    """
    if form.precision == "fp16":
        to_half(path, path)
    elif form.precision == "int8":
        calibration, judge = _images(dataset, form.calibration, image)
        formats = quantize.TENSORRT if form.plan or form.deployment.accelerator else quantize.CPU
        quantized = path.with_suffix(".int8")
        figures = quantize.quantize(path, quantized, calibration, judge, formats, console)
        if console is not None:
            console.print(table(figures))
        if figures.chosen is None:
            raise figures.refusal()
        if dataset is not None:
            _confirm(path, quantized, dataset, image)
        quantized.replace(path)


def hold(
    golden: tuple[Golden, ...], path: Path, image: ImageSpec, temperature: float, precision: Precision
) -> tuple[tuple[Golden, ...], float]:
    """Which golden images to publish, and how far their probabilities may be from PyTorch's.

    Args:
        golden: With PyTorch's logits.
        path: Of the file to publish.
        image: Its image contract.
        temperature: Of its calibration.
        precision: Its precision.

    Raises:
        QuantizationError: Quantization moves every one of them too far.
    """
    if precision != "int8":
        return golden, GOLDEN_TOLERANCES[precision]
    preprocess = Preprocessor(image)
    logits = calibrate.logits_of(path, np.stack([preprocess(each.data) for each in golden]))
    promised = probabilities(np.array([each.logits for each in golden]), temperature)
    moved = np.abs(probabilities(logits, temperature) - promised).max(axis=1)
    if not moved.min() <= STEADY:
        raise QuantizationError(
            f"int8 moves the probabilities of all {len(golden)} golden images, by {moved.min():.2f} at least: more "
            f"than {STEADY:g} proves nothing; publish it as fp32 or fp16"
        )
    kept = tuple(each for each, distance in zip(golden, moved, strict=True) if distance <= STEADY)
    worst = round(float(moved[moved <= STEADY].max()), 4)  # what rounding leaves must not cost a hundredth
    return kept, math.ceil(round(100 * (worst + MARGIN), 2)) / 100


def table(figures: Quantization) -> Table:
    """What each format came to, for people."""
    judged = f"{figures.measure} on {figures.images}"
    rows = Table("int8", box=None, header_style="bold", pad_edge=False)
    for column in ("images/s", "× fp32", judged, "points lost"):
        rows.add_column(column, justify="right")
    for trial in figures.trials:
        rows.add_row(
            f"{trial.format} ←" if trial == figures.chosen else trial.format,
            f"{trial.images_per_second:,.1f}",
            f"{trial.ratio:.2f}",
            f"{trial.accuracy:.2%}",
            f"{100 * trial.loss:.2f}",
        )
    if figures.chosen is not None and figures.chosen.ratio < 1:
        rows.caption = "int8 is slower than fp32 on this machine: the network is too small, or the processor too old"
    return rows


def _confirm(before: Path, after: Path, dataset: Dataset, image: ImageSpec) -> None:
    """Hold int8 to its promise on the test images, which chose nothing."""
    test = dataset.split.test
    pixels, labels = dataset.pixels(test, image), dataset.labels[test]
    shares = [(calibrate.logits_of(path, pixels).argmax(axis=1) == labels).mean() for path in (before, after)]
    if shares[0] - shares[1] > quantize.MAX_LOSS:
        raise QuantizationError(
            f"int8 may cost {100 * quantize.MAX_LOSS:.1f} points of accuracy and costs "
            f"{100 * (shares[0] - shares[1]):.2f} on the {len(test)} test images of {dataset.name}, though not "
            "on those that chose it; publish it as fp32 or fp16"
        )


def _images(dataset: Dataset | None, folder: Path | None, image: ImageSpec) -> tuple[Pixels, Judge]:
    """What the ranges of activations come from, and what judges them: other images."""
    if dataset is not None:
        split = dataset.split
        number = CALIBRATION_DRAWINGS if dataset.drawn else CALIBRATION_IMAGES
        spread = split.train[:: max(1, len(split.train) // number)][:number]
        judges = dataset.sample(split.validation)
        judging = dataset.rendered(judges, image)
        return (
            np.concatenate(list(dataset.rendered(spread, image).values())),
            Judge(np.concatenate(list(judging.values())), np.tile(dataset.labels[judges], len(judging))),
        )
    if folder is None:
        raise QuantizationError(
            "int8 learns the ranges of activations from real images: pass --data NAME, or --calibration FOLDER with a "
            "few hundred images like those to be served"
        )
    pixels = _pixels_of(folder, image)
    return pixels[::2], Judge(pixels[1::2], None)


def _pixels_of(folder: Path, image: ImageSpec) -> Pixels:
    """The images in a folder and below, as the service would see them."""
    preprocess = Preprocessor(image)
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES)[: 2 * CALIBRATION_IMAGES]:
        try:
            found.append(preprocess(path.read_bytes()))
        except FoveaError as error:
            raise QuantizationError(f"{path}: {error}") from error
    if len(found) < FEWEST_IMAGES:
        raise QuantizationError(f"{folder} holds {len(found)} images; int8 needs {FEWEST_IMAGES}, better a few hundred")
    return np.stack(found)
