"""int8: what is quantized and what is not, the gate, the choice between formats, and the same bytes every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export import calibrate, quantize, replay, throughput
from export.errors import QuantizationError
from export.quantize import CPU, FLOAT, TENSORRT, Judge, Trial
from service.spec import OUTPUTS
from tests import convnet, models

CALIBRATION = convnet.images(64)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("convnet") / "float.onnx"
    convnet.write(path)
    return path


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Throughputs without measuring: all alike."""
    monkeypatch.setattr(throughput, "images_per_second", lambda sessions, _: dict.fromkeys(sessions, 100.0))


def by_margin(path: Path, wide: bool) -> NDArray[np.uint8]:
    """Of 400 images the 100 whose top class is the most certain, or the least."""
    pixels = convnet.images(400, seed=1)
    ranked = np.sort(calibrate.logits_of(path, pixels), axis=1)
    order = np.argsort(ranked[:, -1] - ranked[:, -2])
    return pixels[order[-100:] if wide else order[:100]]


def test_what_comes_out_keeps_the_contract(float_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    figures = quantize.quantize(float_file, out, CALIBRATION, Judge(by_margin(float_file, wide=True), None))
    assert (figures.measure, figures.images) == ("agreement", 100)
    assert [trial.format for trial in figures.trials] == [FLOAT, "QDQ U8S8", "QOperator U8S8"]
    assert figures.chosen in figures.trials[1:]
    assert figures.trials[0].ratio == 1
    assert figures.trials[0].loss == 0
    assert all(trial.images_per_second > 0 and trial.loss <= quantize.MAX_LOSS for trial in figures.trials)

    before, after = replay.session(float_file), replay.session(out)
    assert [(each.name, each.type, each.shape) for each in after.get_inputs()] == [
        (each.name, each.type, each.shape) for each in before.get_inputs()
    ]
    pixels = convnet.images(5, seed=2)
    for batch in (pixels[:1], pixels):
        expected = before.run(list(OUTPUTS), {"image": batch})
        for name, one, other in zip(OUTPUTS, expected, after.run(list(OUTPUTS), {"image": batch}), strict=True):
            assert (other.dtype, other.shape) == (np.float32, one.shape)
            if name != "cam":
                assert np.abs(one - other).max() < 0.1 * max(1, np.abs(one).max())


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("form", [*CPU, *TENSORRT], ids=lambda form: form.name)
def test_convolutions_are_quantized_and_the_rest_is_not(
    form: quantize.Format, float_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "int8.onnx"
    quantize.quantize(float_file, out, CALIBRATION, Judge(by_margin(float_file, wide=True), None), [form])
    graph = onnx.load(out).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Gemm"] == kinds["TopK"] == kinds["Einsum"] == kinds["Mul"] == kinds["Add"] == 1
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = {name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim == 4}
    assert sorted(value.shape for value in weights.values()) == [(8, 3, 3, 3), (16, 8, 3, 3)]
    # Of seven bits: two products of them with unsigned eight fit into sixteen.
    assert max(np.abs(value.astype(int)).max() for value in weights.values()) == 64
    if form.name.startswith("QOperator"):
        assert kinds["QLinearConv"] == 2
    if form in TENSORRT:
        zeros = [value for name, value in values.items() if name.endswith("zero_point")]
        assert zeros
        assert all(value.dtype == np.int8 and not value.any() for value in zeros)
        assert values["first.bias"].dtype == np.float32


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("form", CPU, ids=lambda form: form.name)
def test_layers_that_share_a_bias_each_have_it_in_their_own_scale(form: quantize.Format, tmp_path: Path) -> None:
    path, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    convnet.write(path)
    model = onnx.load(path)
    graph = model.graph
    weight = np.random.default_rng(1).normal(0, 2, (convnet.MAPS, convnet.MAPS, 3, 3)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "third"))
    bias = next(each for each in graph.initializer if each.name == "second.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(convnet.MAPS, 3, np.float32), "second.bias"))
    relu = next(index for index, node in enumerate(graph.node) if node.name == "activations")
    graph.node[relu].input[0] = "five"
    inputs = ["four", "third", "second.bias"]
    graph.node.insert(relu, onnx.helper.make_node("Conv", inputs, ["five"], name="five", pads=[1, 1, 1, 1]))
    onnx.save(model, path)
    quantize.quantize(path, out, CALIBRATION, Judge(by_margin(path, wide=True), None), [form])
    pixels = convnet.images(8, seed=3)
    expected, found = (replay.session(file).run(["activations"], {"image": pixels})[0] for file in (path, out))
    assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


def test_arithmetic_among_floats_stays_float(float_file: Path, tmp_path: Path) -> None:
    model = onnx.load(float_file)
    graph = model.graph
    pool = next(index for index, node in enumerate(graph.node) if node.op_type == "MaxPool")
    graph.node[pool].input[0] = "curved"
    graph.node.insert(pool, onnx.helper.make_node("Softplus", ["two"], ["curved"], name="curved"))
    onnx.save(model, tmp_path / "float.onnx")
    quantize.fuse(tmp_path / "float.onnx", tmp_path / "fused.onnx")
    kept = quantize.kept_in_float(onnx.load(tmp_path / "fused.onnx").graph)
    assert "three" in kept
    assert not {"one", "two", "four"} & set(kept)


@pytest.mark.usefixtures("_quick")
def test_what_costs_too_much_is_refused_with_figures(float_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    narrow = by_margin(float_file, wide=False)
    truth = calibrate.logits_of(float_file, narrow).argmax(axis=1)
    figures = (
        r"int8 may cost 0.5 points of accuracy and costs more, on 100 images: QDQ U8S8: \d+\.\d\d; "
        r"QOperator U8S8: \d+\.\d\d; QDQ U8S8, first and last layer float: \d+\.\d\d; .*publish it as fp32 or fp16"
    )
    found = quantize.quantize(float_file, out, CALIBRATION, Judge(narrow, truth))
    assert found.chosen is None
    assert not out.exists()
    assert re.match(figures, str(found.refusal()))


@pytest.mark.parametrize(
    ("rates", "losses", "chosen"),
    [
        ((100, 180, 250), (0, 0, 0), "QOperator U8S8"),
        ((100, 180, 185), (0, 0, 0), "QDQ U8S8"),  # noise decides nothing
        ((100, 180, 250), (0, 0.005, 0.0051), "QDQ U8S8"),
        ((100, 250, 180), (0, 0.2, -0.01), "QOperator U8S8"),
    ],
)
def test_the_fastest_that_passes_is_chosen(
    rates: tuple[float, ...],
    losses: tuple[float, ...],
    chosen: str,
    float_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fake(files: dict[str, Path], *_: object) -> dict[str, Trial]:
        return {
            name: Trial(name, rate, rate / 100, 1 - loss, loss)
            for name, rate, loss in zip(files, rates, losses, strict=True)
        }

    monkeypatch.setattr(quantize, "_try", fake)
    out = tmp_path / "int8.onnx"
    figures = quantize.quantize(float_file, out, CALIBRATION[:8], Judge(CALIBRATION, None))
    assert figures.chosen is not None
    assert figures.chosen.format == chosen
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert ("QLinearConv" in kinds) == chosen.startswith("QOperator")


def test_the_ends_stay_in_float_only_if_that_is_needed(
    float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(files: dict[str, Path], *_: object) -> dict[str, Trial]:
        return {name: Trial(name, 1, 1, 1, 0 if name == FLOAT or "float" in name else 0.02) for name in files}

    monkeypatch.setattr(quantize, "_try", fake)
    out = tmp_path / "int8.onnx"
    figures = quantize.quantize(float_file, out, CALIBRATION[:8], Judge(CALIBRATION, None), CPU[:1])
    assert [trial.format for trial in figures.trials] == [FLOAT, "QDQ U8S8", "QDQ U8S8, first and last layer float"]
    assert figures.chosen == figures.trials[-1]
    floats = {each.name for each in onnx.load(out).graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    assert {"first", "weight"} <= floats
    assert "second" not in floats


def test_a_network_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    models.tiny_model(tmp_path / "float.onnx", size=16)
    with pytest.raises(QuantizationError, match=r"its only layer with weights makes the logits, and stays float"):
        quantize.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", CALIBRATION, Judge(CALIBRATION, None))


def test_the_same_images_give_the_same_bytes(float_file: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom export.quantize import CPU, Judge, quantize\n"
        "from tests import convnet\n"
        "quantize(Path(sys.argv[1]), Path(sys.argv[2]), convnet.images(64), Judge(convnet.images(64), None), CPU[:1])\n"
    )
    files = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    for seed, out in enumerate(files):
        subprocess.run(
            [sys.executable, "-c", script, str(float_file), str(out)],
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
    assert files[0].read_bytes() == files[1].read_bytes()
