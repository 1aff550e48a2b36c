"""Teaching over HTTP: from nothing to a classifier that answers like a model."""

from __future__ import annotations

import io
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.models import png, publish_tiny
from tests.server import Pixels, Server

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def shade(label: str, number: int) -> Pixels:
    """An image of about that colour, another one for each number, in four quarters of different brightness."""
    noise = np.random.default_rng(number).integers(-25, 26, (4, 3))
    quarters = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8).reshape(2, 2, 3)
    return quarters.repeat(4, 0).repeat(4, 1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests teach heads of their own names."""
    models = tmp_path_factory.mktemp("models")
    publish_tiny(models)
    with Server(models, tmp_path_factory.mktemp("teacher"), max_examples=200).start() as running:
        yield running


def create(server: Server, head: str, backbone: str = "tiny") -> None:
    answer = server.client.put(f"/v1/heads/{head}", json={"backbone": backbone})
    assert answer.status_code == 201, answer.text


def give(server: Server, head: str, label: str, *numbers: int) -> dict[str, Any]:
    files = [("image", png(shade(label, number))) for number in numbers]
    answer = server.client.post(f"/v1/heads/{head}/examples", params={"label": label}, files=files)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def fit(server: Server, head: str) -> dict[str, Any]:
    answer = server.client.post(f"/v1/heads/{head}/fit")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def taught(server: Server, head: str, *labels: str, examples: int = 12) -> dict[str, Any]:
    """Make, teach and fit a head."""
    create(server, head)
    for label in labels:
        give(server, head, label, *range(examples))
    return fit(server, head)


def top(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    label: str = answer.json()["predictions"][0]["classes"][0]["label"]
    return label


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    return answer.status_code, body["code"], body["detail"]


def test_from_nothing_to_a_classifier(teacher: Server) -> None:
    create(teacher, "colours")
    card = teacher.client.get("/v1/heads/colours").json()
    assert (card["state"], card["version"], card["examples"]["total"]) == ("untaught", None, 0)
    status, code, detail = problem(teacher.classify(shade("red", 99), "colours"))
    assert (status, code) == (503, "backend_unavailable")
    assert "fit" in detail
    for label in COLOURS:
        assert len(give(teacher, "colours", label, *range(12))["added"]) == 12
    fitted = fit(teacher, "colours")
    assert (fitted["version"], fitted["labels"], fitted["examples"]) == ("1", ["blue", "green", "red"], 36)
    assert fitted["accuracy"] == 1.0
    assert np.trace(fitted["confusion"]) == 36
    assert all(
        top(teacher.classify(shade(label, number), "colours")) == label for label in COLOURS for number in range(50, 55)
    )
    answer = teacher.classify(shade("red", 60), "colours").json()
    assert (answer["model"], answer["version"]) == ("colours", "1")
    assert answer["predictions"][0]["prediction_set"] == ["red"]
    strange = [
        teacher.classify(np.full((8, 8, 3), pixel, np.uint8), "colours").json()["predictions"][0]["abstained"]
        for pixel in (0, 255, (255, 255, 0), (255, 0, 255), (0, 255, 255))
    ]
    familiar = [
        teacher.classify(shade(label, number), "colours").json()["predictions"][0]["abstained"]
        for label in COLOURS
        for number in range(50, 60)
    ]
    assert sum(strange) >= 4
    assert sum(familiar) <= 8
    listed = teacher.models()["colours"]
    assert (listed["kind"], listed["state"], listed["labels"]) == ("head", "ready", 3)
    spec = teacher.client.get("/v1/models/colours").json()["spec"]
    assert (spec["backbone"]["name"], spec["report"]["examples"]) == ("tiny", 36)


def test_an_image_is_stored_once_and_under_one_label(teacher: Server) -> None:
    create(teacher, "once")
    first = give(teacher, "once", "red", 1, 2, 1)
    assert [one["index"] for one in first["added"]] == [0, 1]
    assert [(one["index"], one["id"]) for one in first["duplicates"]] == [(2, first["added"][0]["id"])]
    files = [("image", png(shade("red", 2))), ("image", b"not an image"), ("image", png(shade("red", 3)))]
    second = teacher.client.post("/v1/heads/once/examples?label=blue", files=files).json()
    assert [(one["index"], one["label"], one["given"]) for one in second["conflicts"]] == [(0, "red", "blue")]
    assert [(one["index"], one["error"]["code"]) for one in second["errors"]] == [(1, "unsupported_format")]
    assert [one["index"] for one in second["added"]] == [2]
    assert second["examples"] == {
        "total": 3,
        "labels": [{"label": "blue", "count": 1}, {"label": "red", "count": 2}],
    }


def test_examples_are_listed_page_by_page_and_deleted(teacher: Server) -> None:
    create(teacher, "listed")
    give(teacher, "listed", "red", *range(5))
    give(teacher, "listed", "blue", *range(2))
    path = "/v1/heads/listed/examples"
    pages, after = [], None
    while True:
        page = teacher.client.get(path, params={"limit": 3} | ({"after": after} if after else {})).json()
        pages.append(page["examples"])
        if (after := page["next"]) is None:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    found = [one for page in pages for one in page]
    assert len({one["sha256"] for one in found}) == 7
    assert teacher.client.delete(f"{path}/{found[0]['id']}").status_code == 204
    assert problem(teacher.client.delete(f"{path}/{found[0]['id']}"))[:2] == (404, "unknown_model")
    assert teacher.client.delete(path).status_code == 400
    assert teacher.client.delete(path, params={"label": "red"}).json() == {"deleted": 4}
    assert {one["label"] for one in teacher.client.get(path).json()["examples"]} == {"blue"}
    assert teacher.client.delete(path, params={"all": "true"}).json() == {"deleted": 2}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_of_folders_teaches_several_classes(teacher: Server) -> None:
    create(teacher, "zipped")
    files = {f"{label}/{number}.png": png(shade(label, number)) for label in COLOURS for number in range(4)}
    body = archive(files | {"red/notes.txt": b"not an image"})
    answer = teacher.client.post(
        "/v1/heads/zipped/examples", content=body, headers={"content-type": "application/zip"}
    ).json()
    assert len(answer["added"]) == 12
    assert [(one["name"], one["error"]["code"]) for one in answer["errors"]] == [
        ("red/notes.txt", "unsupported_format")
    ]
    assert fit(teacher, "zipped")["labels"] == ["blue", "green", "red"]
    evil = archive({"../red/1.png": png(shade("red", 7))})
    status, code, detail = problem(teacher.client.post("/v1/heads/zipped/examples", content=evil))
    assert (status, code) == (400, "invalid_request")
    assert ".." in detail
    assert teacher.client.get("/v1/heads/zipped").json()["examples"]["total"] == 12


def test_bad_teaching_gets_clear_answers(teacher: Server) -> None:
    put = teacher.client.put
    assert problem(put("/v1/heads/bad name", json={"backbone": "tiny"}))[1] == "invalid_request"
    assert "model 'tiny'" in problem(put("/v1/heads/tiny", json={"backbone": "tiny"}))[2]
    assert problem(put("/v1/heads/lost", json={"backbone": "nowhere"}))[:2] == (404, "unknown_model")
    assert problem(teacher.client.post("/v1/heads/lost/fit"))[:2] == (404, "unknown_model")
    create(teacher, "bad")
    assert "no example" in problem(teacher.client.post("/v1/heads/bad/fit"))[2]
    give(teacher, "bad", "red", 1, 2)
    status, code, detail = problem(teacher.client.post("/v1/heads/bad/fit"))
    assert (status, code) == (400, "invalid_request")
    assert "two" in detail
    path = "/v1/heads/bad/examples"
    status, code, detail = problem(teacher.client.get(path, params={"limit": "many"}))
    assert (status, code) == (400, "invalid_request")
    assert detail.startswith("limit: ")
    assert "?label=" in problem(teacher.client.post(path, content=png(shade("red", 3))))[2]
    assert problem(teacher.client.post(path, params={"label": "a\nb"}, content=b"x"))[:2] == (400, "invalid_request")
    assert problem(teacher.client.post(path, params={"label": "x"}, content=b"x"))[:2] == (415, "unsupported_format")
    give(teacher, "bad", "blue", 1, 2)
    few = fit(teacher, "bad")
    assert few["warnings"]
    for start in (1000, 2000, 3000, 4000):
        many = [("image", png(shade("red", start + number))) for number in range(60)]
        answer = teacher.client.post(path, params={"label": "red"}, files=many)
    assert problem(answer)[:2] == (413, "too_large")
    assert teacher.client.get("/v1/heads/bad").json()["examples"]["total"] == 184


def test_labels_may_be_written_in_any_script(teacher: Server) -> None:
    create(teacher, "scripts")
    labels = {'красный ☭ "q" & <b>': "red", "青い": "blue"}
    for label, colour in labels.items():
        files = [("image", png(shade(colour, number))) for number in range(6)]
        teacher.client.post("/v1/heads/scripts/examples", params={"label": label}, files=files).raise_for_status()
    assert set(fit(teacher, "scripts")["labels"]) == set(labels)
    assert top(teacher.classify(shade("blue", 77), "scripts")) == "青い"


def test_versions_are_kept_and_rolled_back_to(teacher: Server) -> None:
    taught(teacher, "rolled", "red", "green")
    give(teacher, "rolled", "blue", *range(12))
    assert teacher.client.get("/v1/heads/rolled").json()["changed_since_fit"]
    assert fit(teacher, "rolled")["version"] == "2"
    assert top(teacher.classify(shade("blue", 70), "rolled")) == "blue"
    assert top(teacher.classify(shade("blue", 70), "rolled", version="1")) != "blue"
    version = "/v1/heads/rolled/version"
    card = teacher.client.put(version, json={"version": "1"}).json()
    assert (card["version"], card["pinned"]) == ("1", "1")
    assert teacher.classify(shade("blue", 70), "rolled").json()["version"] == "1"
    assert problem(teacher.client.put(version, json={"version": "9"}))[:2] == (404, "unknown_model")
    for _ in range(4):
        fit(teacher, "rolled")
    assert teacher.classify(shade("blue", 70), "rolled").json()["version"] == "1"
    states = {one["version"]: one["state"] for one in teacher.client.get("/v1/heads/rolled").json()["versions"]}
    assert states == {"1": "ready", "2": "stored", "3": "stored", "4": "ready", "5": "ready", "6": "ready"}
    assert problem(teacher.classify(shade("red", 1), "rolled", version="2"))[:2] == (503, "backend_unavailable")
    assert teacher.client.put(version, json={"version": "2"}).json()["version"] == "2"
    assert teacher.client.put(version, json={"version": None}).json()["version"] == "6"


def test_a_head_explains_any_of_its_classes(teacher: Server) -> None:
    taught(teacher, "seen", *COLOURS)
    pixels = np.full((8, 8, 3), (30, 30, 200), np.uint8)
    pixels[:4, :4] = (220, 20, 20)  # red in one corner
    headers = {"content-type": "image/png"}
    maps = {}
    for label in COLOURS:
        answer = teacher.client.post(
            "/v1/models/seen/explain", params={"label": label}, content=png(pixels), headers=headers
        )
        (found,) = answer.json()["predictions"]
        maps[found["label"]] = np.array(found["map"])
    corner = np.zeros((4, 4), bool)
    corner[:2, :2] = True
    assert maps["red"][corner].min() == 1.0
    assert maps["red"][~corner].max() < 0.5
    assert maps["blue"][~corner].min() > maps["blue"][corner].max()
    explained = teacher.client.post("/v1/models/seen/classify?explain=true", content=png(pixels)).json()
    explanation = explained["predictions"][0]["explanation"]
    assert explanation["label"] == explained["predictions"][0]["classes"][0]["label"]
    assert np.allclose(explanation["map"], maps[explanation["label"]])
    overlay = teacher.client.post(
        "/v1/models/seen/explain", content=png(pixels), headers=headers | {"accept": "image/png"}
    )
    assert overlay.content.startswith(b"\x89PNG")


def test_neighbors_are_the_nearest_examples(teacher: Server) -> None:
    taught(teacher, "near", *COLOURS)
    known = png(shade("green", 3))
    answer = teacher.client.post("/v1/heads/near/neighbors?k=3", content=known).json()
    assert [one["label"] for one in answer["neighbors"]] == ["green"] * 3
    assert answer["neighbors"][0]["distance"] < 1e-5
    distances = [one["distance"] for one in answer["neighbors"]]
    assert distances == sorted(distances)
    by_get = teacher.client.request("GET", "/v1/heads/near/neighbors", params={"k": 3}, content=known)
    assert by_get.json() == answer


def test_a_head_can_be_a_canary(teacher: Server) -> None:
    taught(teacher, "both", "red", "blue")
    route = {"primary": "tiny", "canary": {"model": "both", "weight": 1.0}}
    assert teacher.client.put("/v1/routes/mixed", json=route).status_code == 200
    assert teacher.classify(shade("red", 5), "mixed").json()["model"] == "both"


def test_heads_share_the_batches_of_their_backbone(repository: Path, launch: Callable[..., Server]) -> None:
    """Requests to different heads that wait for the slow model's next batch are in it together."""
    server = launch(repository)
    names = [f"head-{number}" for number in range(6)]
    for name in names:
        create(server, name, "slow")
        for label in ("red", "blue"):
            give(server, name, label, *range(3))
        fit(server, name)
    before = server.metrics()
    answers: list[str] = []

    def ask(name: str) -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            path = f"/v1/models/{name}/classify"
            answers.extend(top(client.post(path, content=png(shade("red", number)))) for number in range(4))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = server.metrics()
    batches = after("batch_size_count", model="slow") - before("batch_size_count", model="slow")
    assert answers == ["red"] * 24
    assert after("batch_size_sum", model="slow") - before("batch_size_sum", model="slow") == 24
    assert batches <= 14
    assert after("requests_total", model="slow heads", code="ok") == 24
    assert not [value for value in after.labels("model") | after.labels("label") if value in (*names, "red")]


def test_replicas_agree_and_restarts_find_everything(
    repository: Path, tmp_path: Path, launch: Callable[..., Server]
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    first, second = launch(repository, database_url=url), launch(repository, database_url=url)
    taught(first, "shared", *COLOURS)
    second.wait_until(lambda: second.classify(shade("red", 5), "shared").status_code == 200, 1.0)
    give(second, "shared", "red", *range(100, 105))
    assert fit(second, "shared")["version"] == "2"
    first.wait_until(lambda: first.classify(shade("red", 5), "shared").json()["version"] == "2", 1.0)
    give(first, "shared", "blue", 200)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    third = launch(repository, database_url=url)
    card = third.client.get("/v1/heads/shared").json()
    assert (card["version"], card["examples"]["total"]) == ("2", 42)
    probabilities = [
        server.classify(shade("red", 5), "shared").json()["predictions"][0]["classes"] for server in (second, third)
    ]
    assert probabilities[0] == probabilities[1]
    assert second.client.delete("/v1/heads/shared").status_code == 204
    third.wait_until(lambda: third.classify(shade("red", 5), "shared").status_code == 404, 1.0)


def test_a_backbone_that_changed_says_how_to_go_on(tmp_path: Path, launch: Callable[..., Server]) -> None:
    models = tmp_path / "models"
    publish_tiny(models)
    server = launch(models)
    taught(server, "kept", "red", "blue")
    publish_tiny(models, seed=5)  # a second version, with other features in the same place
    server.wait_until(lambda: "2" in server.models()["tiny"]["versions"])
    assert top(server.classify(shade("red", 5), "kept")) == "red"  # on version 1, which still serves
    assert len(give(server, "kept", "red", 500)["added"]) == 1
    status, code, detail = problem(server.client.put("/v1/heads/kept", json={"backbone": "tiny"}))
    assert (status, code) == (400, "invalid_request")
    assert "send the images again" in detail
    publish_tiny(models, seed=6)  # two versions are kept: the first one goes
    server.wait_until(lambda: server.classify(shade("red", 5), "kept").status_code == 503)
    status, code, detail = problem(server.classify(shade("red", 5), "kept"))
    assert code == "backend_unavailable"
    assert "tiny version 1" in detail
    assert server.client.get("/v1/heads/kept").json()["state"] == "failed"
    assert server.client.delete("/v1/heads/kept/examples?all=true").json() == {"deleted": 25}
    assert server.client.put("/v1/heads/kept", json={"backbone": "tiny"}).status_code == 200
    for label in ("red", "blue"):
        give(server, "kept", label, *range(12))
    assert fit(server, "kept")["version"] == "2"
    assert top(server.classify(shade("red", 5), "kept")) == "red"


def test_teaching_needs_permission(repository: Path, launch: Callable[..., Server]) -> None:
    server = launch(repository, admin=False)
    calls = [
        server.client.put("/v1/heads/x", json={"backbone": "tiny"}),
        server.client.post("/v1/heads/x/examples?label=a", content=b"x"),
        server.client.post("/v1/heads/x/fit"),
        server.client.delete("/v1/heads/x"),
        server.client.delete("/v1/heads/x/examples?all=true"),
        server.client.delete("/v1/heads/x/examples/1"),
        server.client.put("/v1/heads/x/version", json={"version": None}),
    ]
    assert [problem(call)[:2] for call in calls] == [(403, "forbidden")] * len(calls)
    assert server.client.get("/v1/heads").json() == {"heads": []}
