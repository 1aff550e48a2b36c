"""Refusals for keys and rates in `/metrics`: counted alike on every transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.keys import bearer, made, metadata
from tests.models import png
from tests.rpc import Failure, Rpc
from tests.server import Samples, Server, picture

GOOD = png(picture(0))
CLASSIFY = "/v1/models/tiny/classify"
INFER = "/v2/models/tiny/infer"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
STREAM = "ClassifyStream"

Asked = Callable[[str | None], object]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/keys.db"


@pytest.fixture
def admin(url: str) -> str:
    return made(url, "admin")


@pytest.fixture
def infer(url: str) -> str:
    return made(url, "infer", rate="1/hour")


@pytest.fixture
def server(repository: Path, tmp_path: Path, url: str, admin: str, infer: str) -> Iterator[Server]:
    with Server(repository, tmp_path, database_url=url).start() as running:
        yield running


@pytest.fixture
def rpc(server: Server) -> Iterator[Rpc]:
    with Rpc(server) as calls:
        yield calls


def samples(server: Server, admin: str) -> Samples:
    return Samples(server.client.get("/metrics", headers=bearer(admin)).text)


def over_http(server: Server) -> dict[str, Asked]:
    """One call each; what it is given is the secret of a key."""

    def post(path: str, secret: str | None) -> int:
        return server.client.post(path, content=GOOD, headers=bearer(secret) if secret else {}).status_code

    return {path: lambda secret, path=path: post(path, secret) for path in (CLASSIFY, INFER)}


def over_grpc(rpc: Rpc) -> dict[str, Asked]:
    def stream(secret: str | None) -> object:
        try:
            return rpc.stream([pb.ClassifyStreamRequest(image=GOOD, model="tiny")], metadata=sent(secret))
        except grpc.RpcError as error:
            return error

    return {"Classify": lambda secret: rpc.classify([GOOD], metadata=sent(secret)), STREAM: stream}


def sent(secret: str | None) -> tuple[tuple[str, str], ...]:
    return metadata(secret) if secret else ()


def test_all_reasons_are_there_before_anything_was_refused(server: Server, admin: str) -> None:
    text = server.client.get("/metrics", headers=bearer(admin)).text
    for transport in ("http", "grpc"):
        for reason in ("unauthorized", "forbidden", "rate"):
            assert f'fovea_refused_total{{reason="{reason}",transport="{transport}"}} 0.0' in text


def test_calls_without_a_key_are_counted(server: Server, rpc: Rpc, admin: str) -> None:
    for transport, ways in (("http", over_http(server)), ("grpc", over_grpc(rpc))):
        for number, (name, ask) in enumerate(ways.items(), start=1):
            before = samples(server, admin)
            ask(None)
            ask("fovea_" + 12 * "0" + "_" + 43 * "A")
            after = samples(server, admin)
            refused = {"transport": transport, "reason": "unauthorized"}
            assert after("refused_total", **refused) == 2 * number, name
            assert after("refused_total") - before("refused_total") == 2
            asked = {"transport": transport, "model": "unknown", "code": "unauthorized"}
            # A stream that is refused has not asked anything yet.
            counted = after("requests_total", **asked) - before("requests_total", **asked)
            assert counted == (0 if name == STREAM else 2), name


def test_rates_are_counted(server: Server, rpc: Rpc, infer: str, admin: str) -> None:
    assert server.client.get("/v2", headers=bearer(infer)).status_code == 200
    for transport, ways in (("http", over_http(server)), ("grpc", over_grpc(rpc))):
        for number, (name, ask) in enumerate(ways.items(), start=1):
            ask(infer)
            after = samples(server, admin)
            assert after("refused_total", transport=transport, reason="rate") == number, name
            asked = {"transport": transport, "model": "unknown", "code": "rate"}
            assert after("requests_total", **asked) == number, name
    assert after("rejected_total") == 0  # which counts images that the server was too busy for


def test_a_missing_scope_is_counted(server: Server, rpc: Rpc, url: str, admin: str) -> None:
    reader = made(url, "infer")
    # Known within a second; until then it is refused for another reason.
    server.wait_until(lambda: server.client.get("/v2", headers=bearer(reader)).status_code != 401, 1.5)
    for path in ("/v1/models/tiny/load", "/v2/repository/models/tiny/load"):
        assert server.client.post(path, headers=bearer(reader)).status_code == 403
    assert isinstance(raw(rpc, LOAD, reader), Failure)
    after = samples(server, admin)
    assert after("refused_total", transport="http", reason="forbidden") == 2
    assert after("refused_total", transport="grpc", reason="forbidden") == 1
    assert after("refused_total", reason="rate") == after("requests_total") == 0


def raw(rpc: Rpc, path: str, secret: str) -> bytes | Failure:
    try:
        answer: bytes = rpc.channel.unary_unary(path)(b"", timeout=10, metadata=metadata(secret))
    except grpc.RpcError as error:
        return Failure(error.code().name, error.details(), {})
    return answer
