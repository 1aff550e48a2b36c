"""The HTTP application: FastAPI documents every route; those an image takes are plain ASGI underneath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from service import __version__
from service.access.ring import Ring
from service.classifier import Classifier
from service.errors import FoveaError
from service.explain import ALPHA
from service.heads.live import LiveHeads
from service.heads.teaching import Teaching
from service.metrics import CONTENT_TYPE as METRICS_TYPE
from service.metrics import Metrics
from service.oip.protocol import OpenInference
from service.routes.control import Control
from service.tracing.trace import Tracer
from service.transports.exchange import unexpected
from service.transports.http import admin as admin_calls
from service.transports.http import heads as head_calls
from service.transports.http import models, page, schema
from service.transports.http.bodies import BodyLimits
from service.transports.http.door import Door, documented
from service.transports.http.gate import KEY, Gate
from service.transports.http.guard import Guard
from service.transports.http.inference import Inference
from service.transports.http.oip import OpenInferenceHttp, refusal
from service.transports.http.problems import CONTENT_TYPE, error_headers, problem_response

_DESCRIPTION = """Image classification: calibrated, verified before it serves.

Send an image, or several, to `classify`; `explain` shows where a model looked. Errors are problem details (RFC 9457)
with a stable `code`.
"""

_BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["b64"],
                            "properties": {"b64": {"type": "string", "format": "byte"}},
                        },
                    }
                },
            },
            "example": {
                "images": [
                    {
                        "b64": "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAGElEQV"
                        "R42mNgYKhnYGNiY+JhkmBiYGAAAAf/ALiRdjkjAAAAAElFTkSuQmCC"
                    }
                ]
            },
        },
    },
}

_PARAMETERS: dict[str, dict[str, Any]] = {
    "top_k": {"type": "integer", "minimum": 1, "default": 5, "description": "Classes per image."},
    "explain": {
        "type": "boolean",
        "default": False,
        "description": "Answer with the class activation map of each image's best class as well.",
    },
    "label": {
        "type": "string",
        "description": "The class to explain; the most probable one unless given. A model has maps of the (up to five)"
        " most probable classes of an image.",
    },
    "alpha": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": ALPHA,
        "description": "Opacity of the overlay's colours where the map is strongest.",
    },
    "timeout_ms": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "The answer is of no use after this; what cannot be answered in time is refused at once.",
    },
    "version": {
        "type": "string",
        "description": "A version of the model; the pinned one, else the newest that is ready, unless given.",
    },
}

_OVERLAY = {"image/png": {"schema": {"type": "string", "format": "binary"}}}

_INFERENCE_ERRORS = (
    "invalid_request", "unknown_model", "too_large", "unsupported_format", "invalid_image", "overloaded",
    "backend_failed", "backend_unavailable", "deadline_exceeded",
)  # fmt: skip


def _parameters(*names: str) -> list[dict[str, Any]]:
    found = []
    for name in names:
        rule = dict(_PARAMETERS[name])
        found.append({"name": name, "in": "query", "description": rule.pop("description"), "schema": rule})
    return found


class AsgiRoute(APIRoute):
    """A route that FastAPI documents and a plain ASGI handler answers."""

    def __init__(self, path: str, endpoint: Callable[..., Any], *, handler: ASGIApp, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = handler


def build(
    classifier: Classifier,
    protocol: OpenInference,
    control: Control,
    teaching: Teaching,
    heads: LiveHeads,
    metrics: Metrics,
    limits: BodyLimits,
    *,
    default_timeout: float,
    max_timeout: float,
    ring: Ring,
    tracer: Tracer | None,
    problems: Callable[[], Sequence[str]],
) -> ASGIApp:
    """Put the HTTP transport together.

    Args:
        classifier: Answers inference requests.
        protocol: Answers those of the Open Inference Protocol.
        control: Carries out what operators ask for.
        teaching: Makes heads and fits them.
        heads: Those that there are.
        metrics: Counted on, and shown at `/metrics`.
        limits: Of a request's body.
        default_timeout: Seconds until the deadline of a request that states none.
        max_timeout: Seconds until any deadline, at most.
        ring: Knows who may ask, and who may change the server.
        tracer: Makes the requests' traces, if they are to have any.
        problems: Why the server is not ready, asked by `/readyz`.
    """
    # The documentation page's scripts are served from here: no foreign address, and it works offline.
    app = FastAPIOffline(title="Fovea", version=__version__, description=_DESCRIPTION, redoc_url=None)
    inference = Inference(classifier, limits, default_timeout=default_timeout, max_timeout=max_timeout)
    _add_inference(app.router, inference)
    guard = Guard(ring, timeout=default_timeout)
    page.add(app)
    models.add(app, classifier, control, heads)
    head_calls.add(app, teaching, heads, guard, limits, timeout=max_timeout)
    admin_calls.add(app, classifier, control, heads, guard)
    _add_operations(app, metrics, problems)
    for error in (FoveaError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _on_error)
    plain = app.openapi
    app.openapi = lambda: documented(plain())  # type: ignore[method-assign] # FastAPI's way to add to the document
    open_inference = OpenInferenceHttp(
        protocol, guard, limits, default_timeout=default_timeout, max_timeout=max_timeout
    )
    return Gate(app, _shortcut(inference, open_inference), Door(ring), metrics, tracer)


def _shortcut(inference: Inference, open_inference: ASGIApp) -> Callable[[Scope], ASGIApp | None]:
    """Find an inference handler without walking the framework's routes.

    What asks a model is said of the exchange here, so that it is counted even if the door keeps it out.
    """
    handlers: dict[str, ASGIApp] = {
        "classify": inference.classify,
        "embed": inference.embed,
        "explain": inference.explain,
    }

    def find(scope: Scope) -> ASGIApp | None:
        exchange, path, post = scope[KEY], scope["path"], scope["method"] == "POST"
        if path == "/v2" or path.startswith("/v2/"):
            exchange.refusal = refusal
            exchange.inference = post and path.startswith("/v2/models/") and path.rstrip("/").endswith("/infer")
            return open_inference
        if not post:
            return None
        match path.split("/"):
            case ["", "v1", "models", model, action] if model:
                scope["path_params"] = {"model": model}
                handler = handlers.get(action)
            case ["", "v1", "classify"]:
                handler = inference.classify
            case _:
                return None
        exchange.inference = handler is not None
        return handler

    return find


def _add_inference(router: APIRouter, inference: Inference) -> None:
    def add(
        path: str,
        handler: ASGIApp,
        answer: type,
        summary: str,
        *parameters: str,
        description: str = "",
        also: Any = None,
    ) -> None:
        async def documented() -> None:
            """Stands in for the handler in the OpenAPI document."""

        responses = schema.problems(*_INFERENCE_ERRORS)
        if also:
            responses[200] = {"content": also}
        named = "{model}" in path
        declared = _parameters(*parameters)
        if named:
            declared.insert(0, {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}})
        router.routes.append(
            AsgiRoute(
                path,
                documented,
                handler=handler,
                methods=["POST"],
                response_model=answer,
                responses=responses,
                summary=summary,
                description=description,
                operation_id=path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
                tags=["inference"],
                openapi_extra={"requestBody": _BODY, "parameters": declared},
            )
        )

    classify = ("top_k", "explain", "timeout_ms", "version")
    add("/v1/classify", inference.classify, schema.ClassifyAnswer, "Classify with the default model", *classify)
    add("/v1/models/{model}/classify", inference.classify, schema.ClassifyAnswer, "Classify", *classify)
    add("/v1/models/{model}/embed", inference.embed, schema.EmbedAnswer, "Features", "timeout_ms", "version")
    add(
        "/v1/models/{model}/explain",
        inference.explain,
        schema.ExplainAnswer,
        "Explain",
        *("label", "alpha", "timeout_ms", "version"),
        also=_OVERLAY,
        description="What speaks for a class: its class activation map, from the pass that classifies. With `Accept:"
        " image/png`, and one image, drawn over the image in viridis, outside of what the model saw dimmed.",
    )


def _add_operations(app: FastAPI, metrics: Metrics, problems: Callable[[], Sequence[str]]) -> None:
    @app.get("/healthz", response_model=schema.Health, tags=["operations"], summary="The process is alive")
    async def healthz() -> Any:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        response_model=schema.Health,
        responses=schema.problems("backend_unavailable"),
        tags=["operations"],
        summary="Requests will be answered",
    )
    async def readyz(request: Request) -> Any:
        if reasons := list(problems()):
            request.scope[KEY].code = "backend_unavailable"
            status, body = problem_response("backend_unavailable", "; ".join(reasons), reasons=reasons)
            return Response(body, status, {"Retry-After": "1"}, CONTENT_TYPE.decode())
        return {"status": "ready"}

    # Load balancers may ask with HEAD.
    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):
        app.head(path, include_in_schema=False)(endpoint)

    @app.get("/metrics", tags=["operations"], summary="Prometheus metrics", response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.exposition(), media_type=METRICS_TYPE)

    app.openapi_tags = [{"name": name} for name in ("inference", "heads", "models", "routes", "operations")]


async def _on_error(request: Request, error: Exception) -> Response:
    """What the framework's routes raise, in the API's form."""
    exchange = request.scope[KEY]
    headers: dict[str, str] = {}
    if isinstance(error, FoveaError):
        exchange.note(error)
        code, detail = error.code, error.message
        headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    elif isinstance(error, RequestValidationError):
        code = "invalid_request"
        found = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        detail = "; ".join(found)
    elif isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        detail = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        headers = dict(error.headers or {})
    else:
        code, detail = "internal", unexpected(exchange)
    exchange.code = code
    status, body = problem_response(code, detail, request_id=exchange.request_id)
    return Response(body, status, headers, CONTENT_TYPE.decode())
