"""A plain ASGI callable around ONNX Runtime, one image at a time: the least that can be written.

Run: MODEL=…/model.onnx uvicorn load_tests.peers.plain_asgi:app --port 8300
"""

from __future__ import annotations

from typing import Any

import orjson

from load_tests.peers.network import Network

_network = Network()


def answer(data: bytes) -> dict[str, Any]:
    """Decode, infer and rank one image."""
    (logits,) = _network.infer([_network.decode(data)])
    return _network.ranked(logits)


async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = orjson.dumps(answer(b"".join(chunks)))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
