"""LitServe with batching. Run: MODEL=… python -m load_tests.peers.with_litserve; takes the image as multipart."""
# No `from __future__ import annotations`: LitServe looks at the annotation of decode_request itself.

from typing import Any

import litserve
import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from load_tests.peers.network import MAX_BATCH, PORT, WORKERS, Network


class Classify(litserve.LitAPI):  # type: ignore[misc]
    """Its inference process decodes, infers and ranks."""

    def setup(self, device: str) -> None:
        del device
        self._network = Network()

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        return self._network.decode(request["image"].file.read())  # type: ignore[index] # the form, in fact

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        return inputs

    def predict(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return self._network.infer(inputs)

    def unbatch(self, output: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return output

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        return self._network.ranked(output)


if __name__ == "__main__":
    api = Classify(max_batch_size=MAX_BATCH, batch_timeout=0.005, api_path="/")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True)
    server.run(port=PORT, host="127.0.0.1", log_level="warning", generate_client_file=False)
