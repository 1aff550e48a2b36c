"""What every peer does with an image: the same network, decoding and answer; only how requests become batches differs.

Needs numpy, Pillow and ONNX Runtime, and nothing of Fovea's: each peer has an environment of its own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

MAX_BATCH = int(os.environ.get("MAX_BATCH", "16"))
THREADS = int(os.environ.get("THREADS", "1"))  # of one inference
WORKERS = int(os.environ.get("WORKERS", "1"))
PORT = int(os.environ.get("PORT", "8300"))
RESIZE_TO = int(os.environ.get("RESIZE_TO") or 0)  # the shorter side before the centre is cropped out; 0: stretched


def prepared(image: Image.Image, shape: Sequence[int], resize_to: int) -> NDArray[np.uint8]:
    """An image as a network takes it.

    Args:
        image: Of any size.
        shape: `[H, W, C]` of the network.
        resize_to: The shorter side before the centre is cropped out, as torchvision does it, but computing only what
            stays; 0: stretched.
    """
    height, width, channels = shape
    converted = image.convert("RGB" if channels == 3 else "L")
    if not resize_to:
        return np.asarray(converted.resize((width, height))).reshape(shape)
    longer = int(resize_to * max(image.size) / min(image.size))
    whole = (resize_to, longer) if image.width <= image.height else (longer, resize_to)
    left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
    x, y = image.width / whole[0], image.height / whole[1]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    return np.asarray(converted.resize((width, height), Image.Resampling.BILINEAR, box))


class Network:
    """A published model's graph; uint8 `[N, H, W, C]` in, logits out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
        self._shape = self._session.get_inputs()[0].shape[1:]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """An encoded image as the network takes it, `[H, W, C]`."""
        return self.prepared(Image.open(io.BytesIO(data)))

    def prepared(self, image: Image.Image) -> NDArray[np.uint8]:
        """An image as the network takes it, `[H, W, C]`."""
        return prepared(image, self._shape, RESIZE_TO)

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
