"""The benchmark's clients against real servers: what is wrong is not counted as right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from load_tests.wrk import load, wrk_script
from tests.server import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")


class Three(BaseHTTPRequestHandler):
    """Says that everything is a three, and maybe a four."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = b'{"classes": [{"label": "three", "index": 3}, {"label": "four", "index": 4}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Three) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_wrk_counts_the_answers_that_put_the_right_class_first(tmp_path: Path, url: str) -> None:
    script, body = tmp_path / "post.lua", tmp_path / "body"
    body.write_bytes(b"an image")
    script.write_text(wrk_script(body, "image/png", top=3))
    right = load(url, script, 1, 2)
    assert right.rate > 0
    assert right.failed == 0
    assert 0 < right.p50 <= right.p99
    script.write_text(wrk_script(body, "image/png", top=4))
    wrong = load(url, script, 1, 2)
    assert wrong.rate == 0
    assert wrong.failed > 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed")
def test_a_short_benchmark_of_the_gateway_and_a_peer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "load_tests.bench", "--rounds", "1", "--seconds", "1", "--workers", "1"]
    command += ["--only", "fovea, gRPC", "FastAPI as written first", "--save", str(tmp_path / "bench.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "bench.json").read_text())
    names = ["fovea", "fovea, gRPC", "FastAPI as written first", "ONNX Runtime alone"]
    assert list(saved["rounds"]) == names
    for name in names:
        (measured,) = saved["rounds"][name]
        assert measured["rate"] > 0
        assert measured["failed"] <= 2, name  # those that were under way when the time was up
        assert 0 < measured["p50"] <= measured["p99"]
        assert name in done.stdout
    assert (tmp_path / "bench.png").exists()
