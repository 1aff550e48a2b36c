"""HTTP/1.1 by hand over asyncio, for what a well-behaved client does not do, and to see every byte that comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """Read exactly one response.

        Raises:
            asyncio.IncompleteReadError: The connection ended first.
        """
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        status = int(head[0].split()[1])
        length = 0 if status == 100 else int(headers["content-length"])
        return Reply(status, headers, await self.reader.readexactly(length))

    async def silent(self, seconds: float = 0.05) -> bool:
        """Whether nothing more comes for a while (or the end)."""
        try:
            return await asyncio.wait_for(self.reader.read(1), seconds) == b""
        except TimeoutError:
            return True

    def cut(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def post(path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """The bytes of a POST request; `length` to lie about its length."""
    lines = [f"POST {path} HTTP/1.1", "host: test", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body
