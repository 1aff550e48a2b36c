"""Watches a model repository, loads what appears in it, swaps versions without failing a request.

The repository is polled: a stat call per file works on every file system, network volumes included. A version is
looked at again only when its files or its spec have changed. The newest versions that load and verify serve, as many
as the config keeps; a broken newest one is reported and never takes an older one's place.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.backends.base import ModelStatus
from service.backends.catalogue import Catalogue, LoadFailed, Model, VersionObserver
from service.backends.onnx_runtime import Embedding, OnnxModel, load
from service.errors import BackendUnavailable
from service.metrics import Metrics
from service.preprocess import Limits
from service.spec import CONFIG_NAME, InvalidSpec, ModelSpec, RepositoryModel, read_config

log = logging.getLogger(__name__)

Signature = tuple[object, ...]


class EmbeddedBackend:
    """ONNX Runtime in the gateway, over a model repository on disk. Satisfies `InferenceBackend`.

    Args:
        repository: The model repository's directory.
        metrics: Where batches, loads and readiness are counted.
        embedding: Threads and queue.
        limits: How large an image may be.
        poll_seconds: Between two looks at the repository.
    """

    remembers = False

    def __init__(
        self, repository: Path, metrics: Metrics, *, embedding: Embedding, limits: Limits, poll_seconds: float = 1.0
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._embedding = embedding
        self._limits = limits
        self._poll_seconds = poll_seconds
        self._catalogue: Catalogue[OnnxModel] = Catalogue(metrics)
        self._problem: str | None = "the models are being loaded"
        self._blind = False  # the last look failed
        self._configs: Configs = {}  # the loader thread's
        self._held: set[str] = set()  # out of memory until an operator wants them back
        self._looking = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        # Loading has a thread of its own, so that it never waits behind decoding, nor decoding behind it.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    async def start(self) -> None:
        await self._look()
        self._watcher = asyncio.create_task(self._watch(), name="watch-repository")

    def get(self, name: str, version: str | None = None) -> OnnxModel:
        return self._catalogue.get(name, version)

    def models(self) -> list[ModelStatus]:
        return self._catalogue.statuses()

    def problems(self) -> list[str]:
        return [self._problem] if self._problem else self._catalogue.problems()

    def busy(self, answering: int) -> bool:
        return answering > 0  # decoding and inference of all models share these cores

    def pin(self, name: str, version: str | None) -> None:
        self._catalogue.pin(name, version)

    def pinned(self, name: str) -> str | None:
        return self._catalogue.pinned(name)

    def hold(self, names: Set[str]) -> None:
        self._held = set(names)

    async def load(self, name: str) -> None:
        self._held.discard(name)
        async with self._looking:
            if model := self._catalogue.models.get(name):
                for version in model.versions.values():
                    if version.problem:
                        version.signature = None  # whatever it was may have passed
            try:
                await self._update_all()
            except OSError as error:
                log.exception("the model repository cannot be read")
                raise BackendUnavailable("the model repository cannot be read; the log says why") from error
        self._catalogue.get(name)

    async def unload(self, name: str) -> None:
        async with self._looking:  # a look under way would load what is dropped
            if name not in self._catalogue.models:
                self._catalogue.get(name)
            self._held.add(name)
            self._catalogue.unload(name)

    async def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._problem = "the backend is closed"
        await self._catalogue.close()
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
        async with self._looking:
            await self._update_all()

    async def _update_all(self) -> None:
        """Bring the catalogue up to the repository, but for what is held."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._loader, _scan, self._repository, self._configs)
        for name in self._catalogue.models.keys() - found.keys():
            self._catalogue.drop_model(name)
        for name, scanned in found.items():
            if name in self._held:
                known = self._catalogue.models.get(name)
                if known is None or not known.unloaded:
                    self._catalogue.unload(name)
                continue
            if isinstance(scanned, str):
                self._catalogue.refuse_config(name, scanned)
            else:
                await self._update(name, self._catalogue.models.setdefault(name, Model()), *scanned)
                self._catalogue.accept_config(name)
        self._problem = None

    async def _update(
        self, name: str, model: Model[OnnxModel], config: RepositoryModel, present: dict[str, Signature]
    ) -> None:
        """Bring one model up to what its directory holds: its newest versions, beside the pinned one."""
        wanted = 0
        for version in self._catalogue.order(name, present):
            # Read anew each time: it may be pinned while another is being loaded.
            pinned = version == self._catalogue.pinned(name)
            if wanted >= config.keep_versions and not pinned:
                if version in model.versions:
                    self._catalogue.drop(name, version)
                continue
            spec = config.specs.get(version)
            signature = (present[version], spec, config.refused.get(version), config.max_batch_size)
            known = model.versions.get(version)
            if known is None or known.signature != signature:
                found = await self._loaded(name, version, config)
                self._catalogue.put(name, version, signature, spec, found)
            wanted += model.versions[version].served is not None and not pinned
        for version in model.versions.keys() - present.keys():
            self._catalogue.drop(name, version)

    async def _loaded(self, name: str, version: str, config: RepositoryModel) -> OnnxModel | LoadFailed:
        """A version, started; or why it cannot be. What is loaded keeps serving whatever becomes of its files."""
        spec = config.specs.get(version)
        if spec is None:
            missing = f"{CONFIG_NAME} carries no spec for it; publish it with `python -m export`"
            return LoadFailed("config", config.refused.get(version, missing))
        try:
            served = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._load, self._repository / name / version, spec, config
            )
        except LoadFailed as failure:
            return failure
        served.start()
        return served

    def _load(self, directory: Path, spec: ModelSpec, config: RepositoryModel) -> OnnxModel:
        try:
            return load(
                directory,
                spec,
                max_batch=config.max_batch_size,
                embedding=self._embedding,
                limits=self._limits,
                observer=VersionObserver(self._metrics, spec.name),
            )
        except LoadFailed:
            raise
        except Exception as error:  # whatever it is, it must not keep the other models from being looked at
            log.exception("loading failed", extra={"model": spec.name, "version": spec.version})
            raise LoadFailed("internal", "loading it failed unexpectedly; the log says more") from error


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
