"""Versions that come, go and break under a real server that is answering all the while."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import hammering
from tests.faults import overwrite
from tests.models import png, publish_tiny
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with version 1 of `tiny`."""
    publish_tiny(tmp_path / "models")
    return tmp_path / "models"


def serves(server: Server, version: str, seed: int) -> bool:
    answer = server.classify(picture(99)).json()
    return answer.get("version") == version and is_right(answer["predictions"][0], picture(99), seed)


# New versions.


def test_a_new_version_takes_over_without_a_failed_request(models: Path, launch: Launch) -> None:
    server = launch(models)
    with hammering(server, {"1": 0, "2": 1, "3": 2}) as records:
        for version, seed in (("2", 1), ("3", 2)):
            time.sleep(0.2)
            publish_tiny(models, seed=seed)
            server.wait_until(lambda version=version: server.models()["tiny"]["version"] == version)
        time.sleep(0.2)
    for record in records:
        assert record.wrong == []
        versions = [version for _, version in record.answers]
        assert versions == sorted(versions)  # never back to an older one
        assert set(versions) == {"1", "2", "3"}
    # The two newest are kept, the older of them for who names it.
    answer = server.classify(picture(1), version="2").json()
    assert answer["version"] == "2"
    assert is_right(answer["predictions"][0], picture(1), 1)
    assert server.classify(picture(1), version="1").status_code == 404
    metrics = server.metrics()
    assert metrics("model_ready", model="tiny") == 2
    assert metrics("model_ready", model="tiny", version="1") == 0
    assert metrics("model_load_failures_total") == 0


def test_publishing_again_and_again_is_never_seen_half_done(models: Path, launch: Launch) -> None:
    """Config first, then the version: whoever looks in between, or reads the one before the other, must not mind."""
    server = launch(models, poll_seconds=0.001)
    for seed in range(1, 13):
        publish_tiny(models, seed=seed)
    server.wait_until(lambda: server.models()["tiny"]["version"] == "13")
    assert serves(server, "13", 12)
    assert server.metrics()("model_load_failures_total") == 0
    assert [line for line in server.log() if line["level"] != "info"] == []


def test_a_new_model_appears(models: Path, launch: Launch) -> None:
    server = launch(models)
    assert server.classify(picture(1), "second").status_code == 404
    publish_tiny(models, "second", seed=3)
    server.wait_until(lambda: "second" in server.models())
    assert is_right(server.classify(picture(1), "second").json()["predictions"][0], picture(1), 3)


def test_an_empty_repository_becomes_ready_with_its_first_model(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "models").mkdir()
    server = launch(tmp_path / "models", ready=False)
    server.wait_until(lambda: "no model" in server.client.get("/readyz").text)
    answer = server.client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert answer.headers["retry-after"]
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/v1/models").json() == {"default": None, "models": []}
    assert server.client.post("/v1/classify", content=png(picture(0))).status_code == 400
    publish_tiny(tmp_path / "models")
    server.wait_until(server.ready)
    answer = server.client.post("/v1/classify", content=png(picture(0)))  # the only one needs no name
    assert is_right(answer.json()["predictions"][0], picture(0))


# What happens to what is loaded.


def test_a_loaded_version_outlives_its_files(models: Path, launch: Launch) -> None:
    publish_tiny(models, seed=1)
    server = launch(models)
    path = models / "tiny" / "2" / "model.onnx"
    whole = path.read_bytes()

    def problem() -> str | None:
        return str(server.models()["tiny"]["versions"]["2"]["problem"] or "") or None

    for damage in (path.unlink, lambda: path.write_bytes(whole[:100])):
        damage()
        server.wait_until(lambda: problem() is not None)
        assert serves(server, "2", 1)
        assert server.models()["tiny"]["versions"]["2"]["state"] == "ready"
        path.write_bytes(whole)
        server.wait_until(lambda: problem() is None)
        assert serves(server, "2", 1)
    shutil.rmtree(path.parent)  # taken away as a whole: on with the version before
    server.wait_until(lambda: server.models()["tiny"]["version"] == "1")
    assert serves(server, "1", 0)


def test_loading_anew_leaves_nothing_behind(models: Path, launch: Launch) -> None:
    """Each load brings a thread; the thread of what it replaces has to end."""
    server = launch(models, poll_seconds=0.02)
    threads = Path(f"/proc/{server.process.pid}/task")
    if not threads.exists():
        pytest.skip("counts threads in /proc")

    def loads() -> int:
        return sum("version ready" in line["message"] for line in server.log())

    server.wait_until(lambda: loads() == 1)
    before = len(list(threads.iterdir()))
    for again in range(2, 9):
        os.utime(models / "tiny" / "1" / "model.onnx")
        server.wait_until(lambda again=again: loads() == again)
        assert serves(server, "1", 0)
    server.wait_until(lambda: len(list(threads.iterdir())) <= before + 3)  # the loop's own pool may have grown


def test_a_broken_config_leaves_what_is_loaded_serving(models: Path, launch: Launch) -> None:
    server = launch(models)
    config = models / "tiny" / "config.pbtxt"
    good = config.read_text()
    for refused, text in enumerate(["garbage {", 'name: "other"', ""], start=1):
        overwrite(config, text)
        server.wait_until(lambda refused=refused: server.metrics()("model_load_failures_total") == refused)
        time.sleep(0.15)  # several looks later it has still been counted once
        assert server.metrics()("model_load_failures_total", model="tiny", reason="config") == refused
        assert serves(server, "1", 0)
        assert server.models()["tiny"]["state"] == "ready"
        problems = [each["problem"] for each in server.models()["tiny"]["versions"].values()]
        assert any(problem and "config.pbtxt" in problem for problem in problems)
        assert not any(problem and str(models) in problem for problem in problems)  # where it lies is nobody's business
    overwrite(config, good)
    server.wait_until(lambda: not any(each["problem"] for each in server.models()["tiny"]["versions"].values()))
    assert serves(server, "1", 0)


def test_a_model_that_is_removed_is_unknown_and_its_neighbour_is_not(models: Path, launch: Launch) -> None:
    publish_tiny(models, "other", seed=4)
    server = launch(models)
    shutil.rmtree(models / "other")
    server.wait_until(lambda: "other" not in server.models())
    answer = server.classify(picture(0), "other")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert server.client.get("/v1/models/other").status_code == 404
    assert serves(server, "1", 0)
    assert server.metrics()("model_ready", model="other") == 0
    publish_tiny(models, "other", seed=5)
    server.wait_until(lambda: "other" in server.models())
    assert is_right(server.classify(picture(0), "other").json()["predictions"][0], picture(0), 5)


def test_a_repository_that_cannot_be_read_for_a_while(models: Path, launch: Launch) -> None:
    server = launch(models)
    away = models.with_name("away")
    models.rename(away)
    line = server.wait_log(lambda line: line["level"] == "error")
    assert "repository" in line["message"]
    time.sleep(0.3)
    assert serves(server, "1", 0)
    assert server.ready()
    assert len([line for line in server.log() if line["level"] == "error"]) == 1  # said once, not at each look
    away.rename(models)
    publish_tiny(models, seed=1)
    server.wait_until(lambda: serves(server, "2", 1))


def test_what_is_no_model_is_passed_over(models: Path, launch: Launch) -> None:
    (models / "README.md").write_text("hello")
    (models / "folder").mkdir()
    (models / ".staging-x").mkdir()
    shutil.copyfile(models / "tiny" / "config.pbtxt", models / ".staging-x" / "config.pbtxt")
    for name in ("latest", "0", "01", "-1", "2.bak"):
        (models / "tiny" / name).mkdir()
    server = launch(models)
    assert list(server.models()) == ["tiny"]
    assert list(server.models()["tiny"]["versions"]) == ["1"]
