"""Which versions of which models there are, how each stands, and which one answers a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from service.backends.base import ModelStatus, ServedModel
from service.batcher import Observer
from service.errors import BackendUnavailable, UnknownModel
from service.metrics import Metrics
from service.spec import ModelSpec

log = logging.getLogger(__name__)

UNLOADED = "it is unloaded until it is loaded again"


class LoadFailed(Exception):
    """A version cannot be served.

    Attributes:
        reason: One word for the metric: "config", "files", "graph", "drift" or "internal".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Loaded(ServedModel, Protocol):
    """A version that was loaded and has proved itself."""

    golden_difference: float

    async def close(self) -> None:
        """Finish what was admitted and release everything."""
        ...


M = TypeVar("M", bound=Loaded)


@dataclass(slots=True)
class Version(Generic[M]):
    """What is known of one version.

    Attributes:
        signature: Changes when it has to be looked at anew.
        spec: As far as it could be read.
        served: What serves; None if nothing does.
        problem: Why it does not serve, or what is wrong with its files now.
    """

    signature: object
    spec: ModelSpec | None
    served: M | None = None
    problem: str | None = None

    def status(self, name: str, version: str, current: M | None) -> ModelStatus:
        """As the models' list shows it, given which version answers requests that name none."""
        return ModelStatus(
            name,
            version,
            "ready" if self.served else "failed",
            self.problem,
            self.served.spec if self.served else self.spec,
            self.served.golden_difference if self.served else None,
            self.served is not None and self.served is current,
        )


@dataclass(slots=True)
class Model(Generic[M]):
    """One model.

    Attributes:
        problem: Of the config itself; or that it is unloaded.
        versions: By number.
        current: Answers requests that name no version.
        unloaded: An operator wanted so.
    """

    problem: str | None = None
    versions: dict[str, Version[M]] = field(default_factory=dict)
    current: M | None = None
    unloaded: bool = False


class Catalogue(Generic[M]):
    """All models of a backend.

    Args:
        metrics: Where readiness and failures to load are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.models: dict[str, Model[M]] = {}
        self._pins: dict[str, str] = {}  # kept while a model is away: it may come back
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self, name: str, version: str | None = None) -> M:
        """A version that serves; the pinned one, else the newest, unless one is named.

        Raises:
            UnknownModel: There is no such model or version.
            BackendUnavailable: There is, but it is not ready.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.models)) or "none"
            raise UnknownModel(f"there is no model {name!r}; known: {known}")
        if version is None:
            if model.current is None:
                raise _unavailable(name, _why_not(model))
            return model.current
        found = model.versions.get(version)
        if found is None:
            known = ", ".join(sorted(model.versions, key=int)) or "none"
            raise UnknownModel(f"{name} has no version {version!r}; known: {known}")
        if found.served is None:
            raise _unavailable(f"{name} version {version}", found.problem)
        return found.served

    def statuses(self) -> list[ModelStatus]:
        """Every version known, by name and then version."""
        found = []
        for name, model in sorted(self.models.items()):
            found += [
                model.versions[version].status(name, version, model.current)
                for version in sorted(model.versions, key=int)
            ]
            if model.problem:
                found.append(ModelStatus(name, "", "unloaded" if model.unloaded else "failed", model.problem))
        return found

    def pin(self, name: str, version: str | None) -> None:
        """Have a version answer the requests that name none; None: the newest."""
        if version is None:
            self._pins.pop(name, None)
        else:
            self._pins[name] = version
        if name in self.models:
            self._settle(name)

    def pinned(self, name: str) -> str | None:
        """The version that was pinned, whether or not it serves."""
        return self._pins.get(name)

    def order(self, name: str, versions: Iterable[str]) -> Sequence[str]:
        """Versions in the order in which to load them: the pinned one, or others would answer in its place; then the
        newest first."""
        return sorted(versions, key=lambda version: (version == self._pins.get(name), int(version)), reverse=True)

    def served(self) -> Iterable[M]:
        """All versions that serve."""
        for model in self.models.values():
            for version in model.versions.values():
                if version.served is not None:
                    yield version.served

    def problems(self) -> list[str]:
        """Why the models cannot serve; empty when they can."""
        served = list(self.served())
        if not served:
            return ["no model in the repository is ready"]
        return [problem for one in served if (problem := one.problem())]

    def refuse_config(self, name: str, problem: str) -> None:
        """Note that a model's config cannot be used; its versions stay as they are."""
        model = self.models.setdefault(name, Model())
        if model.problem != problem:
            log.error("config refused: %s", problem, extra={"model": name})
            self._metrics.load_failures.labels(name, "config").inc()
        model.problem, model.unloaded = problem, False

    def accept_config(self, name: str) -> None:
        """Note that a model's config can be used; call when its versions have been brought up to it."""
        model = self.models[name]
        if model.versions or not model.unloaded:
            model.problem, model.unloaded = None, False

    def unload(self, name: str) -> None:
        """Forget the versions of a model, but know of it."""
        model = self.models.setdefault(name, Model())
        for version in list(model.versions):
            self.drop(name, version)
        model.problem, model.unloaded = UNLOADED, True

    def put(self, name: str, version: str, signature: object, spec: ModelSpec | None, found: M | LoadFailed) -> None:
        """Note what became of loading a version. What served before keeps serving if the new one does not."""
        model = self.models.setdefault(name, Model())
        known = model.versions.get(version)
        label = {"model": name, "version": version}
        ready = self._metrics.model_ready.labels(name, version)
        if isinstance(found, LoadFailed):
            self._metrics.load_failures.labels(name, found.reason).inc()
            log.error("version refused: %s", found, extra=label)
            served_before = known.served if known else None
            ready.set(1 if served_before else 0)
            model.versions[version] = Version(signature, spec, served_before, str(found))
            self._settle(name)
            return
        ready.set(1)
        log.info("version ready; golden images differ by %.2g at most", found.golden_difference, extra=label)
        if known:
            self._retire(known)
        model.versions[version] = Version(signature, spec, found)
        self._settle(name)

    def drop(self, name: str, version: str) -> None:
        """Forget a version; what it has admitted is still answered."""
        self._retire(self.models[name].versions.pop(version))
        self._settle(name)
        self._metrics.model_ready.remove(name, version)
        log.info("version unloaded", extra={"model": name, "version": version})

    def drop_model(self, name: str) -> None:
        """Forget a model."""
        for version in list(self.models[name].versions):
            self.drop(name, version)
        del self.models[name]
        log.info("model removed", extra={"model": name})

    def withdraw(self, name: str, version: str, problem: str) -> None:
        """Let a version serve no more, but know of it."""
        known = self.models[name].versions[version]
        self._retire(known)
        known.problem = problem
        self._settle(name)
        self._metrics.model_ready.labels(name, version).set(0)

    async def retired(self) -> None:
        """Wait until what was dropped has answered what it had admitted."""
        await asyncio.gather(*self._retiring)

    async def close(self) -> None:
        """Finish what was admitted and release everything."""
        for model in self.models.values():
            for version in model.versions.values():
                self._retire(version)
        await self.retired()

    def _settle(self, name: str) -> None:
        """Decide which version answers the requests that name none."""
        model = self.models[name]
        order = (model.versions[version].served for version in self.order(name, model.versions))
        current = next((served for served in order if served is not None), None)
        pinned = self._pins.get(name)
        if current is not None and current is not model.current and pinned not in (None, current.spec.version):
            label = {"model": name, "version": current.spec.version}
            log.warning("it stands in for the pinned version %s, which does not serve", pinned, extra=label)
        model.current = current

    def _retire(self, version: Version[M]) -> None:
        """Close a version behind the requests that still hold it."""
        if version.served is not None:
            task = asyncio.create_task(version.served.close())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            version.served = None


class VersionObserver(Observer):
    """Counts the batches of one version under the name of its model; the versions' queues add up."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._size = metrics.batching(model)
        self._seconds = metrics.inferring(model)
        self._depth = metrics.depth(model)
        self._queued = 0

    def batch(self, size: int, seconds: float) -> None:
        self._size.observe(size)
        self._seconds.observe(seconds)

    def queued(self, depth: int) -> None:
        self._depth.inc(depth - self._queued)
        self._queued = depth


def _why_not(model: Model[M]) -> str | None:
    problems = [version.problem for version in model.versions.values() if version.problem]
    return model.problem or (problems[-1] if problems else None)


def _unavailable(name: str, problem: str | None) -> BackendUnavailable:
    return BackendUnavailable(f"{name} is not ready: {problem or 'still loading'}", retry_after=1.0)
