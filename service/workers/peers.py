"""What the workers of one server ask each other: each answers on a socket in a folder that only they can enter."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

SECONDS = 1.0  # for an answer; a worker that is busy for longer is left out
SUFFIX = ".sock"


class Peers:
    """One worker among the others.

    Args:
        folder: Theirs.
        tell: What this worker answers when another asks.
    """

    def __init__(self, folder: Path, tell: Callable[[], bytes]) -> None:
        self._folder = folder
        self._tell = tell
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._answer, self._folder / f"{os.getpid()}{SUFFIX}")

    async def ask(self) -> list[bytes]:
        """What the others answer."""
        others = [path for path in self._folder.glob(f"*{SUFFIX}") if path.stem != str(os.getpid())]
        found = await asyncio.gather(*map(_asked, others), return_exceptions=True)
        return [answer for answer in found if isinstance(answer, bytes)]

    async def close(self) -> None:
        if self._server:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with contextlib.suppress(OSError):
            writer.write(self._tell())
            await writer.drain()
            writer.close()
            await writer.wait_closed()


def pids(folder: Path) -> list[int]:
    """The workers that are there."""
    return [int(path.stem) for path in folder.glob(f"*{SUFFIX}")]


async def _asked(path: Path) -> bytes:
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return await reader.read()
        finally:
            writer.close()
