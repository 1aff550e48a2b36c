"""Heads without end, names that mean something else, JSON without bottom: refused, and nobody else notices."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from pathlib import Path

import grpc
import httpx
import orjson
import pytest
import uvicorn
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from service.logs import JsonFormatter
from service.transports.http.protocol import MAX_HEAD_BYTES, JoiningProtocol
from tests.models import png
from tests.server import Server, picture
from tests.wire import wire

CLASSIFY = "/v1/models/tiny/classify"

# Heads.

START = b"POST /v1/models/tiny/classify HTTP/1.1\r\nHost: x\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "one header": START + b"a: " + b"x" * 10_000_000,
    "many headers": START + b"a: b\r\n" * 1_000_000,
    "a header's name": START + b"x" * 10_000_000,
    "a path": b"GET /" + b"x" * 10_000_000,
    "a chunk's extension": CHUNKED + b"1;" + b"x" * 10_000_000,
    "trailers": CHUNKED + b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 1_000_000,
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS)
async def test_a_head_without_end_is_not_listened_to(server: Server, data: bytes) -> None:
    with pytest.raises((ConnectionError, EOFError)):
        await pour(server.port, data)
    assert server.client.get("/healthz").status_code == 200


async def pour(port: int, data: bytes) -> None:
    async with wire(port) as line:
        for at in range(0, len(data), 50_000):
            await line.send(data[at : at + 50_000])
            await asyncio.sleep(0)
        await line.reader.readexactly(1000)  # whatever is answered is shorter


async def test_a_long_head_is_taken_up_to_a_limit(server: Server) -> None:
    async with wire(server.port) as line:
        await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n")
        assert (await line.reply()).status == 200
        await line.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ")
        for _ in range(9):
            await line.send(b"x" * (MAX_HEAD_BYTES // 8))
            await asyncio.sleep(0.02)
        reply = await line.reply()
        assert (reply.status, b"fewer or shorter" in reply.body) == (400, True)


@pytest.mark.parametrize("sent", [[], [b"GET /"], [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA"]])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: list[bytes]) -> None:
    class Impatient(JoiningProtocol):
        head_seconds = 0.3

    async def app(scope: object, receive: object, send: object) -> None:
        await asyncio.sleep(0.6)  # an answer may take longer than a head
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body"})  # type: ignore[operator]

    config = uvicorn.Config(app, http=Impatient, lifespan="off", log_config=None)  # type: ignore[arg-type]
    config.load()
    made = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Impatient(config, made.server_state, {}, loop), "127.0.0.1")
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        for number, data in enumerate(sent):
            writer.write(data)
            if number < len(sent) - 1:
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        started = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert 0.2 < time.monotonic() - started < 2
        writer.close()
        await writer.wait_closed()


# Names.

NAMES = [
    "..", "../tiny", "..%2ftiny", "tiny/../../etc", "%2e%2e", "tiny\0", "\0", "tiny\r\nX: y", "tiny\x1b[2J", "ţiny",
    "ｔｉｎｙ", "ti\u200bny", "\u202eynit", "\U0001f600", "tiny ", " tiny",
    "a" * 5000, "~root", "tiny;ls", "{model}", "%", "tiny?", "*", "' OR 1=1 --", "${jndi:ldap://x}",
    "C:\\", "/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_names_mean_nothing_but_themselves(server: Server, name: str) -> None:
    """Neither as models, heads or routes, nor as what is loaded."""
    path = "".join(f"%{byte:02X}" for byte in name.encode())  # or clients would make something else of it
    image = png(picture(1))
    asked = [
        server.client.post(f"/v1/models/{path}/classify", content=image),
        server.client.post(f"{CLASSIFY}?version={path}", content=image),
        server.client.get(f"/v1/models/{path}"),
        server.client.put(f"/v1/heads/{path}", json={"backbone": "tiny"}),
        server.client.put("/v1/heads/sound", json={"backbone": name}),
        server.client.put(f"/v1/routes/{path}", json={"primary": "tiny"}),
        server.client.put("/v1/routes/sound", json={"primary": name}),
        server.client.post(f"/v1/models/{path}/load"),
        server.client.post(f"/v2/models/{path}/infer", json={"inputs": []}),
        server.client.get(f"/v2/models/{path}/versions/{path}"),
        server.client.post(f"/v2/repository/models/{path}/load"),
    ]
    for answer in asked:
        assert answer.status_code in (400, 404, 405), (answer.request.url, answer.text)
    assert {card["name"] for card in server.client.get("/v1/heads").json()["heads"]} == set()
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for asks in ({"model_name": name}, {"model_name": "tiny", "model_version": name}):
            with pytest.raises(grpc.RpcError) as refused:
                infer(pb.ModelInferRequest(**asks).SerializeToString(), timeout=10)
            assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def test_no_reader_of_the_log_takes_part_of_a_name_for_a_line() -> None:
    forged = 'GET /\u2028{"level":"info"}\x85{"level":"info"}\x9b2J\x1b[2J ţ 😀'
    line = JsonFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, forged, None, None))
    assert len(line.splitlines()) == 1
    assert line.replace("ţ", "").replace("😀", "").isprintable()
    assert orjson.loads(line)["message"] == forged


# JSON.


def deep(text: str, depth: int) -> bytes:
    return (text * depth).encode()


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":[', '{"images":[', '{"inputs":['])
@pytest.mark.parametrize(
    "path", [CLASSIFY, "/v2/models/tiny/infer", "/v1/routes/r", "/v1/heads/h", "/v2/repository/index"]
)
def test_json_without_bottom(server: Server, path: str, opening: str) -> None:
    method = "PUT" if path.endswith(("/r", "/h")) else "POST"
    for depth in (100, 1_000, 100_000):
        body = deep(opening, depth)[:350_000]
        answer = server.client.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413), answer.text


# Bombs.


@pytest.mark.slow
def test_nobody_waits_for_bombs(repository: Path, tmp_path: Path) -> None:
    """Twice as many clients as threads send nothing else; whether the server lives is still answered at once."""
    out = io.BytesIO()
    Image.new("RGBA", (7000, 7000)).save(out, "PNG")
    with Server(repository, tmp_path, threads=2, max_queue=64).start() as server:
        end = time.monotonic() + 3
        answered: list[int] = []

        def throw() -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while time.monotonic() < end:
                    answered.append(client.post(CLASSIFY, content=out.getvalue()).status_code)

        throwing = [threading.Thread(target=throw) for _ in range(4)]
        for each in throwing:
            each.start()
        waits = []
        while time.monotonic() < end:
            started = time.monotonic()
            assert server.client.get("/healthz").status_code == 200
            waits.append(time.monotonic() - started)
            time.sleep(0.01)
        for each in throwing:
            each.join()
    assert set(answered) <= {200, 429, 504}
    assert 200 in answered
    assert max(waits) < 5
    assert sorted(waits)[len(waits) // 2] < 0.25  # decoding one takes more than a second
