"""What clients do to connections: slow bodies, lies about lengths, pipelining, going away."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.models import png
from tests.server import Server, is_right, picture
from tests.wire import post, wire

CLASSIFY = "/v1/models/tiny/classify"
SLOW = "/v1/models/slow/classify"


def image(number: int) -> bytes:
    return png(picture(number))


async def test_requests_in_a_row_on_one_connection(server: Server) -> None:
    async with wire(server.port) as line:
        for number in range(3):
            await line.send(post(CLASSIFY, image(number)))
            reply = await line.reply()
            assert reply.status == 200
            assert is_right(reply.json["predictions"][0], picture(number))


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    async with wire(server.port) as line:
        await line.send(b"".join(post(CLASSIFY, image(number), f"x-request-id: {number}") for number in range(5)))
        for number in range(5):
            reply = await line.reply()
            assert reply.headers["x-request-id"] == str(number)
            assert is_right(reply.json["predictions"][0], picture(number))
        assert await line.silent()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(CLASSIFY, b"\0" * 400_001), 413),  # refused by its length alone
        (post("/v1/models/nobody/classify", b"\0" * 100_000), 404),
        (post(CLASSIFY + "?top_k=0", b"\0" * 100_000), 400),
        (post(CLASSIFY, b"\0" * 100_000, "content-type: text/plain"), 415),
    ],
)
async def test_a_refused_body_does_not_become_the_next_request(
    server: Server, request_bytes: bytes, status: int
) -> None:
    """The answer comes before the body has been read; what is left of it must not be parsed as a request."""
    async with wire(server.port) as line:
        await line.send(request_bytes)
        assert (await line.reply()).status == status
        await line.send(post(CLASSIFY, image(1)))
        assert is_right((await line.reply()).json["predictions"][0], picture(1))
        assert await line.silent()


async def test_a_body_that_is_announced_too_large_is_not_waited_for(server: Server) -> None:
    async with wire(server.port) as line:
        started = time.monotonic()
        await line.send(post(CLASSIFY, b"", length=10**12))
        assert (await asyncio.wait_for(line.reply(), 5)).status == 413
        assert time.monotonic() - started < 1


async def test_a_chunked_body_cut_short_by_its_limit_leaves_the_connection_usable(server: Server) -> None:
    async with wire(server.port) as line:
        await line.send(f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(9):
            await line.send(b"c350\r\n" + b"\0" * 50_000 + b"\r\n")
        await line.send(b"0\r\n\r\n" + post(CLASSIFY, image(2)))
        assert (await line.reply()).status == 413
        assert is_right((await line.reply()).json["predictions"][0], picture(2))


async def test_a_chunked_body_in_small_pieces(server: Server) -> None:
    data = image(3)
    async with wire(server.port) as line:
        await line.send(f"POST {CLASSIFY} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for start in range(0, len(data), 10):
            piece = data[start : start + 10]
            await line.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await asyncio.sleep(0.001)
        await line.send(b"0\r\n\r\n")
        assert is_right((await line.reply()).json["predictions"][0], picture(3))


async def test_expect_100_continue(server: Server) -> None:
    """curl sends it with bodies above a megabyte and waits for the answer."""
    async with wire(server.port) as line:
        await line.send(post(CLASSIFY, b"", "expect: 100-continue", length=len(image(4))))
        assert (await line.reply()).status == 100
        await line.send(image(4))
        assert is_right((await line.reply()).json["predictions"][0], picture(4))


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_declined_by_a_plain_answer(server: Server, offer: str) -> None:
    """Java's HttpClient offers h2c with every request: its body must not get lost."""
    async with wire(server.port) as line:
        for number in range(2):
            offered = ("connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "http2-settings: AAMAAABk")
            await line.send(post(CLASSIFY, image(number), *offered))
            assert is_right((await line.reply()).json["predictions"][0], picture(number))


async def test_a_request_of_two_lengths_is_refused(server: Server) -> None:
    """Proxies and servers that disagree about where a request ends can be made to smuggle one in another."""
    async with wire(server.port) as line:
        await line.send(post(CLASSIFY, b"0\r\n\r\n", "transfer-encoding: chunked"))
        assert (await line.reply()).status == 400
        assert await line.silent()


# Slow bodies.


@pytest.mark.parametrize("sent", [0, 1, 30])
async def test_a_body_that_does_not_come_is_given_up_at_the_deadline(server: Server, sent: int) -> None:
    async with wire(server.port) as line:
        started = time.monotonic()
        await line.send(post(CLASSIFY + "?timeout_ms=200", image(5)[:sent], length=len(image(5))))
        reply = await asyncio.wait_for(line.reply(), 5)
        assert 0.15 < time.monotonic() - started < 1.0
        assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")


async def test_a_body_that_trickles_in_is_given_up_at_the_deadline(server: Server) -> None:
    async with wire(server.port) as line:
        started = time.monotonic()
        await line.send(post(CLASSIFY + "?timeout_ms=200", b"", length=100_000))

        async def trickle() -> None:
            while True:
                await line.send(b"\0")
                await asyncio.sleep(0.02)

        feeding = asyncio.create_task(trickle())
        reply = await asyncio.wait_for(line.reply(), 5)
        feeding.cancel()
        assert time.monotonic() - started < 1.0
        assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")


async def test_a_body_that_comes_in_time_is_answered_however_slowly_it_came(server: Server) -> None:
    data = image(6)
    async with wire(server.port) as line:
        await line.send(post(CLASSIFY + "?timeout_ms=3000", b"", length=len(data)))
        for byte in data:
            await line.send(bytes([byte]))
            await asyncio.sleep(0.001)
        assert is_right((await line.reply()).json["predictions"][0], picture(6))


# Clients that go away.


def batches(server: Server) -> tuple[float, float]:
    """Batches run by the slow model, and images in them."""
    metrics = server.metrics()
    return metrics("batch_size_count", model="slow"), metrics("batch_size_sum", model="slow")


async def wait_log(server: Server, request_id: str) -> str:
    """The code that the log has for a request."""
    line = await asyncio.to_thread(server.wait_log, lambda line: line.get("request_id") == request_id)
    return str(line["code"])


async def idle(server: Server) -> None:
    await asyncio.to_thread(server.wait_until, lambda: server.metrics()("inflight") == 1)  # the question itself


async def test_an_image_whose_client_has_gone_is_not_run(server: Server) -> None:
    await idle(server)
    before = batches(server)
    codes_before = server.metrics()("requests_total", model="slow", code="client_gone")
    async with wire(server.port) as first, wire(server.port) as gone, wire(server.port) as stays:
        await first.send(post(SLOW, image(7)))
        await asyncio.sleep(0.02)  # the slow model is busy now
        await gone.send(post(SLOW, image(8), "x-request-id: gone-1"))
        await stays.send(post(SLOW, image(9)))
        await asyncio.sleep(0.03)
        gone.cut()
        assert is_right((await first.reply()).json["predictions"][0], picture(7))
        assert is_right((await stays.reply()).json["predictions"][0], picture(9))
    assert await wait_log(server, "gone-1") == "client_gone"
    after = batches(server)
    assert (after[0] - before[0], after[1] - before[1]) == (2, 2)
    metrics = server.metrics()
    assert metrics("requests_total", model="slow", code="client_gone") - codes_before == 1
    assert metrics("queue_depth", model="slow") == 0


async def test_a_client_that_goes_away_while_its_image_runs_leaves_no_trace(server: Server) -> None:
    await idle(server)
    async with wire(server.port) as line:
        await line.send(post(SLOW, image(10), "x-request-id: gone-2"))
        await asyncio.sleep(0.05)
        line.cut()
    assert await wait_log(server, "gone-2") == "client_gone"
    await idle(server)
    assert server.classify(picture(11), "slow").status_code == 200


async def test_a_client_that_goes_away_while_sending_is_logged_as_such(server: Server) -> None:
    async with wire(server.port) as line:
        await line.send(post(CLASSIFY, b"\x89PNG", "x-request-id: gone-3", length=1000))
        await asyncio.sleep(0.02)
        line.cut()
    assert await wait_log(server, "gone-3") == "client_gone"
    await idle(server)


async def test_a_crowd_that_goes_away_frees_its_places(server: Server) -> None:
    """The queue holds eight; the dead must not keep the living out, not even while a batch runs."""
    await idle(server)
    async with wire(server.port) as busy:
        await busy.send(post(SLOW, image(12)))
        await asyncio.sleep(0.02)
        for number in range(8):
            async with wire(server.port) as line:
                await line.send(post(SLOW, image(number)))
                await asyncio.sleep(0.001)
        await asyncio.to_thread(server.wait_until, lambda: server.metrics()("queue_depth", model="slow") == 0)
        answers = await asyncio.gather(*(asyncio.to_thread(server.classify, picture(n), "slow") for n in range(4)))
        assert (await busy.reply()).status == 200
    assert [answer.status_code for answer in answers] == [200] * 4
    await idle(server)
    assert server.metrics()("queue_depth", model="slow") == 0
    assert server.classify(picture(0), "slow").status_code == 200


async def test_what_is_no_http_is_refused(server: Server) -> None:
    async with wire(server.port) as line:
        await line.send(b"hello\r\n\r\n")
        assert (await line.reply()).status == 400
    assert server.ready()
