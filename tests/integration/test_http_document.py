"""The server against its own OpenAPI document: whatever schemathesis asks, the answer is one that it describes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.models import publish_tiny
from tests.server import Server

schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.slow

KNOWN = {"model": "tiny", "head": "taught", "name": "route", "example": "1"}  # what a path's parameters can mean
NEW = {"model": "spare", "head": "new", "name": "new"}
CHANGED = {"POST /v1/models/{model}/unload", "POST /v1/models/{model}/load", "PUT /v1/models/{model}/version"}
REFUSED = {429, 502, 503, 504}  # as documented; any other code from 500 on is a fault


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a model to use, one to load and unload, a head and a route."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "models").mkdir()
    publish_tiny(folder / "models")
    publish_tiny(folder / "models", "spare")
    with Server(
        folder / "models", folder, admin=True, max_image_bytes=200_000, default_timeout_ms=5000
    ).start() as server:
        yield server
        assert server.ready()
        assert "unexpected failure" not in server.log_text()
        assert "Traceback" not in server.log_text()


def test_every_answer_is_one_of_those_documented(running: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    schemathesis.checks.load_all_checks()
    wanted = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    ]
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        asked.add(operation.label)
        _ask(running, operation, wanted)
    assert {"POST /v1/models/{model}/classify", "PUT /v1/heads/{head}", "GET /healthz"} <= asked


def _ask(server: Server, operation: object, checks: list[object]) -> None:
    assert server.client.put("/v1/heads/taught", json={"backbone": "tiny"}).is_success
    assert server.client.put("/v1/routes/route", json={"primary": "tiny"}).is_success

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(), st.integers(0, 4))  # type: ignore[attr-defined]
    def ask(case: object, chance: int) -> None:
        if chance:  # most names mean something, or nothing behind them would be reached
            known = KNOWN | (NEW if chance <= 2 or operation.label in CHANGED else {})
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
            if chance > 1 and isinstance(case.body, dict):
                case.body.update({key: "tiny" for key in ("backbone", "primary") if key in case.body})
        answer = case.call(base_url=server.url, timeout=20)
        assert answer.status_code < 500 or answer.status_code in REFUSED, answer.text
        case.validate_response(answer, checks=checks)

    ask()
