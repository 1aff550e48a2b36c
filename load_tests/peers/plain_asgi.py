"""A plain ASGI callable around ONNX Runtime, one image at a time: the least that can be written.

Run: MODEL=…/model.onnx uvicorn load_tests.peers.plain_asgi:app --port 8300
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import onnxruntime
import orjson
from PIL import Image

_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
_session = onnxruntime.InferenceSession(os.environ["MODEL"], _options)
_, HEIGHT, WIDTH, CHANNELS = _session.get_inputs()[0].shape


def answer(data: bytes) -> dict[str, Any]:
    """Decode, infer and rank one image."""
    image = Image.open(io.BytesIO(data)).convert("RGB" if CHANNELS == 3 else "L").resize((WIDTH, HEIGHT))
    pixels = np.asarray(image).reshape(1, HEIGHT, WIDTH, CHANNELS)
    logits = _session.run(["logits"], {"image": pixels})[0][0]
    raised = np.exp(logits - logits.max())
    probabilities = raised / raised.sum()
    order = np.argsort(-probabilities)[:5]
    return {"classes": [{"index": int(index), "probability": float(probabilities[index])} for index in order]}


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
