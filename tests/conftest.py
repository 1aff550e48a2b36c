"""Fixtures that tests of several kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from service.store.store import Store
from tests.databases import Missing, PostgreSQL
from tests.faults import publish_poisonable
from tests.models import publish_tiny, rounds_of
from tests.server import RUNNING, Server
from tests.stores import opened

# Examples are judged by what they do; how long they take says more about the machine.
hypothesis.settings.register_profile("fovea", deadline=None)
hypothesis.settings.load_profile("fovea")

SLOW_ROUNDS = rounds_of(0.1)  # a batch of the slow model takes about a tenth of a second


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the servers' logs when a test fails."""
    report = yield
    if report.failed:
        for server in RUNNING:
            report.sections.append(
                (
                    f"log of {server.url}",
                    "\n".join(line for line in server.log_text().splitlines() if "/readyz" not in line),
                )
            )
    return report


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that no test changes: `tiny`, the `slow` one, and `glass`, which a white image breaks."""
    folder = tmp_path_factory.mktemp("models")
    publish_tiny(folder)
    publish_tiny(folder, "slow", work=SLOW_ROUNDS)
    publish_poisonable(folder, "glass")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with low limits, for all tests that leave it as it was."""
    limits = {"max_image_bytes": 200_000, "max_request_bytes": 400_000, "max_pixels": 1_000_000}
    folder = tmp_path_factory.mktemp("server")
    with Server(repository, folder, max_images=4, max_queue=8, threads=2, **limits).start() as running:
        yield running
        assert running.stop() == 0
        complaints = ("never retrieved", "never awaited", "was destroyed but it is pending", "unexpected failure")
        log = running.log_text().splitlines()
        assert [line for line in log if not line.startswith("{") or any(part in line for part in complaints)] == []


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of the test's own; they end with it."""
    servers: list[Server] = []

    def make(models: Path, *, ready: bool = True, **settings: object) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Server(models, folder, **settings))
        return servers[-1].start(ready)

    yield make
    for one in servers:
        one.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server; whoever stops it starts it again."""
    try:
        server = PostgreSQL()
    except Missing as reason:
        pytest.skip(str(reason))
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/heads.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.database()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store of taught heads, with one head."""
    with opened(database_url) as made:
        yield made
