"""mosec: a server in Rust, stages in Python processes, batches between them. Run: MODEL=… python -m …with_mosec"""

from __future__ import annotations

import sys
from typing import Any

import orjson
from mosec import Server, Worker

from load_tests.peers.network import MAX_BATCH, PORT, WORKERS, Network


class Classify(Worker):
    """Decodes, infers and ranks a batch in one process: moving pixels between two costs more than it saves."""

    def __init__(self) -> None:
        self._network = Network()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        logits = self._network.infer([self._network.decode(each) for each in data])
        return [self._network.ranked(each) for each in logits]

    def serialize(self, data: dict[str, Any]) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--port", str(PORT), "--log-level", "warning", "--timeout", "30000"]
    server = Server()
    server.append_worker(Classify, num=WORKERS, max_batch_size=MAX_BATCH, max_wait_time=5)
    server.run()
