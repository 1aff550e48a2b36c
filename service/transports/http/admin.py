"""Routes, and what operators ask for: changing routes, pinning versions, loading and unloading models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.classifier import Classifier
from service.errors import InvalidRequest
from service.heads.live import LiveHeads
from service.routes.control import Control
from service.routes.table import LiveRoute, Route
from service.transports.http import schema
from service.transports.http.guard import Guard, responses, takes
from service.transports.http.models import card


def add(app: FastAPI, classifier: Classifier, control: Control, heads: LiveHeads, guard: Guard) -> None:
    """Add the calls to an application.

    Args:
        app: Takes them.
        classifier: Knows the models.
        control: Carries them out.
        heads: Are models, too, but have their own calls.
        guard: Lets through those that change something.
    """

    @app.get("/v1/routes", response_model=schema.Routes, tags=["routes"], summary="All routes")
    async def routes() -> Any:
        return {"routes": [_route_card(live) for live in control.routes()]}

    @app.get(
        "/v1/routes/{name}",
        response_model=schema.RouteCard,
        responses=responses("unknown_model"),
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
        return _route_card(await control.put_route(name, await guard.body(request, Route)))

    @app.delete(
        "/v1/routes/{name}",
        status_code=204,
        response_class=Response,
        responses=responses("forbidden", "unknown_model"),
        tags=["routes"],
        summary="Delete a route",
    )
    async def delete_route(name: str, request: Request) -> Response:
        guard.authorize(request)
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
        version = (await guard.body(request, schema.Pin)).version
        if model in heads:
            raise InvalidRequest(f"{model} is a head: PUT /v1/heads/{model}/version")
        await control.pin(model, version)
        return card(classifier, control, heads, model)

    lifecycle = responses("forbidden", "unknown_model", "backend_failed", "backend_unavailable")

    @app.post(
        "/v1/models/{model}/load",
        response_model=schema.ModelCard,
        responses=lifecycle,
        tags=["models"],
        summary="Load what there is of a model, at once",
        description="Versions that failed before are tried again.",
    )
    async def load(model: str, request: Request) -> Any:
        guard.authorize(request)
        await control.load(model)
        return card(classifier, control, heads, model)

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
        guard.authorize(request)
        await control.unload(model)
        return card(classifier, control, heads, model)


def _route_card(live: LiveRoute) -> dict[str, Any]:
    counts = live.counts
    canary_share = round(counts.canary / counts.requests, 6) if counts.requests else None
    return {
        "name": live.name,
        **live.route.model_dump(),
        "problems": live.problems(),
        "counts": asdict(counts) | {"canary_share": canary_share},
    }
