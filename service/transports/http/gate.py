"""What every HTTP request passes: request id, errors to problem details, metrics, log. Plain ASGI."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import FoveaError
from service.logs import request_id_context
from service.metrics import Metrics
from service.transports.http.problems import CONTENT_TYPE, PROBLEMS, error_headers, problem_response

log = logging.getLogger(__name__)
access_log = logging.getLogger("fovea.access")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

# Request ids made here: random for the process, then counted; randomness for each would be a system call.
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count(1)

KEY = "fovea.exchange"


class ClientGone(Exception):
    """The client closed the connection before it was answered."""


class Exchange:
    """One request and what becomes of it, for the log and the metrics; handlers find it in `scope[KEY]`.

    Attributes:
        request_id: From `X-Request-Id`, or made.
        arrived: `time.monotonic` seconds.
        model: Set once the request is known to be for a model that exists.
        images: How many it held.
        code: "ok", an error code, or "client_gone".
        status: Of the response; 0 until it begins.
        complete: The whole response has been handed to the server.
    """

    __slots__ = ("arrived", "code", "complete", "images", "inference", "model", "request_id", "status")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived = time.monotonic()
        self.inference = False
        self.model = "unknown"
        self.images = 0
        self.code = "ok"
        self.status = 0
        self.complete = False


async def respond(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Send a whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", str(len(body)).encode()),
                *(headers or ()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Gate:
    """Wraps the application.

    Args:
        app: What answers.
        direct: Finds the plain ASGI handler of a request that need not go through `app`.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, direct: Callable[[Scope], ASGIApp | None], metrics: Metrics) -> None:
        self._app = app
        self._direct = direct
        self._metrics = metrics
        self._inflight = metrics.inflight.labels("http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(_request_id(scope))
        token = request_id_context.set(exchange.request_id)
        header = (b"x-request-id", exchange.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], header]
            elif not message.get("more_body"):
                exchange.complete = True
            await send(message)

        self._inflight.inc()
        try:
            await (self._direct(scope) or self._app)(scope, receive, send_with_id)
        except FoveaError as error:
            exchange.code = error.code
            if error.__cause__ and PROBLEMS[error.code][0] >= 500:
                log.error("%s", error.message, exc_info=error.__cause__)
            await self._refuse(exchange, send_with_id, error.message, error_headers(error))
        except ClientGone:
            exchange.code = "client_gone"
        except asyncio.CancelledError:
            # Nothing cancels a request but a drain that ran out of time.
            exchange.code = "backend_unavailable"
            await self._refuse(exchange, send_with_id, "the server is shutting down", [(b"retry-after", b"1")])
        except Exception:
            exchange.code = "internal"
            log.exception("unexpected failure")
            await self._refuse(exchange, send_with_id, unexpected(exchange), [])
        finally:
            self._inflight.dec()
            self._account(scope, exchange)
            request_id_context.reset(token)

    async def _refuse(self, exchange: Exchange, send: Send, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
        if not exchange.status:
            status, body = problem_response(exchange.code, detail, request_id=exchange.request_id)
            await respond(send, status, body, CONTENT_TYPE, headers)
        elif not exchange.complete:
            raise RuntimeError("failed in the middle of a response: the connection has to break")

    def _account(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.arrived
        if exchange.inference:
            self._metrics.request("http", exchange.model, exchange.code).inc()
            self._metrics.request_seconds.labels("http", exchange.model).observe(seconds)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                "%s %s %d",
                scope["method"],
                scope["path"],
                exchange.status,
                extra={"ms": round(seconds * 1000, 2), "code": exchange.code, "images": exchange.images},
            )


def unexpected(exchange: Exchange) -> str:
    """What a client is told of a failure that nobody foresaw."""
    return f"an unexpected failure; the server's log has it under request id {exchange.request_id}"


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_PROCESS}{next(_numbers):08x}"
