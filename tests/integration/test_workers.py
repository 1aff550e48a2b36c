"""Several processes behind one address: they count together, agree, replace each other and end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc

from tests.models import png, publish_tiny
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]

CLIENTS = 6


@pytest.fixture
def server(tmp_path: Path, launch: Launch) -> Server:
    publish_tiny(tmp_path / "models")
    made = launch(tmp_path / "models", workers=2)
    made.wait_until(lambda: len(serving(made)) == 2, 20)
    return made


def serving(server: Server) -> set[str]:
    """The workers that answer, by what their request ids begin with."""
    return {alone(server, "/healthz").headers["x-request-id"][:8] for _ in range(12)}


def workers(server: Server) -> list[int]:
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alone(server: Server, path: str) -> httpx.Response:
    """Asked on a connection of its own, which either worker may get."""
    return httpx.get(server.url + path, timeout=20)


def post(server: Server, path: str, number: int = 1) -> httpx.Response:
    return httpx.post(server.url + path, content=png(picture(number)), timeout=20)


def test_they_count_together(server: Server) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda number: post(server, "/v1/models/tiny/classify", number), range(60)))
    assert all(is_right(answer.json()["predictions"][0], picture(number)) for number, answer in enumerate(answers))
    makers = {answer.headers["x-request-id"][:8] for answer in answers}
    assert len(makers) == 2  # both have answered
    for _ in range(6):
        samples = server.metrics()
        assert samples("requests_total", model="tiny", code="ok") == 60
        assert samples("request_seconds_count", model="tiny") == 60
        assert (samples("model_ready", model="tiny"), samples("inflight", transport="http")) == (1, 1)
        (stats,) = alone(server, "/v2/models/tiny.encoded/stats").json()["model_stats"]
        assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (60, 60)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_ready()
        (both,) = client.get_inference_statistics("tiny.encoded").model_stats
        assert both.inference_count == 60


def test_one_that_is_killed_is_replaced_and_the_others_serve_on(server: Server) -> None:
    over = threading.Event()
    right, wrong, broken = [0] * CLIENTS, [0] * CLIENTS, [0] * CLIENTS

    def client(index: int) -> None:
        number = index
        with httpx.Client(base_url=server.url, timeout=20) as http:
            while not over.is_set():
                number += CLIENTS
                try:
                    answer = http.post("/v1/models/tiny/classify", content=png(picture(number)))
                except httpx.TransportError:
                    broken[index] += 1
                    continue
                fine = answer.status_code == 200 and is_right(answer.json()["predictions"][0], picture(number))
                (right if fine else wrong)[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before = workers(server)
    os.kill(before[0], signal.SIGKILL)
    server.wait_until(lambda: len(workers(server)) == 2 and before[0] not in workers(server), 10)
    server.wait_until(lambda: len(serving(server)) == 2, 20)
    time.sleep(0.3)
    over.set()
    for thread in threads:
        thread.join()
    assert sum(wrong) == 0
    assert max(broken) <= 1  # the connections of the one that died, each once
    assert before[1] in workers(server)
    # What the dead one had counted is not forgotten; what it was busy with, and the answers of the event loop's last
    # turn, may or may not have been counted.
    counted = server.metrics()("requests_total", model="tiny", code="ok")
    assert sum(right) - CLIENTS <= counted <= sum(right) + sum(broken)
    assert any("SIGKILL" in line["message"] for line in server.log() if line["level"] == "error")


def test_what_one_is_told_holds_for_all(server: Server) -> None:
    assert server.client.post("/v1/models/tiny/unload").status_code == 200
    time.sleep(1.5)
    assert {post(server, "/v1/models/tiny/classify").status_code for _ in range(20)} == {503}
    os.kill(workers(server)[0], signal.SIGKILL)
    server.wait_until(lambda: len(workers(server)) == 2, 10)
    time.sleep(2)
    assert {post(server, "/v1/models/tiny/classify").status_code for _ in range(20)} == {503}
    assert server.client.post("/v1/models/tiny/load").status_code == 200
    time.sleep(2)
    assert {post(server, "/v1/models/tiny/classify").status_code for _ in range(20)} == {200}


def test_without_a_supervisor_they_end(server: Server) -> None:
    left = workers(server)
    server.process.kill()
    server.process.wait()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(httpx.TransportError):
        alone(server, "/healthz")


def test_an_address_that_is_taken_is_said_once(server: Server, tmp_path: Path) -> None:
    second = Server(tmp_path / "models", tmp_path, workers=2, port=0, grpc_port=server.grpc.rpartition(":")[2])
    with pytest.raises(AssertionError, match="--grpc-port chooses another"):
        second.start()
    assert second.process.wait(10) == 2
