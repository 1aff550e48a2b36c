"""gRPC as operators see it: health, reflection, limits, stopping, TLS, ports."""

from __future__ import annotations

import asyncio
import concurrent.futures
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.conftest import SLOW_ROUNDS
from tests.models import png, publish_tiny
from tests.rpc import Failure, Rpc, as_dict, failure, stub
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]

SERVICES = ["fovea.v1.Classifier", "grpc.health.v1.Health", "inference.GRPCInferenceService"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
GOOD = png(picture(0))


def health(server: Server, service: str = "") -> int:
    with grpc.insecure_channel(server.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    return int(answer.status)


# Health.


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_each_service(server: Server, service: str) -> None:
    assert health(server, service) == SERVING


def test_health_of_all_services(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10)
    assert {name: found.status for name, found in answer.statuses.items()} == dict.fromkeys(["", *SERVICES], SERVING)


def test_health_of_what_is_not_there(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        health(server, "fovea.v9.Oracle")
    assert failure(raised.value).status == "NOT_FOUND"
    with grpc.insecure_channel(server.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service="fovea.v9.Oracle")
        assert next(health_pb2_grpc.HealthStub(channel).Watch(request, timeout=10)).status == UNKNOWN


def test_health_is_watched_from_loading_to_draining(tmp_path: Path, launch: Launch) -> None:
    server = launch(tmp_path_with_no_models(tmp_path), drain_delay=30, ready=False)
    with grpc.insecure_channel(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == NOT_SERVING
        publish_tiny(server.repository)
        assert next(watch).status == SERVING
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert time.monotonic() - started < 0.5
        assert health(server) == NOT_SERVING
        with Rpc(server) as rpc:  # which does not mean that nothing is answered any more
            assert isinstance(rpc.classify([GOOD]), dict)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as raised:
            next(watch)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(10) == 0


def tmp_path_with_no_models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


# Reflection.


def reflected(channel: grpc.Channel, **question: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=10)
    return answer


def test_a_client_that_knows_nothing_finds_everything_by_reflection(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        listed = reflected(channel, list_services="").list_services_response.service
        names = [service.name for service in listed]
        assert sorted(names) == [*SERVICES[:2], "grpc.reflection.v1alpha.ServerReflection", SERVICES[2]]
        pool = descriptor_pool.DescriptorPool()
        for name in SERVICES:
            found = reflected(channel, file_containing_symbol=name).file_descriptor_response
            for data in reversed(found.file_descriptor_proto):  # what others import comes last
                pool.AddSerializedFile(data)
        method = pool.FindMethodByName("fovea.v1.Classifier.Classify")
        request = message_factory.GetMessageClass(method.input_type)(images=[GOOD], model="tiny")
        answer = channel.unary_unary("/fovea.v1.Classifier/Classify")(request.SerializeToString(), timeout=10)
        response = message_factory.GetMessageClass(method.output_type).FromString(answer)
        assert is_right(as_dict(response)["predictions"][0], picture(0))
        assert reflected(channel, file_containing_symbol="no.such.Thing").error_response.error_code == 5


def test_every_method_is_served(server: Server) -> None:
    """Of the protocol's, all but what has to do with sharing memory, tracing and logs."""
    left_out = ("SharedMemory", "TraceSetting", "LogSettings")
    with grpc.insecure_channel(server.grpc) as channel:
        for name in SERVICES:
            data = reflected(channel, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
            files = map(descriptor_pb2.FileDescriptorProto.FromString, data)
            (service,) = [one for file in files for one in file.service if name.endswith(f".{one.name}")]
            for method in service.method:
                if method.client_streaming or method.server_streaming:
                    continue
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary(f"/{name}/{method.name}")(b"\xff", timeout=10)
                served = raised.value.code() is not grpc.StatusCode.UNIMPLEMENTED
                assert served != any(part in method.name for part in left_out), method.name


# Limits.


async def test_more_calls_than_are_taken_at_once(repository: Path, launch: Launch) -> None:
    server = launch(repository, max_calls=3)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        ask = stub(channel, "Classify")
        busy = [ask(pb.ClassifyRequest(images=[GOOD], model="slow")) for _ in range(3)]
        await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight", transport="grpc") == 3)
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ask(pb.ClassifyRequest(images=[GOOD], model="slow"))
        assert time.monotonic() - started < 0.1
        found = failure(raised.value)
        assert (found.status, found.code, found.trailers["retry-after-ms"]) == (
            "RESOURCE_EXHAUSTED",
            "overloaded",
            "1000",
        )
        for call in busy:
            assert is_right(as_dict(await call)["predictions"][0], picture(0))
        assert is_right(
            as_dict(await ask(pb.ClassifyRequest(images=[GOOD], model="tiny")))["predictions"][0], picture(0)
        )
    after = server.metrics()
    assert after("requests_total", transport="grpc", model="unknown", code="overloaded") == 1
    assert after("inflight", transport="grpc") == 0


async def test_a_storm(tmp_path: Path, launch: Launch) -> None:
    """Every call gets one answer, right or a refusal, and the books balance."""
    publish_tiny(tmp_path / "models", work=40)
    server = launch(tmp_path / "models", access_log=False)
    statuses: dict[str | None, int] = {}

    async def client(ask: Any, number: int) -> None:
        for index in range(number, number + 4):
            try:
                answer = await ask(pb.ClassifyRequest(images=[png(picture(index))]), timeout=0.3)
                assert is_right(as_dict(answer)["predictions"][0], picture(index))
                code: str | None = "ok"
            except grpc.aio.AioRpcError as error:
                found = failure(error)
                assert found.status in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
                code = found.code
            statuses[code] = statuses.get(code, 0) + 1

    async with grpc.aio.insecure_channel(server.grpc) as channel:
        ask = stub(channel, "Classify")
        await asyncio.gather(*(client(ask, 4 * number) for number in range(150)))
    print(f"of {sum(statuses.values())} calls: {statuses}")  # noqa: T201 - shown by pytest -rA
    assert sum(statuses.values()) == 600
    assert statuses.get("overloaded", 0) + statuses.get("deadline_exceeded", 0) + statuses.get(None, 0) > 0
    await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight", transport="grpc") == 0)
    after = server.metrics()
    # A client whose own clock runs out hears nothing of an answer that was on its way, and its call may never arrive.
    assert statuses.get("ok", 0) <= after("requests_total", transport="grpc", code="ok")
    assert statuses.get("overloaded", 0) <= after("requests_total", transport="grpc", code="overloaded")
    assert after("requests_total", transport="grpc") <= 600
    assert after("queue_depth", model="tiny") == 0
    assert health(server) == SERVING
    with Rpc(server) as rpc:
        assert isinstance(rpc.classify([GOOD]), dict)


# Stopping.


async def test_sigterm_under_load(repository: Path, launch: Launch) -> None:
    server = launch(repository, drain_delay=0.5)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        ask, talk = stub(channel, "Classify"), stub(channel, "ClassifyStream")
        calls = [ask(pb.ClassifyRequest(images=[png(picture(number))], model="slow")) for number in range(6)]
        stream = talk()
        for number in range(3):
            await stream.write(pb.ClassifyStreamRequest(image=png(picture(number)), model="slow"))
        await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight", transport="grpc") == 7)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_until, lambda: health(server) == NOT_SERVING, 0.3)
        # During the delay load balancers still send calls: they are answered.
        assert is_right(
            as_dict(await ask(pb.ClassifyRequest(images=[GOOD], model="tiny")))["predictions"][0], picture(0)
        )
        for number, call in enumerate(calls):
            assert is_right(as_dict(await call)["predictions"][0], picture(number))
        for number in range(3):
            assert is_right(as_dict(await stream.read())["prediction"], picture(number))
        # A stream that nothing comes through holds nothing up.
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - started < 5
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    with Rpc(server) as rpc:
        refused = rpc.classify([GOOD], timeout=2)
        assert isinstance(refused, Failure)
        assert refused.status == "UNAVAILABLE"
    assert [line for line in server.log() if line["level"] in ("warning", "error")] == []


async def test_what_does_not_end_is_refused_at_the_timeout(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models", work=6 * SLOW_ROUNDS)
    server = launch(tmp_path / "models", drain_timeout=0.1)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        call, stream = stub(channel, "Classify")(pb.ClassifyRequest(images=[GOOD])), stub(channel, "ClassifyStream")()
        await stream.write(pb.ClassifyStreamRequest(image=GOOD))
        await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight", transport="grpc") == 2)
        server.process.send_signal(signal.SIGTERM)
        for answer in await asyncio.gather(call, stream.read(), return_exceptions=True):
            assert isinstance(answer, grpc.aio.AioRpcError)
            found = failure(answer)
            assert (found.status, found.code) == ("UNAVAILABLE", "backend_unavailable")
            assert "shutting down" in found.detail
        await asyncio.to_thread(server.process.wait, 10)
    assert not any("exception" in line for line in server.log())


def test_a_stream_that_has_said_all_ends_well_during_a_drain(tmp_path: Path, launch: Launch) -> None:
    publish_tiny(tmp_path / "models", work=4 * SLOW_ROUNDS)
    server = launch(tmp_path / "models", drain_delay=0.2)  # a batch takes longer
    with Rpc(server) as rpc, concurrent.futures.ThreadPoolExecutor() as pool:
        requests = [pb.ClassifyStreamRequest(image=png(picture(number))) for number in range(3)]
        answers = pool.submit(rpc.stream, requests)
        server.wait_until(lambda: server.metrics()("inflight", transport="grpc") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert all(is_right(answer["prediction"], picture(number)) for number, answer in enumerate(answers.result(20)))
    assert server.process.wait(10) == 0


# Ports.


def test_no_grpc_where_it_is_off(repository: Path, launch: Launch) -> None:
    server = launch(repository, grpc_port="off")
    assert is_right(server.classify(picture(1)).json()["predictions"][0], picture(1))
    assert not any("grpc" in line["message"] for line in server.log())


def test_a_port_that_is_taken_is_one_clear_line(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(repository, tmp_path, grpc_port=port)
        with pytest.raises(AssertionError, match="the server ended"):
            server.start()
    assert server.process.wait(10) == 2
    (line,) = [line for line in server.log_text().splitlines() if line.startswith("error: ")]
    assert all(part in line for part in (str(port), "--grpc-port", "in use"))


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    return files


@pytest.fixture
def secured(repository: Path, tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Server]:
    server = Server(repository, tmp_path, tls_certificate=certificate[0], tls_key=certificate[1])
    server.tls = ssl.create_default_context(cafile=str(certificate[0]))
    yield server.start()
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5  # though clients keep connections open


def test_both_ports_speak_tls(secured: Server, certificate: tuple[Path, Path]) -> None:
    assert secured.url.startswith("https://")
    assert any("listening on grpcs://" in line["message"] for line in secured.log())
    assert is_right(secured.classify(picture(1)).json()["predictions"][0], picture(1))
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(secured.grpc, credentials) as channel:
        answer = stub(channel, "Classify")(pb.ClassifyRequest(images=[GOOD], model="tiny"), timeout=10)
        assert is_right(as_dict(answer)["predictions"][0], picture(0))


def test_nothing_is_answered_in_plain_text_beside_tls(secured: Server) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(secured.url.replace("https", "http"), timeout=5)
    with Rpc(secured) as rpc:
        found = rpc.classify([GOOD], timeout=2)
    assert isinstance(found, Failure)
    assert found.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert secured.ready()
    assert all(line.startswith("{") for line in secured.log_text().splitlines())


@pytest.mark.parametrize("missing", ["key", "other"])
def test_a_certificate_without_its_key(
    repository: Path, tmp_path: Path, certificate: tuple[Path, Path], missing: str
) -> None:
    settings = {"tls_certificate": certificate[0]} | ({"tls_key": certificate[0]} if missing == "other" else {})
    server = Server(repository, tmp_path, **settings)
    with pytest.raises(AssertionError, match="the server ended"):
        server.start()
    assert server.process.wait(10) == 2
    (line,) = server.log_text().splitlines()
    assert line.startswith("error: ")
    assert "tls_key" in line
