"""A taught head that answers like a model, in the batches of its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Outputs, Row, ServedModel, Ticket
from service.errors import InvalidRequest
from service.heads.head import HeadSpec, Parameters
from service.preprocess import Preprocessor
from service.spec import ModelSpec
from service.tracing.trace import span

_FEATURES = frozenset({"features"})
_MAPPED = frozenset({"features", "activations"})


@dataclass(frozen=True, slots=True)
class ServedHead:
    """One version of a head, on a loaded version of its backbone. Satisfies `ServedModel`."""

    spec: HeadSpec
    parameters: Parameters
    backbone: ServedModel

    @property
    def preprocess(self) -> Preprocessor:
        return self.backbone.preprocess

    def admit(self, deadline: float, images: int = 1) -> Sequence[Ticket]:
        return [_Ticket(self, ticket) for ticket in self.backbone.admit(deadline, images)]

    def problem(self) -> str | None:
        return self.backbone.problem()

    def places(self) -> tuple[int, int]:
        """The grid of places over which the backbone's features are means of its maps.

        Raises:
            InvalidRequest: They are something else, so nothing tells where a class was seen.
        """
        spec = self.backbone.spec
        if isinstance(spec, ModelSpec) and spec.places:
            return spec.places
        raise InvalidRequest(
            f"{self.spec.name} cannot be explained: the features of {spec.name} are not means of its last maps;"
            " teach it on a backbone whose card has `places`"
        )


@dataclass(frozen=True, slots=True)
class _Ticket:
    """A place in the backbone's queue, whose row becomes the head's."""

    head: ServedHead
    ticket: Ticket

    async def infer(self, sample: NDArray[np.uint8], outputs: frozenset[str]) -> Row:
        places = self.head.places() if "cam" in outputs else None
        row = await self.ticket.infer(sample, _MAPPED if places else _FEATURES)
        spec = self.head.spec
        with span("head", {"fovea.head": spec.name, "fovea.version": spec.version}):
            return replace(row, outputs=self._outputs(row, outputs, places))

    def _outputs(self, row: Row, outputs: frozenset[str], places: tuple[int, int] | None) -> Outputs:
        features = np.asarray(row.outputs["features"], np.float32)
        found: dict[str, NDArray[np.generic]] = {"features": features}
        if "logits" in outputs:
            parameters = self.head.parameters
            found["logits"] = logits = parameters.logits(features)
            found["distance"] = np.array(parameters.distance(features), np.float32)
            if places:
                maps = parameters.maps(row.outputs["activations"], places)
                found["cam"] = maps[np.argsort(-logits, kind="stable")]
        return found

    def close(self) -> None:
        self.ticket.close()
