"""Slow models in Triton: nothing is computed for who has gone, and nobody waits for what concerns others."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

WAITING = 6  # requests that Triton has, behind the one that it works on


def publish_slow(models: Path, name: str, seconds: float) -> None:
    """A model that runs one image at a time, each taking so long; loading it takes no longer than another."""
    publish_tiny(models, name, work=rounds_of(seconds))
    path = models / name / CONFIG_NAME
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.max_batch_size = 1
    config.ClearField("model_warmup")
    path.write_text(text_format.MessageToString(config))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish_tiny(tmp_path / "models")
    publish_slow(tmp_path / "models", "slow", 0.4)
    return tmp_path / "models"


@pytest.fixture
def triton(models: Path, tmp_path: Path) -> Iterator[Triton]:
    with Triton(models, tmp_path).start() as running:
        yield running


@pytest.fixture
def gateway(triton: Triton, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, tmp_path, backend="triton", triton_url=triton.grpc_url, poll_seconds=0.2).start() as running:
        running.wait_until(lambda: set(running.models()) == {"tiny", "slow"}, 60)
        yield running


def executed(triton: Triton) -> int:
    """Batches of the slow model that Triton ever ran."""
    (stats,) = triton.client.get("/v2/models/slow/stats").json()["model_stats"]
    print({k: (v["count"], v["ns"] / 1e6) for k, v in stats["inference_stats"].items()})
    return int(stats["execution_count"])


def pending(triton: Triton) -> int:
    """Requests for the slow model that wait in Triton."""
    text = httpx.get(triton.metrics_url).text
    found = re.search(r'nv_inference_pending_request_count\{model="slow",version="1"\} (\d+)', text)
    return int(found.group(1)) if found else 0


@pytest.mark.parametrize("leaving", ["the client goes", "the deadline passes"])
def test_what_nobody_waits_for_any_more_does_not_run(triton: Triton, gateway: Server, leaving: str) -> None:
    triton.wait_until(lambda: pending(triton) == 0)
    before = executed(triton)
    gone = threading.Event()

    def ask(number: int) -> str:
        timeout_ms = 1000 if leaving == "the deadline passes" and number else 20_000
        with httpx.Client(base_url=gateway.url, timeout=20) as client:
            call = client.build_request(
                "POST", "/v1/models/slow/classify", content=png(picture(number)), params={"timeout_ms": timeout_ms}
            )
            if leaving == "the client goes" and number:
                threading.Thread(target=lambda: (gone.wait(), client.close())).start()
            try:
                return str(client.send(call).json().get("code", "ok"))
            except httpx.TransportError:
                return "gone"

    with ThreadPoolExecutor(1 + WAITING) as pool:
        first = pool.submit(ask, 0)
        triton.wait_until(lambda: executed(triton) - before + pending(triton) >= 0 and not first.done())
        others = [pool.submit(ask, number) for number in range(1, 1 + WAITING)]
        triton.wait_until(lambda: pending(triton) >= 1)
        gone.set()
        assert first.result() == "ok"
        print([other.result() for other in others])
    started = time.monotonic()
    assert gateway.classify(picture(1), "slow").status_code == 200
    print(time.monotonic() - started, executed(triton) - before, pending(triton))
    time.sleep(1)
    print(executed(triton) - before, pending(triton))
    raise AssertionError
