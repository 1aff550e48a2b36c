"""The span of each HTTP request, where traces are sent."""

from __future__ import annotations

from starlette.types import Scope

from service.tracing.trace import HEADERS, Trace, Tracer, current
from service.transports.exchange import Exchange
from service.transports.http.door import OPEN, OPEN_FOLDERS

_HEADERS = {name.encode(): name for name in HEADERS}


def begin(tracer: Tracer, scope: Scope, exchange: Exchange) -> None:
    """A request has arrived.

    Health checks, scrapers and browsers fetching the page leave no traces: nobody looks for them, and they never end.
    """
    path = scope["path"]
    if path in OPEN or path == "/metrics" or path.startswith(OPEN_FOLDERS):
        return
    carrier = {_HEADERS[name]: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
    attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"], "url.path": path}
    exchange.trace = tracer.begin(scope["method"], carrier, exchange.arrived, attributes)
    current.set(exchange.trace)


def finish(trace: Trace, scope: Scope, status: int, code: str) -> None:
    """It has been answered; the rest is told where every request is counted."""
    current.set(None)
    if status:
        trace.note({"http.response.status_code": status})
    if code not in ("not_found", "method_not_allowed") and (route := _route(scope)) is not None:
        trace.note({"http.route": route})
        trace.rename(f"{scope['method']} {route}")


def _route(scope: Scope) -> str | None:
    """The path with its parameters' names, as the API's document has it."""
    if (route := scope.get("route")) is not None:
        found: str = route.path
        return found
    match scope["path"].rstrip("/").split("/"):
        case ["", "v1", "classify"]:
            return "/v1/classify"
        case ["", "v1", "models", _, action]:
            return f"/v1/models/{{model}}/{action}"
        case ["", "v2", "models", "stats"]:
            return "/v2/models/stats"
        case ["", "v2", "models", _, "versions", _, *rest]:
            return "/".join(("/v2/models/{model}/versions/{version}", *rest))
        case ["", "v2", "models", _, *rest]:
            return "/".join(("/v2/models/{model}", *rest))
        case ["", "v2", "repository", "models", _, *rest]:
            return "/".join(("/v2/repository/models/{model}", *rest))
        case ["", "v2", *rest]:
            return "/".join(("/v2", *rest))
    return None
