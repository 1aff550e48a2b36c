"""Calls that change the server: who may make them, their small JSON bodies, and how the document describes both.

Such calls take a key of scope admin; where there are no keys they are taken where the server says so, which unless told
otherwise it does on a loopback address only. They are never taken from the pages of other sites in a browser.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.access.ring import Ring
from service.errors import Forbidden, InvalidRequest
from service.transports.http import schema
from service.transports.http.bodies import read_body
from service.transports.http.gate import KEY

MAX_BODY_BYTES = 16 * 1024

Body = TypeVar("Body", bound=BaseModel)


class Guard:
    """Lets calls through that may change the server.

    Args:
        ring: Knows who may make them.
        timeout: Seconds that a body may take to arrive.
    """

    def __init__(self, ring: Ring, *, timeout: float) -> None:
        self._ring = ring
        self._timeout = timeout

    def authorize(self, request: Request) -> None:
        """Call before anything else is done.

        Raises:
            Forbidden: The call is not taken.
        """
        self._ring.permit_change(request.scope[KEY].caller)
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("calls that change the server are not taken from other sites' pages")

    async def body(self, request: Request, kind: type[Body]) -> Body:
        """The body of a call that may be made.

        Raises:
            Forbidden: It may not.
            InvalidRequest: The body is something else.
        """
        self.authorize(request)  # before anything is read
        body = await read_body(request.scope, request.receive, MAX_BODY_BYTES, time.monotonic() + self._timeout)
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            found = [
                ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"])))
                for one in error.errors(include_url=False, include_input=False)
            ]
            raise InvalidRequest("; ".join(found[:5])) from None


def takes(kind: type[BaseModel], *codes: str) -> dict[str, Any]:
    """The documentation of a guarded call with a JSON body, for FastAPI's decorators."""
    model_schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    model_schema.pop("$defs", None)  # they are among the document's own
    body = {"required": True, "content": {"application/json": {"schema": model_schema}}}
    codes = ("invalid_request", "forbidden", "too_large", *codes)
    return {"responses": responses(*codes), "openapi_extra": {"requestBody": body}}


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The named problems and, or FastAPI would promise its own, any other."""
    content = next(iter(schema.problems(*codes[:1]).values()))["content"]
    return schema.problems(*codes) | {"default": {"description": "Any other problem", "content": content}}
