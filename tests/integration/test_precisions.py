"""Publishing in every precision, from the command line to what the gateway loads. The networks are untrained."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export import data, precision, quantize
from export.__main__ import main
from export.replay import MODEL_FILE
from service.backends.onnx_runtime import Embedding, load
from service.batcher import Observer
from service.preprocess import Limits
from service.spec import CONFIG_NAME, ModelSpec, read_config
from tests.integration import few_digits

PUBLISH = ["publish", "--arch", "lenet5", "--data", "few-digits", "--name", "lenet5-few", "--repository"]


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.LOADERS, "few-digits", few_digits.load)


def published(repository: Path) -> ModelSpec:
    """The spec, after the gateway has loaded its version."""
    folder = repository / "lenet5-few"
    spec = read_config(folder / CONFIG_NAME).specs["1"]
    load(
        folder / "1",
        spec,
        max_batch=4,
        embedding=Embedding(threads=1, max_queue=1),
        limits=Limits(),
        observer=Observer(),
    )
    return spec


def kinds(repository: Path) -> set[str]:
    graph = onnx.load(repository / "lenet5-few" / "1" / MODEL_FILE).graph
    return {node.op_type for node in graph.node}


def config_of(repository: Path) -> triton.ModelConfig:
    text = (repository / "lenet5-few" / CONFIG_NAME).read_text(encoding="utf-8")
    return text_format.Parse(text, triton.ModelConfig())


def test_what_is_wanted_of_triton_stays_until_it_is_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerated = [
        "--tensorrt-accelerator",
        "--batch-sizes",
        "1,2,4",
        "--instances",
        "2",
        "--max-queue-delay-us",
        "200",
    ]
    assert main([*PUBLISH, str(tmp_path), *accelerated]) == 0
    assert published(tmp_path).precision == "fp32"
    config = config_of(tmp_path)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["trt_profile_max_shapes"] == "image:4x32x32x1"
    assert (config.max_batch_size, config.instance_group[0].count) == (4, 2)
    assert config.dynamic_batching.max_queue_delay_microseconds == 200

    assert main([*PUBLISH, str(tmp_path), "--max-batch-size", "8"]) == 2
    assert "TensorRT takes 1 to 4 images here" in capsys.readouterr().err

    wanted = ["--forget-overrides", "--instance-kind", "cpu", "--max-batch-size", "8"]
    assert main([*PUBLISH, str(tmp_path), *wanted]) == 0
    config = config_of(tmp_path)
    assert not config.HasField("optimization")
    assert (config.max_batch_size, config.instance_group[0].count) == (8, 1)
    assert config.instance_group[0].kind == triton.ModelInstanceGroup.KIND_CPU


def test_int8_is_measured_published_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "MAX_LOSS", 1.0)
    monkeypatch.setattr(precision, "CALIBRATION_DRAWINGS", 8)
    assert main([*PUBLISH, str(tmp_path), "--precision", "int8"]) == 0
    figures = capsys.readouterr().err
    for words in ("calibrate", "144/144", "× fp32", "accuracy on 1620", "QDQ U8S8", "QOperator U8S8", "←"):
        assert words in figures
    spec = published(tmp_path)
    assert spec.precision == "int8"
    assert spec.golden_tolerance >= 0.06
    assert spec.parity is not None
    assert spec.parity.tolerance == 0.75
    assert spec.accuracy is not None
    assert kinds(tmp_path) & {"QLinearConv", "QuantizeLinear"}


def test_half_precision_is_published_and_loaded(tmp_path: Path) -> None:
    assert main([*PUBLISH, str(tmp_path), "--precision", "fp16"]) == 0
    spec = published(tmp_path)
    assert (spec.precision, spec.golden_tolerance) == ("fp16", 2e-2)
    assert spec.parity is not None
    assert spec.parity.tolerance == 5e-2
    assert max(spec.parity.max_difference.values()) < 5e-3


def test_what_does_not_go_together_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PUBLISH, str(tmp_path), "--format", "tensorrt", "--tensorrt-accelerator"]) == 2
    assert "a plan needs no --tensorrt-accelerator" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*PUBLISH, str(tmp_path), "--tensorrt-accelerator", "--batch-sizes", "8,4,2"])
    assert "argument --batch-sizes: invalid batch_sizes value: '8,4,2'" in capsys.readouterr().err
    assert main([*PUBLISH, str(tmp_path), "--batch-sizes", "2,4,8"]) == 2
    assert "--batch-sizes are TensorRT's" in capsys.readouterr().err
    assert main([*PUBLISH, str(tmp_path), "--tensorrt-accelerator", "--max-batch-size", "65"]) == 2
    assert "change --max-batch-size or --batch-sizes" in capsys.readouterr().err
    for option, number in (("--instances", "0"), ("--max-batch-size", "-1"), ("--max-queue-delay-us", "-1")):
        with pytest.raises(SystemExit):
            main([*PUBLISH, str(tmp_path), option, number])
    assert not any(tmp_path.iterdir())
