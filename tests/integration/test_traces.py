"""Traces of a real server, as a collector gets them: on every transport, through Triton, and with no collector."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.collector import Collector, Span
from tests.keys import bearer, made, metadata
from tests.models import png, publish_tiny
from tests.rpc import Failure, Rpc
from tests.server import ROOT, Server, environment, is_right, picture
from tests.triton import Triton, needs_triton

GOOD = png(picture(0))
CLASSIFY = "/v1/models/tiny/classify"
PARTS = ("decode", "queue", "infer")
CALLER = "00000000000000ca"  # the client's span
SERVER_KIND, CLIENT_KIND = 2, 3

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(repository, tmp_path_factory.mktemp("traced"), traces="otlp").start() as running:
        yield running


@pytest.fixture
def trace() -> str:
    """The id of a trace that a client has begun."""
    return f"{next(_numbers):032x}"


def parent(trace: str, *, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{CALLER}-0{int(sampled)}"}


def of(trace: str) -> tuple[tuple[str, str], ...]:
    return tuple(parent(trace).items())


def root(spans: list[Span]) -> Span:
    (found,) = [span for span in spans if span.parent == CALLER]
    return found


def assert_family(spans: list[Span], *names: str) -> Span:
    """The client's span has one child, whose children are of these names and lie within it."""
    top = root(spans)
    children = [span for span in spans if span is not top]
    assert sorted(span.name for span in children) == sorted(names)
    assert top.kind == SERVER_KIND
    for child in children:
        assert child.parent == top.id
        assert top.began - 1_000 <= child.began <= child.ended <= top.ended + 1_000, (child, top)
    return top


# The ways in.


def test_a_request_over_http(traced: Server, collector: Collector, trace: str) -> None:
    answer = traced.client.post(CLASSIFY, content=GOOD, headers=parent(trace) | {"x-request-id": f"id-{trace}"})
    timings = answer.json()["predictions"][0]["timings_ms"]
    spans = collector.wait(trace, f"POST {CLASSIFY.replace('tiny', '{model}')}", *PARTS)
    top = assert_family(spans, *PARTS)
    assert top.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": CLASSIFY,
        "http.route": "/v1/models/{model}/classify",
        "http.response.status_code": 200,
        "fovea.request_id": f"id-{trace}",
        "fovea.code": "ok",
        "fovea.model": "tiny",
        "fovea.version": "1",
        "fovea.images": 1,
    }
    assert not top.failed
    assert {span.service for span in spans} == {"fovea"}
    by_name = {span.name: span for span in spans}
    assert by_name["infer"].attributes == {"fovea.batch.size": 1}
    assert by_name["infer"].began >= by_name["queue"].began >= by_name["decode"].ended
    for name in ("queue", "infer"):
        took = (by_name[name].ended - by_name[name].began) / 1e6
        assert took == pytest.approx(timings[name], abs=0.002)
    line = traced.wait_log(lambda line: line.get("request_id") == f"id-{trace}")
    assert line["trace_id"] == trace


def test_each_image_of_a_request(traced: Server, collector: Collector, trace: str) -> None:
    files = [("image", png(picture(number))) for number in range(3)]
    traced.client.post("/v1/models/tiny/embed", files=files, headers=parent(trace))
    spans = collector.wait(trace, "POST /v1/models/{model}/embed", *(3 * PARTS))
    assert assert_family(spans, *(3 * PARTS)).attributes["fovea.images"] == 3
    assert [span.attributes["fovea.batch.size"] for span in spans if span.name == "infer"] == [3, 3, 3]


def test_a_call_over_grpc(traced: Server, collector: Collector, trace: str) -> None:
    with Rpc(traced) as rpc:
        rpc.classify([GOOD], metadata=[*of(trace), ("x-request-id", "by-grpc")])
    spans = collector.wait(trace, "fovea.v1.Classifier/Classify", *PARTS)
    assert assert_family(spans, *PARTS).attributes == {
        "rpc.system": "grpc",
        "rpc.service": "fovea.v1.Classifier",
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "fovea.request_id": "by-grpc",
        "fovea.code": "ok",
        "fovea.model": "tiny",
        "fovea.version": "1",
        "fovea.images": 1,
    }


def test_each_message_of_a_stream_is_a_request_of_the_trace(traced: Server, collector: Collector, trace: str) -> None:
    images = [GOOD, b"hello", GOOD]
    with Rpc(traced) as rpc:
        rpc.stream((pb.ClassifyStreamRequest(image=image, model="tiny") for image in images), metadata=of(trace))
    name = "fovea.v1.Classifier/ClassifyStream"
    spans = collector.wait(trace, *(3 * (name,)), *(2 * PARTS), "decode")
    tops = [span for span in spans if span.name == name]
    assert [span.parent for span in tops] == 3 * [CALLER]
    assert sorted(str(span.attributes["fovea.code"]) for span in tops) == ["ok", "ok", "unsupported_format"]
    for top in tops:
        children = [span.name for span in spans if span.parent == top.id]
        assert sorted(children) == (sorted(PARTS) if top.attributes["fovea.code"] == "ok" else ["decode"])
    assert len(spans) == 3 + 2 * 3 + 1


@pytest.mark.parametrize(("model", "parts"), [("tiny", ("queue", "infer")), ("tiny.encoded", PARTS)])
@pytest.mark.parametrize("transport", ["http", "grpc", "stream"])
def test_the_open_inference_protocol(
    traced: Server, collector: Collector, trace: str, transport: str, model: str, parts: tuple[str, ...]
) -> None:
    kind: Any = triton_http if transport == "http" else triton_grpc
    if model == "tiny":
        given = kind.InferInput("image", [1, 8, 8, 3], "UINT8")
        given.set_data_from_numpy(picture(0)[None])
    else:
        given = kind.InferInput("encoded_image", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[GOOD]], object))
    with kind.InferenceServerClient(traced.grpc if transport != "http" else f"127.0.0.1:{traced.port}") as client:
        if transport == "stream":
            answers: list[Any] = []
            client.start_stream(lambda result, error: answers.append(error or result), headers=parent(trace))
            client.async_stream_infer(model, [given])
            client.stop_stream()
        else:
            client.infer(model, [given], headers=parent(trace))
    name = {
        "http": "POST /v2/models/{model}/infer",
        "grpc": "inference.GRPCInferenceService/ModelInfer",
        "stream": "inference.GRPCInferenceService/ModelStreamInfer",
    }[transport]
    top = assert_family(collector.wait(trace, name, *parts), *parts)
    assert (top.name, top.attributes["fovea.model"], top.attributes["fovea.code"]) == (name, "tiny", "ok")


def test_calls_that_ask_no_model(traced: Server, collector: Collector, trace: str) -> None:
    paths = {
        "/v1/models/tiny": "GET /v1/models/{model}",
        "/v2/models/tiny/versions/1/config": "GET /v2/models/{model}/versions/{version}/config",
        "/v2/no/such/path": "GET",
        "/nowhere": "GET",
    }
    for path in paths:
        traced.client.get(path, headers=parent(trace))
    spans = collector.wait(trace, *paths.values())
    assert {span.attributes["url.path"]: span.name for span in spans} == paths
    assert [span.parent for span in spans] == len(paths) * [CALLER]


def test_a_client_that_traces_nothing(traced: Server, collector: Collector) -> None:
    for number in range(2):
        traced.client.post(CLASSIFY, content=GOOD, headers={"x-request-id": f"alone-{number}"})
    ids = [traced.wait_log(lambda line, n=n: line.get("request_id") == f"alone-{n}")["trace_id"] for n in range(2)]
    assert ids[0] != ids[1]
    for trace in ids:
        (top,) = [span for span in collector.wait(trace, *PARTS, "POST /v1/models/{model}/classify") if not span.parent]
        assert top.kind == SERVER_KIND


def test_a_client_that_does_not_want_this_one_traced(traced: Server, collector: Collector, trace: str) -> None:
    traced.client.post(CLASSIFY, content=GOOD, headers=parent(trace, sampled=False))
    other = f"{next(_numbers):032x}"
    traced.client.post(CLASSIFY, content=GOOD, headers=parent(other))
    collector.wait(other, *PARTS)
    assert collector.spans(trace) == []


def test_health_and_metrics_leave_no_spans(traced: Server, collector: Collector, trace: str) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/ready", "/"):
        traced.client.get(path, headers=parent(trace))
    with triton_grpc.InferenceServerClient(traced.grpc) as client:
        assert client.is_server_live(headers=parent(trace))
    traced.client.get("/v1/models", headers=parent(trace))
    collector.wait(trace, "GET /v1/models")
    assert len(collector.spans(trace)) == 1


# What goes wrong.


def test_an_image_that_cannot_be_decoded(traced: Server, collector: Collector, trace: str) -> None:
    assert traced.client.post(CLASSIFY, content=GOOD[:40], headers=parent(trace)).status_code == 422
    spans = collector.wait(trace, "decode", "POST /v1/models/{model}/classify")
    top = assert_family(spans, "decode")
    assert top.attributes["error.type"] == "invalid_image"
    assert not top.failed  # it is the client's image
    (decode,) = [span for span in spans if span.name == "decode"]
    assert (decode.failed, decode.attributes["error.type"]) == (True, "invalid_image")


def test_an_image_that_the_backend_fails_on(traced: Server, collector: Collector, trace: str) -> None:
    white = png(np.full((8, 8, 3), 255, np.uint8))
    with Rpc(traced) as rpc:
        assert isinstance(rpc.classify([white], model="glass", metadata=of(trace)), Failure)
    spans = collector.wait(trace, "fovea.v1.Classifier/Classify", *PARTS)
    top = assert_family(spans, *PARTS)
    assert (top.failed, top.attributes["fovea.code"], top.attributes["rpc.grpc.status_code"]) == (
        True,
        "backend_failed",
        13,
    )
    assert [span.failed for span in spans if span is not top] == [False, False, True]


def test_a_deadline_that_passes(traced: Server, collector: Collector) -> None:
    path = "/v1/models/slow/classify"
    status = 0
    for _ in range(10):  # on a busy machine one run of the model may take a fraction of another
        took = traced.client.post(path, content=GOOD).json()["predictions"][0]["timings_ms"]["infer"]
        time.sleep(1.1)  # that measurement is doubted then, and trying costs nobody anything
        trace, params = f"{next(_numbers):032x}", {"timeout_ms": str(0.6 * took)}
        status = traced.client.post(path, content=GOOD, params=params, headers=parent(trace)).status_code
        if status == 504:
            break
    assert status == 504
    spans = collector.wait(trace, *PARTS, "POST /v1/models/{model}/classify")
    top = root(spans)
    assert (top.failed, top.attributes["fovea.code"]) == (True, "deadline_exceeded")
    assert [span.name for span in spans if span.failed] == [top.name, "infer"]


def test_who_is_refused_at_the_door(
    collector: Collector, repository: Path, tmp_path: Path, launch: Callable[..., Server], trace: str
) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    secret = made(url)
    server = launch(repository, traces="otlp", database_url=url)
    assert server.client.post(CLASSIFY, content=GOOD, headers=parent(trace)).status_code == 401
    assert server.client.post(CLASSIFY, content=GOOD, headers=parent(trace) | bearer(secret)).status_code == 200
    with Rpc(server) as rpc:
        assert isinstance(rpc.classify([GOOD], metadata=of(trace)), Failure)
        assert isinstance(rpc.classify([GOOD], metadata=of(trace) + metadata(secret)), dict)
    names = (f"POST {CLASSIFY.replace('tiny', '{model}')}", "fovea.v1.Classifier/Classify")
    spans = collector.wait(trace, *(2 * names))
    for name in names:
        refused, taken = (span for span in spans if span.name == name)
        assert (refused.attributes["fovea.code"], taken.attributes["fovea.code"]) == ("unauthorized", "ok")
        assert "fovea.key" not in refused.attributes
        assert taken.attributes["fovea.key"] == secret.split("_")[1]
    assert secret not in str(spans)


# Heads.


def test_a_taught_head(collector: Collector, repository: Path, launch: Callable[..., Server], trace: str) -> None:
    server = launch(repository, traces="otlp")
    assert server.client.put("/v1/heads/colours", json={"backbone": "tiny"}).status_code == 201
    for label, first in (("red", 200), ("blue", 20)):
        shades = [np.full((8, 8, 3), (first + n, 30, 220 - first - n), np.uint8) for n in range(8)]
        files = [("image", png(shade)) for shade in shades]
        answer = server.client.post("/v1/heads/colours/examples", params={"label": label}, files=files)
        assert answer.status_code == 200, answer.text
    answer = server.client.post("/v1/heads/colours/fit", headers=parent(trace))
    assert answer.status_code == 200, answer.text
    assert root(collector.wait(trace, "POST /v1/heads/{head}/fit")).attributes["fovea.code"] == "ok"
    mine = f"{next(_numbers):032x}"
    server.client.post("/v1/models/colours/classify", content=GOOD, headers=parent(mine))
    spans = collector.wait(mine, "POST /v1/models/{model}/classify", *PARTS, "head")
    top = assert_family(spans, *PARTS, "head")
    assert (top.attributes["fovea.model"], top.attributes["fovea.version"]) == ("colours", "1")
    assert spans[-1].attributes == {"fovea.head": "colours", "fovea.version": "1"}


# Triton.


@needs_triton
@pytest.mark.timeout(180)
def test_triton_goes_on_with_the_trace(collector: Collector, tmp_path: Path, trace: str) -> None:
    publish_tiny(tmp_path / "models")
    options = (
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",  # no traces of its own: those that are passed on to it, and no others
        f"--trace-config=opentelemetry,url={collector.url}/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=triton",
        "--trace-config=opentelemetry,bsp_schedule_delay=100",
    )
    other, unwanted = (f"{next(_numbers):032x}" for _ in range(2))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    settings = {"backend": "triton", "traces": "otlp"}
    with (
        Triton(tmp_path / "models", tmp_path, options=options).start() as triton,
        Server(nothing, nothing, triton_url=triton.grpc_url, **settings).start() as gateway,
    ):
        gateway.client.post(CLASSIFY, content=GOOD, headers=parent(unwanted, sampled=False))
        gateway.client.post(CLASSIFY, content=GOOD, headers=parent(trace))
        files = [("image", png(picture(number))) for number in range(2)]
        gateway.client.post(CLASSIFY, files=files, headers=parent(other))
        spans = collector.wait(trace, *PARTS, "InferRequest", "compute")
        pair = collector.wait(other, *(2 * PARTS))  # Triton's own spans of it do not always come
    (call,) = [span for span in spans if span.kind == CLIENT_KIND]
    assert (call.name, call.service, call.attributes["fovea.batch.size"]) == ("infer", "fovea", 1)
    assert call.parent == root(spans).id
    (asked,) = [span for span in spans if span.name == "InferRequest"]
    assert (asked.service, asked.parent) == ("triton", call.id)
    # One image of a batch carries it; the other's span names that one's.
    carrier, carried = sorted((span for span in pair if span.name == "infer"), key=lambda span: -span.kind)
    assert (carrier.kind, carrier.links) == (CLIENT_KIND, ())
    assert carried.links == (carrier.id,)
    assert {span.attributes["fovea.batch.size"] for span in (carrier, carried)} == {2}
    assert collector.spans(unwanted) == []


# Collectors that are away, and servers that stop.


def test_what_is_left_is_sent_when_the_server_stops(
    repository: Path, launch: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    with Collector() as late:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", late.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        server = launch(repository, traces="otlp")
        server.client.post(CLASSIFY, content=GOOD, headers=parent(trace))
        assert late.spans() == []
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert_family(late.spans(trace), *PARTS)
        assert {span.service for span in late.spans(trace)} == {"mine"}


@pytest.mark.parametrize("kind", ["away", "silent"])
def test_a_collector_that_does_not_answer_hurts_nobody(
    repository: Path, launch: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if kind == "away":
            listener.close()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
        server = launch(repository, traces="otlp")
        for number in range(100):  # more than the queue holds
            answer = server.classify(picture(number), timeout_ms=5000)
            assert is_right(answer.json()["predictions"][0], picture(number))
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert time.monotonic() - started < 6
        complaints = [line["message"] for line in server.log() if line["level"] in ("warning", "error")]
        assert 1 <= len(complaints) <= 2, complaints
        assert complaints[-1].startswith("the last spans could not be sent")


# Off, and what keeps it from being on.


def test_where_no_traces_are_sent_nothing_of_it_is_loaded() -> None:
    code = "import sys, service.app; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def refused(repository: Path, folder: Path, **environment_: str) -> str:
    """What `serve` says that ends with the status of a wrong setting."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--traces", "otlp"],
        cwd=folder,
        env=environment(grpc_port=0, model_repository=repository) | environment_,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_without_opentelemetry_the_remedy_is_named(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry.sdk'] = None")
    said = refused(repository, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "pip install 'fovea[tracing]'" in said


def test_another_protocol_is_not_taken_for_this_one(repository: Path, tmp_path: Path) -> None:
    said = refused(repository, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is grpc" in said
