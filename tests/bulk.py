"""What tests of bulk classification share: the command in a process, and what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyarrow import parquet

from tests.models import png
from tests.server import environment, picture

Row = dict[str, Any]


def start(*arguments: object, cwd: Path, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service", "classify", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: object, cwd: Path, status: int = 0, **settings: object) -> str:
    """What it printed: the closing line, or the error of another status."""
    with start(*arguments, cwd=cwd, **settings) as process:
        printed, complaints = process.communicate(timeout=100)
    assert process.returncode == status, complaints + printed
    return complaints if status else printed


def counts(*arguments: object, cwd: Path, **settings: object) -> dict[str, int]:
    """The numbers of images in the closing line."""
    found = json.loads(run(*arguments, "--json", cwd=cwd, **settings))
    return {name: found[name] for name in ("classified", "bad", "skipped")}


def rows(out: Path) -> dict[str, Row]:
    """The answers in a folder by the names of their files, each of which is there once."""
    found = parquet.read_table(out).to_pylist()
    named = {Path(row["file"]).name: row for row in found}
    assert len(named) == len(found)
    return named


def pictures(folder: Path, number: int) -> Path:
    """A folder of so many images, of a colour each."""
    folder.mkdir(parents=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(png(picture(index)))
    return folder
