"""Clients that ask without a pause and remember what they were told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.models import png
from tests.server import Server, is_right, picture


@dataclass
class Record:
    """What a client saw.

    Attributes:
        answers: Status and version, or code, of every answer in order.
        wrong: Those that were not right ones.
        slowest: Seconds that the longest one took.
    """

    answers: list[tuple[int, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextmanager
def hammering(
    server: Server, seeds: dict[str, int], clients: int = 3, timeout_ms: int | None = None
) -> Iterator[list[Record]]:
    """Clients that ask without a pause; the seed of each version's weights says what its right answers are."""
    over = threading.Event()
    records = [Record() for _ in range(clients)]
    params = {"timeout_ms": timeout_ms} if timeout_ms else {}

    def client(offset: int, record: Record) -> None:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            number = offset
            while not over.is_set():
                number += clients
                asked = time.monotonic()
                answer = http.post("/v1/models/tiny/classify", content=png(picture(number)), params=params)
                record.slowest = max(record.slowest, time.monotonic() - asked)
                body = answer.json()
                record.answers.append((answer.status_code, body.get("version", body.get("code"))))
                right = answer.status_code == 200 and is_right(
                    body["predictions"][0], picture(number), seeds[body["version"]]
                )
                if not right:
                    record.wrong.append(answer.text)
                time.sleep(0.002)

    threads = [threading.Thread(target=client, args=(index, record)) for index, record in enumerate(records)]
    for thread in threads:
        thread.start()
    try:
        yield records
    finally:
        over.set()
        for thread in threads:
            thread.join()
