"""What an operator may change while requests are answered: routes, pinned versions, loaded models."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.backends.base import ManagedBackend, ModelStatus
from service.errors import UnknownModel
from service.routes import state
from service.routes.state import State
from service.routes.table import LiveRoute, Route, RouteTable
from service.store.shared import SharedStore

log = logging.getLogger(__name__)


class Control:
    """The operator's use case. What is decided is kept in the store, so all gateways and workers on it have the same.

    A change is saved before it takes effect; one that cannot be saved is not made.

    Args:
        backend: Has the models.
        table: The routes.
        shared: The store; start it before the backend loads anything, so that it knows what is pinned.
    """

    def __init__(self, backend: ManagedBackend, table: RouteTable, shared: SharedStore) -> None:
        self._backend = backend
        self._table = table
        self._shared = shared
        self._state = State()
        shared.follow(self._read)

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
            BackendUnavailable: It could not be saved.
        """
        self._table.check(name, route)
        await self._change(lambda now: now.model_copy(update={"routes": {**now.routes, name: route}}))
        return self._table.get(name)

    async def delete_route(self, name: str) -> None:
        """Take a route away.

        Raises:
            UnknownModel: There is none of that name.
            BackendUnavailable: It could not be saved.
        """
        self._table.get(name)

        def without(now: State) -> State:
            routes = {other: route for other, route in now.routes.items() if other != name}
            return now.model_copy(update={"routes": routes})

        await self._change(without)

    async def pin(self, model: str, version: str | None) -> None:
        """Have a version answer the requests that name none; None: the newest.

        Raises:
            UnknownModel: There is no such model or version.
            BackendUnavailable: The version does not serve, or it could not be saved.
        """
        if version is not None:
            self._backend.get(model, version)
        else:
            self._check_known(model)

        def pinned(now: State) -> State:
            pins = {name: pinned for name, pinned in now.pins.items() if name != model}
            return now.model_copy(update={"pins": pins if version is None else {**pins, model: version}})

        await self._change(pinned)
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
        """Load a model anew; see `ManagedBackend.load`. Others on the store load it within seconds."""
        if model in self._state.unloaded:
            await self._change(lambda now: now.model_copy(update={"unloaded": now.unloaded - {model}}))
        await self._backend.load(model)

    async def unload(self, model: str) -> None:
        """Take a model out of memory; see `ManagedBackend.unload`. Others on the store do so within seconds."""
        self._check_known(model)
        if not self._backend.remembers:
            await self._change(lambda now: now.model_copy(update={"unloaded": now.unloaded | {model}}))
        await self._backend.unload(model)

    def _check_known(self, model: str) -> None:
        if model not in {status.name for status in self._backend.models()}:
            raise UnknownModel(f"there is no model {model!r}; GET /v1/models lists them")

    async def _change(self, change: Callable[[State], State]) -> None:
        store = self._shared.store
        self._apply(
            state.read(
                await self._shared.ask(
                    store.update_state, state.KEY, lambda now: change(state.read(now)).model_dump(mode="json")
                )
            )
        )

    async def _read(self) -> None:
        self._apply(state.read(await self._shared.ask(self._shared.store.state, state.KEY)))

    def _apply(self, new: State) -> None:
        self._table.replace(new.routes)
        self._backend.hold(new.unloaded)
        for model in self._state.pins.keys() - new.pins.keys():
            self._backend.pin(model, None)
        for model, version in new.pins.items():
            self._backend.pin(model, version)
        self._state = new
