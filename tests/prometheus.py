"""Prometheus' own programs for the tests, and what names an expression uses."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

START_SECONDS = 30.0

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; it comes with the Debian package prometheus"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed; apt-get install prometheus"
)


def promtool(*arguments: str | Path) -> None:
    """Run it; what it complains of is the failure."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# Strings, then label matchers, ranges, lists of labels, and numbers with units: none of them names a metric.
_NO_NAMES = re.compile(
    r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|\{[^}]*\}|\[[^\]]*\]'
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\boffset\s+\w+|\b\d[\w.]*"
)
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = frozenset(("and", "or", "unless", "bool", "by", "on", "inf", "nan"))


def names(expression: str) -> set[str]:
    """The metrics that a PromQL expression asks for."""
    return set(_NAME.findall(_NO_NAMES.sub(" ", re.sub(r"#.*", "", expression)))) - _WORDS


def exposed(text: str) -> set[str]:
    """The names of all series of a scrape; of a metric without series yet those that it will have."""
    found = set(re.findall(r"^[a-zA-Z_:][\w:]*", text, re.MULTILINE))
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return found


class Prometheus:
    """A real one on a free port.

    Args:
        config: Its configuration file.
        folder: Where its data and its log go.
    """

    def __init__(self, config: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "prometheus.log"
        self._command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        self._command += [f"--web.listen-address={self.url.removeprefix('http://')}"]

    def __enter__(self) -> Prometheus:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self._client = httpx.Client(base_url=self.url, timeout=20)
        give_up = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up, self._log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(20)

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found
