"""Slow models in Triton: nothing is computed for who has gone, and nobody waits for what concerns others."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.spec import CONFIG_NAME
from tests.models import png, publish_tiny, rounds_of
from tests.server import Server, picture
from tests.triton import Triton, needs_triton

pytestmark = [needs_triton, pytest.mark.timeout(180)]

WAITING = 5  # requests that Triton has, behind the one that it works on


def publish_slow(models: Path, name: str, seconds: float) -> None:
    """A model that Triton runs for one request at a time, each taking so long; loading it takes no longer."""
    publish_tiny(models, name, work=rounds_of(seconds))
    path = models / name / CONFIG_NAME
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.ClearField("dynamic_batching")
    config.ClearField("model_warmup")
    path.write_text(text_format.MessageToString(config))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_tiny(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def triton(models: Path, tmp_path: Path) -> Iterator[Triton]:
    with Triton(models, tmp_path).start() as running:
        yield running


def gateway_of(triton: Triton, folder: Path, poll_seconds: float) -> Server:
    return Server(folder, folder, backend="triton", triton_url=triton.grpc_url, poll_seconds=poll_seconds)


def computed(triton: Triton) -> float:
    """Seconds that the slow model ever computed. Triton counts what it gives to a backend, cancelled or not."""
    (stats,) = triton.client.get("/v2/models/slow/stats").json()["model_stats"]
    return float(stats["inference_stats"]["compute_infer"]["ns"] / 1e9)


def pending(triton: Triton) -> int:
    """Requests for the slow model that wait in Triton."""
    found = re.search(r'pending_request_count\{model="slow",version="1"\} (\d+)', httpx.get(triton.metrics_url).text)
    return int(found.group(1)) if found else 0


def send(gateway: Server, timeout_ms: int) -> http.client.HTTPConnection:
    """Ask about one image, and leave the answer for later."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.request("POST", f"/v1/models/slow/classify?timeout_ms={timeout_ms}", png(picture(1)))
    return connection


def code(connection: http.client.HTTPConnection) -> str:
    """What was answered; "ok" if it was no error."""
    return str(json.loads(connection.getresponse().read()).get("code", "ok"))


@pytest.mark.parametrize("leaving", ["the clients go", pytest.param("the deadline passes", marks=pytest.mark.slow)])
def test_what_nobody_waits_for_any_more_is_not_computed(
    triton: Triton, models: Path, tmp_path: Path, leaving: str
) -> None:
    publish_slow(models, "slow", 0.4)
    with (
        gateway_of(triton, tmp_path, poll_seconds=60).start() as gateway,  # it does not notice that Triton freezes
        contextlib.ExitStack() as clients,
    ):
        assert gateway.client.post("/v1/models/slow/load").json()["state"] == "ready"
        before = computed(triton)
        assert gateway.classify(picture(1), "slow").status_code == 200
        once = computed(triton) - before
        first = clients.enter_context(contextlib.closing(send(gateway, 60_000)))
        others = []
        while pending(triton) < WAITING:  # one by one, or the gateway would send them together
            others.append(clients.enter_context(contextlib.closing(send(gateway, 6_000))))
            time.sleep(0.02)
            assert len(others) < 3 * WAITING
        before = computed(triton)
        if leaving == "the clients go":
            for other in others:
                other.close()
        else:
            triton.stop()
            codes = [code(other) for other in others]
            assert set(codes) <= {"ok", "deadline_exceeded"}
            assert codes.count("deadline_exceeded") >= WAITING - 1
            triton.resume()
        assert code(first) == "ok"
        triton.wait_until(lambda: computed(triton) > before)  # it is counted after the answer
        before = computed(triton)
        assert gateway.classify(picture(1), "slow").status_code == 200
        triton.wait_until(lambda: pending(triton) == 0)
        assert computed(triton) - before < 2.5 * once  # the last, and what was about to begin
        assert gateway.metrics()("queue_depth", model="slow") == 0


def test_a_replay_that_takes_long_holds_up_no_other_model(triton: Triton, models: Path, tmp_path: Path) -> None:
    publish_slow(models, "stuck", 3)
    assert triton.load("stuck").status_code == 200
    with gateway_of(triton, tmp_path, poll_seconds=0.2).start(ready=False) as gateway:

        def is_stuck() -> bool:
            return gateway.models().get("stuck", {}).get("state") != "ready"

        gateway.wait_until(gateway.ready, 10)
        publish_tiny(models, "quick", seed=3)
        publish_tiny(models, seed=7)
        for name in ("quick", "tiny"):
            assert triton.load(name).status_code == 200
        gateway.wait_until(lambda: gateway.classify(picture(1)).json()["version"] == "2", 10)
        gateway.wait_until(lambda: gateway.models().get("quick", {}).get("state") == "ready", 10)
        shutil.rmtree(models / "tiny" / "2")
        assert triton.load("tiny").status_code == 200
        gateway.wait_until(lambda: "2" not in gateway.models()["tiny"]["versions"], 10)
        assert is_stuck()
        assert gateway.stop() == 0
