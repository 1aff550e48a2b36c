"""The HTTP server: uvicorn, with our own say in when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from service.transports.http.protocol import JoiningProtocol
from service.workers import sockets
from service.workers.accepting import Acceptor, Held


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: readiness has to change before the listening socket closes, and a drain exits with 0.

    Attributes:
        held: The connections of each process that takes some from the same socket; None if it is the only one.
    """

    held: Held | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([] if self.held else sockets)
        if self.held is None:
            return
        config = self.config

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        for listening in sockets or ():
            acceptor = Acceptor(
                listening, protocol, config.ssl, count=lambda: len(self.server_state.connections), held=self.held
            )
            acceptor.start()
            self.servers.append(acceptor)  # type: ignore[arg-type] # it can all that is asked of one


class HttpServer:
    """Serves an application; nothing runs before `listen`.

    Args:
        app: Answers.
        drain_timeout: Seconds that accepted requests may take once it has been stopped.
        tls: Files of the certificate chain and of its key; None for plain text.
    """

    def __init__(self, app: ASGIApp, *, drain_timeout: float, tls: tuple[Path, Path] | None) -> None:
        self._tls = tls
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http=JoiningProtocol,
                lifespan="off",
                proxy_headers=False,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(drain_timeout) or 1,
                ssl_certfile=tls and tls[0],
                ssl_keyfile=tls and tls[1],
            )
        )
        self._socket: socket.socket

    def listen(self, host: str, port: int) -> str:
        """Take the address.

        Args:
            host: Address to listen on.
            port: 0 takes a free one.

        Returns:
            The address, as `http://host:port`.

        Raises:
            OSError: It cannot be listened on.
        """
        self._socket = sockets.for_http(host, port)
        host, port = self._socket.getsockname()[:2]
        return sockets.shown("https" if self._tls else "http", host, port)

    def adopt(self, descriptor: int, held: Held) -> None:
        """Accept from a socket that listens already, like other processes, of which each holds its share."""
        self._socket = socket.socket(fileno=descriptor)
        self._server.held = held

    async def serve(self) -> None:
        """Answer until told to stop, and then what has been accepted."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Take no new connections, and finish."""
        self._server.should_exit = True

    def abort(self) -> None:
        """Stop without finishing anything."""
        self._server.should_exit = self._server.force_exit = True
