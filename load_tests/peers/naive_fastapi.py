"""FastAPI around ONNX Runtime as one writes it first: a file upload, a synchronous endpoint, no batching.

Run: MODEL=…/model.onnx uvicorn load_tests.peers.naive_fastapi:app --port 8300
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from load_tests.peers.plain_asgi import answer

app = FastAPI()


@app.post("/")
async def classify(request: Request) -> dict[str, Any]:
    return await run_in_threadpool(answer, await request.body())
