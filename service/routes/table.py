"""Routes: names that stand for a primary model, a canary that gets a share of its requests, and a shadow.

A route is used like a model. Its targets are models or versions of them, never other routes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.backends.base import InferenceBackend, ServedModel
from service.errors import BackendUnavailable, FoveaError, InvalidRequest, UnknownModel
from service.metrics import Metrics

MAX_ROUTES = 100  # each has metrics of its own

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TARGET = re.compile(r"(.+?)(?::([1-9][0-9]*))?")

Target = Annotated[str, Field(min_length=1, max_length=200, description="A model, or a version of it: `model:1`.")]


class Canary(BaseModel):
    """Gets a share of a route's requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Target
    weight: float = Field(strict=True, ge=0, le=1, allow_inf_nan=False, description="Share of the requests.")


class Route(BaseModel):
    """Where requests to a name go."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "primary": "lenet5-digits:1",
                    "canary": {"model": "lenet5-digits:2", "weight": 0.1},
                    "shadow": "lenet5-digits:2",
                }
            ]
        },
    )

    primary: Target
    canary: Canary | None = None
    shadow: Target | None = None

    def targets(self) -> dict[str, str]:
        """Its models by their parts in it."""
        found = {"primary": self.primary}
        if self.canary:
            found["canary"] = self.canary.model
        if self.shadow:
            found["shadow"] = self.shadow
        return found


@dataclass(slots=True)
class Counts:
    """What a route has done since it was last changed.

    Attributes:
        requests: All that it was asked.
        canary: Of those, what the canary answered.
        fallbacks: Of those, what was the canary's share but the primary answered, as the canary could not.
        compared: Images that the shadow classified too.
        disagreements: Of those, how many got another top class from it than from the primary.
        dropped: Images that the shadow was spared or failed on.
    """

    requests: int = 0
    canary: int = 0
    fallbacks: int = 0
    compared: int = 0
    disagreements: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers one request to a route."""

    route: LiveRoute
    served: ServedModel
    canary: bool
    fell_back: bool


def target_of(text: str) -> tuple[str, str | None]:
    """Model and version of a target; without a version, whichever answers requests that name none."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text[:80]!r} is neither a model nor model:version")
    return match[1], match[2]


def share(route: str, request_id: str) -> float:
    """Where a request falls in [0, 1): the same for the same id, on every gateway; another on each route."""
    digest = hashlib.blake2b(f"{route}\0{request_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


@dataclass(slots=True)
class LiveRoute:
    """A route in use, and what it has counted."""

    name: str
    route: Route
    backend: InferenceBackend
    metrics: Metrics
    counts: Counts = field(default_factory=Counts)
    removed: bool = False

    def choose(self, request_id: str) -> Choice:
        """Who answers; counts nothing.

        Raises:
            UnknownModel: There is no such primary.
            BackendUnavailable: The primary is not ready.
        """
        canary = self.route.canary
        chosen = canary is not None and share(self.name, request_id) < canary.weight
        if chosen and canary and (served := self.ready(canary.model)):
            return Choice(self, served, True, False)
        return Choice(self, self.backend.get(*target_of(self.route.primary)), False, chosen)

    def ready(self, target: str) -> ServedModel | None:
        """A target, if it serves."""
        try:
            served = self.backend.get(*target_of(target))
        except (UnknownModel, BackendUnavailable):
            return None
        return None if served.problem() else served

    def problems(self) -> list[str]:
        """What is wrong with it; empty when nothing is."""
        found = []
        for part, target in self.route.targets().items():
            try:
                problem = self.backend.get(*target_of(target)).problem()
            except FoveaError as error:
                problem = error.message
            if problem:
                found.append(f"{part}: {problem}")
        if any(status.name == self.name for status in self.backend.models()):
            found.append(f"there is a model {self.name}, too; requests to it by that name are answered by this route")
        return found

    def count(self, choice: Choice) -> None:
        """Note a request."""
        self.counts.requests += 1
        self.counts.canary += choice.canary
        self.counts.fallbacks += choice.fell_back
        if not self.removed:
            self.metrics.route_requests.labels(self.name, "canary" if choice.canary else "primary").inc()
            if choice.fell_back:
                self.metrics.route_fallbacks.labels(self.name).inc()

    def count_compared(self, agrees: bool) -> None:
        """Note an image that the shadow classified too."""
        self.counts.compared += 1
        self.counts.disagreements += not agrees
        if not self.removed:
            self.metrics.shadow.labels(self.name).inc()
            self.metrics.shadow_disagreements.labels(self.name).inc(not agrees)

    def count_dropped(self, images: int) -> None:
        """Note images that the shadow did not classify."""
        self.counts.dropped += images
        if not self.removed:
            self.metrics.shadow_dropped.labels(self.name).inc(images)


class RouteTable:
    """The routes there are.

    Args:
        backend: Has their models.
        metrics: Where they count.

    Attributes:
        live: By name.
    """

    def __init__(self, backend: InferenceBackend, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self.live: dict[str, LiveRoute] = {}

    def check(self, name: str, route: Route) -> None:
        """Whether a route could be put in place.

        Raises:
            InvalidRequest: Its name cannot be a route's, or there are too many.
            UnknownModel: One of its models does not exist.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest("a route's name has letters, digits, '.', '_' and '-', at most 64")
        if name not in self.live:
            if len(self.live) >= MAX_ROUTES:
                raise InvalidRequest(f"there are {MAX_ROUTES} routes already; delete one first")
            if any(status.name == name for status in self._backend.models()):
                raise InvalidRequest(f"there is a model {name!r}; a route needs a name that no model has")
        for target in route.targets().values():
            try:
                self._backend.get(*target_of(target))
            except BackendUnavailable:  # it may become ready; until then the route says that it is not
                continue

    def get(self, name: str) -> LiveRoute:
        """A route.

        Raises:
            UnknownModel: There is none of that name.
        """
        if name not in self.live:
            raise UnknownModel(f"there is no route {name!r}; GET /v1/routes lists them")
        return self.live[name]

    def replace(self, routes: Mapping[str, Route]) -> None:
        """Have exactly these routes; those that stay as they are keep their counts."""
        for name in self.live.keys() - routes.keys():
            self.live.pop(name).removed = True
            self._metrics.forget_route(name)
        for name, route in routes.items():
            known = self.live.get(name)
            if known is None or known.route != route:
                if known is not None:
                    known.removed = True
                self.live[name] = LiveRoute(name, route, self._backend, self._metrics)
