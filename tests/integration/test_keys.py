"""API keys on every transport, through the real server."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from service.exposure import check_exposure
from service.settings import InvalidSettings, load
from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.databases import PostgreSQL
from tests.keys import bearer, command, id_of, made, metadata, problem, revoke, status
from tests.models import png
from tests.rpc import Failure, Rpc, as_dict
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]

GOOD = png(picture(0))
CLASSIFY = "/v1/models/tiny/classify"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('keys')}/keys.db"


@pytest.fixture(scope="module")
def infer(url: str) -> str:
    return made(url, "infer")


@pytest.fixture(scope="module")
def admin(url: str) -> str:
    return made(url, "admin")


@pytest.fixture(scope="module")
def keyed(repository: Path, url: str, infer: str, admin: str) -> Iterator[Server]:
    """A server on a loopback address whose database has keys."""
    with Server(repository, Path(url.removeprefix("sqlite:///")).parent, database_url=url).start() as server:
        yield server


@pytest.fixture
def rpc(keyed: Server) -> Iterator[Rpc]:
    with Rpc(keyed) as calls:
        yield calls


def limited(server: Server, url: str, rate: str) -> str:
    """The secret of a new key that a running server knows already."""
    secret = made(url, rate=rate)
    server.wait_until(lambda: server.client.get("/v2", headers=bearer(secret)).status_code != 401, 1.5)
    return secret


# HTTP.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic Zm92ZWE6Zm92ZWE="},
        {"authorization": "Bearer fovea_000000000000_" + 43 * "A"},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_no_valid_key_no_answer(keyed: Server, headers: dict[str, Any]) -> None:
    answer = keyed.client.post(CLASSIFY, content=GOOD, headers=headers)
    assert problem(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_differs_in_every_character(keyed: Server, infer: str) -> None:
    for place in (0, 6, 17, 18, 19, 40, 61):
        wrong = infer[:place] + ("0" if infer[place] != "0" else "1") + infer[place + 1 :]
        assert status(keyed, wrong) == 401
    assert status(keyed, infer + "A") == 401
    assert status(keyed, infer) == 200


def test_a_key_of_either_scope_asks_and_reads(keyed: Server, infer: str, admin: str) -> None:
    for secret in (infer, admin):
        for scheme in ("Bearer", "bearer", "BEARER"):
            answer = keyed.client.post(CLASSIFY, content=GOOD, headers={"authorization": f"{scheme} {secret}"})
            assert is_right(answer.json()["predictions"][0], picture(0))
        for path in ("/v1/models", "/v1/models/tiny", "/v1/routes", "/v1/heads", "/metrics", "/v2", "/v2/models/tiny"):
            assert status(keyed, secret, path) == 200


OPEN = ["/", "/static/js/api.js", "/healthz", "/readyz", "/docs", "/openapi.json", "/v2/health/live"]
SHUT = ["/v1/models", "/v1/models/tiny", "/v1/routes", "/v1/heads", "/v1/heads/x", "/metrics", "/nowhere", "/docs/x"]
SHUT_V2 = ["/v2", "/v2/", "/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/stats", "/v2/healthy", "/v2/nowhere"]


def test_what_is_open_and_what_is_not(keyed: Server) -> None:
    assert {path: status(keyed, None, path) for path in OPEN} == dict.fromkeys(OPEN, 200)
    shut = [*SHUT, *SHUT_V2]
    assert {path: status(keyed, None, path) for path in shut} == dict.fromkeys(shut, 401)


def test_no_byte_of_a_body_is_waited_for(keyed: Server) -> None:
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=5) as client:
        client.sendall(f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 401"


def test_only_the_scope_admin_changes_anything(keyed: Server, infer: str, admin: str) -> None:
    calls: list[tuple[str, str, Any]] = [
        ("PUT", "/v1/routes/r", {"primary": "tiny"}),
        ("DELETE", "/v1/routes/r", None),
        ("PUT", "/v1/models/tiny/version", {"version": None}),
        ("POST", "/v1/models/tiny/load", None),
        ("PUT", "/v1/heads/h", {"backbone": "tiny"}),
        ("DELETE", "/v1/heads/h", None),
    ]
    for method, path, body in calls:
        assert problem(keyed.client.request(method, path, json=body)) == (401, "unauthorized")
        assert problem(keyed.client.request(method, path, json=body, headers=bearer(infer))) == (403, "forbidden")
        page = bearer(admin) | {"sec-fetch-site": "cross-site"}
        assert problem(keyed.client.request(method, path, json=body, headers=page)) == (403, "forbidden")
    for method, path, body in calls:
        assert keyed.client.request(method, path, json=body, headers=bearer(admin)).status_code in (200, 201, 204)


def test_who_asked_is_in_the_log_and_the_secret_is_not(keyed: Server, infer: str, admin: str) -> None:
    keyed.client.get("/v1/models", headers={"x-request-id": "whose", **bearer(infer)})
    line = keyed.wait_log(lambda line: line.get("request_id") == "whose")
    assert line["key"] == id_of(infer)
    assert not any(secret.split("_", 2)[2] in keyed.log_text() for secret in (infer, admin))


# The Open Inference Protocol over HTTP.


def test_the_protocol_over_http_has_its_own_errors(keyed: Server, infer: str) -> None:
    for path in SHUT_V2:
        answer = keyed.client.get(path)
        assert (answer.status_code, list(answer.json())) == (401, ["error"])
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = keyed.client.post("/v2/repository/models/tiny/load", headers=bearer(infer))
    assert (answer.status_code, list(answer.json())) == (403, ["error"])


def test_tritonclient_sends_a_key_over_http(keyed: Server, infer: str, admin: str) -> None:
    client = triton_http.InferenceServerClient(keyed.url.removeprefix("http://"))
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="send a key"):
        client.infer("tiny", [tensor(triton_http)])
    answer = client.infer("tiny", [tensor(triton_http)], headers=bearer(infer))
    assert answer.as_numpy("logits").shape == (1, 3)
    with pytest.raises(InferenceServerException, match="scope admin"):
        client.load_model("tiny", headers=bearer(infer))
    client.load_model("tiny", headers=bearer(admin))
    client.close()


def tensor(kind: Any) -> Any:
    pixels = picture(0)[None]
    wanted = kind.InferInput("image", list(pixels.shape), "UINT8")
    wanted.set_data_from_numpy(np.ascontiguousarray(pixels))
    return wanted


# gRPC.


def test_the_native_service_takes_a_key_in_the_metadata(rpc: Rpc, infer: str) -> None:
    for sent in ((), (("authorization", infer),), metadata(infer + "A")):
        refused = rpc.classify([GOOD], metadata=sent)
        assert isinstance(refused, Failure)
        assert (refused.status, refused.code) == ("UNAUTHENTICATED", "unauthorized")
        assert refused.trailers["x-request-id"]
    for ask in (rpc.classify, rpc.embed):
        assert isinstance(ask([GOOD], metadata=metadata(infer)), dict)
    with pytest.raises(grpc.RpcError) as raised:
        rpc.stream([pb.ClassifyStreamRequest(image=GOOD, model="tiny")])
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    (answer,) = rpc.stream([pb.ClassifyStreamRequest(image=GOOD, model="tiny")], metadata=metadata(infer))
    assert is_right(answer["prediction"], picture(0))


def test_the_protocol_over_grpc(keyed: Server, infer: str, admin: str) -> None:
    with triton_grpc.InferenceServerClient(keyed.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        refusals: list[tuple[str, Callable[[], Any]]] = [
            ("UNAUTHENTICATED", lambda: client.infer("tiny", [tensor(triton_grpc)])),
            ("UNAUTHENTICATED", lambda: client.get_model_metadata("tiny")),
            ("UNAUTHENTICATED", lambda: client.load_model("tiny")),
            ("PERMISSION_DENIED", lambda: client.load_model("tiny", headers=bearer(infer))),
        ]
        for wanted, ask in refusals:
            with pytest.raises(InferenceServerException) as raised:
                ask()
            assert wanted in raised.value.status()
        answer = client.infer("tiny", [tensor(triton_grpc)], headers=bearer(infer))
        assert answer.as_numpy("logits").shape == (1, 3)
        client.load_model("tiny", headers=bearer(admin))


def test_grpc_health_is_open_and_reflection_is_not(rpc: Rpc) -> None:
    answer = health_pb2_grpc.HealthStub(rpc.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = rpc.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as raised:
        next(reflection(iter([b""]), timeout=10))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


# Rates.


def test_a_rate_is_kept_exactly_over_all_transports(keyed: Server, rpc: Rpc, url: str, infer: str) -> None:
    secret, other = made(url, rate="7/minute"), limited(keyed, url, "2/minute")  # one of the other's two is used up
    sent = {"headers": bearer(secret)}
    assert [keyed.client.get("/v1/models", **sent).status_code for _ in range(3)] == [200] * 3
    assert [keyed.client.get("/v2/models/tiny", **sent).status_code for _ in range(2)] == [200] * 2
    assert all(isinstance(rpc.classify([GOOD], metadata=metadata(secret)), dict) for _ in range(2))
    answer = keyed.client.post(CLASSIFY, content=GOOD, **sent)
    assert problem(answer) == (429, "overloaded")
    assert 50 <= int(answer.headers["retry-after"]) <= 60
    answer = keyed.client.get("/v2", **sent)
    assert (answer.status_code, list(answer.json())) == (429, ["error"])
    refused = rpc.classify([GOOD], metadata=metadata(secret))
    assert isinstance(refused, Failure)
    assert (refused.status, refused.code) == ("RESOURCE_EXHAUSTED", "overloaded")
    assert 50_000 <= int(refused.trailers["retry-after-ms"]) <= 60_000
    assert [status(keyed, other) for _ in range(2)] == [200, 429]
    assert [status(keyed, infer) for _ in range(20)] == [200] * 20
    assert status(keyed, secret, "/readyz") == 200


def test_after_the_time_that_was_named_the_key_may_ask_again(keyed: Server, url: str) -> None:
    secret = limited(keyed, url, "1/second")
    time.sleep(1.05)
    assert status(keyed, secret) == 200
    answer = keyed.client.get("/v1/models", headers=bearer(secret))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    time.sleep(1.05)
    assert status(keyed, secret) == 200


def test_each_message_of_a_stream_is_a_request(keyed: Server, rpc: Rpc, url: str) -> None:
    secret = limited(keyed, url, "6/minute")
    requests = [pb.ClassifyStreamRequest(image=GOOD, model="tiny") for _ in range(8)]
    answers = rpc.stream(requests, metadata=metadata(secret))
    codes = [answer["prediction"].get("error", {}).get("code") for answer in answers]
    assert codes == [None] * 5 + ["overloaded"] * 3


# Making and revoking, while servers run.


@pytest.mark.slow
def test_a_key_is_made_and_revoked_on_all_servers_within_a_second(
    database_url: str, repository: Path, tmp_path: Path, launch: Launch
) -> None:
    revoke(database_url, made(database_url))
    servers = [launch(repository, database_url=database_url) for _ in range(2)]
    assert [status(server, None) for server in servers] == [401, 401]  # the last key is revoked, the door stays shut
    given = ("--name", "everybody", "--scope", "infer", "admin")
    done = command(tmp_path, "keys", "create", *given, database_url=database_url)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    secret = done.stdout.removesuffix("\n")
    assert re.fullmatch(r"fovea_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", secret)
    for server in servers:
        server.wait_until(lambda server=server: status(server, secret) == 200, 1.0)
    done = command(tmp_path, "keys", "revoke", id_of(secret), database_url=database_url)
    assert done.returncode == 0, done.stderr
    for server in servers:
        server.wait_until(lambda server=server: status(server, secret) == 401, 1.0)
    answer = servers[0].client.get("/v1/models", headers=bearer(secret))
    assert "was revoked" in answer.json()["detail"]


def test_keys_are_listed_without_their_secrets(database_url: str, tmp_path: Path) -> None:
    first, second = made(database_url, name="a"), made(database_url, "infer", "admin", rate="5/second", name="[b]b[/b]")
    revoke(database_url, first)
    listed = command(tmp_path, "keys", "list", "--json", database_url=database_url).stdout
    by_id = {row.pop("id"): row for row in json.loads(listed)}
    assert all(row.pop("created") for row in by_id.values())
    assert by_id[id_of(first)].pop("revoked")
    assert by_id[id_of(first)] == {"name": "a", "scopes": ["infer"], "rate": None}
    assert by_id[id_of(second)] == {
        "name": "[b]b[/b]",
        "scopes": ["admin", "infer"],
        "rate": "5/second",
        "revoked": None,
    }
    table = command(tmp_path, "keys", "list", database_url=database_url).stdout
    assert "[b]b[/b]" in table
    assert not any(secret.split("_", 2)[2] in table + listed for secret in (first, second))


def test_the_first_key_shuts_an_open_server(repository: Path, tmp_path: Path, launch: Launch) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    server = launch(repository, database_url=url)
    assert status(server, None) == 200
    assert status(server, "anything") == 200  # nobody looks at it
    secret = made(url)
    server.wait_until(lambda: status(server, None) == 401, 1.0)
    assert status(server, secret) == 200


def test_a_stream_ends_with_its_key(keyed: Server, rpc: Rpc, url: str) -> None:
    secret = limited(keyed, url, "100/second")
    revoked = False

    def requests() -> Iterator[pb.ClassifyStreamRequest]:
        yield pb.ClassifyStreamRequest(image=GOOD, model="tiny")
        while not revoked:
            time.sleep(0.01)
        yield pb.ClassifyStreamRequest(image=GOOD, model="tiny")

    answers = rpc.stub("ClassifyStream")(requests(), timeout=20, metadata=metadata(secret))
    assert is_right(as_dict(next(answers))["prediction"], picture(0))
    revoke(url, secret)
    keyed.wait_until(lambda: status(keyed, secret) == 401, 1.0)
    revoked = True
    assert next(answers).prediction.error.code == "unauthorized"


def test_no_secret_is_at_rest(keyed: Server, url: str, infer: str, admin: str) -> None:
    files = list(Path(url.removeprefix("sqlite:///")).parent.iterdir())
    everything = b"".join(file.read_bytes() for file in files)
    assert id_of(infer).encode() in everything
    for secret in (infer, admin):
        assert secret.split("_", 2)[2].encode() not in everything


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--name", ""], "1 to 64 printable"),
        (["create", "--name", "a\nb"], "1 to 64 printable"),
        (["create", "--name", "n", "--rate", "often"], "'often' is not a rate"),
        (["create", "--name", "n", "--rate", "1/second; 9/minute"], "several rates"),
        (["create", "--name", "n", "--rate", "0/second"], "of 1 to 10000"),
        (["create", "--name", "n", "--rate", "10001/day"], "of 1 to 10000"),
        (["revoke", "nobody"], "there is no key 'nobody'"),
        (["revoke", os.fsdecode(b"\xff")], "there is no key"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(tmp_path, "keys", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


# Starting.


def test_a_server_that_others_reach_needs_a_key_to_start(repository: Path, tmp_path: Path, launch: Launch) -> None:
    arguments = ("serve", "--host", "0.0.0.0", "--port", "0", "--grpc-port", "0", "--model-repository", str(repository))
    done = command(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "python -m service keys create" in line
    assert "--insecure" in line
    assert list(tmp_path.iterdir()) == []  # nothing was made
    url = f"sqlite:///{tmp_path}/fovea.db"
    secret = made(url)
    server = launch(repository, host="0.0.0.0", database_url=url)
    assert (status(server, None), status(server, secret)) == (401, 200)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but the test's own."""
    for name in [name for name in os.environ if name.upper().startswith("FOVEA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "fe80::1", "::ffff:127.0.0.1", "gateway.example"])
def test_which_addresses_others_reach(host: str, repository: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    given: dict[str, Any] = {"host": host, "model_repository": repository, "database_url": url}
    with pytest.raises(InvalidSettings, match="keys create"):
        check_exposure(load(**given))
    check_exposure(load(**given, insecure=True))
    secret = made(url)
    check_exposure(load(**given))
    revoke(url, secret)
    with pytest.raises(InvalidSettings, match="keys create"):
        check_exposure(load(**given))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_which_addresses_nobody_else_reaches(host: str, repository: Path) -> None:
    check_exposure(load(host=host, model_repository=repository))


def test_insecure_is_open_until_there_is_a_key(repository: Path, tmp_path: Path, launch: Launch) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    server = launch(repository, host="0.0.0.0", insecure=True, database_url=url)
    assert status(server, None) == 200
    assert problem(server.client.post("/v1/models/tiny/load")) == (403, "forbidden")
    secret = made(url, "admin")
    server.wait_until(lambda: status(server, None) == 401, 1.0)
    assert server.client.post("/v1/models/tiny/load", headers=bearer(secret)).status_code == 200


def test_admin_false_holds_for_every_key(repository: Path, tmp_path: Path, launch: Launch) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    secret = made(url, "admin")
    server = launch(repository, admin=False, database_url=url)
    answer = server.client.post("/v1/models/tiny/load", headers=bearer(secret))
    assert problem(answer) == (403, "forbidden")
    assert "FOVEA_ADMIN" in answer.json()["detail"]


def test_nothing_is_answered_before_the_keys_have_been_read(
    postgresql: PostgreSQL, repository: Path, launch: Launch
) -> None:
    url = postgresql.database()
    secret = made(url)
    postgresql.stop()
    try:
        server = launch(repository, host="0.0.0.0", database_url=url, ready=False)
        for sent in ({}, bearer(secret)):
            answer = server.client.get("/v1/models", headers=sent)
            assert (*problem(answer), answer.headers["retry-after"]) == (503, "backend_unavailable", "1")
        assert status(server, None, "/healthz") == 200
        assert status(server, None, "/readyz") == 503
        with Rpc(server) as calls:
            refused = calls.classify([GOOD], metadata=metadata(secret))
            assert isinstance(refused, Failure)
            assert refused.status == "UNAVAILABLE"
    finally:
        postgresql.start()
    server.wait_until(lambda: status(server, secret) == 200, 10)
    assert status(server, None) == 401
    postgresql.stop()
    try:
        assert status(server, secret) == 200  # what has been read goes on serving
        assert status(server, None) == 401
    finally:
        postgresql.start()
