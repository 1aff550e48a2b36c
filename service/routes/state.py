"""What an operator has decided: routes, pinned versions and unloaded models, as one small document of the store."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.routes.table import Route

log = logging.getLogger(__name__)

KEY = "routes"


class State(BaseModel):
    """What an operator has decided.

    Attributes:
        routes: By name.
        pins: Version by model.
        unloaded: Models that are out of memory until they are loaded again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    routes: dict[str, Route] = {}
    pins: dict[str, str] = {}
    unloaded: frozenset[str] = frozenset()


def read(document: dict[str, Any] | None) -> State:
    """What was written last; nothing if it makes no sense, which the log then says."""
    if document is None:
        return State()
    try:
        return State.model_validate(document)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "document"
        log.error("the routes in the database are damaged (%s): no routes, no pins until they are written anew", where)
        return State()
