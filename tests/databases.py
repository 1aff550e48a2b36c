"""A real PostgreSQL for the tests: in a temporary folder, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

START_SECONDS = 30


class Missing(Exception):
    """PostgreSQL cannot be run here; the message says why."""


class PostgreSQL:
    """A server of the tests' own. Nothing it writes survives a power cut, for speed; all of it survives a restart.

    Raises:
        Missing: It is not installed, or does not start.
    """

    def __init__(self) -> None:
        self._programs = _programs()
        self._user = _user()
        self.folder = Path(tempfile.mkdtemp(prefix="fovea-pg-"))  # short: a socket's path may have 107 bytes
        self._data = self.folder / "data"
        self._schemas = 0
        try:
            if self._user is not None:
                os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            self._run("initdb", "-D", self._data, "-U", "fovea", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            settings = f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\nfsync = off\n"
            with (self._data / "postgresql.conf").open("a") as file:
                file.write(settings)
            self.start()
        except BaseException:
            self.remove()
            raise

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._run("pg_ctl", "start", "-w", "-t", START_SECONDS, "-D", self._data, "-l", self.folder / "log")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        main = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for process in (main, *map(int, children)):
            os.kill(process, number)

    def database(self) -> str:
        """The URL of a place with no tables: a schema, which takes less time to make than a database."""
        self._schemas += 1
        name = f"test{self._schemas}"
        with psycopg.connect(host=str(self.folder), user="fovea", dbname="postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        return f"postgresql://fovea@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def remove(self) -> None:
        """Stop it for good."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: object) -> None:
        command: Sequence[str] = [str(self._programs / program), *map(str, arguments)]
        owner = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid}
        log = self.folder / "commands"
        with log.open("ab") as output:
            done = subprocess.run(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60, **owner
            )
        if done.returncode:
            raise Missing(f"{program} fails: {log.read_text()[-500:]}")


def _programs() -> Path:
    """The folder of the newest PostgreSQL's programs; Debian keeps them out of the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not folders:
        raise Missing("PostgreSQL is not installed (Debian: apt install postgresql)")
    return folders[-1].parent


def _user() -> pwd.struct_passwd | None:
    """Whom to run it as; None: whoever runs the tests. It refuses to run as root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Missing("PostgreSQL does not run as root, and there is no user postgres or nobody")
