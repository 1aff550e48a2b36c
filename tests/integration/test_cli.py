"""The command line, in processes of its own: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import png, publish_tiny
from tests.server import environment, is_right, picture


def run(*arguments: object, cwd: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    wide = environment(**settings) | {"COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env=wide, capture_output=True, text=True, errors="replace", timeout=60)


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model repository and images: two on top, one below, a broken one, and what is no image."""
    folder = tmp_path_factory.mktemp("place")
    publish_tiny(folder / "model_repository")
    (folder / "images" / "below").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.PNG", "below/c.png"]):
        (folder / "images" / name).write_bytes(png(picture(number)))
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "broken.png").write_bytes(png(picture(9))[:-9])
    return folder


# classify


def test_a_folder_as_json_lines(place: Path) -> None:
    done = run("classify", "images", "--json", "--top-k", 2, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    found = lines(done)
    assert [each["file"] for each in found] == ["images/a.png", "images/b.PNG", "images/below/c.png"]
    assert all(len(each["classes"]) == 2 for each in found)
    assert all(is_right(each, picture(number)) for number, each in enumerate(found))


def test_files_as_a_table(place: Path) -> None:
    done = run("classify", "images/a.png", "images/below", cwd=place)
    assert done.returncode == 0
    assert "images/a.png" in done.stdout
    assert "images/below/c.png" in done.stdout
    assert done.stdout.count("label-") == 6  # three classes each
    assert all(word in done.stdout for word in ("file", "class", "probability"))


def test_files_that_fail_are_told_and_the_others_classified(place: Path) -> None:
    done = run("classify", "images/a.png", "broken.png", "images/notes.txt", "images/b.PNG", "--json", cwd=place)
    assert done.returncode == 1
    assert "2 of 4 files failed" in done.stderr
    good, broken, text, also_good = lines(done)
    assert is_right(good, picture(0))
    assert is_right(also_good, picture(1))
    assert broken == {"file": "broken.png", "error": {"code": "invalid_image", "detail": broken["error"]["detail"]}}
    assert text["error"]["code"] == "unsupported_format"
    table = run("classify", "images/a.png", "broken.png", cwd=place)
    assert table.returncode == 1
    assert "invalid_image" in table.stdout
    assert "label-" in table.stdout


def test_many_more_files_than_places_in_the_queue(place: Path, tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.png").write_bytes(png(picture(number)))
    done = run("classify", tmp_path, "--json", cwd=place, max_queue=4, max_images=4)
    assert done.returncode == 0, done.stderr
    assert all(is_right(each, picture(number)) for number, each in enumerate(lines(done)))


def test_a_file_whose_name_is_no_text(place: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff[bold].png"
    with open(name, "wb") as file:  # noqa: PTH123 - bytes for a name
        file.write(png(picture(3)))
    for options in ([], ["--json"]):
        done = run("classify", tmp_path, *options, cwd=place)
        assert done.returncode == 0, done.stderr
        assert "[bold].png" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "nowhere.png"], "nowhere.png does not exist"),
        (["classify", "images", "--model", "nobody"], "there is no model 'nobody'; known: tiny"),
        (["classify", "images", "--top-k", "0"], "--top-k must be at least 1"),
        (["classify", "images", "--model-repository", "nowhere"], "--model-repository: nowhere is not a directory"),
        (["serve", "--port", "70000"], "--port:"),
        (["serve", "--host", "no.such.host.invalid", "--port", "0"], "no.such.host.invalid"),
        (["models", "--model-repository", "broken.png"], "broken.png is not a directory"),
    ],
)
def test_a_mistake_is_one_clear_line(place: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_wrong_variable_is_one_clear_line(place: Path) -> None:
    done = run("serve", cwd=place, port="eighty")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: FOVEA_PORT: ")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--wings"], ["classify"], ["serve", "--port", "x"]])
def test_a_wrong_flag_shows_the_usage(place: Path, arguments: list[str]) -> None:
    done = run(*arguments, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m service" in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_images_at_all_is_a_failure(place: Path, tmp_path: Path) -> None:
    done = run("classify", tmp_path, cwd=place)
    assert done.returncode == 1
    assert "no images found" in done.stderr


# serve, models, settings


def test_a_port_that_is_taken(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", port, cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(port) in line
    assert "in use" in line


def test_models_are_loaded_verified_and_listed(place: Path, tmp_path: Path) -> None:
    done = run("models", cwd=place)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("tiny", "ready", "100.00%"))
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", "torn")
    (tmp_path / "models" / "torn" / "1" / "model.onnx").write_bytes(b"x")
    done = run("models", "--json", "--model-repository", tmp_path / "models", cwd=place)
    assert done.returncode == 1
    tiny, torn = json.loads(done.stdout)
    assert (tiny["name"], tiny["state"], tiny["problem"]) == ("tiny", "ready", None)
    assert (torn["name"], torn["state"]) == ("torn", "failed")
    assert "SHA-256" in torn["problem"]


def test_settings_are_listed_with_their_meaning(place: Path) -> None:
    done = run("settings", cwd=place)
    assert done.returncode == 0
    assert "FOVEA_MAX_PIXELS" in done.stdout
    assert "before anything is decoded" in done.stdout


@pytest.mark.parametrize("command", [[], ["serve"], ["classify"], ["models"], ["settings"]])
def test_every_command_has_help(place: Path, command: list[str]) -> None:
    done = run(*command, "--help", cwd=place)
    assert done.returncode == 0
    assert "usage: python -m service" in done.stdout
