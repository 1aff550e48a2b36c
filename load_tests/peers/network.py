"""What every peer does with an image: the same network, decoding and answer; only how requests become batches differs.

Needs numpy, Pillow and ONNX Runtime, and nothing of Fovea's: each peer has an environment of its own.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

MAX_BATCH = int(os.environ.get("MAX_BATCH", "16"))
THREADS = int(os.environ.get("THREADS", "1"))  # of one inference
WORKERS = int(os.environ.get("WORKERS", "1"))
PORT = int(os.environ.get("PORT", "8300"))


class Network:
    """A published model's graph; uint8 `[N, H, W, C]` in, logits out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
        _, self._height, self._width, self._channels = self._session.get_inputs()[0].shape

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """An encoded image as the network takes it, `[H, W, C]`."""
        return self.prepared(Image.open(io.BytesIO(data)))

    def prepared(self, image: Image.Image) -> NDArray[np.uint8]:
        """An image as the network takes it, `[H, W, C]`."""
        converted = image.convert("RGB" if self._channels == 3 else "L")
        resized = converted.resize((self._width, self._height))
        return np.asarray(resized).reshape(self._height, self._width, self._channels)

    def infer(self, batch: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Logits of each image."""
        return list(self._session.run(["logits"], {"image": np.stack(batch)})[0])

    @staticmethod
    def ranked(logits: NDArray[np.float32]) -> dict[str, Any]:
        """The answer."""
        raised = np.exp(logits - logits.max())
        probabilities = raised / raised.sum()
        order = np.argsort(-probabilities)[:5]
        return {"classes": [{"index": int(index), "probability": float(probabilities[index])} for index in order]}
