"""`classify`, `embed` and `explain` as plain ASGI handlers: no framework on the path of an image."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from service.answers import Answer, Prediction
from service.classifier import Classifier
from service.errors import FoveaError, InvalidRequest
from service.explain import ALPHA
from service.transports.http.bodies import BodyLimits, header, images_in, read_body
from service.transports.http.gate import KEY, ClientGone, Exchange, respond
from service.transports.http.problems import problem

# A client that goes away is noticed after this long; quick requests are over before that and pay nothing for it.
WATCH_AFTER_SECONDS = 0.02

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """The query parameters of an inference request."""

    top_k: int = 5
    timeout_ms: float | None = None
    version: str | None = None
    explain: bool = False
    label: str | None = None
    alpha: float = ALPHA


_DEFAULT_QUERY = Query()


def parse_query(query: bytes, allowed: tuple[str, ...]) -> Query:
    """Read the query string.

    Raises:
        InvalidRequest: A parameter is unknown, repeated or out of range.
    """
    if not query:
        return _DEFAULT_QUERY
    values: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in allowed:
            raise InvalidRequest(f"there is no query parameter {name[:40]!r} here; there are {', '.join(allowed)}")
        if name in values:
            raise InvalidRequest(f"the query parameter {name} is given twice")
        values[name] = value
    top_k, timeout = values.get("top_k", "5"), values.get("timeout_ms")
    if not (top_k.isascii() and top_k.isdigit() and int(top_k[:9]) >= 1 and len(top_k) < 10):
        raise InvalidRequest("top_k must be a whole number, at least 1")
    if (explain := values.get("explain", "false")) not in ("true", "false"):
        raise InvalidRequest("explain must be true or false")
    alpha = values.get("alpha")
    return Query(
        int(top_k),
        None if timeout is None else _milliseconds(timeout),
        values.get("version"),
        explain == "true",
        values.get("label"),
        ALPHA if alpha is None else _opacity(alpha),
    )


def _milliseconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise InvalidRequest("timeout_ms must be a number of milliseconds, more than 0")
    return value


def _opacity(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise InvalidRequest("alpha must be a number from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def prefers_png(accept: bytes) -> bool:
    """Whether an `Accept` header (RFC 9110) asks for a PNG rather than JSON; who does not care gets JSON."""
    weights: dict[bytes, float] = {}
    for entry in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in entry.split(b";"))
        weight = next((_number(part[2:].decode("latin-1")) for part in parameters if part.startswith(b"q=")), 1.0)
        weights[kind] = max(weight, weights.get(kind, 0.0))

    def weight_of(*kinds: bytes) -> float:
        return next((weights[kind] for kind in kinds if kind in weights), 0.0)

    png = weight_of(b"image/png", b"image/*", b"*/*")
    return png > weight_of(b"application/json", b"application/*", b"*/*")


class Inference:
    """The handlers. Each reads a request of `{model}` from the path, or of the default model.

    Args:
        classifier: Answers.
        limits: Of a request's body.
        default_timeout: Seconds, for requests that state none.
        max_timeout: Seconds, at most.
    """

    def __init__(
        self, classifier: Classifier, limits: BodyLimits, *, default_timeout: float, max_timeout: float
    ) -> None:
        self._classifier = classifier
        self._limits = limits
        self._default_timeout = default_timeout
        self._max_timeout = max_timeout

    async def classify(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, model, query, deadline = self._begin(scope, ("top_k", "explain", "timeout_ms", "version"))
        images = await self._images(scope, receive, deadline, exchange)
        answer = await unless_gone(
            receive,
            self._classifier.classify(
                images,
                model=model,
                version=query.version,
                request_id=exchange.request_id,
                top_k=query.top_k,
                explain=query.explain,
                deadline=deadline,
            ),
        )
        await respond(send, 200, _body(answer))

    async def embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, model, query, deadline = self._begin(scope, ("timeout_ms", "version"))
        images = await self._images(scope, receive, deadline, exchange)
        answer = await unless_gone(
            receive,
            self._classifier.embed(
                images, model=model, version=query.version, request_id=exchange.request_id, deadline=deadline
            ),
        )
        await respond(send, 200, _body(answer))

    async def explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, model, query, deadline = self._begin(scope, ("label", "alpha", "timeout_ms", "version"))
        images = await self._images(scope, receive, deadline, exchange)
        if not prefers_png(header(scope, b"accept")):
            answer = await unless_gone(
                receive,
                self._classifier.explain(
                    images,
                    model=model,
                    version=query.version,
                    request_id=exchange.request_id,
                    label=query.label,
                    deadline=deadline,
                ),
            )
            await respond(send, 200, _body(answer))
            return
        if len(images) > 1:
            raise InvalidRequest("a PNG shows one image: send one, or ask for JSON with Accept: application/json")
        drawn = await unless_gone(
            receive,
            self._classifier.overlay(
                images[0],
                model=model,
                version=query.version,
                request_id=exchange.request_id,
                label=query.label,
                alpha=query.alpha,
                deadline=deadline,
            ),
        )
        await respond(send, 200, drawn, b"image/png")

    def _begin(self, scope: Scope, allowed: tuple[str, ...]) -> tuple[Exchange, str, Query, float]:
        exchange: Exchange = scope[KEY]
        query = parse_query(scope["query_string"], allowed)
        parameters: dict[str, str] = scope.get("path_params", {})
        # Fails before the body is read if there is no such model; the name is safe as a metric label from here on.
        model = self._classifier.named(parameters.get("model"))
        exchange.model = self._classifier.resolve(model, query.version, exchange.request_id).spec.counted_as
        timeout = self._default_timeout if query.timeout_ms is None else query.timeout_ms / 1000
        return exchange, model, query, exchange.arrived + min(timeout, self._max_timeout)

    async def _images(self, scope: Scope, receive: Receive, deadline: float, exchange: Exchange) -> list[bytes]:
        body = await read_body(scope, receive, self._limits.max_bytes, deadline)
        images = images_in(header(scope, b"content-type"), body, self._limits)
        exchange.images = len(images)
        return images


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but stop it when the client closes the connection.

    Raises:
        ClientGone: It did.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine of a server always runs in a task
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def start_watching() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, start_watching)
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher:
            watcher.cancel()


def _body(answer: Answer[Any]) -> bytes:
    """The answer as JSON; orjson writes what it is given as it is, dataclasses of plain values and arrays."""
    return orjson.dumps(
        {"model": answer.model, "version": answer.version, "predictions": [_plain(each) for each in answer.results]},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _plain(result: Any) -> Any:
    """What stands in an image's place; a prediction as dictionaries, since orjson is far slower with dataclasses."""
    if isinstance(result, FoveaError):
        return {"error": problem(result.code, result.message)}
    if type(result) is not Prediction:
        return result
    timings = result.timings_ms
    return {
        "classes": [
            {"label": each.label, "index": each.index, "probability": each.probability} for each in result.classes
        ],
        "prediction_set": result.prediction_set,
        "coverage": result.coverage,
        "abstained": result.abstained,
        "timings_ms": {
            "decode": timings.decode,
            "queue": timings.queue,
            "infer": timings.infer,
            "total": timings.total,
        },
    }
