"""What the classifier asks of a backend, whoever runs the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.calibration import Judgement
from service.preprocess import Preprocessor
from service.spec import Contract

Outputs = Mapping[str, NDArray[np.generic]]
State = Literal["loading", "ready", "failed", "unloaded"]


@dataclass(slots=True, eq=False)
class Batch:
    """What a model gave for several images.

    Attributes:
        outputs: Per output name, `[N, …]`.
        judgement: What calibration makes of them, once somebody has asked.
    """

    outputs: Outputs
    judgement: Judgement | None = None


class Share(Mapping[str, NDArray[np.generic]]):
    """One image's outputs in a batch, without the batch dimension."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: Batch, index: int) -> None:
        self.batch = batch
        self.index = index

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return np.asarray(self.batch.outputs[name][self.index])

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.outputs)

    def __len__(self) -> int:
        return len(self.batch.outputs)


@dataclass(frozen=True, slots=True)
class Row:
    """One image's share of a batch.

    Attributes:
        outputs: Per output name, the image's row without the batch dimension.
        queue_seconds: From being enqueued to its batch being started.
        infer_seconds: The batch's own time.
        batch_size: Images in that batch.
    """

    outputs: Outputs
    queue_seconds: float
    infer_seconds: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of one model, as `/v1/models` shows it.

    Attributes:
        version: Empty if this is about the model as a whole.
        state: "ready" means loaded, its golden images replayed, and serving; "unloaded", that an operator wanted so.
        problem: Why it failed; or, of a ready version, what is wrong with its files now.
        golden_difference: Largest difference of a probability from PyTorch's in the golden replay.
        current: It answers requests that name no version.
        kind: A head is taught on a model's features.
    """

    name: str
    version: str
    state: State
    problem: str | None = None
    spec: Contract | None = None
    golden_difference: float | None = None
    current: bool = False
    kind: Literal["model", "head"] = "model"


class Ticket(Protocol):
    """A place in a queue, kept while the image is decoded."""

    async def infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row: ...

    def close(self) -> None: ...


class ServedModel(Protocol):
    """One loaded version. A request keeps the one it got, so that a swap never fails it."""

    @property
    def spec(self) -> Contract: ...

    @property
    def preprocess(self) -> Preprocessor: ...

    def admit(self, deadline: float, images: int = 1) -> Sequence[Ticket]:
        """Places for that many images.

        Raises:
            Overloaded: They could not be answered by the deadline (`time.monotonic` seconds), or a queue is full.
            BackendUnavailable: The backend is not there.
        """
        ...

    def problem(self) -> str | None:
        """Why it should not get new work, or None."""
        ...


class InferenceBackend(Protocol):
    """Runs models. Constructing one starts nothing."""

    async def start(self) -> None:
        """Load what there is and watch for changes; returns when the first pass is done."""
        ...

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """A loaded version; the pinned one, else the newest, unless one is named.

        Raises:
            UnknownModel: There is no such model or version.
            BackendUnavailable: There is, but it is not ready.
        """
        ...

    def models(self) -> Sequence[ModelStatus]:
        """Every version known, by name and then version."""
        ...

    def problems(self) -> list[str]:
        """Why the backend cannot serve; empty when it can."""
        ...

    def busy(self, answering: int) -> bool:
        """Whether more work now would delay the images that are being answered, of which the caller knows so many."""
        ...

    async def close(self) -> None:
        """Finish what was admitted and release everything."""
        ...


class ManagedBackend(InferenceBackend, Protocol):
    """A backend with what an operator asks of it.

    Attributes:
        remembers: It knows by itself, for every gateway, what has been unloaded.
    """

    remembers: bool

    def pin(self, name: str, version: str | None) -> None:
        """Have a version answer the requests that name none; None: the newest, whichever that is.

        Takes effect at once and holds whatever is published. A pinned version that does not serve is stood in for by
        the newest that does.
        """
        ...

    def pinned(self, name: str) -> str | None:
        """The version that was pinned."""
        ...

    def hold(self, names: Set[str]) -> None:
        """Have just these models out of memory, soon, and not loaded until they are held no more."""
        ...

    async def load(self, name: str) -> None:
        """Load what there is of a model; what failed before is tried again.

        Raises:
            UnknownModel: There is no such model.
            BackendUnavailable: None of its versions serves, or the backend is not there.
            BackendFailed: The backend refused.
        """
        ...

    async def unload(self, name: str) -> None:
        """Take a model out of memory until `load`; what it has admitted is still answered.

        Raises:
            UnknownModel: There is no such model.
            BackendUnavailable: The backend is not there.
            BackendFailed: The backend refused.
        """
        ...
