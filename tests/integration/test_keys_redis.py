"""Rates of keys that several gateways count together, in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.keys import bearer, command, made, metadata, problem, status
from tests.models import png
from tests.redis import Missing, Redis
from tests.rpc import Failure, Rpc
from tests.server import Server, picture

Launch = Callable[..., Server]


@pytest.fixture
def redis() -> Iterator[Redis]:
    try:
        server = Redis()
    except Missing as reason:
        pytest.skip(str(reason))
    yield server
    server.remove()


def test_gateways_count_together_and_alone_while_redis_is_away(
    redis: Redis, repository: Path, tmp_path: Path, launch: Launch
) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    secret, other, third = (made(url, rate="6/minute") for _ in range(3))
    first, second = (launch(repository, database_url=url, rate_limit_url=redis.url) for _ in range(2))
    assert [status(server, secret) for server in (first, second, first, second, first)] == [200] * 5
    with Rpc(second) as calls:
        assert isinstance(calls.classify([png(picture(0))], metadata=metadata(secret)), dict)
        refused = calls.classify([png(picture(0))], metadata=metadata(secret))
        assert isinstance(refused, Failure)
        assert refused.status == "RESOURCE_EXHAUSTED"
    for server in (first, second):
        answer = server.client.get("/v1/models", headers=bearer(secret))
        assert problem(answer) == (429, "overloaded")
        assert 50 <= int(answer.headers["retry-after"]) <= 60
        assert status(server, other) == 200

    redis.stop()
    for server in (first, second):
        assert [status(server, third) for _ in range(7)] == [200] * 6 + [429]
        assert len([line for line in server.log() if "Redis does not count" in line["message"]]) == 1
        assert "Traceback" not in server.log_text()

    redis.start()
    often = made(url, rate="10000/second")

    def counted_together(server: Server) -> bool:
        assert status(server, often) in (200, 401)  # not known at once
        return any("Redis counts the keys' rates again" in line["message"] for line in server.log())

    for server in (first, second):
        server.wait_until(lambda server=server: counted_together(server))


def test_redis_that_is_away_from_the_start_stops_nobody(repository: Path, tmp_path: Path, launch: Launch) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    secret = made(url, rate="3/minute")
    server = launch(repository, database_url=url, rate_limit_url="redis://:hunter2@127.0.0.1:1/0")
    assert [status(server, secret) for _ in range(4)] == [200] * 3 + [429]
    assert "hunter2" not in server.log_text()


@pytest.mark.parametrize("url", ["hunter2", "http://hunter2", "redis://hunter2:x/y", "memcached://hunter2"])
def test_a_url_that_makes_no_sense_is_one_line_without_it(url: str, repository: Path, tmp_path: Path) -> None:
    serve = ("serve", "--port", "0", "--model-repository", str(repository))
    done = command(tmp_path, *serve, rate_limit_url=url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: FOVEA_RATE_LIMIT_URL: ")
    assert "hunter2" not in line
