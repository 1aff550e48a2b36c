"""What a worker is told by the supervisor that starts it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from service.workers.accepting import Held

TRANSPORTS = ("http", "grpc")


@dataclass(frozen=True, slots=True)
class Member:
    """One worker's share in what its server has.

    Attributes:
        folder: The workers' own, gone when the server is: files of their metrics, and their sockets.
        slot: Its number among them.
        http: File descriptor of the socket that all of them accept from.
        grpc: That of gRPC; None if there is none.
        alive: File descriptor of a pipe that ends when the supervisor does.
    """

    folder: str
    slot: int
    http: int
    grpc: int | None
    alive: int

    def argument(self) -> str:
        """As it stands on the worker's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, argument: str) -> Member:
        return cls(**json.loads(argument))

    def path(self) -> Path:
        return Path(self.folder)

    def held(self, transport: str) -> Held:
        """How many connections each worker has."""
        return Held(self.path() / f"{transport}.connections", self.slot)
