"""The taught heads as this process serves them: what the store holds, on the backbones that are loaded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from service.backends.base import InferenceBackend, ModelStatus, ServedModel, State
from service.errors import BackendUnavailable, FoveaError, UnknownModel
from service.heads.head import Backbone, Parameters
from service.heads.served import ServedHead
from service.spec import ModelSpec
from service.store.shared import SharedStore
from service.store.store import HeadRow, UnknownHead, UnknownVersion

KEPT = 3  # the newest versions of a head that can be asked for, beside the pinned one


@dataclass(slots=True)
class _Head:
    row: HeadRow
    parameters: dict[str, Parameters] = field(default_factory=dict)  # of the versions that are kept, by number

    @property
    def current(self) -> str | None:
        """The version that answers requests that name none."""
        if self.row.pinned is not None:
            return self.row.pinned
        return self.row.versions[-1].number if self.row.versions else None


class LiveHeads:
    """Heads by name, each version put on the backbone it was taught on.

    Args:
        shared: The store that holds them.
        backend: Has their backbones.
    """

    def __init__(self, shared: SharedStore, backend: InferenceBackend) -> None:
        self._shared = shared
        self._backend = backend
        self._heads: dict[str, _Head] = {}
        shared.follow(self._read)

    def rows(self) -> list[HeadRow]:
        """All heads, by name."""
        return [self._heads[name].row for name in sorted(self._heads)]

    def __contains__(self, name: str) -> bool:
        return name in self._heads

    def row(self, name: str) -> HeadRow:
        """What the store holds of a head.

        Raises:
            UnknownModel: There is no such head.
            BackendUnavailable: The heads have not been read yet.
        """
        return self._get(name).row

    def get(self, name: str, version: str | None = None) -> ServedHead:
        """A version of a head that serves; the pinned one, else the newest, unless one is named.

        Raises:
            UnknownModel: There is no such head or version.
            BackendUnavailable: There is, but it is not ready.
        """
        head = self._get(name)
        number = head.current if version is None else version
        if number is None:
            raise BackendUnavailable(f"{name} was not fitted yet: POST /v1/heads/{name}/fit once it has examples")
        parameters = head.parameters.get(number)
        found = next((known for known in head.row.versions if known.number == number), None)
        if found is None:
            known = ", ".join(each.number for each in head.row.versions) or "none"
            raise UnknownModel(f"{name} has no version {number!r}; known: {known}")
        if parameters is None:
            raise BackendUnavailable(
                f"{name} version {number} is stored but not served: PUT /v1/heads/{name}/version rolls back to it"
            )
        return ServedHead(found.spec, parameters, self.backbone(found.spec.backbone))

    def backbone(self, wanted: Backbone) -> ServedModel:
        """The loaded version of a model whose features are those that a head was taught on.

        Raises:
            BackendUnavailable: There is none.
        """
        for version in (wanted.version, None):
            try:
                served = self._backend.get(wanted.name, version)
            except (UnknownModel, BackendUnavailable):
                continue
            if isinstance(served.spec, ModelSpec) and served.spec.digest == wanted.digest:
                return served
        raise BackendUnavailable(
            f"{wanted.name} version {wanted.version}, on which it was taught, is not served with these files; publish"
            " or pin that version again, or teach anew: DELETE the head's examples, PUT the head, send the images again"
        )

    def statuses(self, *names: str) -> list[ModelStatus]:
        """Every version of some heads, or of all, by name and then version."""
        found = []
        for name in names or sorted(self._heads):
            head = self._heads[name]
            for version in head.row.versions:
                problem = self.problem(name, version.number)
                current = version.number == head.current and problem is None
                loaded = version.number in head.parameters
                state: State = "ready" if problem is None else "failed" if loaded else "unloaded"
                found.append(ModelStatus(name, version.number, state, problem, version.spec, None, current, "head"))
        return found

    def problem(self, name: str, version: str) -> str | None:
        """Why a version does not serve; None if it does."""
        try:
            return self.get(name, version).problem()
        except FoveaError as error:
            return error.message

    def problems(self) -> list[str]:
        """Why it is not known which heads there are; empty when it is."""
        problem = self._shared.problem()
        return [problem] if problem else []

    def _get(self, name: str) -> _Head:
        if name in self._heads:
            return self._heads[name]
        if problem := self._shared.problem():
            raise BackendUnavailable(problem, retry_after=1.0)
        raise UnknownModel(f"there is no head {name!r}; GET /v1/heads lists them")

    async def _read(self) -> None:
        heads: dict[str, _Head] = {}
        for row in await self._shared.ask(self._shared.store.heads, [head.row for head in self._heads.values()]):
            known = self._heads.get(row.name)
            if known is not None and known.row.id == row.id and known.row.revision == row.revision:
                heads[row.name] = known
            else:
                with contextlib.suppress(UnknownHead, UnknownVersion):  # deleted meanwhile: the next look will see
                    heads[row.name] = await self._loaded(row, known)
        self._heads = heads

    async def _loaded(self, row: HeadRow, known: _Head | None) -> _Head:
        """A head with the parameters of the versions that are kept; versions never change, so known ones stay."""
        wanted = {version.number for version in row.versions[-KEPT:]} | ({row.pinned} if row.pinned else set())
        before = known.parameters if known is not None and known.row.id == row.id else {}
        parameters: dict[str, Parameters] = {}
        for number in wanted:
            parameters[number] = before.get(number) or Parameters.from_bytes(
                await self._shared.ask(self._shared.store.parameters, row.id, number)
            )
        return _Head(row, parameters)
