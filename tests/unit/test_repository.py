"""Publishing: what is written reads back, and nothing that goes wrong at any moment is ever served."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export import repository as module
from export.errors import DriftError, RepositoryError
from export.replay import MODEL_FILE, sha256
from export.repository import LOCK_NAME, publish
from export.triton_config import Deployment, build_config, max_batch_size
from service.preprocess import Preprocessor
from service.spec import CONFIG_NAME, ModelSpec, TensorRT, read_config
from tests.models import publish_tiny, tiny_logits, tiny_model, tiny_spec

ROOT = Path(__file__).parents[2]
GROUP = triton.ModelInstanceGroup


def served(repository: Path, name: str = "tiny") -> dict[str, ModelSpec]:
    """The versions that a gateway finds, after checking every hash."""
    folder = repository / name
    if not folder.exists():
        return {}
    specs = read_config(folder / CONFIG_NAME).specs
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    assert there <= specs.keys(), "a version without a spec"
    for version in there:
        for file, expected in specs[version].files.items():
            assert sha256(folder / version / file) == expected
    return {version: specs[version] for version in sorted(there)}


def written(repository: Path, name: str = "tiny") -> triton.ModelConfig:
    """What Triton reads."""
    text = (repository / name / CONFIG_NAME).read_text(encoding="utf-8")
    return text_format.Parse(text, triton.ModelConfig())


def only_models_in(repository: Path) -> bool:
    return all(path.name == LOCK_NAME or not path.name.startswith(".") for path in repository.iterdir())


def prepared(folder: Path, **changes: object) -> ModelSpec:
    """A tiny model's file in `folder`, and its spec."""
    tiny_model(folder / MODEL_FILE)
    files = {MODEL_FILE: sha256(folder / MODEL_FILE)}
    return tiny_spec().model_copy(update={"files": files, **changes})


# What is written


def test_config_reads_back_with_its_spec(tmp_path: Path) -> None:
    spec = publish_tiny(tmp_path, labels=7, size=16)
    config = written(tmp_path)
    assert (config.name, config.backend, config.default_model_filename) == ("tiny", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 64
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("image", triton.TYPE_UINT8, [16, 16, 3])
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [
        ("logits", triton.TYPE_FP32, [7]),
        ("features", triton.TYPE_FP32, [3]),
        ("cam", triton.TYPE_FP32, [5, 8, 8]),
        ("activations", triton.TYPE_FP32, [3, 8, 8]),
    ]
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.ListFields()  # no waiting, and no preferred sizes to stop at
    assert [(each.count, each.kind) for each in config.instance_group] == [(1, GROUP.KIND_AUTO)]
    assert [(each.name, each.batch_size, list(each.inputs)) for each in config.model_warmup] == [
        ("batch-1", 1, ["image"]),
        ("batch-64", 64, ["image"]),
    ]
    for each in config.model_warmup:
        image = each.inputs["image"]
        assert (image.data_type, list(image.dims), image.zero_data) == (triton.TYPE_UINT8, [16, 16, 3], True)
    assert config.version_policy.latest.num_versions == 2
    assert read_config(tmp_path / "tiny" / CONFIG_NAME).specs == {"1": spec}


def test_tiny_model_gives_what_numpy_gives() -> None:
    spec = tiny_spec(labels=4, size=12, seed=5)
    pixels = np.stack([Preprocessor(spec.image)(golden.data) for golden in spec.golden])
    logits = np.array([golden.logits for golden in spec.golden])
    np.testing.assert_allclose(tiny_logits(pixels, labels=4, seed=5), logits, rtol=1e-6)


def test_versions_count_up_and_earlier_ones_stay(tmp_path: Path) -> None:
    first = publish_tiny(tmp_path)
    before = sha256(tmp_path / "tiny" / "1" / MODEL_FILE)
    second = publish_tiny(tmp_path, seed=1)
    assert served(tmp_path) == {"1": first, "2": second}
    assert sha256(tmp_path / "tiny" / "1" / MODEL_FILE) == before
    assert only_models_in(tmp_path)


def test_a_number_never_means_two_things(tmp_path: Path) -> None:
    for seed in range(2):
        publish_tiny(tmp_path, seed=seed)
    shutil.rmtree(tmp_path / "tiny" / "2")
    assert publish_tiny(tmp_path, seed=2).version == "3"
    assert read_config(tmp_path / "tiny" / CONFIG_NAME).specs.keys() == {"1", "3"}


@pytest.mark.parametrize(
    ("macs", "batch"), [(0, 64), (49_999_999, 64), (50_000_000, 16), (999_999_999, 16), (10**9, 8), (10**11, 8)]
)
def test_heavier_networks_get_smaller_batches(macs: int, batch: int) -> None:
    assert max_batch_size(macs) == batch


def test_the_heaviest_version_sets_the_batch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    publish(tmp_path / "models", prepared(source, macs=10**9), source)
    publish(tmp_path / "models", prepared(source), source)
    assert read_config(tmp_path / "models" / "tiny" / CONFIG_NAME).max_batch_size == 8


# What is wanted of Triton


def test_the_same_model_and_wishes_give_the_same_config(tmp_path: Path) -> None:
    spec, wanted = prepared(tmp_path), Deployment(instances=2, max_batch_size=4)
    for name in ("one", "two"):
        publish(tmp_path / name, spec, tmp_path, wanted)
    one, two = ((tmp_path / name / "tiny" / CONFIG_NAME).read_bytes() for name in ("one", "two"))
    assert one == two


def test_wishes_stay_until_they_are_given_anew_or_forgotten(tmp_path: Path) -> None:
    spec, models = prepared(tmp_path), tmp_path / "models"

    def publishing(wanted: Deployment | None = None) -> triton.ModelConfig:
        publish(models, spec, tmp_path, wanted)
        assert len(read_config(models / "tiny" / CONFIG_NAME).specs) == len(served(models))
        return written(models)

    default = publishing()
    wanted = Deployment(instances=2, instance_kind="gpu", max_batch_size=32, accelerator=(1, 8, 32))
    for config in (publishing(wanted), publishing()):
        assert [(each.count, each.kind) for each in config.instance_group] == [(2, GROUP.KIND_GPU)]
        assert config.max_batch_size == read_config(models / "tiny" / CONFIG_NAME).max_batch_size == 32
        assert [each.batch_size for each in config.model_warmup] == [1, 32]
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.parameters["trt_profile_max_shapes"] == "image:32x8x8x3"
    config = publishing(Deployment(max_batch_size=1, max_queue_delay_us=500))
    assert [(each.count, each.kind) for each in config.instance_group] == [(2, GROUP.KIND_GPU)]
    assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (1, 500)
    assert [each.batch_size for each in config.model_warmup] == [1]
    forgotten = publishing(Deployment(fresh=True))
    default.parameters.clear()
    assert [key for key in forgotten.parameters if not key.startswith("fovea.")] == []
    forgotten.parameters.clear()
    assert forgotten == default


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Deployment(accelerator=(1, 4, 8), instance_kind="cpu"), "leave out --instance-kind cpu"),
        (Deployment(accelerator=(1, 4, 8), max_batch_size=9), "TensorRT takes 1 to 8 images here"),
        (Deployment(accelerator=(2, 4, 8), max_batch_size=1), "change --max-batch-size or --batch-sizes"),
    ],
)
def test_wishes_that_contradict_each_other(tmp_path: Path, wanted: Deployment, message: str) -> None:
    first = publish(tmp_path / "models", prepared(tmp_path), tmp_path)
    with pytest.raises(RepositoryError, match=message):
        publish(tmp_path / "models", prepared(tmp_path), tmp_path, wanted)
    assert served(tmp_path / "models") == {"1": first}


def test_broken_wishes_are_refused_until_they_are_forgotten(tmp_path: Path) -> None:
    publish(tmp_path / "models", prepared(tmp_path), tmp_path, Deployment(instances=2))
    config = tmp_path / "models" / "tiny" / CONFIG_NAME
    config.write_text(config.read_text().replace('"{\\"instances\\":2}"', '"{\\"instances\\":0}"'))
    with pytest.raises(RepositoryError, match=r"greater than or equal to 1.*pass --forget-overrides"):
        publish(tmp_path / "models", prepared(tmp_path), tmp_path)
    publish(tmp_path / "models", prepared(tmp_path), tmp_path, Deployment(fresh=True))


def test_a_plan_is_warmed_up_with_batches_that_it_takes() -> None:
    spec = tiny_spec().model_copy(
        update={"tensorrt": TensorRT(version="10.13.3.9", compute_capability="9.0", batch=(4, 8, 16))}
    )
    assert [each.batch_size for each in build_config({"1": spec}).model_warmup] == [4, 16]
    with pytest.raises(RepositoryError, match="a plan needs no --tensorrt-accelerator"):
        build_config({"1": spec}, Deployment(accelerator=(4, 8, 16)))


# What is refused


@pytest.mark.parametrize("name", ["", "Tiny", "-tiny", "ti ny", "tiny/..", "..", "a" * 65, "tiny.encoded", "größe"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="cannot name a model"):
        publish_tiny(tmp_path, name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t", "0", "a" * 64, "lenet5-digits", "v1.2_x", "encoded"])
def test_names_that_can_be(tmp_path: Path, name: str) -> None:
    assert publish_tiny(tmp_path, name).name == name


@pytest.mark.parametrize(
    ("labels", "size", "changed"), [(4, 8, "logits is (4,), was (3,)"), (3, 16, "image is (16, 16, 3)")]
)
def test_other_shapes_take_another_name(tmp_path: Path, labels: int, size: int, changed: str) -> None:
    publish_tiny(tmp_path)
    with pytest.raises(RepositoryError, match=re.escape(changed) + ".*take another name"):
        publish_tiny(tmp_path, labels=labels, size=size)
    assert served(tmp_path).keys() == {"1"}
    assert only_models_in(tmp_path)


def test_a_foreign_model_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "tiny" / CONFIG_NAME
    foreign.parent.mkdir()
    foreign.write_text('name: "tiny"\nbackend: "python"\n')
    with pytest.raises(RepositoryError, match="not published by Fovea"):
        publish_tiny(tmp_path)
    foreign.write_text("not a config")
    with pytest.raises(RepositoryError, match="in the way"):
        publish_tiny(tmp_path)
    foreign.unlink()
    with pytest.raises(RepositoryError, match="in the way"):
        publish_tiny(tmp_path)


@pytest.mark.parametrize("escape", ["/etc/model.onnx", "../model.onnx", "1/../../model.onnx"])
def test_files_stay_inside_of_the_version(tmp_path: Path, escape: str) -> None:
    spec = tiny_spec().model_copy(update={"files": {escape: "0" * 64}})
    with pytest.raises(RepositoryError, match="outside"):
        publish(tmp_path / "models", spec, tmp_path)


def test_drift_is_refused_with_figures(tmp_path: Path) -> None:
    publish_tiny(tmp_path)
    spec = prepared(tmp_path)
    wrong = spec.golden[1].model_copy(update={"logits": (9.0, 0.0, 0.0)})
    with pytest.raises(DriftError, match=r"'golden-1\.png': a probability differs by 0\.\d+, more than 0\.001"):
        publish(tmp_path, spec.model_copy(update={"golden": (spec.golden[0], wrong)}), tmp_path)
    with pytest.raises(RepositoryError, match="breaks the contract"):
        publish(tmp_path, spec.model_copy(update={"golden": ()}), tmp_path)
    assert served(tmp_path).keys() == {"1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {MODEL_FILE: "0" * 64}}, "not the file that was verified"),
        ({"features": 4, "places": None}, r"features is float32 \(3,\), the spec says float32 \(4,\)"),
        ({"maps": (3, 8, 8)}, r"cam is float32 \(3, 4, 4\), the spec says float32 \(3, 8, 8\)"),
    ],
)
def test_a_spec_that_its_file_contradicts_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    spec = prepared(tmp_path, **change)
    with pytest.raises(DriftError, match=message):
        publish(tmp_path / "models", spec, tmp_path)
    assert served(tmp_path / "models") == {}


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"no graph")
    spec = tiny_spec().model_copy(update={"files": {MODEL_FILE: sha256(tmp_path / MODEL_FILE)}})
    with pytest.raises(DriftError, match="does not load"):
        publish(tmp_path / "models", spec, tmp_path)


# What goes wrong on the way


@pytest.mark.parametrize("versions", [0, 1], ids=["new model", "new version"])
def test_killed_at_any_moment(tmp_path: Path, versions: int) -> None:
    base, copies = tmp_path / "base", tmp_path / "copies"
    base.mkdir()
    copies.mkdir()
    for _ in range(versions):
        publish_tiny(base)
    command = [sys.executable, "-m", "tests.unit.kill_publisher", str(base), str(copies)]
    subprocess.run(command, check=True, timeout=100, cwd=ROOT)
    old = {str(version + 1) for version in range(versions)}
    new = old | {str(versions + 1)}
    repositories = sorted(copies.iterdir(), key=lambda path: int(path.name))
    states = []
    for repository in repositories:
        states.append(served(repository).keys())
        assert states[-1] in (old, new)
        after = publish_tiny(repository, seed=2)
        assert served(repository).keys() == states[-1] | {after.version}
        assert only_models_in(repository)
    assert len(states) > 20
    assert states[0] == old
    assert states[-2] == states[-1] == new  # killed before cleaning up, and not killed
    assert states == sorted(states, key=len)  # once there, it stays there


def test_concurrent_publishers_take_turns(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from tests.models import publish_tiny; "
    script += "[publish_tiny(Path(sys.argv[1]), seed=int(sys.argv[2])) for _ in range(2)]"
    publishers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(seed)], cwd=ROOT) for seed in range(3)
    ]
    with ThreadPoolExecutor(2) as threads:  # and some in one process
        done = [threads.submit(publish_tiny, tmp_path, seed=seed) for seed in range(2)]
        versions = [each.result(timeout=60).version for each in done]
    assert [publisher.wait(timeout=60) for publisher in publishers] == [0, 0, 0]
    assert served(tmp_path).keys() == {str(version + 1) for version in range(8)}
    assert len(set(versions)) == 2
    assert only_models_in(tmp_path)


def test_waiting_for_another_publisher_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT", 0.1)
    with module._lock(tmp_path), pytest.raises(RepositoryError, match="another publisher"):
        publish_tiny(tmp_path)


@pytest.mark.parametrize("step", ["copy", "flush", "rename"])
@pytest.mark.parametrize("versions", [0, 1])
def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: int, step: str) -> None:
    for _ in range(versions):
        publish_tiny(tmp_path)
    before = served(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        where = {"copy": (shutil, "copyfile"), "flush": (os, "fsync"), "rename": (Path, "rename")}[step]
        patch.setattr(*where, full)
        with pytest.raises(RepositoryError, match="the disk is full; free some space and publish again"):
            publish_tiny(tmp_path)
    assert served(tmp_path) == before
    assert only_models_in(tmp_path)
    publish_tiny(tmp_path)
    assert len(served(tmp_path)) == versions + 1


def test_a_repository_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="was not published to"):
        publish_tiny(tmp_path / "file")


def test_leftovers_of_the_dead_go_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".staging-tiny-1" / "tiny" / "1"
    leftover.mkdir(parents=True)
    (leftover / MODEL_FILE).write_bytes(b"half")
    publish_tiny(tmp_path)
    assert only_models_in(tmp_path)


def test_needs_no_torch() -> None:
    script = "import sys, export.repository, tests.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=ROOT)
