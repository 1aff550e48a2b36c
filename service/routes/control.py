"""What an operator may change while requests are answered: routes, pinned versions, loaded models."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from service.backends.base import ManagedBackend, ModelStatus
from service.errors import FoveaError, UnknownModel
from service.routes import state
from service.routes.state import State
from service.routes.table import LiveRoute, Route, RouteTable

log = logging.getLogger(__name__)


class Control:
    """The operator's use case. A change is saved before it takes effect; one that cannot be saved is not made.

    Args:
        backend: Has the models.
        table: The routes.
        folder: Where they and the pinned versions are kept; None: in memory only.
    """

    def __init__(self, backend: ManagedBackend, table: RouteTable, folder: Path | None = None) -> None:
        self._backend = backend
        self._table = table
        self._folder = folder
        self._state = State()
        self._changing = asyncio.Lock()

    def restore(self) -> None:
        """Make what was saved take effect; call before the backend loads anything."""
        if self._folder:
            self._apply(state.read(self._folder))

    def routes(self) -> list[LiveRoute]:
        """By name."""
        return [self._table.live[name] for name in sorted(self._table.live)]

    def route(self, name: str) -> LiveRoute:
        """A route.

        Raises:
            UnknownModel: There is none of that name.
        """
        return self._table.get(name)

    async def put_route(self, name: str, route: Route) -> LiveRoute:
        """Make a route, or change one.

        Raises:
            InvalidRequest: The name cannot be a route's.
            UnknownModel: One of its models does not exist.
        """
        async with self._changing:
            self._table.check(name, route)
            await self._change(self._state.model_copy(update={"routes": {**self._state.routes, name: route}}))
        return self._table.get(name)

    async def delete_route(self, name: str) -> None:
        """Take a route away.

        Raises:
            UnknownModel: There is none of that name.
        """
        async with self._changing:
            self._table.get(name)
            routes = {other: route for other, route in self._state.routes.items() if other != name}
            await self._change(self._state.model_copy(update={"routes": routes}))

    async def pin(self, model: str, version: str | None) -> None:
        """Have a version answer the requests that name none; None: the newest.

        Raises:
            UnknownModel: There is no such model or version.
            BackendUnavailable: The version does not serve.
        """
        async with self._changing:
            if version is not None:
                self._backend.get(model, version)
            elif model not in {status.name for status in self._backend.models()}:
                raise UnknownModel(f"there is no model {model!r}; GET /v1/models lists them")
            pins = {name: pinned for name, pinned in self._state.pins.items() if name != model}
            if version is not None:
                pins[model] = version
            await self._change(self._state.model_copy(update={"pins": pins}))
        log.info("requests get version %s", version or "that is newest", extra={"model": model})

    def pinned(self, model: str) -> str | None:
        """The version that was pinned."""
        return self._backend.pinned(model)

    def problem(self, model: str, current: ModelStatus | None) -> str | None:
        """Why requests to a model are not answered as one would expect."""
        found = []
        pinned = self._backend.pinned(model)
        if pinned and current and current.version != pinned:
            found.append(f"the pinned version {pinned} does not serve; version {current.version} stands in for it")
        if model in self._table.live:
            found.append(f"the route {model} answers requests to this name")
        return "; ".join(found) or None

    async def load(self, model: str) -> None:
        """Load a model anew; see `ManagedBackend.load`."""
        await self._backend.load(model)

    async def unload(self, model: str) -> None:
        """Take a model out of memory; see `ManagedBackend.unload`."""
        await self._backend.unload(model)

    async def _change(self, new: State) -> None:
        if self._folder:
            try:
                await asyncio.to_thread(state.write, self._folder, new)
            except OSError as error:
                log.exception("%s cannot be written", state.FILE_NAME)
                raise FoveaError("the change could not be saved and was not made; the log says why") from error
        self._apply(new)

    def _apply(self, new: State) -> None:
        self._table.replace(new.routes)
        for model in self._state.pins.keys() - new.pins.keys():
            self._backend.pin(model, None)
        for model, version in new.pins.items():
            self._backend.pin(model, version)
        self._state = new
