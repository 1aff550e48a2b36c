"""docs/clients.md: every command and program in it runs, and gives the answer that stands behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server import ROOT, Server

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A block to be run, and what it prints, if the next block says so."""

    heading: str
    language: str
    text: str
    prints: str | None


def snippets() -> list[Snippet]:
    text = (ROOT / "docs" / "clients.md").read_text()
    found: list[Snippet] = []
    for block in _BLOCK.finditer(text):
        heading = re.findall(r"^#+ (.*)$", text[: block.start()], re.MULTILINE)[-1]
        language, body = block.groups()
        if language in ("sh", "python"):
            found.append(Snippet(heading, language, body, None))
        else:
            last = found.pop()
            found.append(Snippet(last.heading, last.language, last.text, body))
    return found


SNIPPETS = snippets()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the models that come with Fovea."""
    with Server(ROOT / "model_repository", tmp_path_factory.mktemp("server")).start() as running:
        yield running


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[f"{index}-{one.heading}" for index, one in enumerate(SNIPPETS)])
def test_it_runs_as_it_stands(snippet: Snippet, bundled: Server, tmp_path: Path) -> None:
    text = snippet.text.replace("127.0.0.1:8080", f"127.0.0.1:{bundled.port}")
    if "127.0.0.1:8081" in text:
        line = bundled.wait_log(lambda line: "listening on grpc" in line["message"])
        text = text.replace("127.0.0.1:8081", line["message"].rpartition("//")[2])
    if snippet.language == "python":
        (tmp_path / "program.py").write_text(text)
        command = [sys.executable, "-W", "error", tmp_path / "program.py"]
    else:
        strict = re.sub(r"\bcurl -s\b", "curl -sS --fail-with-body", text)
        command = ["sh", "-ec", strict.replace(".venv/bin/python", sys.executable)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    if snippet.prints is not None:
        assert rounded(done.stdout) == rounded(snippet.prints)


def rounded(text: str) -> str:
    """Text whose fractions have three digits: the last ones differ between processors."""
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.3f}", text).strip()
