"""From trained parameters to a version in the model repository: ONNX, parity, calibration, golden images, publication.

The parameters come from a run's folder, or are published weights or a file of them. A data set, where there is one,
gives the real images to verify on, and the held-out ones to calibrate on and to measure accuracy on. Without one a
few photographs do for the first, and the spec says nothing about the others.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file

from export import (
    architectures,
    calibrate,
    data,
    familiarity,
    parity,
    repository,
    run,
    samples,
    to_tensorrt,
    triton_config,
    weights,
)
from export.architectures.base import Architecture, Network
from export.data import Dataset
from export.describe import describe
from export.ensemble import combine
from export.errors import ExportError, RunError
from export.precision import Form, hold, lower
from export.replay import MODEL_FILE, PLAN_FILE, sha256
from export.to_onnx import to_onnx
from export.weights import WEIGHTS_FILE
from service.preprocess import Preprocessor
from service.spec import DISTANCE, Calibration, Golden, ImageSpec, ModelSpec, Parity, TensorRT, Weights

GOLDEN_IMAGES = 10  # at most one per label
PARITY_IMAGES = 24
THREADS = 2
FP32 = Form()


@dataclass(frozen=True)
class Candidate:
    """What is to be published.

    Attributes:
        architecture: Of the network.
        network: With its weights, in evaluation mode.
        image: The image contract that it was trained under.
        labels: `[K]`.
        weights: Where they come from.
        dataset: The images to verify, calibrate and test it on; None: verified on photographs, not calibrated.
        checkpoint: Its state dict as a file, where there is one.
    """

    architecture: Architecture
    network: Network
    image: ImageSpec
    labels: tuple[str, ...]
    weights: Weights
    dataset: Dataset | None
    checkpoint: Path | None = None


def from_run(folder: Path) -> Candidate:
    """Load a run.

    Raises:
        RunError: The folder holds no finished run, or a checkpoint of another network.
        UnknownName: Its architecture or data set is not here.
    """
    record, _ = run.load(folder)
    checkpoint = folder / run.CHECKPOINT
    dataset = data.load(record.data)
    return Candidate(
        architecture=architectures.get(record.architecture),
        network=_network(record, checkpoint),
        image=record.image,
        labels=record.labels,
        weights=Weights(source=_origin(record, dataset), sha256=sha256(checkpoint), license="Apache-2.0"),
        dataset=dataset,
        checkpoint=checkpoint,
    )


def from_ensemble(folders: Sequence[Path]) -> Candidate:
    """Load runs as one network that averages them; a run with snapshots brings all of these.

    Raises:
        RunError: A folder holds no finished run, or they have other labels, image contracts or data sets.
        ExportError: It would be an ensemble of one, or their maps differ in size.
    """
    records = [run.load(folder)[0] for folder in folders]
    first = records[0]
    for folder, record in zip(folders, records, strict=True):
        for name in ("labels", "image", "data"):
            if getattr(record, name) != getattr(first, name):
                raise RunError(f"{folder} has other {name} than {folders[0]}: an ensemble's members share them")
    files = [(record, path) for folder, record in zip(folders, records, strict=True) for path in run.members(folder)]
    if len(files) < 2:
        raise ExportError("an ensemble needs two members: name several runs, or one that was trained with --snapshots")
    counts = Counter(record.architecture for record, _ in files)
    dataset = data.load(first.data)
    papers = [architectures.get(name).paper for name in counts]
    return Candidate(
        architecture=replace(
            architectures.get(first.architecture),
            name="ensemble of " + " and ".join(f"{count} {name}" for name, count in counts.items()),
            paper="; ".join(papers),
        ),
        network=combine([_network(record, path) for record, path in files], first.image),
        image=first.image,
        labels=first.labels,
        weights=Weights(
            source="; ".join(dict.fromkeys(_origin(record, dataset) for record in records)),
            sha256=hashlib.sha256("".join(sha256(path) for _, path in files).encode()).hexdigest(),
            license="Apache-2.0",
        ),
        dataset=dataset,
    )


def _network(record: run.Run, checkpoint: Path) -> Network:
    architecture = architectures.get(record.architecture)
    module = architecture.build(len(record.labels))
    try:
        module.load_state_dict(torch.load(checkpoint, weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(f"{checkpoint} does not fit {record.architecture}: {error}; train it again") from error
    return architecture.cut(module.eval())


def _origin(record: run.Run, dataset: Dataset) -> str:
    if record.weights is None:
        return f"trained on {dataset.name} (seed {record.options.seed})"
    pretrained = Path(record.weights).name  # where it lay is nobody's business
    return f"{pretrained}, fine-tuned on {dataset.name} (seed {record.options.seed})"


def from_weights(name: str, source: str | None, labels: Path | None = None, data_name: str | None = None) -> Candidate:
    """Take a network by name with published weights, those of a file, or random ones.

    Args:
        name: Of the architecture.
        source: Name of published weights, path of a file, or None.
        labels: Text file with one label per line, where the weights do not bring theirs.
        data_name: Of a data set with the same labels.

    Raises:
        ExportError: Something is unknown, cannot be fetched, or does not fit; the message says which.
    """
    architecture = architectures.get(name)
    dataset = data.load(data_name) if data_name else None
    loaded = weights.load(architecture, source, labels=labels)
    names = loaded.labels
    if names is None and dataset is not None:
        names = dataset.label_names
    if names is None and source is None:
        names = tuple(f"class {index}" for index in range(architecture.labels))
    if names is None:
        raise ExportError("the weights do not say what their classes are called: pass --labels FILE, one per line")
    if dataset is not None and names != dataset.label_names:
        raise ExportError(f"the labels of {dataset.name} are not those of the weights, in this order")
    return Candidate(architecture, architecture.cut(loaded.module.eval()), loaded.image, names, loaded.weights, dataset)


def publish(
    candidate: Candidate,
    name: str,
    into: Path,
    form: Form = FP32,
    console: Console | None = None,
    *,
    with_weights: bool = False,
) -> ModelSpec:
    """Export, verify, calibrate and publish.

    Args:
        candidate: What.
        name: Of the model.
        into: The model repository.
        form: In which precision, as what kind of file, and what is wanted of Triton; what that leaves open stays as it
            was for the model's earlier versions.
        console: Where progress and figures of int8 go; nowhere if None.
        with_weights: Put the state dict beside the model, so that whoever has the repository can fine-tune it.

    Returns:
        The spec as published.

    Raises:
        GraphError: It cannot be exported.
        ParityError: The exported graph differs from PyTorch.
        QuantizationError: int8 costs too much accuracy, or lacks images.
        TensorRTError: No plan can be built here.
        RepositoryError: The repository cannot take it, or what is wanted of Triton contradicts itself.
    """
    if form.plan:
        to_tensorrt.machine()  # says what is missing before anything takes its time
    form = replace(form, deployment=repository.deployment(into, name, form.deployment))
    triton_config.check(form.deployment, form.batch if form.plan else None)
    torch.set_num_threads(THREADS)
    candidate = with_distance(candidate, repository.published(into, name), console)
    network, image, dataset = candidate.network.eval(), candidate.image, candidate.dataset
    with tempfile.TemporaryDirectory(prefix="fovea-") as folder:
        path, agreement, tensorrt = verified_file(candidate, Path(folder), form, console)
        pixels = real_images(dataset, image)
        accuracy, calibration = None, Calibration()
        if dataset is not None:
            accuracy, calibration = calibrate.calibrate(path, dataset, image, distance=network.distance is not None)
        images, tolerance = hold(golden(network, image, dataset), path, image, calibration.temperature, form.precision)
        described = describe(network, (image.channels, image.height, image.width))
        sample = parity.outputs_of(network, image, pixels)
        maps, features = sample["activations"], sample["features"]
        files = {path.name: sha256(path)}
        if with_weights:
            files[WEIGHTS_FILE] = _save_weights(candidate, Path(folder) / WEIGHTS_FILE)
        spec = ModelSpec(
            name=name,
            version="1",
            architecture=candidate.architecture.name,
            paper=candidate.architecture.paper,
            precision=form.precision,
            weights=candidate.weights,
            image=image,
            labels=candidate.labels,
            features=features.shape[1],
            maps=maps.shape[1:],
            places=familiarity.places(features, maps),
            parameters=described.parameters,
            macs=described.macs,
            accuracy=accuracy,
            calibration=calibration,
            parity=agreement,
            golden=images,
            golden_tolerance=tolerance,
            tensorrt=tensorrt,
            files=files,
        )
        return repository.publish(into, spec, Path(folder), form.deployment)


def with_distance(candidate: Candidate, earlier: Mapping[str, ModelSpec], console: Console | None) -> Candidate:
    """Have the network tell how far images are from those that it was trained on, where these are known.

    Args:
        candidate: What is to be published.
        earlier: The model's versions so far, which all have the same outputs.
        console: Where it goes that an earlier version stands in the way; nowhere if None.
    """
    network, image, dataset = candidate.network.eval(), candidate.image, candidate.dataset
    without = [spec for spec in earlier.values() if DISTANCE not in spec.output_shapes]
    if dataset is None or without:
        if dataset is not None and console is not None:
            console.print(
                f"version {without[0].version} has no output {DISTANCE}, so the new one goes without it and abstains "
                "by the energy of its logits, which finds fewer strangers; take another name to have it"
            )
        return candidate
    sample = parity.outputs_of(network, image, real_images(dataset, image))
    distance = familiarity.fit(network, dataset, image, familiarity.places(sample["features"], sample["activations"]))
    return replace(candidate, network=Network(network.trunk, network.head, network.features_at, distance.eval()))


def verified_file(
    candidate: Candidate, folder: Path, form: Form, console: Console | None
) -> tuple[Path, Parity, TensorRT | None]:
    """Write the file that is to compute, and verify it: as float32 first, whatever it becomes.

    Args:
        candidate: What.
        folder: Where the file goes.
        form: In which precision, and as what kind of file.
        console: Where progress and figures of int8 go; nowhere if None.

    Returns:
        The file, the figures of its verification, and for a plan what it was built with.
    """
    network, image, dataset = candidate.network, candidate.image, candidate.dataset
    path = folder / MODEL_FILE
    to_onnx(network, image, path)
    pixels = real_images(dataset, image)
    agreement = parity.check(network, image, path, pixels)
    if form.precision == "fp32" and not form.plan:
        return path, agreement, None
    lower(path, form, dataset, image, console)
    tensorrt = None
    if form.plan:
        plan = folder / PLAN_FILE
        tensorrt = to_tensorrt.build(path, plan, image, form.batch)
        path = plan
    return path, parity.check(network, image, path, pixels, form.precision), tensorrt


def _save_weights(candidate: Candidate, path: Path) -> str:
    """Write the state dict as safetensors, filters and matrices in half precision; its hash.

    Half the size, and who fine-tunes it moves every parameter by more than is lost.

    Raises:
        ExportError: There is none.
    """
    if candidate.checkpoint is None:
        raise ExportError("--with-weights takes the checkpoint of one run: an ensemble and --arch have none")
    state = torch.load(candidate.checkpoint, weights_only=True)
    save_file({key: (value.half() if value.ndim > 1 else value).contiguous() for key, value in state.items()}, path)
    return sha256(path)


def real_images(dataset: Dataset | None, image: ImageSpec) -> NDArray[np.uint8]:
    """Images to verify on, as the service would see them: uint8 `[M, H, W, C]`."""
    if dataset is not None:
        return dataset.pixels(dataset.split.test[:PARITY_IMAGES], image)
    preprocess = Preprocessor(image)
    return np.stack([preprocess(each) for each in samples.photographs().values()])


def golden(network: Network, image: ImageSpec, dataset: Dataset | None) -> tuple[Golden, ...]:
    """A few encoded images with the logits that PyTorch gives for them: the first test image of each label, up to a
    number, or photographs."""
    files = samples.golden()
    if dataset is not None:
        test = dataset.split.test
        _, first = np.unique(dataset.labels[test], return_index=True)
        files = {
            f"{dataset.name}-{index}-{dataset.label_names[dataset.labels[index]]}": samples.small(dataset.images[index])
            for index in test[np.sort(first[:GOLDEN_IMAGES])]
        }
    preprocess = Preprocessor(image)
    logits = parity.outputs_of(network, image, np.stack([preprocess(each) for each in files.values()]))["logits"]
    return tuple(
        Golden(name=name, data=file, logits=tuple(map(float, row)))
        for (name, file), row in zip(files.items(), logits, strict=True)
    )
