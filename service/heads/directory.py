"""Everything that answers by name: the backend's models and the heads taught on them, as one backend."""

from __future__ import annotations

from collections.abc import Sequence

from service.backends.base import InferenceBackend, ModelStatus, ServedModel
from service.errors import BackendUnavailable, UnknownModel
from service.heads.live import LiveHeads


class Directory:
    """Satisfies `InferenceBackend`, so that routes, shadows and the classifier need not know of heads.

    A head keeps its name when a model of that name is published later; it could not be reached otherwise.

    Args:
        backend: Runs the models.
        heads: Taught on them.
    """

    def __init__(self, backend: InferenceBackend, heads: LiveHeads) -> None:
        self._backend = backend
        self._heads = heads

    async def start(self) -> None:
        await self._backend.start()

    def get(self, name: str, version: str | None = None) -> ServedModel:
        if name in self._heads:
            return self._heads.get(name, version)
        try:
            return self._backend.get(name, version)
        except UnknownModel:
            if problems := self._heads.problems():  # it may be one of them
                raise BackendUnavailable(problems[0], retry_after=1.0) from None
            raise

    def models(self) -> Sequence[ModelStatus]:
        return [*self._backend.models(), *self._heads.statuses()]

    def problems(self) -> list[str]:
        return [*self._backend.problems(), *self._heads.problems()]

    def busy(self, answering: int) -> bool:
        return self._backend.busy(answering)

    async def close(self) -> None:
        await self._backend.close()
