"""`classify --out --engine ray`: several processes, of which one is killed while it works."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk import pictures, rows, start
from tests.models import publish_tiny, rounds_of
from tests.server import is_right, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # Ray alone takes half a minute to start where others work

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def processes(mark: str) -> Iterator[Path]:
    """Folders in /proc of all processes whose environment has a mark, so of Ray's too."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                yield folder


def workers(mark: str) -> list[int]:
    found = []
    for folder in processes(mark):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(folder.name))
    return sorted(found)


def exposed(mark: str) -> set[str]:
    """Addresses beyond this machine's own that those processes listen on."""
    listening = {}
    for name in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = fields[1]
    found = set()
    for folder in processes(mark):
        with contextlib.suppress(OSError):
            found |= {listening.get(os.readlink(file), "") for file in (folder / "fd").iterdir()} - {""}  # noqa: PTH115
    assert found
    return {address for address in found if address.partition(":")[0] not in LOOPBACK}


def test_a_worker_killed_at_work_loses_nothing(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "model_repository", work=rounds_of(0.3))
    pictures(tmp_path / "images", 400)
    (tmp_path / "images" / "torn.png").write_bytes(b"torn")
    out, mark = tmp_path / "out", uuid.uuid4().hex
    command = ("images", "--out", out, "--images-per-part", 10, "--json")
    with start(*command, "--engine", "ray", "--workers", 2, cwd=tmp_path, mark=mark) as process:
        give_up = time.monotonic() + 200
        while len(list(out.glob("part-*"))) < 4 or len(workers(mark)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        victim, survivor = workers(mark)
        assert exposed(mark) == set()
        os.kill(victim, signal.SIGKILL)
        done = len(list(out.glob("part-*")))
        printed, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    assert done < 35, "it was killed too late to tell"
    assert victim != survivor
    found = rows(out)  # each once
    assert found.pop("torn.png")["error_code"] == "unsupported_format"
    assert len(found) == 400
    assert all(is_right(row, picture(int(name.removesuffix(".png")))) for name, row in found.items())
    told = json.loads(printed)
    assert (told["classified"], told["bad"], told["skipped"]) == (400, 1, 0)
    give_up = time.monotonic() + 20
    while left := list(processes(mark)):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
    # Whichever engine began it, the other goes on with it.
    (out / "part-000007.parquet").unlink()
    with start(*command, cwd=tmp_path) as process:
        printed, _ = process.communicate(timeout=60)
    assert json.loads(printed)["skipped"] == 391
    assert len(rows(out)) == 401
