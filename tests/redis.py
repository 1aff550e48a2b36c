"""A real Redis for the tests: in a temporary folder, on a Unix socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_SECONDS = 10


class Missing(Exception):
    """Redis cannot be run here; the message says why."""


class Redis:
    """A server of a test's own, which keeps nothing on disk.

    Raises:
        Missing: It is not installed.
    """

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Missing("Redis is not installed (Debian: apt install redis-server)")
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="fovea-redis-"))  # short: a socket's path may have 107 bytes
        self._socket = self._folder / "socket"
        self._process: subprocess.Popen[bytes]
        self.start()

    @property
    def url(self) -> str:
        return f"redis+unix://{self._socket}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        given = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([self._program, *given], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(self._socket))
                    return
            except OSError:
                assert time.monotonic() < give_up, "Redis does not start"
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as a crash would."""
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self._folder)
