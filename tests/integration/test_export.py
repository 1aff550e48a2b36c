"""The whole way on few digits: train, export, verify, publish; and the bundled model, held against all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from onnx import numpy_helper
from torch import nn
from tritonclient.grpc import model_config_pb2 as triton

from export import architectures, data, parity, replay, run
from export import publish as publishing
from export import repository as model_repository
from export.__main__ import main
from export.architectures.base import Network
from export.commands import COMMANDS
from export.errors import GraphError, ParityError, RepositoryError, RunError, UnknownName
from export.replay import MODEL_FILE
from export.to_onnx import to_onnx
from service.calibration import probabilities
from service.spec import CONFIG_NAME, DISTANCE, OUTPUTS, ImageSpec, ModelSpec, read_config, specs_from_config
from tests.integration import few_digits

pytestmark = pytest.mark.timeout(300)  # some of it takes half a minute, and twice that beside others

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "model_repository" / "lenet5-digits"
TRAIN = ["train", "--arch", "lenet5", "--data", "few-digits", "--epochs", "5", "--out"]
PUBLISH = ["--name", "lenet5-few", "--repository"]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`export` in a process of its own."""
    line = [sys.executable, "-m", "tests.integration.few_digits", *map(str, arguments)]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=100, cwd=ROOT)


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.LOADERS, "few-digits", few_digits.load)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command(*TRAIN, folder)
    assert done.returncode == 0, done.stderr
    assert "of few-digits" in done.stdout
    return folder


@pytest.fixture(scope="module")
def repository(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with that run in it."""
    folder = tmp_path_factory.mktemp("models")
    done = command("publish", trained, *PUBLISH, folder)
    assert done.returncode == 0, done.stderr
    assert "lenet5-few version 1" in done.stdout
    assert "deprecat" not in (done.stdout + done.stderr).lower(), "the exporter chatters"
    return folder


@pytest.fixture(scope="module")
def spec(repository: Path) -> ModelSpec:
    return read_config(repository / "lenet5-few" / CONFIG_NAME).specs["1"]


# Training


def test_a_run_holds_what_it_takes(trained: Path) -> None:
    record, metrics = run.load(trained)
    assert (record.architecture, record.data, record.options.epochs) == ("lenet5", "few-digits", 5)
    assert record.image == architectures.get("lenet5").image
    assert record.labels == tuple("0123456789")
    state = torch.load(trained / run.CHECKPOINT, weights_only=True)
    assert sum(each.numel() for each in state.values()) == 60_850
    assert len(metrics.epochs) == 5
    assert metrics.epochs[-1].loss < metrics.epochs[0].loss
    assert np.sum(metrics.confusion) == metrics.test_images == len(few_digits.load().split.test)
    assert metrics.test_accuracy == np.trace(metrics.confusion) / metrics.test_images == metrics.renderings["as such"]
    assert len(metrics.renderings) == 18
    assert {run.CHECKPOINT, run.METRICS, run.RUN, "report.html", "learning-curves.png"} <= names(trained)
    assert run.RESUME not in names(trained)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_counts_only_when_it_is_whole(trained: Path, tmp_path: Path) -> None:
    for name in (run.CHECKPOINT, run.RUN):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(RunError, match=r"no finished run \(metrics.json missing\): train it first"):
        publishing.from_run(tmp_path)
    (tmp_path / run.METRICS).write_text("{}")
    with pytest.raises(RunError, match="remove the folder and train again"):
        publishing.from_run(tmp_path)
    (tmp_path / run.METRICS).write_bytes((trained / run.METRICS).read_bytes())
    (tmp_path / run.CHECKPOINT).write_bytes(b"PK half a checkpoint")
    with pytest.raises(RunError, match="does not fit lenet5"):
        publishing.from_run(tmp_path)


# Export


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(trained: Path, repository: Path, tmp_path: Path) -> None:
    done = command(*TRAIN, tmp_path / "run", "--json")
    assert json.loads(done.stdout)["test_images"] == 91
    for name in (run.CHECKPOINT, run.RUN):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()
    done = command("publish", tmp_path / "run", *PUBLISH, tmp_path / "models", "--json")
    assert json.loads(done.stdout)["version"] == "1"
    for name in (CONFIG_NAME, f"1/{MODEL_FILE}"):
        ours, theirs = (folder / "lenet5-few" / name for folder in (tmp_path / "models", repository))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_config_parses_back_with_the_spec(repository: Path, spec: ModelSpec, trained: Path) -> None:
    text = (repository / "lenet5-few" / CONFIG_NAME).read_text(encoding="utf-8")
    config = text_format.Parse(text, triton.ModelConfig())
    assert specs_from_config(config) == {"1": spec}
    assert spec.architecture == "lenet5"
    assert spec.weights.sha256 == replay.sha256(trained / run.CHECKPOINT)
    assert (spec.parameters, spec.features, spec.maps, spec.places) == (60_850, 84, (16, 10, 10), None)
    layers = (28**2 * 6 * 25, 14**2 * 6 * 4, 10**2 * 16 * 6 * 25, 5**2 * 16 * 4, 120 * 400, 84 * 120, 10 * 84)
    assert spec.macs == sum(layers)
    assert spec.accuracy is not None
    assert spec.accuracy.top1 == run.load(trained)[1].test_accuracy
    assert spec.parity is not None
    assert spec.parity.max_difference.keys() == {*OUTPUTS, DISTANCE}
    assert max(spec.parity.max_difference.values()) < 1e-5
    assert {golden.name[-1] for golden in spec.golden} == set("0123456789")
    assert sum(len(golden.data) for golden in spec.golden) < 3_000


def test_calibration_is_fitted_on_validation_and_judged_on_test(repository: Path, spec: ModelSpec) -> None:
    digits = few_digits.load()
    session = replay.session(repository / "lenet5-few" / "1" / MODEL_FILE)
    fitted = spec.calibration
    assert fitted.conformal_quantile is not None
    assert fitted.abstain_above_distance is not None
    assert fitted.abstain_above_energy is None
    rates = {}
    for part in ("validation", "test"):
        indices = getattr(digits.split, part)
        guises = digits.rendered(indices, spec.image)
        logits, distance = session.run(["logits", DISTANCE], {"image": np.concatenate(list(guises.values()))})
        probs = probabilities(logits, fitted.temperature)
        true = probs[np.arange(len(probs)), np.tile(digits.labels[indices], len(guises))]
        alarms = distance[:, 0] > fitted.abstain_above_distance
        rates[part] = ((true >= 1 - fitted.conformal_quantile).mean(), alarms.mean())
    assert rates["validation"] == pytest.approx((fitted.coverage, 0.05), abs=0.002)
    assert rates["test"] == pytest.approx((fitted.measured_coverage, fitted.false_alarm_rate))
    assert sum(images for _, _, images in fitted.reliability) == len(probs)
    gap = sum(images * abs(confidence - accuracy) for confidence, accuracy, images in fitted.reliability) / len(probs)
    assert gap == pytest.approx(fitted.ece_after)
    assert fitted.data == "few-digits, validation split in 18 guises"


def test_a_version_goes_without_what_earlier_ones_lack(
    trained: Path, repository: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    """As published before there was a distance: another calibration, in a repository of its own."""
    before = spec.calibration.model_copy(update={"abstain_above_distance": None, "abstain_above_energy": -1.0})
    older = spec.model_copy(update={"calibration": before})
    model_repository.publish(tmp_path / "models", older, repository / "lenet5-few" / "1")
    done = command("publish", trained, *PUBLISH, tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert "version 1 has no output distance" in done.stderr
    newer = read_config(tmp_path / "models" / "lenet5-few" / CONFIG_NAME).specs["2"]
    assert newer.output_shapes == older.output_shapes
    assert newer.calibration.abstain_above_energy is not None
    model_repository.publish(tmp_path / "other", spec, repository / "lenet5-few" / "1")
    with pytest.raises(RepositoryError, match=r"distance is missing, was \(1,\)"):
        model_repository.publish(tmp_path / "other", older, repository / "lenet5-few" / "1")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_batch_size_has_the_contract_s_shapes(repository: Path, spec: ModelSpec, batch: int) -> None:
    session = replay.session(repository / "lenet5-few" / "1" / MODEL_FILE)
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["N", 32, 32, 1])
    ]
    outputs = session.run([*OUTPUTS, DISTANCE], {"image": np.zeros((batch, 32, 32, 1), np.uint8)})
    shapes = {name: each.shape[1:] for name, each in zip((*OUTPUTS, DISTANCE), outputs, strict=True)}
    assert shapes == spec.output_shapes
    assert all(each.dtype == np.float32 and len(each) == batch for each in outputs)


def tampered(source: Path, target: Path, initializer: str) -> None:
    """A copy of a graph with one constant a little off."""
    model = onnx.load(source)
    (constant,) = [each for each in model.graph.initializer if each.name == initializer]
    constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(1.01), initializer))
    onnx.save(model, target)


@pytest.mark.parametrize(
    ("initializer", "first"),
    [
        ("network.trunk.0.weight", "activations"),
        ("network.head.5.weight", "features"),
        ("network.head.7.weight", "logits"),
        ("network.distance.weight", "distance"),
    ],
)
def test_the_gate_refuses_a_tampered_graph_with_figures(
    trained: Path, repository: Path, spec: ModelSpec, tmp_path: Path, initializer: str, first: str
) -> None:
    tampered(repository / "lenet5-few" / "1" / MODEL_FILE, tmp_path / MODEL_FILE, initializer)
    network = publishing.with_distance(publishing.from_run(trained), {}, None).network
    pixels = few_digits.load().pixels(np.arange(4), spec.image)
    figures = (
        rf"first in {first} by 0\.\d+ \(image \d+, batch of [138], at \[.*\]: .*, PyTorch has .*; fp32 allows 0.0001"
    )
    with pytest.raises(ParityError, match=figures):
        parity.check(network, spec.image, tmp_path / MODEL_FILE, pixels)


def test_what_fails_the_gate_is_not_published(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def to_wrong_onnx(network: Network, image: ImageSpec, path: Path) -> None:
        to_onnx(network, image, path)
        tampered(path, path, "network.head.7.weight")

    monkeypatch.setattr(publishing, "to_onnx", to_wrong_onnx)
    assert main(["publish", str(trained), *PUBLISH, str(tmp_path / "models")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: model.onnx and PyTorch part ways, first in logits")
    assert not (tmp_path / "models").exists()


def test_ties_and_non_numbers_in_parity() -> None:
    logits = np.array([[3, 2, 1], [3, 3, 1], [1e6, 1e6 - 1, 0]], np.float32)
    assert parity.settled(logits, 1e-4).tolist() == [True, False, False]
    reference = np.ones((3, 2), np.float32)
    exported = reference.copy()
    exported[1, 0] = np.nan
    found = parity.compare("cam", exported, reference, np.full(3, True), 3)
    assert (found.relative, found.image, found.place) == (np.inf, 1, (0,))
    assert parity.compare("cam", exported, reference, np.array([True, False, True]), 3).relative == 0
    with pytest.raises(ParityError, match=r"cam is \(3,\) in the exported graph, \(2,\) in PyTorch"):
        parity.compare("cam", np.ones((3, 3), np.float32), reference, np.full(3, True), 3)


class Untraceable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum().item() > 0 else -images


@pytest.mark.parametrize(
    ("trunk", "first", "message"),
    [
        (nn.Identity(), nn.MaxPool2d(2), r"no class activation maps through MaxPool2d"),
        (Untraceable(), nn.AvgPool2d(2), r"data-dependent expression .* Caused by: .*test_export\.py:\d+ in forward"),
        (nn.Identity(), nn.AvgPool2d(4), r"a and b must have same reduction dim"),
    ],
)
def test_what_cannot_be_exported_says_why(
    trunk: nn.Module, first: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Network(trunk, nn.Sequential(first, nn.Flatten(), nn.Linear(16, 3)), 2)
    image = ImageSpec(height=8, width=8, channels=1, resize="stretch")
    with pytest.raises(GraphError, match=message) as caught:
        to_onnx(network, image, tmp_path / MODEL_FILE)
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


# Command line


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_waits_for_no_library(arguments: list[str]) -> None:
    script = (
        "import sys, contextlib\nfrom export.__main__ import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments})\n"
        "sys.exit(len({'torch', 'onnx', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.startswith("usage: python -m export")
    assert arguments[0] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--arch", "lenet", "--data", "digits"], "no architecture is called 'lenet': did you mean lenet5"),
        (["train", "--arch", "lenet5", "--data", "digit"], "no data set is called 'digit': did you mean digits"),
        (["publish", "nowhere", "--name", "x"], "nowhere holds no finished run"),
    ],
)
def test_errors_are_one_line_that_names_the_remedy(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "--out" if arguments[0] == "train" else "--repository"
    assert main([*arguments, where, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unlike_any_name() -> None:
    with pytest.raises(UnknownName, match="there are cifar10, digits,"):
        data.load("zzz")


# The bundled model


@pytest.mark.parametrize("inverted", [False, True], ids=["light on dark", "dark on light"])
def test_the_bundled_model_reads_held_out_digits(inverted: bool) -> None:
    spec = read_config(BUNDLED / CONFIG_NAME).specs["1"]
    replay.check(spec, BUNDLED / "1")
    session = replay.session(BUNDLED / "1" / MODEL_FILE)
    digits = data.load("digits")
    labels = digits.labels[digits.split.test]
    accuracy = {
        name: (session.run(["logits"], {"image": pixels})[0].argmax(axis=1) == labels).mean()
        for name, pixels in digits.rendered(digits.split.test, spec.image, polarities=[inverted]).items()
    }
    assert len(accuracy) == 9
    assert min(accuracy.values()) >= 0.98, accuracy
    if not inverted:
        assert accuracy["as such"] >= 0.985
        assert spec.accuracy is not None
        assert spec.accuracy.top1 == pytest.approx(accuracy["as such"])
