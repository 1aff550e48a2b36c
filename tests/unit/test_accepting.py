"""Workers share connections: here two of them in one process, at copies of one socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.workers.accepting import PATIENCE, Acceptor, Held


class Worker:
    """Keeps the connections that it gets."""

    def __init__(self, listening: socket.socket, file: Path, slot: int) -> None:
        self.held = Held(file, slot)
        self.connections: set[asyncio.Protocol] = set()
        self.listening = listening.dup()
        self.acceptor = Acceptor(
            self.listening, self._protocol, None, count=lambda: len(self.connections), held=self.held
        )
        self.started = False

    def start(self) -> None:
        self.acceptor.start()
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        worker = self

        class Kept(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                worker.connections.add(self)
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)  # type: ignore[attr-defined] # of TCP

            def connection_lost(self, error: Exception | None) -> None:
                del error
                worker.connections.discard(self)

        return Kept()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[int, Worker, Worker]]:
    """A port, and two workers that have not started."""
    file = tmp_path / "connections"
    Held.make(file, 2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        workers = [Worker(listening, file, slot) for slot in range(2)]
        yield listening.getsockname()[1], *workers
        for worker in workers:
            if worker.started:
                worker.acceptor.close()
            worker.listening.close()
            for protocol in worker.connections:
                protocol.transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


async def opened(port: int, clients: list[asyncio.StreamWriter]) -> None:
    """One more connection, that has been answered on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    clients.append(writer)
    writer.write(b"x")
    assert await reader.read(1) == b"x"


async def test_all_have_the_same_share(two: tuple[int, Worker, Worker]) -> None:
    port, one, other = two
    clients: list[asyncio.StreamWriter] = []
    one.start()
    for _ in range(3):
        await opened(port, clients)
    assert (len(one.connections), len(other.connections)) == (3, 0)
    other.start()  # which comes later, and catches up
    for _ in range(3):
        await opened(port, clients)
    assert (len(one.connections), len(other.connections)) == (3, 3)
    await asyncio.gather(*(opened(port, clients) for _ in range(20)))
    assert abs(len(one.connections) - len(other.connections)) <= 2
    for client in clients[:4]:
        client.close()
    await until(lambda: len(one.connections) + len(other.connections) == 22)
    for _ in range(4):
        await opened(port, clients)
    assert abs(len(one.connections) - len(other.connections)) <= 1
    for client in clients:
        client.close()


async def test_nobody_waits_long_for_who_does_not_come(two: tuple[int, Worker, Worker]) -> None:
    port, one, other = two
    clients: list[asyncio.StreamWriter] = []
    one.start()
    other.held.set(0)  # it should take the next ones, and is busy
    started = time.monotonic()
    for _ in range(5):
        await opened(port, clients)
    assert len(one.connections) == 5
    assert time.monotonic() - started < 5 * PATIENCE + 0.5
    for client in clients:
        client.close()
