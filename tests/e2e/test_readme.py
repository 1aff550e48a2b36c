"""The README's commands, run as they stand but for port and folder, and its answers held against real ones."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)


def command(part: str) -> str:
    """The one command of the README that holds `part`."""
    (found,) = [each for each in COMMANDS if part in each]
    return str(found)


def run(text: str, port: int = 0) -> str:
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("curl -s ", "curl -sS --fail-with-body ")
    done = subprocess.run(text, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """What `make serve` starts, on a free port and with a database of its own."""
    database = {"FOVEA_DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('readme')}/fovea.db"}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    make = f"{command('make serve')} PORT={free} ARGS='--grpc-port 0'"
    process = subprocess.Popen(
        make, shell=True, cwd=ROOT, env=os.environ | database, start_new_session=True, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        time.sleep(0.1)
        try:
            if httpx.get(f"http://127.0.0.1:{free}/readyz").status_code == 200:
                break
        except httpx.TransportError:
            continue
    else:
        pytest.fail("make serve was not ready within a minute")
    yield free
    os.killpg(process.pid, signal.SIGINT)
    process.wait(20)


def test_the_first_answer_is_the_one_in_the_readme(port: int) -> None:
    (promised,) = re.findall(r"```json\n(.*?)\n```", README, re.DOTALL)

    def untimed(text: str) -> Any:
        answer = json.loads(text)
        for prediction in answer["predictions"]:
            del prediction["timings_ms"]
            for score in prediction["classes"]:
                score["probability"] = round(score["probability"], 3)
        return answer

    assert untimed(run(command("top_k=2"), port)) == untimed(promised)


def test_several_images_and_the_card(port: int) -> None:
    labels = [each["classes"][0]["label"] for each in json.loads(run(command("three.png http"), port))["predictions"]]
    assert labels == ["7", "3"]
    card = json.loads(run(command("-s http://127.0.0.1:8080/v1/models/lenet5-digits"), port))
    assert card["state"] == "ready"


def test_two_classes_are_taught(port: int) -> None:
    taught = run(command("v1/heads/mine"), port).replace("}{", "}\n{").splitlines()
    card, _, _, fitted, answer = map(json.loads, taught)
    assert (card["state"], fitted["labels"]) == ("untaught", ["seven", "three"])
    assert answer["predictions"][0]["classes"][0]["label"] == "seven"


def test_files_without_a_server() -> None:
    assert re.search(r"seven\.png\W+7\W", run(command("service classify")))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_bundled_model_is_made_again(tmp_path: Path) -> None:
    text = command("make digits").replace("/tmp/models", str(tmp_path))
    done = subprocess.run(text, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    made, bundled = (
        (folder / "lenet5-digits/config.pbtxt").read_text() for folder in (tmp_path, ROOT / "model_repository")
    )
    accuracy = [float(re.search(r'\\"top1\\":([\d.]+)', text)[1]) for text in (made, bundled)]  # type: ignore[index]
    assert min(accuracy) >= 0.985
