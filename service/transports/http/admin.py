"""Routes, and what operators ask for: changing routes, pinning versions, loading and unloading models.

There are no keys yet. Calls that change something are taken where the server says so, which unless told otherwise it
does on a loopback address only, and never from the pages of other sites in a browser on that machine.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.classifier import Classifier
from service.errors import Forbidden, InvalidRequest
from service.routes.control import Control
from service.routes.table import LiveRoute, Route
from service.transports.http import schema
from service.transports.http.bodies import read_body
from service.transports.http.models import card

MAX_BODY_BYTES = 16 * 1024

Body = TypeVar("Body", bound=BaseModel)


def add(app: FastAPI, classifier: Classifier, control: Control, *, allowed: bool, timeout: float) -> None:
    """Add the calls to an application.

    Args:
        app: Takes them.
        classifier: Knows the models.
        control: Carries them out.
        allowed: Whether calls that change something are taken.
        timeout: Seconds that a body may take to arrive.
    """

    def authorize(request: Request) -> None:
        if not allowed:
            raise Forbidden("this server takes no calls that change it; start it with FOVEA_ADMIN=true")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("calls that change the server are not taken from other sites' pages")

    async def body_of(request: Request, kind: type[Body]) -> Body:
        authorize(request)  # before anything is read
        body = await read_body(request.scope, request.receive, MAX_BODY_BYTES, time.monotonic() + timeout)
        return _parse(kind, body)

    def takes(kind: type[BaseModel], *codes: str) -> dict[str, Any]:
        """The documentation of a call that changes something and has a body."""
        model_schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        model_schema.pop("$defs", None)  # they are among the document's own
        body = {"required": True, "content": {"application/json": {"schema": model_schema}}}
        codes = ("invalid_request", "forbidden", "too_large", *codes)
        return {"responses": _responses(*codes), "openapi_extra": {"requestBody": body}}

    @app.get("/v1/routes", response_model=schema.Routes, tags=["routes"], summary="All routes")
    async def routes() -> Any:
        return {"routes": [_route_card(live) for live in control.routes()]}

    @app.get(
        "/v1/routes/{name}",
        response_model=schema.RouteCard,
        responses=_responses("unknown_model"),
        tags=["routes"],
        summary="A route and what it has counted",
    )
    async def route(name: str) -> Any:
        return _route_card(control.route(name))

    @app.put(
        "/v1/routes/{name}",
        response_model=schema.RouteCard,
        tags=["routes"],
        summary="Make or change a route",
        description="A route is used like a model: `POST /v1/models/{name}/classify`. Its answers say which model and "
        "version really gave them.\n\n`canary` gets a share of the requests, the same ones whenever they carry the "
        "same `X-Request-Id`; what it cannot serve, `primary` does. `shadow` classifies what `primary` has answered, "
        "in quiet moments only, and the route counts how often their top classes differ. Targets are `model:version`, "
        "or `model` for the version that answers when none is named.\n\nA route cannot be given the name of a model. "
        "Should a model of its name appear later, requests to the name are still answered by the route.",
        **takes(Route, "unknown_model"),
    )
    async def put_route(name: str, request: Request) -> Any:
        return _route_card(await control.put_route(name, await body_of(request, Route)))

    @app.delete(
        "/v1/routes/{name}",
        status_code=204,
        response_class=Response,
        responses=_responses("forbidden", "unknown_model"),
        tags=["routes"],
        summary="Delete a route",
    )
    async def delete_route(name: str, request: Request) -> Response:
        authorize(request)
        await control.delete_route(name)
        return Response(status_code=204)

    @app.put(
        "/v1/models/{model}/version",
        response_model=schema.ModelCard,
        tags=["models"],
        summary="Roll back or forward: pin the version that answers by default",
        description="Takes effect at once and holds whatever is published, until another version is pinned or null "
        "brings back the newest. Should the pinned version stop serving, the newest that serves stands in for it and "
        "the model's card says so.",
        **takes(schema.Pin, "unknown_model", "backend_unavailable"),
    )
    async def pin(model: str, request: Request) -> Any:
        await control.pin(model, (await body_of(request, schema.Pin)).version)
        return card(classifier, control, model)

    lifecycle = _responses("forbidden", "unknown_model", "backend_failed", "backend_unavailable")

    @app.post(
        "/v1/models/{model}/load",
        response_model=schema.ModelCard,
        responses=lifecycle,
        tags=["models"],
        summary="Load what there is of a model, at once",
        description="Versions that failed before are tried again.",
    )
    async def load(model: str, request: Request) -> Any:
        authorize(request)
        await control.load(model)
        return card(classifier, control, model)

    @app.post(
        "/v1/models/{model}/unload",
        response_model=schema.ModelCard,
        responses=lifecycle,
        tags=["models"],
        summary="Take a model out of memory",
        description="Requests that it has accepted are still answered. With the embedded backend it stays unloaded "
        "until it is loaded again or the server restarts; with Triton, as long as Triton has it so.",
    )
    async def unload(model: str, request: Request) -> Any:
        authorize(request)
        await control.unload(model)
        return card(classifier, control, model)


def _responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The named problems and, or FastAPI would promise its own, any other."""
    content = next(iter(schema.problems(*codes[:1]).values()))["content"]
    return schema.problems(*codes) | {"default": {"description": "Any other problem", "content": content}}


def _parse(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = [
            ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"])))
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidRequest("; ".join(found[:5])) from None


def _route_card(live: LiveRoute) -> dict[str, Any]:
    counts = live.counts
    canary_share = round(counts.canary / counts.requests, 6) if counts.requests else None
    return {
        "name": live.name,
        **live.route.model_dump(),
        "problems": live.problems(),
        "counts": asdict(counts) | {"canary_share": canary_share},
    }
