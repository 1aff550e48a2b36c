"""Versions that are broken, each in its own way, beside one that serves: it goes on, and says what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import faults
from tests.clients import Record, hammering
from tests.models import publish_tiny
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]

# What is wrong, the reason in the metric, and what the stated problem has to mention.
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (faults.truncated, "files", "SHA-256"),
    "altered": (faults.altered, "files", "SHA-256"),
    "missing": (faults.missing, "files", "No such file"),
    "wild-path": (faults.wild_path, "files", "a\\x00b"),
    "no-graph": (faults.no_graph, "graph", "cannot load"),
    "other-size": (faults.other_size, "graph", "16"),
    "other-labels": (faults.other_labels, "graph", "logits is [4], the spec wants [3]"),
    "fails-on-golden": (faults.fails_on_golden, "graph", "fails on the golden images"),
    "other-weights": (faults.other_weights, "drift", "golden image"),
    "drifted": (faults.drifted, "drift", "'golden-0.png'"),
    "not-a-number": (faults.not_a_number, "drift", "nan"),
    "golden-broken": (faults.golden_broken, "drift", "'golden-0.png' is refused"),
    "no-spec": (faults.no_spec, "config", "no spec"),
    "from-the-future": (faults.from_the_future, "config", "format"),
}


@dataclass
class Ward:
    """A server of one model per fault, its version 1 sound and its version 2 not, and what clients saw meanwhile."""

    server: Server
    models: Path
    whole: Path
    record: Record


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    folder = tmp_path_factory.mktemp("ward")
    models, beside = folder / "models", folder / "beside"
    publish_tiny(models)
    for name, (fault, _, _) in FAULTS.items():
        staged = faults.stage(models, beside, name)
        shutil.copytree(staged, folder / "whole" / name)
        fault(staged)
    with Server(models, folder, poll_seconds=0.1).start() as server:
        with hammering(server, {"1": 0}, clients=1) as (record,):
            for name in FAULTS:
                faults.install(beside / name, models / name, "2")
            for name in FAULTS:
                server.wait_log(lambda line, name=name: line["level"] == "error" and line.get("model") == name, 20)
            looks = len(server.log())
            server.wait_until(lambda: len(server.log()) > looks + 100)  # of the clients' lines: several looks later
        yield Ward(server, models, folder / "whole", record)


def test_clients_notice_nothing(ward: Ward) -> None:
    assert ward.record.wrong == []
    assert len(ward.record.answers) > 100
    assert ward.server.ready()


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_version_leaves_the_old_one_serving_and_is_mended_without_a_restart(ward: Ward, name: str) -> None:
    server, reason, problem = ward.server, *FAULTS[name][1:]
    answer = server.classify(picture(1), name).json()
    assert answer["version"] == "1"
    assert is_right(answer["predictions"][0], picture(1))

    # Why: in the log, in the list of models, in a metric (counted once, not at each look), to who asks for it by name.
    (line,) = [line for line in server.log() if line["level"] == "error" and line.get("version") == "2"
               and line["model"] == name and "refused" in line["message"]]  # fmt: skip
    assert problem in line["message"]
    status = server.models()[name]
    assert (status["state"], status["version"]) == ("ready", "1")
    assert status["versions"]["2"]["state"] == "failed"
    assert problem in status["versions"]["2"]["problem"]
    for private in (str(ward.models), "[ONNXRuntimeError]", "Traceback", "broadcast"):
        assert private not in status["versions"]["2"]["problem"]
    metrics = server.metrics()
    assert metrics("model_load_failures_total", model=name, reason=reason) == 1
    assert metrics("model_load_failures_total", model=name) == 1
    assert metrics("model_ready", model=name, version="2") == 0
    assert metrics("model_ready", model=name, version="1") == 1
    pinned = server.classify(picture(1), name, version="2")
    assert (pinned.status_code, pinned.json()["code"]) == (503, "backend_unavailable")
    assert pinned.headers["retry-after"]

    # Mended in place, it takes over.
    shutil.copyfile(ward.whole / name / "2" / "model.onnx", ward.models / name / "2" / "model.onnx")
    faults.install(ward.whole / name, ward.models / name, "no other version")
    server.wait_until(lambda: server.classify(picture(1), name).json()["version"] == "2")
    assert is_right(server.classify(picture(1), name).json()["predictions"][0], picture(1), seed=1)
    assert server.models()[name]["versions"]["2"]["problem"] is None
    assert server.metrics()("model_ready", model=name, version="2") == 1


def test_what_is_broken_does_not_keep_the_rest_from_starting(tmp_path: Path, launch: Launch) -> None:
    """After a restart there is no loaded version to fall back on: the older one has to load beside the broken one."""
    for name, (fault, _, _) in FAULTS.items():
        staged = faults.stage(tmp_path / "models", tmp_path / "beside", name)
        fault(staged)
        faults.install(staged, tmp_path / "models" / name, "2")
    publish_tiny(tmp_path / "models", "hopeless")
    (tmp_path / "models" / "hopeless" / "1" / "model.onnx").write_bytes(b"x")
    server = launch(tmp_path / "models")
    for name, (_, _, problem) in FAULTS.items():
        answer = server.classify(picture(1), name).json()
        assert (answer["version"], is_right(answer["predictions"][0], picture(1))) == ("1", True)
        assert problem in server.models()[name]["versions"]["2"]["problem"]
    answer = server.classify(picture(0), "hopeless")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert "SHA-256" in answer.json()["detail"]
    assert server.client.get("/v1/models/hopeless").json()["state"] == "failed"


def test_a_plan_is_refused_with_the_remedy(tmp_path: Path, launch: Launch) -> None:
    folder = faults.stage(tmp_path / "models", tmp_path / "beside", "tiny")
    plan = {"version": "10.13", "compute_capability": "9.0", "batch": [1, 8, 16]}
    faults.edit_spec(folder, "2", lambda spec: spec.update(tensorrt=plan))
    server = launch(tmp_path / "models")
    faults.install(folder, tmp_path / "models" / "tiny", "2")
    server.wait_until(lambda: "2" in server.models()["tiny"]["versions"])
    versions = server.models()["tiny"]["versions"]
    assert versions["1"]["state"] == "ready"
    assert "--format onnx" in versions["2"]["problem"]
