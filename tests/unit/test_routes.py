"""Routes over fake models: who answers, what shadows may do and when, and what is kept over a restart."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from service.backends.base import ManagedBackend, ModelStatus, Row
from service.classifier import Classifier
from service.errors import BackendUnavailable, FoveaError, InvalidRequest, Overloaded, UnknownModel
from service.metrics import Metrics
from service.routes import shadow as shadow_module
from service.routes.control import Control
from service.routes.shadow import MAX_WAITING, Shadows
from service.routes.state import KEY
from service.routes.table import MAX_ROUTES, Route, RouteTable, share
from service.store.shared import SharedStore
from service.store.store import Store
from tests.batching import until
from tests.models import png, tiny_spec
from tests.server import picture

IMAGE = png(picture(1))


class Model:
    """Always answers the same label, when it is let."""

    def __init__(self, name: str, version: str, label: int) -> None:
        self.spec = tiny_spec(name).model_copy(update={"version": version})
        self.label = label
        self.admitted = 0
        self.trouble: str | None = None
        self.refusal: FoveaError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def preprocess(self, data: bytes) -> NDArray[np.uint8]:
        return picture(0)

    def problem(self) -> str | None:
        return self.trouble

    def admit(self, deadline: float, images: int = 1) -> list[Any]:
        if self.refusal:
            raise self.refusal
        self.admitted += images
        return [SimpleNamespace(infer=self._infer, close=lambda: None)] * images

    async def _infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row:
        await self.gate.wait()
        return Row({"logits": np.eye(3, dtype=np.float32)[self.label]}, 0.0, 0.0, 1)


class Backend:
    """Three versions of `m`: the last disagrees with the others."""

    remembers = False

    def __init__(self) -> None:
        self.versions = {str(number): Model("m", str(number), int(number == 3)) for number in (1, 2, 3)}
        self.pins: dict[str, str] = {}
        self.crowded = False
        self.held: Set[str] = set()

    def get(self, name: str, version: str | None = None) -> Model:
        if name != "m" or (version or "3") not in self.versions:
            raise UnknownModel(f"{name}:{version}")
        return self.versions[version or self.pins.get(name, "3")]

    def models(self) -> list[ModelStatus]:
        return [ModelStatus("m", version, "ready") for version in self.versions]

    def busy(self, answering: int) -> bool:
        return self.crowded or answering > 0

    def hold(self, names: Set[str]) -> None:
        self.held = names

    async def unload(self, name: str) -> None:
        """What is held tells."""

    async def load(self, name: str) -> None:
        """Likewise."""

    def pin(self, name: str, version: str | None) -> None:
        self.pins = {name: version} if version else {}


@functools.cache
def empty_database() -> Path:
    """Made once: migrating takes longer than most of these tests."""
    path = Path(tempfile.mkdtemp(prefix="fovea-routes-")) / "empty.db"
    store = Store(f"sqlite:///{path}")
    store.open()
    store.close()
    return path


class World:
    """A classifier with routes over that backend, kept in a database in a folder."""

    def __init__(self, folder: Path) -> None:
        file = folder / "routes.db"
        if not file.exists():
            shutil.copy(empty_database(), file)
        self.shared = SharedStore(Store(f"sqlite:///{file}"), poll_seconds=60)
        self.backend = Backend()
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        backend = cast(ManagedBackend, self.backend)
        table = RouteTable(backend, metrics)
        self.shadows = Shadows(backend)
        self.control = Control(backend, table, self.shared)
        self.classifier = Classifier(backend, metrics, routes=table, shadows=self.shadows)

    async def ask(self, request_id: str = "x", images: int = 1, **options: Any) -> str:
        answer = await self.classifier.classify([IMAGE] * images, model="r", request_id=request_id, **options)
        return answer.version

    def counts(self) -> Any:
        return self.control.route("r").counts

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"fovea_{name}", {"route": "r", **labels})


@asynccontextmanager
async def world(folder: Path | None = None, **route: Any) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as scratch:
        made = World(folder or Path(scratch))
        await made.shared.start()
        if route:
            await made.control.put_route("r", Route(**route))
        try:
            yield made
        finally:
            await made.shadows.close()
            made.classifier.close()
            await made.shared.close()


# Canaries.


def test_the_share_of_a_request_is_the_same_everywhere_and_another_on_each_route() -> None:
    assert share("r", "abc") == pytest.approx(0.2302175927)  # on every gateway, today and tomorrow
    shares = np.array([share("r", str(number)) for number in range(4000)])
    assert 0 <= shares.min() < shares.max() < 1
    assert abs((shares < 0.1).mean() - 0.1) < 0.02
    others = np.array([share("s", str(number)) for number in range(4000)])
    assert abs(((shares < 0.5) & (others < 0.5)).mean() - 0.25) < 0.03


async def test_a_canary_gets_its_share_and_keeps_who_it_got() -> None:
    async with world(primary="m:1", canary={"model": "m:2", "weight": 0.3}) as made:
        first = [await made.ask(str(number)) for number in range(400)]
        assert first == [await made.ask(str(number)) for number in range(400)]
        assert first == ["2" if share("r", str(number)) < 0.3 else "1" for number in range(400)]
        canary = 2 * first.count("2")
        assert (made.counts().requests, made.counts().canary, made.counts().fallbacks) == (800, canary, 0)
        assert made.metric("route_requests_total", arm="canary") == canary
        assert made.metric("route_requests_total", arm="primary") == 800 - canary


@pytest.mark.parametrize("weight", [0, 1])
async def test_all_or_nothing(weight: float) -> None:
    async with world(primary="m:1", canary={"model": "m:2", "weight": weight}) as made:
        assert {await made.ask(str(number)) for number in range(50)} == {"2" if weight else "1"}


async def test_the_primary_stands_in_for_a_canary_that_cannot_serve() -> None:
    async with world(primary="m:1", canary={"model": "m:2", "weight": 1}) as made:
        made.backend.versions["2"].trouble = "its breaker is open"
        assert await made.ask() == "1"
        assert made.control.route("r").problems() == ["canary: its breaker is open"]
        del made.backend.versions["2"]
        assert await made.ask() == "1"
        assert (made.counts().requests, made.counts().canary, made.counts().fallbacks) == (2, 0, 2)
        assert made.metric("route_fallbacks_total") == 2


async def test_who_names_a_route_cannot_name_a_version() -> None:
    async with world(primary="m:1") as made:
        with pytest.raises(InvalidRequest, match="route"):
            await made.ask(version="1")
        assert made.counts().requests == 0


# Shadows.


async def test_disagreements_are_counted_by_image_and_answers_count_once() -> None:
    async with world(primary="m:1", shadow="m:3") as made:
        assert await made.ask(images=3) == "1"
        await until(lambda: made.counts().compared == 3)
        await made.control.put_route("r", Route(primary="m:1", shadow="m:2"))
        assert made.counts().compared == 0  # since the change
        await made.ask()
        await until(lambda: made.counts().compared == 1)
        assert made.counts().disagreements == 0
        assert (made.metric("shadow_total"), made.metric("shadow_disagreements_total")) == (4, 3)
        predictions = {"model": "m", "label": "label-0"}
        assert made.registry.get_sample_value("fovea_predictions_total", predictions) == 4  # the primary's alone


async def test_what_the_canary_answers_is_not_compared() -> None:
    async with world(primary="m:1", canary={"model": "m:2", "weight": 1}, shadow="m:3") as made:
        await made.ask()
        await asyncio.sleep(0.02)
        assert made.backend.versions["3"].admitted == 0


async def test_no_shadow_while_clients_wait_and_what_waits_too_long_is_dropped(monkeypatch: Any) -> None:
    monkeypatch.setattr(shadow_module, "PATIENCE_SECONDS", 0.1)
    async with world(primary="m:1", shadow="m:3") as made:
        primary, shadow = made.backend.versions["1"], made.backend.versions["3"]
        await made.ask()
        primary.gate.clear()
        waiting = asyncio.create_task(made.ask())  # in the same turn as the shadow would begin
        await until(lambda: made.counts().dropped == 1)
        assert shadow.admitted == 0
        primary.gate.set()
        await waiting
        await until(lambda: made.counts().compared == 1)
        assert made.metric("shadow_dropped_total") == 1


async def test_shadows_that_wait_are_bounded() -> None:
    async with world(primary="m:1", shadow="m:3") as made:
        made.backend.crowded = True
        for _ in range(MAX_WAITING + 5):
            assert await made.ask() == "1"
        assert made.counts().dropped == 5
        made.backend.crowded = False
        await until(lambda: made.counts().compared == MAX_WAITING)


@pytest.mark.parametrize("refusal", [Overloaded("full"), BackendUnavailable("gone")])
async def test_a_shadow_that_fails_is_the_shadows_own_affair(refusal: FoveaError) -> None:
    async with world(primary="m:1", shadow="m:3") as made:
        made.backend.versions["3"].refusal = refusal
        assert await made.ask() == "1"
        await until(lambda: made.counts().dropped == 1)
        assert made.counts().compared == 0
        assert made.registry.get_sample_value("fovea_rejected_total", {"reason": refusal.code}) is None
        del made.backend.versions["3"]
        assert await made.ask() == "1"
        await until(lambda: made.counts().dropped == 2)


async def test_closing_waits_for_no_shadow() -> None:
    async with world(primary="m:1", shadow="m:3") as made:
        made.backend.versions["3"].gate.clear()
        await made.ask()
        await until(lambda: made.backend.versions["3"].admitted == 1)
        await asyncio.wait_for(made.shadows.close(), 1)


# The table.


async def test_what_no_route_may_be() -> None:
    async with world(primary="m:1") as made:
        for name in ("", "a/b", "ü", "-x", "x" * 65):
            with pytest.raises(InvalidRequest, match="name"):
                await made.control.put_route(name, Route(primary="m"))
        with pytest.raises(InvalidRequest, match="there is a model 'm'"):
            await made.control.put_route("m", Route(primary="m:1"))
        for target in ("nobody", "m:4", "r"):  # a route is no target either
            for route in (
                Route(primary=target),
                Route(primary="m", shadow=target),
                Route.model_validate({"primary": "m", "canary": {"model": target, "weight": 0.1}}),
            ):
                with pytest.raises(UnknownModel):
                    await made.control.put_route("s", route)
        assert [live.name for live in made.control.routes()] == ["r"]


async def test_routes_are_bounded_and_leave_no_labels_behind() -> None:
    async with world(primary="m:1", shadow="m:3") as made:
        await made.ask()
        await until(lambda: made.counts().compared == 1)
        assert made.metric("shadow_total") == 1
        for number in range(MAX_ROUTES - 1):
            await made.control.put_route(f"r{number}", Route(primary="m"))
        with pytest.raises(InvalidRequest, match="delete"):
            await made.control.put_route("another", Route(primary="m"))
        await made.control.put_route("r", Route(primary="m:2", shadow="m:3"))  # changing one is no new one
        made.backend.crowded = True
        await made.ask()
        await made.control.delete_route("r")
        made.backend.crowded = False
        await asyncio.sleep(0.03)  # what was waiting is compared, and counted nowhere
        assert 'route="r"' not in Metrics.exposition(cast(Any, SimpleNamespace(_shown=made.registry))).decode()
        with pytest.raises(UnknownModel):
            await made.ask()


# What is kept.


async def test_a_restart_brings_back_routes_and_pins(tmp_path: Path) -> None:
    route = {"primary": "m:1", "canary": {"model": "m:2", "weight": 0.25}}
    async with world(tmp_path, **route) as made:
        await made.control.pin("m", "2")
    async with world(tmp_path) as again:
        assert again.control.route("r").route == Route.model_validate(route)
        assert again.backend.pins == {"m": "2"}
        await again.control.pin("m", None)
        assert again.backend.pins == {}
        await again.control.delete_route("r")
    async with world(tmp_path) as last:
        assert (last.control.routes(), last.backend.pins) == ([], {})


async def test_gateways_on_one_database_agree(tmp_path: Path) -> None:
    async with world(tmp_path) as one, world(tmp_path) as other:
        await one.control.put_route("r", Route(primary="m"))
        await other.control.put_route("s", Route(primary="m:1"))
        await one.control.pin("m", "1")
        for made in (one, other):
            await made.shared.refresh()
            assert [live.name for live in made.control.routes()] == ["r", "s"]
            assert made.backend.pins == {"m": "1"}
        await one.control.unload("m")
        await other.shared.refresh()
        assert other.backend.held == {"m"}
        await other.control.load("m")
        await one.shared.refresh()
        assert one.backend.held == set()


@pytest.mark.parametrize("document", [{"format": 2}, {"routes": {"r": {"primary": 1}}}, {"pins": []}])
async def test_damaged_routes_are_said_and_not_fatal(tmp_path: Path, document: dict[str, Any], caplog: Any) -> None:
    async with world(tmp_path) as made:
        made.shared.store.update_state(KEY, lambda _: document)
    async with world(tmp_path) as made:
        assert made.control.routes() == []
        assert "damaged" in caplog.text
        await made.control.put_route("r", Route(primary="m"))
        assert (made.shared.store.state(KEY) or {})["routes"]["r"]["primary"] == "m"


async def test_a_change_that_cannot_be_saved_is_not_made(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        (tmp_path / "routes.db").write_bytes(b"no database")
        with pytest.raises(FoveaError, match="does not do its work") as caught:
            await made.control.put_route("r", Route(primary="m"))
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(FoveaError, match="does not do its work"):
            await made.control.pin("m", "1")
        assert (made.control.routes(), made.backend.pins) == ([], {})
