"""One version of a model or of a taught head, as every worker runs it: whole batches, without queues and deadlines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Outputs, ServedModel
from service.backends.catalogue import LoadFailed
from service.backends.onnx_runtime import Embedding, OnnxModel, load
from service.batcher import Observer
from service.errors import BackendUnavailable
from service.heads.head import Parameters, distances
from service.heads.served import ServedHead
from service.preprocess import Limits, Preprocessor
from service.spec import Contract, ModelSpec

_FEATURES = frozenset({"features"})


@dataclass(frozen=True)
class PinnedModel:
    """One version, and all that another process needs to load the very same.

    Attributes:
        directory: Of the network's version.
        network: Its spec.
        max_batch: Images in a batch at most.
        limits: How large an image may be.
        spec: Of what answers: the network, or a head on it.
        parameters: Of the head.
    """

    directory: Path
    network: ModelSpec
    max_batch: int
    limits: Limits
    spec: Contract
    parameters: Parameters | None

    @classmethod
    def of(cls, served: ServedModel, repository: Path, limits: Limits) -> PinnedModel:
        """Pin what serves.

        Raises:
            TypeError: It does not run in this process.
        """
        backbone = served.backbone if isinstance(served, ServedHead) else served
        if not isinstance(backbone, OnnxModel):
            raise TypeError(f"{served.spec.name} is run by another backend")
        return cls(
            (repository / backbone.spec.name / backbone.spec.version).absolute(),
            backbone.spec,
            backbone.max_batch,
            limits,
            served.spec,
            served.parameters if isinstance(served, ServedHead) else None,
        )

    @property
    def digest(self) -> str:
        """SHA-256 in hex of all that decides an answer: files, image contract, labels, calibration, a head."""
        found = hashlib.sha256(self.network.digest.encode())
        found.update(self.spec.model_dump_json(exclude_defaults=True).encode())
        if self.parameters is not None:
            for field in fields(self.parameters):
                found.update(getattr(self.parameters, field.name).tobytes())
        return found.hexdigest()

    def load(self, threads: int) -> LoadedModel:
        """Load and verify it. Blocking.

        Args:
            threads: Of one inference.

        Raises:
            BackendUnavailable: It cannot be loaded, or its files are not those that were pinned.
        """
        embedding = Embedding(threads, max_queue=self.max_batch)
        try:
            network = load(
                self.directory,
                self.network,
                max_batch=self.max_batch,
                embedding=embedding,
                limits=self.limits,
                observer=Observer(),
            )
        except LoadFailed as failure:
            raise BackendUnavailable(f"{self.network.name} version {self.network.version}: {failure}") from failure
        return LoadedModel(self.spec, network, self.max_batch, self.parameters)


class LoadedModel:
    """A loaded version.

    Attributes:
        spec: Of what answers.
        preprocess: From encoded bytes to what `run` takes.
        max_batch: Images in a batch at most.
    """

    def __init__(self, spec: Contract, network: OnnxModel, max_batch: int, parameters: Parameters | None) -> None:
        self.spec = spec
        self.preprocess: Preprocessor = network.preprocess
        self.max_batch = max_batch
        self._network = network
        self._parameters = parameters

    def run(self, batch: NDArray[np.uint8], *, features: bool) -> Outputs:
        """What a prediction takes of uint8 `[N, H, W, C]`: `logits [N, K]`, maybe `distance [N, …]`.

        Args:
            batch: At most `max_batch` images.
            features: Wanted too, `[N, D]`.
        """
        if self._parameters is None:
            return self._network.run(batch, self.spec.judged_by | _FEATURES if features else self.spec.judged_by)
        found = np.asarray(self._network.run(batch, _FEATURES)["features"], np.float32)
        head = self._parameters
        return {
            "features": found,
            "logits": found @ head.weights.T + head.bias,
            "distance": distances(found, head.centres, head.offsets, head.axes, head.length),
        }
