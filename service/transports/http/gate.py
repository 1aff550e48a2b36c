"""What every HTTP request passes: request id, key, errors to problem details, metrics, log. Plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import request_id_context
from service.metrics import Metrics
from service.tracing.trace import Tracer
from service.transports import exchange as neutral
from service.transports.exchange import Accounts
from service.transports.http import traced
from service.transports.http.door import Door
from service.transports.http.problems import CONTENT_TYPE, error_headers, problem_response

KEY = "fovea.exchange"

Refusal = Callable[[str, str, str], tuple[int, bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before it was answered."""


class Exchange(neutral.Exchange):
    """One request; handlers find it in `scope[KEY]`.

    Attributes:
        status: Of the response; 0 until it begins.
        complete: The whole response has been handed to the server.
        refusal: Writes an error from its code, its detail and the request id: status, body and content type.
    """

    __slots__ = ("complete", "refusal", "status")

    def __init__(self, given: str | None) -> None:
        super().__init__(given)
        self.status = 0
        self.complete = False
        self.refusal: Refusal = _problem


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
        door: Lets requests in.
        metrics: Where requests are counted.
        tracer: Makes their traces, if they are to have any.
    """

    def __init__(
        self,
        app: ASGIApp,
        direct: Callable[[Scope], ASGIApp | None],
        door: Door,
        metrics: Metrics,
        tracer: Tracer | None,
    ) -> None:
        self._app = app
        self._direct = direct
        self._door = door
        self._accounts = Accounts("http", metrics, tracer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(_given_id(scope))
        token = request_id_context.set(exchange.request_id)
        header = (b"x-request-id", exchange.request_id.encode())
        if self._accounts.tracer is not None:
            traced.begin(self._accounts.tracer, scope, exchange)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], header]
            elif not message.get("more_body"):
                exchange.complete = True
            await send(message)

        self._accounts.inflight.inc()
        try:
            handler = self._direct(scope) or self._app
            if (pending := self._door.admit(scope, exchange)) is not None:
                await pending()
            await handler(scope, receive, send_with_id)
        except ClientGone:
            exchange.code = "client_gone"
        except asyncio.CancelledError:
            # Nothing cancels a request but a drain that ran out of time.
            exchange.code = "backend_unavailable"
            await self._refuse(exchange, send_with_id, "the server is shutting down", [(b"retry-after", b"1")])
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            told = exchange.fail(error)
            await self._refuse(exchange, send_with_id, told.message, error_headers(told))
        finally:
            if exchange.trace is not None:
                traced.finish(exchange.trace, scope, exchange.status, exchange.code)
            self._accounts.close(exchange, "%s %s %d", scope["method"], scope["path"], exchange.status)
            request_id_context.reset(token)

    async def _refuse(self, exchange: Exchange, send: Send, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
        if not exchange.status:
            status, body, content_type = exchange.refusal(exchange.code, detail, exchange.request_id)
            await respond(send, status, body, content_type, headers)
        elif not exchange.complete:
            raise RuntimeError("failed in the middle of a response: the connection has to break")


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value, "latin-1")
    return None


def _problem(code: str, detail: str, request_id: str) -> tuple[int, bytes, bytes]:
    return *problem_response(code, detail, request_id=request_id), CONTENT_TYPE
