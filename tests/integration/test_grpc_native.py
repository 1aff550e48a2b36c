"""`fovea.v1.Classifier` against a real server: HTTP's answers, the table of errors, deadlines, streams, counters."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from tests.conftest import SLOW_ROUNDS
from tests.models import png, publish_tiny
from tests.rpc import UNLIMITED, Failure, Rpc, as_dict, failure, stub
from tests.server import Server, expected, is_right, picture

Launch = Callable[..., Server]

GOOD = png(picture(0))
BROKEN = GOOD[:40]
CLASSIFY = "/fovea.v1.Classifier/Classify"


@pytest.fixture(scope="module")
def rpc(server: Server) -> Iterator[Rpc]:
    with Rpc(server) as client:
        yield client


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model takes so long that a test can look at what waits for it."""
    folder = tmp_path_factory.mktemp("slow")
    publish_tiny(folder / "models", "slow", work=6 * SLOW_ROUNDS)
    with Server(folder / "models", folder, max_images=4).start() as running:
        yield running


def answered(found: dict[str, Any] | Failure) -> dict[str, Any]:
    assert isinstance(found, dict), found
    return found


def failed(found: dict[str, Any] | bytes | Failure) -> Failure:
    assert isinstance(found, Failure), found
    return found


def untimed(answer: dict[str, Any]) -> dict[str, Any]:
    for prediction in answer["predictions"]:
        prediction.pop("timings_ms", None)
    return answer


# The answers.


@pytest.mark.parametrize("query", [{}, {"top_k": 2}, {"version": "1"}, {"explain": True}])
def test_the_answer_is_that_of_http(server: Server, rpc: Rpc, query: dict[str, Any]) -> None:
    images = [png(picture(number, 8 + number)) for number in range(3)]
    params = {name: str(value).lower() for name, value in query.items()}
    files = [("image", image) for image in images]
    http = untimed(server.client.post("/v1/models/tiny/classify", files=files, params=params).json())
    found = untimed(answered(rpc.classify(images, **query)))
    for prediction in found["predictions"]:
        if explanation := prediction.get("explanation"):
            grid = explanation["map"]
            rows = np.reshape(grid["values"], (grid["height"], grid["width"])).tolist()
            explanation["map"] = rows
    assert found == http


def test_features_are_those_of_http(server: Server, rpc: Rpc) -> None:
    http = server.client.post("/v1/models/tiny/embed", content=GOOD).json()["predictions"][0]["features"]
    answer = answered(rpc.embed([GOOD]))
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    assert np.array_equal(np.float32(answer["predictions"][0]["features"]), np.float32(http))


def test_images_are_answered_in_order_and_timed(rpc: Rpc) -> None:
    images = [picture(number) for number in range(4)]
    found = answered(rpc.classify([png(image) for image in images]))["predictions"]
    assert all(map(is_right, found, images))
    assert all(prediction["timings_ms"]["total"] > 0 for prediction in found)


def test_a_bad_image_among_several_has_its_error_in_its_place(rpc: Rpc) -> None:
    first, second, third = answered(rpc.classify([GOOD, b"hello", GOOD]))["predictions"]
    assert is_right(first, picture(0))
    assert is_right(third, picture(0))
    assert second["error"]["code"] == "unsupported_format"
    assert "timings_ms" not in second


def test_the_default_model(repository: Path, launch: Launch) -> None:
    with Rpc(launch(repository, default_model="tiny")) as rpc:
        assert answered(rpc.classify([GOOD], model=""))["model"] == "tiny"


# The errors.


@pytest.mark.parametrize(
    ("images", "fields", "status", "code", "detail"),
    [
        ([], {}, "INVALID_ARGUMENT", "invalid_request", "no image"),
        ([GOOD], {"top_k": 0}, "INVALID_ARGUMENT", "invalid_request", "top_k"),
        ([GOOD], {"model": ""}, "INVALID_ARGUMENT", "invalid_request", "name a model"),
        ([GOOD], {"model": "nobody"}, "NOT_FOUND", "unknown_model", "nobody"),
        ([GOOD], {"version": "7"}, "NOT_FOUND", "unknown_model", "7"),
        ([GOOD] * 5, {}, "RESOURCE_EXHAUSTED", "too_large", "at most 4"),
        ([GOOD + bytes(200_001)], {}, "RESOURCE_EXHAUSTED", "too_large", "200000"),
        ([GOOD + bytes(400_001)], {}, "RESOURCE_EXHAUSTED", "too_large", "400000"),
        ([b"hello"], {}, "INVALID_ARGUMENT", "unsupported_format", ""),
        ([b""], {}, "INVALID_ARGUMENT", "invalid_image", ""),
        ([BROKEN], {}, "INVALID_ARGUMENT", "invalid_image", ""),
        ([png(np.full((8, 8, 3), 255, np.uint8))], {"model": "glass"}, "INTERNAL", "backend_failed", "log"),
    ],
)
def test_the_table_of_errors(
    server: Server, rpc: Rpc, images: list[bytes], fields: dict[str, Any], status: str, code: str, detail: str
) -> None:
    before = server.metrics()
    found = failed(rpc.classify(images, metadata=[("x-request-id", "table-1")], **fields))
    assert (found.status, found.code) == (status, code)
    assert detail in found.detail
    assert found.trailers["x-request-id"] == "table-1"
    assert ("retry-after-ms" in found.trailers) == (code == "overloaded")
    after = server.metrics()
    assert (
        after("requests_total", transport="grpc", code=code)
        == before("requests_total", transport="grpc", code=code) + 1
    )


def test_what_is_far_too_large_is_refused_unread(server: Server, rpc: Rpc) -> None:
    started = time.monotonic()
    found = failed(rpc.classify([bytes(3_000_000)]))
    assert (found.status, found.code) == ("RESOURCE_EXHAUSTED", "too_large")
    assert "3000011 bytes" in found.detail
    assert time.monotonic() - started < 2
    answered(rpc.classify([GOOD]))  # on the same connection
    assert server.metrics()("inflight", transport="grpc") == 0


def test_an_answer_that_is_too_large(repository: Path, launch: Launch) -> None:
    with Rpc(launch(repository, max_message_bytes=250)) as rpc:
        answered(rpc.classify([GOOD], top_k=1))
        found = failed(rpc.classify([GOOD], explain=True))
        assert (found.status, found.code) == ("RESOURCE_EXHAUSTED", "too_large")
        assert "the answer has" in found.detail


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\x0b", b"\xff" * 11, b"\x12\x02\xff\xfe"])
def test_bytes_that_are_no_message(rpc: Rpc, message: bytes) -> None:
    for padding in (
        b"",
        b"\x0a\xa0\x9c\x01" + bytes(20_000),
    ):  # small ones are parsed, larger ones looked through first
        found = failed(rpc.raw(CLASSIFY, padding + message))
        assert (found.status, found.code) == ("INVALID_ARGUMENT", "invalid_request")


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x20\x01", b"\xf8\x07\x00"])
def test_a_message_made_to_keep_the_parser_busy(rpc: Rpc, field: bytes) -> None:
    started = time.monotonic()
    found = failed(rpc.raw(CLASSIFY, field * (390_000 // len(field))))
    assert (found.status, found.code) == ("RESOURCE_EXHAUSTED", "too_large")
    assert "fields" in found.detail
    assert time.monotonic() - started < 1


def test_an_unknown_method(rpc: Rpc) -> None:
    found = failed(rpc.raw("/fovea.v1.Classifier/Guess", b""))
    assert (found.status, found.code) == ("UNIMPLEMENTED", "unknown_method")
    assert "Guess" in found.detail


# Request ids and the log.


def test_request_ids_go_both_ways_and_into_the_log(server: Server, rpc: Rpc) -> None:
    _, call = rpc.stub("Classify").with_call(
        pb.ClassifyRequest(images=[GOOD], model="tiny"), metadata=[("x-request-id", "grpc-42")]
    )
    assert dict(call.trailing_metadata())["x-request-id"] == "grpc-42"
    line = server.wait_log(lambda line: line.get("request_id") == "grpc-42")
    assert (line["message"], line["code"], line["images"]) == (f"{CLASSIFY} OK", "ok", 1)
    assert line["ms"] > 0


@pytest.mark.parametrize("given", [None, "", "a b", "A" * 129])
def test_ids_that_could_do_harm_are_replaced(rpc: Rpc, given: str | None) -> None:
    metadata = [] if given is None else [("x-request-id", given)]
    _, call = rpc.stub("Classify").with_call(pb.ClassifyRequest(images=[GOOD], model="tiny"), metadata=metadata)
    made = dict(call.trailing_metadata())["x-request-id"]
    assert made
    assert made != given


# Deadlines and calls that are given up.


@pytest.mark.parametrize("timeout", [None, 20])
def test_deadlines_have_a_default_and_a_bound(repository: Path, launch: Launch, timeout: float | None) -> None:
    server = launch(repository, default_timeout_ms=50, max_timeout_ms=50)
    with Rpc(server) as rpc:
        found = failed(rpc.classify([GOOD], model="slow", timeout=timeout))
        assert (found.status, found.code) == ("RESOURCE_EXHAUSTED", "overloaded")
        assert int(found.trailers["retry-after-ms"]) >= 1


def test_a_call_that_is_given_up_in_the_queue_never_runs(slow: Server) -> None:
    before = slow.metrics()
    with Rpc(slow) as rpc:
        ask = rpc.stub("Classify").future
        first = ask(pb.ClassifyRequest(images=[GOOD]))
        slow.wait_until(lambda: slow.metrics()("inflight", transport="grpc") == 1)
        second = ask(pb.ClassifyRequest(images=[GOOD] * 3))
        slow.wait_until(lambda: slow.metrics()("queue_depth") == 3)
        second.cancel()
        assert is_right(as_dict(first.result())["predictions"][0], picture(0))
        slow.wait_until(lambda: slow.metrics()("inflight", transport="grpc") == 0)
        answered(rpc.classify([GOOD], model="slow"))
    after = slow.metrics()

    def change(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert change("batch_size_sum") == 2
    assert change("requests_total", transport="grpc", code="client_gone") == 1
    assert change("requests_total", transport="grpc") == 3
    assert after("queue_depth") == 0


# Streams.


def asked(*images: bytes, **fields: Any) -> Iterator[pb.ClassifyStreamRequest]:
    return (pb.ClassifyStreamRequest(**{"image": image, "model": "tiny", **fields}) for image in images)


def test_a_stream_is_answered_in_order_errors_in_their_places(server: Server, rpc: Rpc) -> None:
    before = server.metrics()
    pictures = [picture(number) for number in range(40)]
    messages = [*itertools.chain.from_iterable(asked(png(image)) for image in pictures)]
    messages[5:5] = asked(b"hello")
    messages[11:11] = asked(GOOD, model="nobody")
    messages[17:17] = asked(GOOD, top_k=0)
    messages[23:23] = asked(GOOD, model="slow", timeout_ms=10)
    found = rpc.stream(messages)
    predictions = [each["prediction"] for each in found]
    wrong = {index: each["error"]["code"] for index, each in enumerate(predictions) if "error" in each}
    assert wrong == {5: "unsupported_format", 11: "unknown_model", 17: "invalid_request", 23: "overloaded"}
    assert predictions[23]["error"]["retry_after_ms"] >= 1
    right = [each for index, each in enumerate(predictions) if index not in wrong]
    assert all(map(is_right, right, pictures))
    after = server.metrics()

    def change(code: str, model: str) -> float:
        labels = {"transport": "grpc", "code": code, "model": model}
        return after("requests_total", **labels) - before("requests_total", **labels)

    assert change("ok", "tiny") == 40
    assert (change("unsupported_format", "tiny"), change("unknown_model", "unknown")) == (1, 1)
    assert (change("invalid_request", "tiny"), change("overloaded", "slow")) == (1, 1)
    line = server.wait_log(lambda line: "ClassifyStream" in line["message"] and line["images"] > 40)
    assert line["code"] == "ok"


def test_a_stream_is_a_conversation(rpc: Rpc) -> None:
    """An answer comes before the next question is asked."""
    replies: list[Any] = []

    def questions() -> Iterator[pb.ClassifyStreamRequest]:
        for number in range(3):
            while len(replies) < number:
                time.sleep(0.002)
            yield from asked(png(picture(number)))

    for answer in rpc.stub("ClassifyStream")(questions(), timeout=20):
        replies.append(as_dict(answer)["prediction"])  # noqa: PERF401 - the questions look at it
    assert all(is_right(reply, picture(number)) for number, reply in enumerate(replies))
    assert len(replies) == 3


async def test_who_sends_too_fast_is_not_read(server: Server) -> None:
    """Four images of a stream are worked on at once; the rest waits at the client."""
    pictures = [picture(number) for number in range(80)]  # 15 MB with their padding
    async with grpc.aio.insecure_channel(server.grpc, UNLIMITED) as channel:
        call = stub(channel, "ClassifyStream")(timeout=60)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for image in pictures:
                padded = png(image) + bytes(190_000)
                await call.write(pb.ClassifyStreamRequest(image=padded, model="slow", timeout_ms=50_000))
                sent += 1
            await call.done_writing()

        begun = await asyncio.to_thread(server.metrics)
        sending = asyncio.create_task(send())
        deepest = ahead = 0.0
        for _ in range(10):
            await asyncio.sleep(0.05)
            was_sent = sent
            now = await asyncio.to_thread(server.metrics)
            deepest = max(deepest, now("queue_depth", model="slow"))
            done = now("predictions_total", model="slow") - begun("predictions_total", model="slow")
            ahead = max(ahead, was_sent - done)
        found = [as_dict(answer)["prediction"] async for answer in call]
        await sending
    assert 1 <= deepest <= 4
    assert ahead < 60  # four, and what has room in buffers on the way
    assert all(map(is_right, found, pictures))
    assert len(found) == 80


async def test_a_stream_that_is_given_up_leaves_nothing_behind(slow: Server) -> None:
    before = slow.metrics()
    async with grpc.aio.insecure_channel(slow.grpc) as channel:
        call = stub(channel, "ClassifyStream")()
        for number in range(40):  # of which four are worked on at once
            await call.write(pb.ClassifyStreamRequest(image=png(picture(number))))
        assert is_right(as_dict(await call.read())["prediction"], picture(0))
        await asyncio.sleep(0.3)  # half of what the next batch takes: the server is at the next messages by then
        call.cancel()
    await asyncio.to_thread(slow.wait_until, lambda: slow.metrics()("inflight", transport="grpc") == 0)
    await asyncio.to_thread(slow.wait_until, lambda: slow.metrics()("queue_depth") == 0)
    after = slow.metrics()

    def change(**labels: str) -> float:
        return after("requests_total", transport="grpc", **labels) - before(
            "requests_total", transport="grpc", **labels
        )

    assert change(code="client_gone") >= 1
    assert change() == change(code="ok") + change(code="client_gone") < 40


def test_a_message_that_is_too_large_ends_the_stream(rpc: Rpc) -> None:
    answers = rpc.stub("ClassifyStream")(asked(GOOD, bytes(400_001), GOOD), timeout=20)
    assert is_right(as_dict(next(answers))["prediction"], picture(0))
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    found = failure(raised.value)
    assert (found.status, found.code) == ("RESOURCE_EXHAUSTED", "too_large")


def test_probabilities_are_those_of_the_model(rpc: Rpc) -> None:
    (prediction,) = answered(rpc.classify([GOOD], top_k=100))["predictions"]
    probs = [each["probability"] for each in sorted(prediction["classes"], key=lambda each: each["index"])]
    assert probs == pytest.approx(expected(picture(0)).tolist(), abs=2e-6)
