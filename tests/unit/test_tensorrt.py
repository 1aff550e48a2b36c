"""TensorRT as far as it goes without a GPU: profiles, who may run a plan, what the library is asked for, configs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as triton

from export import replay, repository, to_tensorrt
from export.errors import RepositoryError, TensorRTError
from export.replay import PLAN_FILE, sha256
from export.triton_config import Deployment, build_config
from service.spec import CONFIG_NAME, ImageSpec, ModelSpec, TensorRT, specs_from_config
from tests.models import publish_tiny, tiny_spec

IMAGE = ImageSpec(height=224, width=192, resize="stretch")
BUILT = TensorRT(version="10.13.3.9", compute_capability="9.0", batch=(1, 16, 64))


class FakeTensorRT(ModuleType):
    """The part of TensorRT's Python API that builds plans; it writes down what it is asked for."""

    def __init__(self, version: str = "10.13.3.9", refuses: str = "") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.asked: dict[str, Any] = {}
        self.Logger = lambda severity: severity
        self.Logger.WARNING = "warning"  # type: ignore[attr-defined]
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self._refuses = refuses

    def OnnxParser(self, network: object, logger: object) -> SimpleNamespace:
        return SimpleNamespace(
            parse=lambda data: self.asked.update(parsed=data) or self._refuses != "parse",
            num_errors=1,
            get_error=lambda _: SimpleNamespace(desc=lambda: "no importer for Frobnicate"),
        )

    def Builder(self, logger: object) -> SimpleNamespace:
        asked = self.asked
        profile = SimpleNamespace(set_shape=lambda name, *shapes: asked.update(profile={name: shapes}))
        config = SimpleNamespace(
            clear_flag=lambda flag: asked.update(cleared=flag),
            set_memory_pool_limit=lambda pool, limit: asked.update({pool: limit}),
            add_optimization_profile=lambda each: asked.update(profiled=each is profile),
            create_timing_cache=lambda data: data,
            set_timing_cache=lambda cache, ignore_mismatch: asked.update(cache=cache) or cache != b"foreign",
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: memoryview(b"times")),
        )
        return SimpleNamespace(
            create_network=lambda flags: asked.update(flags=flags),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda *_: None if self._refuses == "build" else memoryview(b"a plan"),
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch believes in a Hopper."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT | None) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake)


def plan_spec(name: str = "planned") -> ModelSpec:
    return tiny_spec(name).model_copy(update={"tensorrt": BUILT, "files": {PLAN_FILE: "0" * 64}})


# Profiles and the spec


def test_a_profile_is_the_input_s_shapes() -> None:
    assert to_tensorrt.shapes((1, 16, 64), IMAGE) == ((1, 224, 192, 3), (16, 224, 192, 3), (64, 224, 192, 3))


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 4), (1, 8, 4)])
def test_batch_sizes_have_to_rise(batch: tuple[int, int, int]) -> None:
    with pytest.raises(TensorRTError, match="must rise, as 1,16,64 do: not"):
        to_tensorrt.shapes(batch, IMAGE)
    with pytest.raises(ValidationError, match="batch must rise"):
        TensorRT(version="10", compute_capability="9.0", batch=batch)


@pytest.mark.parametrize(
    ("version", "capability", "problem"),
    [
        ("10.13.3.9", "9.0", None),
        ("10.14.1.48", "9.0", "the plan was built for TensorRT 10.13.3.9, not 10.14.1.48: publish it again"),
        ("10.13.3.9", "8.6", "the plan was built for a GPU of compute capability 9.0, not 8.6: publish it again"),
        ("11.0", "8.6", "for TensorRT 10.13.3.9, not 11.0 and for a GPU of compute capability 9.0, not 8.6: publish"),
    ],
)
def test_a_plan_runs_only_with_what_it_was_built_for(version: str, capability: str, problem: str | None) -> None:
    found = BUILT.mismatch(version, capability)
    assert (problem or "") in (found or "")
    assert (found is None) == (problem is None)


def test_the_spec_carries_it() -> None:
    spec = plan_spec()
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert tiny_spec().tensorrt is None


# Without TensorRT, and without a GPU


def test_where_tensorrt_is_missing_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.__main__ import main

    install(monkeypatch, None)
    command = ["publish", "--arch", "lenet5", "--name", "planned", "--repository", str(tmp_path / "models")]
    assert main([*command, "--format", "tensorrt"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: a plan needs TensorRT, which is not installed: on a machine with an NVIDIA GPU run")
    assert "pip install tensorrt" in error
    assert not (tmp_path / "models").exists()


def test_where_there_is_no_gpu_the_error_says_where_to_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TensorRTError, match="publish on the machine that will serve, with its NVIDIA driver"):
        to_tensorrt.machine()


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("8.6.1"))
    with pytest.raises(TensorRTError, match=r"TensorRT 8\.6\.1 is too old: version 10 or newer"):
        to_tensorrt.machine()


# Building, with a library that writes down what it is asked for


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 1 << 1), ("11.2.1", 0)])
def test_what_is_asked_of_tensorrt(version: str, flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRT(version)
    install(monkeypatch, fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    plan = tmp_path / PLAN_FILE
    built = to_tensorrt.build(tmp_path / "model.onnx", plan, IMAGE, (1, 4, 8), workspace=1 << 20)
    assert built == TensorRT(version=version, compute_capability="9.0", batch=(1, 4, 8))
    assert plan.read_bytes() == b"a plan"
    assert fake.asked == {
        "parsed": b"onnx",
        "flags": flags,
        "cleared": "tf32",
        "workspace": 1 << 20,
        "profile": {"image": to_tensorrt.shapes((1, 4, 8), IMAGE)},
        "profiled": True,
        "cache": b"",
    }
    assert to_tensorrt.timing_cache() == tmp_path / "cache" / "fovea" / "tensorrt-timing.cache"
    assert to_tensorrt.timing_cache().read_bytes() == b"times"

    to_tensorrt.build(tmp_path / "model.onnx", plan, IMAGE)
    assert fake.asked["cache"] == b"times"
    to_tensorrt.timing_cache().write_bytes(b"foreign")
    to_tensorrt.build(tmp_path / "model.onnx", plan, IMAGE)
    assert fake.asked["cache"] == b"", "what another machine measured is of no use"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("refuses", "message"),
    [("parse", r"cannot read model\.onnx: no importer for Frobnicate"), ("build", r"built no plan from model\.onnx")],
)
def test_what_tensorrt_refuses_is_said_in_its_words(
    refuses: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT(refuses=refuses))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(TensorRTError, match=message):
        to_tensorrt.build(tmp_path / "model.onnx", tmp_path / PLAN_FILE, IMAGE)
    assert not (tmp_path / PLAN_FILE).exists()


# In the repository


@pytest.mark.usefixtures("gpu")
def test_a_plan_for_another_machine_is_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.14.1.48"))
    (tmp_path / PLAN_FILE).write_bytes(b"a plan")
    spec = plan_spec().model_copy(update={"files": {PLAN_FILE: sha256(tmp_path / PLAN_FILE)}})
    with pytest.raises(TensorRTError, match=r"built for TensorRT 10\.13\.3\.9, not 10\.14\.1\.48"):
        replay.check(spec, tmp_path)


class FakePlan:
    """Runs the tiny model's ONNX file in place of a plan."""

    def __init__(self, path: Path) -> None:
        self._session = replay.session(path.with_name("model.onnx"))

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._session.run(names, feeds)
        return outputs


@pytest.mark.usefixtures("gpu")
def test_a_verified_plan_is_published_for_triton_s_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT())
    monkeypatch.setattr(to_tensorrt, "Plan", FakePlan)
    publish_tiny(tmp_path / "models", "tiny")
    source = tmp_path / "models" / "tiny" / "1"
    (source / PLAN_FILE).write_bytes(b"a plan")
    files = {name: sha256(source / name) for name in (PLAN_FILE, "model.onnx")}  # the latter for FakePlan's sake
    spec = repository.publish(tmp_path / "models", plan_spec().model_copy(update={"files": files}), source)
    text = (tmp_path / "models" / "planned" / CONFIG_NAME).read_text(encoding="utf-8")
    config = text_format.Parse(text, triton.ModelConfig())
    assert (config.backend, config.default_model_filename) == ("tensorrt", PLAN_FILE)
    assert config.max_batch_size == 64
    assert config.instance_group[0].kind == triton.ModelInstanceGroup.KIND_GPU
    assert specs_from_config(config) == {"1": spec}
    with pytest.raises(RepositoryError, match=r"version 1 of tiny is model\.onnx, and a model is either ONNX or plans"):
        repository.publish(tmp_path / "models", spec.model_copy(update={"name": "tiny"}), source)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_triton_s_onnx_runtime_is_asked_for_tensorrt(precision: str) -> None:
    spec = tiny_spec().model_copy(update={"precision": precision})
    config = build_config({"1": spec}, Deployment(accelerator=(1, 4, 8)))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": precision.upper(),
        "max_workspace_size_bytes": str(4 << 30),
        "trt_timing_cache_enable": "1",
        "trt_profile_min_shapes": "image:1x8x8x3",
        "trt_profile_opt_shapes": "image:4x8x8x3",
        "trt_profile_max_shapes": "image:8x8x8x3",
    }
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 8)
    assert config.instance_group[0].kind == triton.ModelInstanceGroup.KIND_GPU
    assert not build_config({"1": spec}).HasField("optimization")


def test_all_but_int8_for_cpus_takes_a_gpu_where_there_is_one() -> None:
    kinds = {}
    for precision in ("fp32", "fp16", "int8"):
        config = build_config({"1": tiny_spec().model_copy(update={"precision": precision})})
        kinds[precision] = config.instance_group[0].kind
    group = triton.ModelInstanceGroup
    assert kinds == {"fp32": group.KIND_AUTO, "fp16": group.KIND_AUTO, "int8": group.KIND_CPU}
