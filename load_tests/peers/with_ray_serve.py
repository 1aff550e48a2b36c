"""Ray Serve with batching. Run: MODEL=… python -m load_tests.peers.with_ray_serve"""

from __future__ import annotations

import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from load_tests.peers.network import MAX_BATCH, PORT, WORKERS, Network


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=100)
class Classify:
    """Decodes, infers and ranks in batches."""

    def __init__(self) -> None:
        self._network = Network()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        logits = self._network.infer([self._network.decode(each) for each in images])
        return [self._network.ranked(each) for each in logits]

    async def __call__(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self.classify(await request.body())
        return answer


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"port": PORT, "host": "127.0.0.1"})
    serve.run(Classify.bind())
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
