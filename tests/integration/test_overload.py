"""More than can be answered in time: everybody gets one answer, right or a refusal, and the books balance."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models import png, publish_tiny
from tests.server import Samples, Server, is_right, picture
from tests.wire import Reply, post, wire

Launch = Callable[..., Server]

CLIENTS = 300
REQUESTS = 4  # of each client, one after the other


async def client(server: Server, number: int, path: str) -> list[tuple[int, Reply]]:
    """Sends requests with an image of their own each; gives the images' numbers and the replies."""
    replies = []
    async with wire(server.port) as line:
        for round_ in range(REQUESTS):
            picture_number = number * REQUESTS + round_
            await line.send(post(path, png(picture(picture_number)), f"x-request-id: r-{picture_number}"))
            replies.append((picture_number, await asyncio.wait_for(line.reply(), 30)))
        assert await line.silent(0.01)  # nothing is answered twice
    return replies


def check(replies: list[tuple[int, Reply]]) -> collections.Counter[int]:
    """Each reply belongs to its request, and is right or a refusal; gives the number of replies by status."""
    for number, reply in replies:
        assert reply.headers["x-request-id"] == f"r-{number}"
        if reply.status == 200:
            (prediction,) = reply.json["predictions"]
            assert is_right(prediction, picture(number)), (number, prediction)
        else:
            assert reply.json["code"] == {429: "overloaded", 504: "deadline_exceeded"}[reply.status]
            assert reply.status != 429 or int(reply.headers["retry-after"]) >= 1
    return collections.Counter(reply.status for _, reply in replies)


def balance(before: Samples, after: Samples, statuses: collections.Counter[int], model: str) -> None:
    """The counters have changed by exactly what was seen."""

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert change("requests_total", model=model) == statuses.total()
    assert change("requests_total", model=model, code="ok") == statuses[200]
    assert change("requests_total", model=model, code="overloaded") == statuses[429]
    assert change("requests_total", model=model, code="deadline_exceeded") == statuses[504]
    assert change("predictions_total", model=model) == statuses[200]
    assert change("rejected_total") == statuses[429] + statuses[504]
    assert change("batch_size_sum", model=model) >= statuses[200]  # some ran and were late all the same
    assert change("request_seconds_count", model=model) == statuses.total()
    assert after("queue_depth", model=model) == 0
    assert after("inflight") == 1  # the question itself


@pytest.mark.parametrize("milliseconds", [0, 10])
async def test_three_hundred_clients_with_fifty_milliseconds(tmp_path: Path, launch: Launch, milliseconds: int) -> None:
    """With a model that answers at once, and with one whose batch takes so long that hardly anyone gets through."""
    publish_tiny(tmp_path / "models", work=milliseconds)
    server = launch(tmp_path / "models", access_log=False)
    before = server.metrics()
    path = "/v1/models/tiny/classify?timeout_ms=50"
    everyone = await asyncio.gather(*(client(server, number, path) for number in range(CLIENTS)))
    replies = [reply for one in everyone for reply in one]
    assert [number for number, _ in replies] == list(range(CLIENTS * REQUESTS))
    statuses = check(replies)
    print(f"of {statuses.total()} requests: {dict(statuses)}")  # noqa: T201 - shown by pytest -rA
    assert statuses[200] > 0 or milliseconds
    assert statuses[429] + statuses[504] > 0
    balance(before, server.metrics(), statuses, "tiny")
    assert server.ready()
    # It has not taken harm: who asks now is answered.
    assert is_right(server.classify(picture(1), timeout_ms=5000).json()["predictions"][0], picture(1))


async def test_the_last_of_a_storm_is_answered_right_too(tmp_path: Path, launch: Launch) -> None:
    """No deadline worth the name: everything is answered, everything is right, and batches have formed."""
    publish_tiny(tmp_path / "models", work=3)
    server = launch(tmp_path / "models", access_log=False)
    before = server.metrics()
    everyone = await asyncio.gather(
        *(client(server, number, "/v1/models/tiny/classify?timeout_ms=30000") for number in range(CLIENTS // 2))
    )
    statuses = check([reply for one in everyone for reply in one])
    assert set(statuses) == {200}
    after = server.metrics()
    balance(before, after, statuses, "tiny")
    assert after("batch_size_count", model="tiny") < statuses.total() / 2


async def test_clients_that_leave_in_the_middle_of_a_storm_take_nobody_along(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models", work=20)
    server = launch(tmp_path / "models", access_log=False)
    before = server.metrics()
    leavers = 60

    async def leave(number: int) -> None:
        async with wire(server.port) as line:
            await line.send(post("/v1/models/tiny/classify", png(picture(number))))
            await asyncio.sleep(0.001 * (number % 50))
            line.cut()

    path = "/v1/models/tiny/classify?timeout_ms=20000"
    stay = [client(server, number, path) for number in range(30)]
    everyone = await asyncio.gather(*stay, *(leave(9_000 + number) for number in range(leavers)))
    statuses = check([reply for one in everyone[:30] if one for reply in one])
    assert statuses == {200: 30 * REQUESTS}
    await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight") == 1)
    after = server.metrics()
    assert (after("inflight"), after("queue_depth")) == (1, 0)
    gone = after("requests_total", code="client_gone") - before("requests_total", code="client_gone")
    total = after("requests_total") - before("requests_total")
    answered = after("requests_total", code="ok") - before("requests_total", code="ok")
    assert gone + answered == total <= statuses.total() + leavers
    assert gone > 0
