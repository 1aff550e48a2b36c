"""Which versions of which models there are, how each stands, and which one answers a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from service.backends.base import ModelStatus, ServedModel
from service.batcher import Observer
from service.errors import BackendUnavailable, UnknownModel
from service.metrics import Metrics
from service.spec import ModelSpec

log = logging.getLogger(__name__)


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

    def problem(self) -> str | None:
        """Why it should not get new work, or None."""
        ...

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

    def status(self, name: str, version: str) -> ModelStatus:
        """As the models' list shows it."""
        return ModelStatus(
            name,
            version,
            "ready" if self.served else "failed",
            self.problem,
            self.served.spec if self.served else self.spec,
            self.served.golden_difference if self.served else None,
        )


@dataclass(slots=True)
class Model(Generic[M]):
    """One model.

    Attributes:
        problem: Of the config itself.
        versions: By number.
    """

    problem: str | None = None
    versions: dict[str, Version[M]] = field(default_factory=dict)


class Catalogue(Generic[M]):
    """All models of a backend.

    Args:
        metrics: Where readiness and failures to load are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.models: dict[str, Model[M]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def get(self, name: str, version: str | None = None) -> M:
        """A version that serves; the newest unless one is named.

        Raises:
            UnknownModel: There is no such model or version.
            BackendUnavailable: There is, but it is not ready.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.models)) or "none"
            raise UnknownModel(f"there is no model {name!r}; known: {known}")
        if version is None:
            best = _newest(model)
            if best is None:
                raise _unavailable(name, _why_not(model))
            return best
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
            found += [model.versions[version].status(name, version) for version in sorted(model.versions, key=int)]
            if model.problem:
                found.append(ModelStatus(name, "", "failed", model.problem))
        return found

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
        model.problem = problem

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
            return
        ready.set(1)
        log.info("version ready; golden images differ by %.2g at most", found.golden_difference, extra=label)
        if known:
            self._retire(known)
        model.versions[version] = Version(signature, spec, found)

    def drop(self, name: str, version: str) -> None:
        """Forget a version; what it has admitted is still answered."""
        self._retire(self.models[name].versions.pop(version))
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
        self._metrics.model_ready.labels(name, version).set(0)

    async def close(self) -> None:
        """Finish what was admitted and release everything."""
        for model in self.models.values():
            for version in model.versions.values():
                self._retire(version)
        await asyncio.gather(*self._retiring)

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
        self._size = metrics.batch_size.labels(model)
        self._seconds = metrics.infer_seconds.labels(model)
        self._depth = metrics.queue_depth.labels(model)
        self._queued = 0

    def batch(self, size: int, seconds: float) -> None:
        self._size.observe(size)
        self._seconds.observe(seconds)

    def queued(self, depth: int) -> None:
        self._depth.inc(depth - self._queued)
        self._queued = depth


def _newest(model: Model[M]) -> M | None:
    for version in sorted(model.versions, key=int, reverse=True):
        if served := model.versions[version].served:
            return served
    return None


def _why_not(model: Model[M]) -> str | None:
    problems = [version.problem for version in model.versions.values() if version.problem]
    return model.problem or (problems[-1] if problems else None)


def _unavailable(name: str, problem: str | None) -> BackendUnavailable:
    return BackendUnavailable(f"{name} is not ready: {problem or 'still loading'}", retry_after=1.0)
