"""The use case of teaching, behind every transport: labelled images in, a classifier out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.backends.base import InferenceBackend
from service.classifier import Classifier
from service.errors import (
    BackendUnavailable,
    FoveaError,
    InvalidImage,
    InvalidRequest,
    Overloaded,
    TooLarge,
    UnknownModel,
    UnsupportedFormat,
)
from service.heads.fit import TooFewClasses
from service.heads.fitter import Fitter
from service.heads.head import Backbone, HeadSpec
from service.heads.labels import label_of
from service.heads.live import LiveHeads
from service.spec import ModelSpec
from service.store.shared import SharedStore
from service.store.store import (
    BackboneChanged,
    ExampleRow,
    HeadRow,
    NewExample,
    Stored,
    TooMany,
    UnknownExample,
    UnknownHead,
)

T = TypeVar("T")
Features = NDArray[np.float32]

CHUNK = 16  # images embedded at once: enough for a batch, few enough to leave room for others
PAGE = 1000  # examples listed at once, at most

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OF_AN_IMAGE = (InvalidImage, UnsupportedFormat, TooLarge)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An encoded image and the class it shows.

    Attributes:
        data: Encoded, in any accepted format.
        label: As `label_of` makes it.
        name: Of the file, where it has one.
    """

    data: bytes
    label: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Taught:
    """What became of each image, by its place in the request.

    Attributes:
        stored: Of those that could be embedded: added, known already, or known under another label.
        errors: Of the others.
    """

    stored: dict[int, Stored]
    errors: dict[int, FoveaError]


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A taught example and how far an image's features are from its own.

    Attributes:
        distance: 1 - the cosine of the angle between the features: 0 for the same image, 2 at most.
    """

    id: str
    label: str
    distance: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be taught.

    Attributes:
        heads: In all.
        examples: Of one head.
        labels: Of one head.
    """

    heads: int
    examples: int
    labels: int


class Teaching:
    """Makes heads, gives them examples, fits them.

    Args:
        shared: The store that keeps them.
        live: Serves them.
        classifier: Embeds images.
        models: Has the backbones.
        fitter: Fits.
        limits: How much may be taught.
    """

    def __init__(
        self,
        shared: SharedStore,
        live: LiveHeads,
        classifier: Classifier,
        models: InferenceBackend,
        fitter: Fitter,
        limits: Limits,
    ) -> None:
        self._shared = shared
        self._live = live
        self._classifier = classifier
        self._models = models
        self._fitter = fitter
        self._limits = limits

    def heads(self) -> list[HeadRow]:
        """All heads, by name."""
        return self._live.rows()

    async def head(self, name: str) -> HeadRow:
        """A head as the store has it now.

        Raises:
            UnknownModel: There is none of that name.
        """
        await self._shared.refresh()
        return self._live.row(name)

    async def create(self, name: str, backbone: str) -> tuple[HeadRow, bool]:
        """Make a head, or put one without examples on another backbone.

        Args:
            name: Of the head.
            backbone: A model, or a version of it: `model:1`.

        Returns:
            The head, and whether it is new.

        Raises:
            InvalidRequest: It cannot have that name, is on another backbone, or there are too many.
            UnknownModel: There is no such backbone.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest("a head's name has letters, digits, '.', '_' and '-', at most 64")
        model, _, version = backbone.partition(":")
        served = self._models.get(model, version or None)
        spec = served.spec
        if not isinstance(spec, ModelSpec):
            raise InvalidRequest(f"{model} is no model with features of its own; a backbone is one of GET /v1/models")
        wanted = Backbone(name=spec.name, version=spec.version, digest=spec.digest)
        await self._shared.refresh()
        if name not in self._live:
            if any(status.name == name for status in self._models.models()):
                raise InvalidRequest(f"there is a model {name!r}; a head needs a name of its own")
            if len(self._live.rows()) >= self._limits.heads:
                raise InvalidRequest(f"there are {self._limits.heads} heads already; delete one first")
        row, created = await self._shared.ask(self._shared.store.create, name, wanted, spec.features)
        if row.backbone.digest != wanted.digest:
            if row.examples:
                raise InvalidRequest(
                    f"{name} has {sum(row.examples.values())} examples, embedded by {row.backbone.name} version"
                    f" {row.backbone.version}: DELETE /v1/heads/{name}/examples?all=true, PUT again, then send the"
                    " images again; versions that were fitted go on serving as long as their backbone does"
                )
            await self._shared.ask(self._shared.store.rebind, name, wanted, spec.features)
        return await self.head(name), created

    async def delete(self, name: str) -> None:
        """Forget a head with all its examples and versions.

        Raises:
            UnknownModel: There is none of that name.
        """
        await self._changed(name, self._shared.ask(self._shared.store.delete, name))

    async def teach(self, name: str, images: Sequence[Labelled], deadline: float) -> Taught:
        """Embed images and keep their features as examples: all that can be read, or none if anything else fails.

        Args:
            name: Of the head.
            images: With their labels.
            deadline: On the clock of `time.monotonic`, seconds.

        Raises:
            FoveaError: Nothing was stored. With a single image its own error is raised.
        """
        row = await self.head(name)
        self._live.backbone(row.backbone)  # before the work
        self._fitter.warm()
        embedded, errors = await self._embedded(row.backbone, [image.data for image in images], deadline)
        if len(images) == 1 and errors:
            raise errors[0]
        places = sorted(embedded)
        examples = [
            NewExample(hashlib.sha256(images[place].data).hexdigest(), images[place].label, embedded[place])
            for place in places
        ]
        stored = await self._changed(
            name,
            self._shared.ask(
                self._shared.store.add,
                name,
                row.backbone.digest,
                examples,
                max_examples=self._limits.examples,
                max_labels=self._limits.labels,
            ),
        )
        return Taught(dict(zip(places, stored, strict=True)), errors)

    async def examples(self, name: str, label: str | None, after: str | None, limit: int) -> list[ExampleRow]:
        """Examples in the order of their ids, after the one named.

        Raises:
            UnknownModel: There is no such head.
            InvalidRequest: The id or the limit makes no sense.
        """
        if not 1 <= limit <= PAGE:
            raise InvalidRequest(f"limit must be from 1 to {PAGE}")
        wanted = None if label is None else label_of(label)
        return await self._known(
            name, self._shared.ask(self._shared.store.examples, name, label=wanted, after=after, limit=limit)
        )

    async def remove(self, name: str, *, example: str | None = None, label: str | None = None) -> int:
        """Delete one example, those of a label, or all; how many there were.

        Raises:
            UnknownModel: There is no such head or example.
        """
        wanted = None if label is None else label_of(label)
        return await self._changed(name, self._shared.ask(self._shared.store.remove, name, id=example, label=wanted))

    async def fit(self, name: str) -> HeadSpec:
        """Fit a new version on the examples there are; it serves when this returns.

        Raises:
            UnknownModel: There is no such head.
            InvalidRequest: Its examples are too few, or of one class.
        """
        row = await self.head(name)
        examples = await self._known(name, self._shared.ask(self._shared.store.embeddings, name))
        if not examples.ids:
            raise _untaught(name)
        served = self._live.backbone(row.backbone)
        try:
            fitted = await self._fitter.fit(examples.embeddings, examples.labels)
        except TooFewClasses as error:
            raise InvalidRequest(f"{name}: {error}") from None
        spec = HeadSpec(
            name=name,
            version="1",  # the store numbers it
            image=served.spec.image,
            labels=fitted.labels,
            calibration=fitted.calibration,
            backbone=row.backbone,
            report=fitted.report,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        number = await self._changed(
            name,
            self._shared.ask(
                self._shared.store.put_version, name, spec, fitted.parameters.to_bytes(), examples.example_revision
            ),
        )
        return spec.model_copy(update={"version": number})

    async def choose(self, name: str, version: str | None) -> HeadRow:
        """Have a version answer the requests that name none; None: the newest.

        Raises:
            UnknownModel: There is no such head or version.
        """
        row = await self.head(name)
        if version is not None and version not in [each.number for each in row.versions]:
            known = ", ".join(each.number for each in row.versions) or "none"
            raise UnknownModel(f"{name} has no version {version!r}; known: {known}")
        await self._changed(name, self._shared.ask(self._shared.store.pin, name, version))
        return self._live.row(name)

    async def neighbors(self, name: str, image: bytes, count: int, deadline: float) -> list[Neighbor]:
        """The taught examples whose features are nearest to an image's.

        Raises:
            UnknownModel: There is no such head.
            InvalidRequest: It has no examples.
        """
        row = await self.head(name)
        embedded, errors = await self._embedded(row.backbone, [image], deadline)
        if errors:
            raise errors[0]
        examples = await self._known(name, self._shared.ask(self._shared.store.embeddings, name))
        if not len(examples.ids):
            raise _untaught(name)

        def nearest() -> list[Neighbor]:
            features = embedded[0]
            lengths = np.linalg.norm(examples.embeddings, axis=1) * np.linalg.norm(features)
            distances = 1 - examples.embeddings @ features / np.maximum(lengths, 1e-12)
            order = np.argsort(distances, kind="stable")[:count]
            return [
                Neighbor(examples.ids[place], examples.labels[place], round(max(0.0, float(distances[place])), 6))
                for place in order
            ]

        return await self._shared.ask(nearest)

    async def _embedded(
        self, backbone: Backbone, images: Sequence[bytes], deadline: float
    ) -> tuple[dict[int, Features], dict[int, FoveaError]]:
        """Features and errors by place; in small parts, that wait when the backbone is busy."""
        embedded: dict[int, Features] = {}
        errors: dict[int, FoveaError] = {}
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            for place, result in enumerate(await self._features(backbone, chunk, deadline), start):
                if isinstance(result, FoveaError):
                    errors[place] = result
                else:
                    embedded[place] = result
        return embedded, errors

    async def _features(
        self, backbone: Backbone, images: Sequence[bytes], deadline: float
    ) -> list[Features | FoveaError]:
        version = self._live.backbone(backbone).spec.version
        while True:
            try:
                answer = await self._classifier.embed(images, model=backbone.name, version=version, deadline=deadline)
            except _OF_AN_IMAGE as error:
                return [error]  # of the only one
            except Overloaded:
                if time.monotonic() + 0.2 > deadline:
                    raise
                await asyncio.sleep(0.1)
                continue
            for result in answer.results:
                if isinstance(result, FoveaError) and not isinstance(result, _OF_AN_IMAGE):
                    raise result
            return [result if isinstance(result, FoveaError) else result.features for result in answer.results]

    async def _known(self, name: str, work: Awaitable[T]) -> T:
        """What the store answers, its refusals in the client's words."""
        try:
            return await work
        except UnknownHead:
            raise UnknownModel(f"there is no head {name!r}; GET /v1/heads lists them") from None
        except UnknownExample as error:
            raise UnknownModel(f"{name} has no such example: {error}") from None
        except BackboneChanged:
            raise InvalidRequest(f"{name} was put on another backbone meanwhile: send the images again") from None
        except TooMany as error:
            raise TooLarge(f"{name}: {error}") from None

    async def _changed(self, name: str, work: Awaitable[T]) -> T:
        """The same for a change, which this process serves at once."""
        result = await self._known(name, work)
        with contextlib.suppress(BackendUnavailable):  # it was made all the same; the watcher will see it
            await self._shared.refresh()
        return result


def _untaught(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has no examples: POST some to /v1/heads/{name}/examples?label=…")
