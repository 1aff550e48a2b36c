"""The bundled models on a server, and a browser that looks at its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import PATIENCE, Visit, chromium, missing
from tests.server import ROOT, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(ROOT / "model_repository", tmp_path_factory.mktemp("server"), access_log=False).start() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, bundled: Server) -> Iterator[Callable[..., Visit]]:
    """Opens the page; at the end of the test, no visit may have found fault or asked a foreign address."""
    visits: list[tuple[Visit, tuple[str, ...]]] = []

    def begin(view: str = "", *, expected: tuple[str, ...] = (), **context: Any) -> Visit:
        visits.append((Visit(browser, bundled.url, view, **context), expected))
        return visits[-1][0]

    yield begin
    for one, expected in visits:
        one.close()
        assert [text for text in one.complaints if not any(part in text for part in expected)] == []
        assert [url for url in one.requests if not url.startswith((f"{bundled.url}/", "blob:", "data:"))] == []
