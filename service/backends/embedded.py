"""Watches a model repository, loads what appears in it, swaps versions without failing a request.

The repository is polled: a stat call per file works on every file system, network volumes included. A version is
looked at again only when its files or its spec have changed. The newest versions that load and verify serve, as many
as the config keeps; a broken newest one is reported and never takes an older one's place.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from service.backends.base import ModelStatus
from service.backends.onnx_runtime import Embedding, LoadFailed, OnnxModel, load, unavailable
from service.batcher import Observer
from service.errors import UnknownModel
from service.metrics import Metrics
from service.preprocess import Limits
from service.spec import CONFIG_NAME, InvalidSpec, ModelSpec, RepositoryModel, read_config

log = logging.getLogger(__name__)

Signature = tuple[object, ...]


class _VersionObserver(Observer):
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


@dataclass(slots=True)
class _Version:
    """What is known of one version's directory."""

    signature: Signature
    spec: ModelSpec | None
    served: OnnxModel | None = None
    problem: str | None = None

    def status(self, name: str, version: str) -> ModelStatus:
        return ModelStatus(
            name,
            version,
            "ready" if self.served else "failed",
            self.problem,
            self.served.spec if self.served else self.spec,
            self.served.golden_difference if self.served else None,
        )


@dataclass(slots=True)
class _Model:
    problem: str | None = None  # of the config itself
    versions: dict[str, _Version] = field(default_factory=dict)


class EmbeddedBackend:
    """ONNX Runtime in the gateway, over a model repository on disk. Satisfies `InferenceBackend`.

    Args:
        repository: The model repository's directory.
        metrics: Where batches, loads and readiness are counted.
        embedding: Threads and queue.
        limits: How large an image may be.
        poll_seconds: Between two looks at the repository.
    """

    def __init__(
        self, repository: Path, metrics: Metrics, *, embedding: Embedding, limits: Limits, poll_seconds: float = 1.0
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._embedding = embedding
        self._limits = limits
        self._poll_seconds = poll_seconds
        self._models: dict[str, _Model] = {}
        self._problem: str | None = "the models are being loaded"
        self._blind = False  # the last look failed
        self._configs: Configs = {}  # the loader thread's
        self._watcher: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        # Loading has a thread of its own, so that it never waits behind decoding, nor decoding behind it.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    async def start(self) -> None:
        await self._look()
        self._watcher = asyncio.create_task(self._watch(), name="watch-repository")

    def get(self, name: str, version: str | None = None) -> OnnxModel:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise UnknownModel(f"there is no model {name!r}; known: {known}")
        if version is None:
            best = self._newest(model)
            if best is None:
                raise unavailable(name, self._why_not(model))
            return best
        found = model.versions.get(version)
        if found is None:
            known = ", ".join(sorted(model.versions, key=int)) or "none"
            raise UnknownModel(f"{name} has no version {version!r}; known: {known}")
        if found.served is None:
            raise unavailable(f"{name} version {version}", found.problem)
        return found.served

    def models(self) -> list[ModelStatus]:
        statuses = []
        for name, model in sorted(self._models.items()):
            statuses += [model.versions[version].status(name, version) for version in sorted(model.versions, key=int)]
            if model.problem:
                statuses.append(ModelStatus(name, "", "failed", model.problem))
        return statuses

    def problems(self) -> list[str]:
        if self._problem:
            return [self._problem]
        served = [version.served for model in self._models.values() for version in model.versions.values()]
        stuck = [problem for one in served if one is not None and (problem := one.problem())]
        if not any(served):
            stuck.append("no model in the repository is ready")
        return stuck

    async def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._problem = "the backend is closed"
        for model in self._models.values():
            for version in model.versions.values():
                self._retire(version)
        await asyncio.gather(*self._retiring)
        self._loader.shutdown(wait=False, cancel_futures=True)  # waiting would stop the event loop

    # Watching.

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._look()
            except Exception:
                # The watcher outlives whatever surprises it: what is loaded keeps serving.
                if not self._blind:
                    log.exception("the model repository cannot be read; what is loaded keeps serving")
                self._blind = True
            else:
                self._blind = False

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._loader, _scan, self._repository, self._configs)
        for name in self._models.keys() - found.keys():
            log.info("model removed", extra={"model": name})
            model = self._models.pop(name)
            for version in list(model.versions):
                self._drop(name, model, version)
        for name, scanned in found.items():
            model = self._models.setdefault(name, _Model())
            if isinstance(scanned, str):
                if model.problem != scanned:
                    log.error("config refused: %s", scanned, extra={"model": name})
                    self._metrics.load_failures.labels(name, "config").inc()
                model.problem = scanned
            else:
                model.problem = None
                await self._update(name, model, *scanned)
        self._problem = None

    async def _update(self, name: str, model: _Model, config: RepositoryModel, present: dict[str, Signature]) -> None:
        """Bring one model up to what its directory holds, newest version first."""
        wanted = 0
        for version in sorted(present, key=int, reverse=True):
            known = model.versions.get(version)
            if wanted >= config.keep_versions:
                if known:
                    self._drop(name, model, version)
                continue
            about = config.specs.get(version), config.refused.get(version)
            signature = (present[version], about, config.max_batch_size)
            if known is None or known.signature != signature:
                known = model.versions[version] = await self._replace(name, version, known, signature, config)
            wanted += known.served is not None
        for version in model.versions.keys() - present.keys():
            self._drop(name, model, version)

    async def _replace(
        self,
        name: str,
        version: str,
        known: _Version | None,
        signature: Signature,
        config: RepositoryModel,
    ) -> _Version:
        spec = config.specs.get(version)
        label = {"model": name, "version": version}
        ready = self._metrics.model_ready.labels(name, version)
        try:
            if spec is None:
                missing = f"{CONFIG_NAME} carries no spec for it; publish it with `python -m export`"
                raise LoadFailed("config", config.refused.get(version, missing))
            served = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._load, self._repository / name / version, spec, config
            )
        except LoadFailed as failure:
            self._metrics.load_failures.labels(name, failure.reason).inc()
            log.error("version refused: %s", failure, extra=label)
            # What is loaded is whole in memory: it keeps serving whatever became of its files.
            served_before = known.served if known else None
            ready.set(1 if served_before else 0)
            return _Version(signature, spec, served_before, str(failure))
        served.start()
        ready.set(1)
        log.info("version ready; golden images differ by %.2g at most", served.golden_difference, extra=label)
        if known:
            self._retire(known)
        return _Version(signature, spec, served)

    def _load(self, directory: Path, spec: ModelSpec, config: RepositoryModel) -> OnnxModel:
        try:
            return load(
                directory,
                spec,
                max_batch=config.max_batch_size,
                embedding=self._embedding,
                limits=self._limits,
                observer=_VersionObserver(self._metrics, spec.name),
            )
        except LoadFailed:
            raise
        except Exception as error:  # whatever it is, it must not keep the other models from being looked at
            log.exception("loading failed", extra={"model": spec.name, "version": spec.version})
            raise LoadFailed("internal", "loading it failed unexpectedly; the log says more") from error

    # Letting go.

    def _drop(self, name: str, model: _Model, version: str) -> None:
        self._retire(model.versions.pop(version))
        self._metrics.model_ready.remove(name, version)
        log.info("version unloaded", extra={"model": name, "version": version})

    def _retire(self, version: _Version) -> None:
        """Close a version behind the requests that still hold it."""
        if version.served:
            task = asyncio.create_task(version.served.close())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            version.served = None

    def _newest(self, model: _Model) -> OnnxModel | None:
        for version in sorted(model.versions, key=int, reverse=True):
            if served := model.versions[version].served:
                return served
        return None

    def _why_not(self, model: _Model) -> str | None:
        problems = [version.problem for version in model.versions.values() if version.problem]
        return model.problem or (problems[-1] if problems else None)


Scanned = tuple[RepositoryModel, dict[str, Signature]]
Configs = dict[Path, tuple[Signature, RepositoryModel]]

_VERSION = re.compile("[1-9][0-9]*")


def _scan(repository: Path, configs: Configs) -> dict[str, Scanned | str]:
    """Look at every model directory: its config and a signature of each version's files, or what is wrong with it.

    Args:
        repository: The directory of them all.
        configs: What was read before; kept up to date. Reading a config takes milliseconds, a stat call microseconds.
    """
    found: dict[str, Scanned | str] = {}
    for directory in sorted(repository.iterdir()):
        config_path = directory / CONFIG_NAME
        try:
            if directory.name.startswith(".") or not config_path.is_file():
                continue
            # The versions before the config: a publisher writes them in the other order, so that a version that is
            # there always has its spec.
            versions = {
                entry.name: _signature(entry.rglob("*"))
                for entry in directory.iterdir()
                if _VERSION.fullmatch(entry.name) and entry.is_dir()
            }
            signature = _signature([config_path])
            known = configs.get(config_path)
            config = known[1] if known and known[0] == signature else read_config(config_path, lenient=True)
            configs[config_path] = signature, config
        except InvalidSpec as error:
            found[directory.name] = str(error)
        except OSError as error:
            found[directory.name] = f"cannot be read: {error.strerror}"
        else:
            found[directory.name] = (config, versions)
    return found


def _signature(paths: Iterable[Path]) -> Signature:
    """Changes whenever a file is added, removed, replaced, written to or made readable."""
    stats = sorted((str(path), path.stat()) for path in paths)
    return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats)
