"""The Open Inference Protocol (KServe v2) over HTTP: everything under `/v2`, as one plain ASGI handler.

URLs and bodies are those of the protocol's REST definition and of Triton's extensions to it. Errors are
`{"error": "…"}`, with the statuses that they have elsewhere here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service.errors import BackendUnavailable, InvalidRequest
from service.oip.description import config_json
from service.oip.protocol import ModelStatistics, OpenInference, deadline_of
from service.statistics import Duration
from service.transports.http.bodies import BodyLimits, read_body
from service.transports.http.gate import KEY, Exchange, respond
from service.transports.http.guard import MAX_BODY_BYTES, Guard
from service.transports.http.inference import parse_query, unless_gone
from service.transports.http.oip_bodies import infer_answer, infer_request, packed, parse_object, unpacked
from service.transports.http.problems import PROBLEMS

JSON, BINARY = b"application/json", b"application/octet-stream"

Reply = tuple[bytes, bytes, list[tuple[bytes, bytes]]]  # body, content type, further headers


class OpenInferenceHttp:
    """The handler of every path under `/v2`.

    Args:
        protocol: Answers.
        guard: Lets calls through that load and unload.
        limits: Of a request's body.
        default_timeout: Seconds, for requests that state none.
        max_timeout: Seconds, at most.
    """

    def __init__(
        self, protocol: OpenInference, guard: Guard, limits: BodyLimits, *, default_timeout: float, max_timeout: float
    ) -> None:
        self._protocol = protocol
        self._guard = guard
        self._limits = limits
        self._default_timeout = default_timeout
        self._max_timeout = max_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[KEY]
        method, path = scope["method"], scope["path"].rstrip("/").split("/")[2:]
        call, view = self._call(path), self._view(path)
        if call and method == "POST":
            await respond(send, 200, *await call(scope, receive))
        elif view and method in ("GET", "HEAD"):
            shown = view()
            await respond(send, 200, orjson.dumps(await shown if isinstance(shown, Awaitable) else shown))
        elif call or view:
            allowed = "POST" if call else "GET, HEAD"
            await _refuse(exchange, send, "method_not_allowed", f"{scope['path']} takes {allowed}", allowed)
        else:
            detail = f"there is no {method} {scope['path'][:200]}; GET /v2 names the extensions that are served"
            await _refuse(exchange, send, "not_found", detail)

    def _call(self, path: list[str]) -> Callable[[Scope, Receive], Awaitable[Reply]] | None:
        """What a path takes by POST."""
        match path:
            case ["models", model, "infer"] if model:
                return partial(self._infer, model, "")
            case ["models", model, "versions", version, "infer"]:
                return partial(self._infer, model, version)
            case ["repository", "index"]:
                return self._index
            case ["repository", "models", model, "load"]:
                return partial(self._load, model)
            case ["repository", "models", model, "unload"]:
                return partial(self._unload, model)
        return None

    def _view(self, path: list[str]) -> Callable[[], object] | None:
        """What a path shows by GET."""
        match path:
            case []:
                return lambda: asdict(self._protocol.server_metadata())
            case ["health", "live"]:
                return lambda: {"live": self._protocol.live()}
            case ["health", "ready"]:
                return self._ready
            case ["models", "stats"]:
                return partial(self._statistics, "", "")
            case ["models", model, "versions", version, *rest]:
                view = self._model_view(rest)
                return view and partial(view, model, version)
            case ["models", model, *rest]:
                view = self._model_view(rest)
                return view and partial(view, model, "")
        return None

    def _model_view(self, rest: list[str]) -> Callable[[str, str], object] | None:
        match rest:
            case []:
                return lambda model, version: asdict(self._protocol.model_metadata(model, version))
            case ["ready"]:
                return self._model_ready
            case ["config"]:
                return lambda model, version: config_json(self._protocol.model_config(model, version))
            case ["stats"]:
                return self._statistics
        return None

    # Inference.

    async def _infer(self, model: str, version: str, scope: Scope, receive: Receive) -> Reply:
        exchange: Exchange = scope[KEY]
        query = parse_query(scope["query_string"], ("timeout_ms",))
        # Fails before the body is read if there is no such model; the name is safe as a metric label from here on.
        exchange.model = self._protocol.resolve(model, version, exchange.request_id).counted_as
        deadline = partial(
            deadline_of,
            asked=None if query.timeout_ms is None else query.timeout_ms / 1000,
            arrived=exchange.arrived,
            default=self._default_timeout,
            longest=self._max_timeout,
        )
        headers = dict(scope["headers"])
        body = await read_body(scope, receive, self._limits.max_bytes, deadline({}))
        if encoding := headers.get(b"content-encoding"):
            body = await unpacked(encoding, body, self._limits.max_bytes)
        length = headers.get(b"inference-header-content-length", b"")
        request, binary = await infer_request(model, version, body, length)
        exchange.images = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 0
        answer = await unless_gone(
            receive,
            self._protocol.infer(request, request_id=exchange.request_id, deadline=deadline(request.parameters)),
        )
        text, json_length = infer_answer(answer, binary)
        further: list[tuple[bytes, bytes]] = []
        if json_length is not None:
            further.append((b"inference-header-content-length", str(json_length).encode()))
        if accepted := headers.get(b"accept-encoding"):
            text, encoding = await packed(accepted, text)
            further += [(b"vary", b"accept-encoding"), *([(b"content-encoding", encoding)] if encoding else [])]
        return text, JSON if json_length is None else BINARY, further

    # What there is.

    def _ready(self) -> object:
        if not self._protocol.ready():
            raise BackendUnavailable("the server is not ready; GET /readyz says why", retry_after=1.0)
        return {"ready": True}

    def _model_ready(self, model: str, version: str) -> object:
        self._protocol.resolve(model, version)
        if not self._protocol.model_ready(model, version):
            raise BackendUnavailable(f"{model} is not ready", retry_after=1.0)
        return {"name": model, "ready": True}

    async def _statistics(self, model: str, version: str) -> object:
        return {"model_stats": [_statistics(one) for one in await self._protocol.statistics(model, version)]}

    async def _index(self, scope: Scope, receive: Receive) -> Reply:
        ready = (await self._document(scope, receive)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequest("ready must be true or false")
        return orjson.dumps([asdict(entry) for entry in self._protocol.index(ready)]), JSON, []

    # What changes the server.

    async def _load(self, model: str, scope: Scope, receive: Receive) -> Reply:
        self._guard.authorize(Request(scope))
        parameters = (await self._document(scope, receive)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidRequest("parameters must be an object")
        await self._protocol.load(model, parameters)
        return orjson.dumps({"name": model, "load": True}), JSON, []

    async def _unload(self, model: str, scope: Scope, receive: Receive) -> Reply:
        self._guard.authorize(Request(scope))
        await self._document(scope, receive)  # nothing that could stand in it makes a difference
        await self._protocol.unload(model)
        return orjson.dumps({"name": model, "unload": True}), JSON, []

    async def _document(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """A small JSON object, which may be missing."""
        exchange: Exchange = scope[KEY]
        body = await read_body(scope, receive, MAX_BODY_BYTES, exchange.arrived + self._default_timeout)
        return parse_object(body) if body.strip() else {}


def _statistics(one: ModelStatistics) -> dict[str, object]:
    counts = one.counts
    executions = counts.executions()
    return {
        "name": one.name,
        "version": one.version,
        "last_inference": counts.last_inference,
        "inference_count": counts.inferences,
        "execution_count": sum(batches.count for batches in executions.values()),
        "inference_stats": {
            **{name: asdict(duration) for name, duration in counts.durations().items()},
            "cache_hit": asdict(Duration()),
            "cache_miss": asdict(Duration()),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": asdict(Duration()),
                "compute_infer": asdict(batches),
                "compute_output": asdict(Duration()),
            }
            for size, batches in executions.items()
        ],
    }


def refusal(code: str, detail: str, request_id: str) -> tuple[int, bytes, bytes]:
    """An error in the protocol's form."""
    del request_id  # it is in a header
    return PROBLEMS[code][0], orjson.dumps({"error": detail}), JSON


async def _refuse(exchange: Exchange, send: Send, code: str, detail: str, allowed: str | None = None) -> None:
    exchange.code = code
    status, body, content_type = refusal(code, detail, exchange.request_id)
    await respond(send, status, body, content_type, [(b"allow", allowed.encode())] if allowed else [])
