"""`python -m load_tests.ready`: the time until a gateway is ready, and its memory before and after a load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.models import publish_tiny
from tests.server import ROOT


def test_time_and_memory_beside_the_aims(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models")
    out = tmp_path / "ready.json"
    command = [sys.executable, "-m", "load_tests.ready", "--repository", str(tmp_path / "models"), "--out", str(out)]
    done = subprocess.run(
        [*command, "--runs", "1", "--requests", "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (run,) = found["runs"]
    assert 0 < run["seconds"] < 100
    assert 50 < run["ready"] <= run["peak"]
    assert 50 < run["forms"] <= run["peak"]
    size = sum(file.stat().st_size for file in (tmp_path / "models/tiny/1").iterdir()) / 1e6
    assert found["weights"] == size
    assert f"= {2 * size + 200:.0f} MB" in done.stdout
    assert "after 1 forms of 64 images" in done.stdout
