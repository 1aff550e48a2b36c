"""The door: asks each HTTP request for a key, where keys are needed, before anything else is done with it."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from service.access.keys import bearer
from service.access.rates import Pending
from service.access.ring import Ring
from service.transports.exchange import Exchange
from service.transports.http import schema

# Open to everybody: whether the server is alive and ready; the page, which asks for a key; and what the API looks like.
OPEN = frozenset(("/", "/healthz", "/readyz", "/openapi.json", "/docs"))
OPEN_FOLDERS = ("/static/", "/static-offline-docs/", "/v2/health/")


class Door:
    """Lets requests in.

    Args:
        ring: Knows the keys.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def admit(self, scope: Scope, exchange: Exchange) -> Pending | None:
        """Find out whose request it is, and count it.

        Returns:
            What is still to be waited for; it may raise `RateExceeded`, too.

        Raises:
            Unauthorized: It comes with no valid key.
            RateExceeded: The key has asked as often as it may.
            BackendUnavailable: It is not known yet which keys there are.
        """
        if not self._ring.needed or scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDERS):
            return None
        exchange.caller = caller = self._ring.check(_secret(scope))
        return None if caller is None else caller.charge()


def documented(document: dict[str, Any]) -> dict[str, Any]:
    """Say in an OpenAPI document which calls may need a key, and what they answer without one."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refusals = {str(status): response for status, response in schema.problems("unauthorized", "overloaded").items()}
    for path, operations in document["paths"].items():
        if path not in OPEN:
            for operation in operations.values():
                operation["security"] = [{}, {"key": []}]  # where there are no keys, none is needed
                operation["responses"] |= {
                    status: response for status, response in refusals.items() if status not in operation["responses"]
                }
    return document


def _secret(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bearer(str(value, "latin-1"))
    return None
