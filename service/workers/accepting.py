"""How workers share connections: each leaves the next one to those that have fewer, for a moment.

All of them wait for connections at one socket, and left alone whoever is awake first takes all that come at once.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE = 0.001  # seconds that a connection is left to others
PAUSE = 0.5  # seconds, when no connection can be taken
ABSENT = 2**32 - 1  # connections of a worker that takes none


class Held:
    """How many connections each worker has, in memory that they share.

    Args:
        path: Its file, which the supervisor has made.
        slot: The worker's place in it.
    """

    def __init__(self, path: Path, slot: int) -> None:
        with path.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("I")
        self._slot = slot

    @staticmethod
    def make(path: Path, workers: int) -> None:
        path.write_bytes(ABSENT.to_bytes(4) * workers)

    def set(self, connections: int) -> None:
        self._counts[self._slot] = connections

    def ahead(self) -> bool:
        """Whether another worker has fewer."""
        return self._counts[self._slot] > min(self._counts)


class Acceptor:
    """Takes connections from a socket at which other processes wait, too; like an `asyncio.Server`.

    Args:
        listening: The socket.
        protocol: Makes a connection's protocol.
        tls: None for plain text.
        count: How many connections there are.
        held: Where the others see it.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        *,
        count: Callable[[], int],
        held: Held,
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._count = count
        self._held = held
        self._coming: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Take connections from now on."""
        self._loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        self._held.set(self._count())
        self._loop.add_reader(self._listening, self._ready)

    def close(self) -> None:
        """Take no more."""
        self._held.set(ABSENT)
        self._loop.remove_reader(self._listening)
        self._listening.close()
        if self._later is not None:
            self._later.cancel()

    async def settled(self, seconds: float) -> None:
        """Wait until what was being taken is there, or has failed."""
        if self._coming:
            await asyncio.wait(self._coming, timeout=seconds)

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def _ready(self) -> None:
        self._held.set(self._count() + len(self._coming))
        if self._held.ahead():
            self._wait(PATIENCE)
        else:
            self._take()

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._later = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        """Take what nobody else has taken."""
        self._loop.add_reader(self._listening, self._ready)
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("no connection can be taken: %s", error)
            self._wait(PAUSE)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
        self._held.set(self._count() + len(self._coming))

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except (OSError, TimeoutError) as error:  # no TLS, or gone already
            log.debug("a connection did not come about: %s", error)
            connection.close()
