"""uvicorn's HTTP protocol with one system call a response instead of two, and no upgrades.

uvicorn hands headers and body to the socket in separate writes; each write wakes the peer. For answers of a few
hundred bytes those writes are the dearest thing in a request, so they are joined: what is written in one turn of the
event loop leaves together.

Clients may offer to go on in HTTP/2 or WebSocket (Java's HttpClient does so with every request). Who declines answers
in HTTP/1.1 as if nothing had been said, but uvicorn's parser stops before the body of such a request: the offer is
taken out before it sees it.

Nor does uvicorn bound what comes before a body: hundreds of megabytes of headers would be kept, millions of them would
stop the event loop for seconds, and a head that never ends would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; also what may stand between two pieces of a body, or behind it

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class _JoiningTransport:
    """A transport whose writes leave at the end of the loop's turn; everything else is the real transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pending:
            self._transport.write(b"".join(self._pending))
            self._pending.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class JoiningProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=…)`.

    Attributes:
        head_seconds: That a request's head may take to arrive, or a new connection to send one.
    """

    head_seconds = 30.0

    _unused = 0  # bytes that came and were neither a whole head nor part of a body
    _waiting: asyncio.TimerHandle | None = None  # for a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        self._unused = 0
        self._wait_no_longer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused = 0
        super().on_body(body)

    def shutdown(self) -> None:
        if self.transport.get_extra_info("ssl_object") and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()  # TLS would wait for the peer's goodbye, for which an idle client is not listening
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        head = data.find(b"\r\n\r\n") if self.cycle is None or self.cycle.response_complete else -1
        if head >= 0 and data.find(b"pgrade", 0, head) >= 0:
            data = _UPGRADE.sub(b"", data[:head]) + data[head:]
        self._unused += len(data)
        super().data_received(data)
        if self._unused > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers; send fewer or shorter ones.")
        elif self._unused and self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self.transport.close)

    def _wait_no_longer(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None
