"""Connections to PostgreSQL that never keep a thread waiting for long."""

from __future__ import annotations

from typing import Any

import psycopg

CONNECT_SECONDS = 3
LOCK_SECONDS = 10
STATEMENT_SECONDS = 20
SILENCE_SECONDS = 25  # more than a statement may take: whoever says nothing for so long is not there

_SETTINGS = {
    "statement_timeout": STATEMENT_SECONDS,
    "lock_timeout": LOCK_SECONDS,
    "idle_in_transaction_session_timeout": SILENCE_SECONDS,  # a gateway that vanished holds no lock for longer
}
_PARAMETERS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
    "client_encoding": "utf8",
    "application_name": "fovea",
    # A prepared statement would break when a newer replica migrates the tables, and behind some connection poolers.
    "prepare_threshold": None,
}


class PatientConnection(psycopg.Connection[Any]):
    """Gives up on a server that is there but does not answer: statement timeouts are the server's own."""

    def cursor(self, name: str = "", **options: Any) -> Any:
        """A cursor; what a named one streams comes as it is, not in hexadecimal digits."""
        return super().cursor(name, **{"binary": bool(name)} | options)

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the server.

        Raises:
            psycopg.OperationalError: It did not answer; the connection is closed.
        """
        kwargs.setdefault("timeout", SILENCE_SECONDS)
        try:
            return super().wait(*args, **kwargs)
        except psycopg.errors._WaitTimeout as error:
            self.close()  # it is in the middle of a statement, of which nobody knows the end
            raise psycopg.OperationalError(f"the server did not answer for {SILENCE_SECONDS} s") from error


def connect(*args: Any, **parameters: Any) -> PatientConnection:
    """Connect; what the URL says wins over what is said here.

    Raises:
        psycopg.Error: That failed.
    """
    connection = PatientConnection.connect(*args, **_PARAMETERS | parameters)
    connection.autocommit = True
    for name, seconds in _SETTINGS.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, f"{seconds}s"))
    connection.autocommit = False
    return connection
