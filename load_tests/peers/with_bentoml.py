"""BentoML with adaptive batching. Run: MODEL=… bentoml serve load_tests.peers.with_bentoml:Gateway --port 8300"""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from load_tests.peers.network import MAX_BATCH, WORKERS, Network


@bentoml.service(workers=WORKERS, traffic={"timeout": 30})
class Model:
    """Infers in batches."""

    def __init__(self) -> None:
        self._network = Network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000)
    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack(self._network.infer(list(images)))


@bentoml.service(workers=WORKERS, traffic={"timeout": 30})
class Gateway:
    """Takes the image as the request's body."""

    model = bentoml.depends(Model)

    def __init__(self) -> None:
        self._network = Network()

    @bentoml.api(route="/")
    async def classify(self, image: Image.Image, /) -> dict[str, Any]:
        logits = await self.model.to_async.infer(self._network.prepared(image)[None])
        return self._network.ranked(logits[0])
