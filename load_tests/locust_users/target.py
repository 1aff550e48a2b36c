"""The server that is loaded, and what all users know of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from load_tests.arrivals import Pacer
from load_tests.locust_users.http_client import Http
from load_tests.locust_users.known import Album, Unusable
from load_tests.locust_users.outcomes import Journal, Wrong
from load_tests.locust_users.rpc_client import Rpc

START_SECONDS = 30.0  # that the server may take until it answers


@dataclass
class Target:
    """What a run's users share.

    Attributes:
        host: `http://…` or `https://…`.
        key: Of the server; None where there is none.
        keyed: Whether it takes calls with a key only.
        teachable: Whether it lets this key teach.
        rpc: The native gRPC service; None if it is left out.
        album: Known images of the models that are served.
        patience: Seconds after which an answer is of no use.
        random: Draws what is sent.
        journal: Where outcomes are written.
        pacer: Of an open loop; None in a closed one.
    """

    host: str
    key: str | None
    keyed: bool
    teachable: bool
    rpc: Rpc | None
    album: Album
    patience: float
    random: Random
    journal: Journal
    pacer: Pacer | None = None

    @property
    def query(self) -> str:
        """With the deadline."""
        return f"?timeout_ms={self.patience * 1000:g}"


def found(host: str, grpc: str | None, images: Path, patience: float, seed: int) -> Target:
    """Ask a server what it is, and make images for its models. The key is that of `FOVEA_KEY`.

    Args:
        host: `http://…` or `https://…`.
        grpc: Address of its gRPC, `host:port`; None is port 8081 of that host, off leaves it out.
        images: A folder of known images.
        patience: Seconds after which an answer is of no use.
        seed: Of what is sent.

    Raises:
        Unusable: It cannot be loaded.
    """
    key = os.environ.get("FOVEA_KEY") or None
    listed = _models(host, key)
    keyed = Http(host, None).ask("GET", "/v1/models").status == 401
    # Nothing is made by a request without a body: it is refused for that, or before, for what the key may not do.
    teachable = Http(host, key).ask("PUT", "/v1/heads/load").status != 403
    address = urlsplit(host)
    rpc = None if grpc == "off" else Rpc(grpc or f"{address.hostname}:8081", key, address.scheme == "https")
    return Target(host, key, keyed, teachable, rpc, Album(images, listed), patience, Random(seed), Journal(None))


def _models(host: str, key: str | None) -> list[str]:
    """Names of the models that are ready, as soon as the server answers."""
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            listed = Http(host, key).ask("GET", "/v1/models").good()["models"]
        except Wrong as error:
            if ("no answer" not in str(error) and "unavailable" not in str(error)) or time.monotonic() > give_up:
                hint = "put a valid key into FOVEA_KEY" if "unauthorized" in str(error) else "is it a Fovea server?"
                raise Unusable(f"{host} does not list its models: {error}; {hint}") from None
            time.sleep(0.5)
        else:
            return [each["name"] for each in listed if each["kind"] == "model" and each["state"] == "ready"]
