"""One database behind the store: SQLite or PostgreSQL, its connections, transactions, schema and failures."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Text,
    column,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    table,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.store.records import StoreMisfit, StoreUnavailable
from service.store.schema import SCHEMA, VERSION_TABLE, clock

log = logging.getLogger(__name__)

CONNECTIONS = 8  # at most, per process
WAIT_SECONDS = 10  # for one of them, or for another process to have written

_MIGRATION_LOCK = 0x666F766561  # any number, the same for all
_SQLITE_EXAMPLES = "sqlite:///heads.db, or sqlite:////var/lib/fovea/heads.db with an absolute path"
_REMEDIES = {  # by what SQLite says
    "unable to open": "its folder must exist, and this user must be able to write to it",
    "readonly": "this user must be able to write to it and to its folder",
    "disk is full": "free some space",
    "locked": f"another process has been writing to it for {WAIT_SECONDS} s",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction that may write. One is under way at a time, over all processes.

    Attributes:
        connection: To work on.
        revision: The number of this change.
    """

    connection: Connection
    revision: int

    def made(self) -> None:
        """Tell everybody that there was a change; unless this is called, the number stays free."""
        self.connection.execute(clock.update().values(revision=self.revision))


class Database:
    """Knows how to talk to either kind of database.

    Args:
        url: `sqlite:///…` or `postgresql://…`.

    Raises:
        StoreMisfit: It is neither.
    """

    def __init__(self, url: str) -> None:
        parsed = _parsed(url)
        self._file = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
        self._engine = _engine(parsed)
        if self._file:
            self._reader, self._writer = self._engine, self._engine.execution_options(fovea_begin="BEGIN IMMEDIATE")
        else:
            # Several statements of one reader see one state.
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._writer = self._engine.execution_options(isolation_level="READ COMMITTED")

    def exists(self) -> bool:
        """Whether it is there, or may be: a server's is not asked."""
        return self._file is None or self._file.exists()

    def open(self) -> None:
        """See that the database is there and its schema right; an SQLite file is made and migrated as needed.

        Raises:
            StoreUnavailable: It is not there; to be tried again.
            StoreMisfit: Its schema is another.
        """
        self._make_folder()
        with self._translated(opening=True), self._reader.connect() as connection:
            found = _schema_of(connection)
        if found != SCHEMA and self._file and (found is None or found < SCHEMA):
            self.migrate()
        elif found != SCHEMA:
            raise StoreMisfit(_mismatch(found))

    def migrate(self) -> None:
        """Bring the schema up to date; several processes may do so at once.

        Raises:
            StoreUnavailable: The database cannot be reached.
            StoreMisfit: Its schema is newer than what is known here.
        """
        from service.store import migrations  # Alembic takes long to import, and is needed once in a long while

        self._make_folder()
        migrator = self._writer.execution_options(fovea_foreign_keys="OFF")
        with self._translated(opening=True), migrator.begin() as connection:
            if not self._file:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            found = _schema_of(connection)
            if found is not None and found > SCHEMA:
                raise StoreMisfit(_mismatch(found))
            if found != SCHEMA:
                migrations.upgrade(connection)
        if found != SCHEMA:
            log.info("the database of taught heads has schema %s now, after %s", SCHEMA, found or "none")

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of everything.

        Raises:
            StoreUnavailable: The database does not do its work.
        """
        with self._translated(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """A transaction that writes all or nothing.

        Raises:
            StoreUnavailable: The database does not do its work.
        """
        with self._translated(), self._writer.begin() as connection:
            last = connection.execute(select(clock.c.revision).with_for_update()).scalar_one()
            yield Change(connection, last + 1)

    def _make_folder(self) -> None:
        if self._file:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"{self._file.parent}: cannot be made: {error.strerror}") from error

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, DataError):
            raise  # a mistake of ours
        except DBAPIError as error:
            passing = isinstance(error, OperationalError | InterfaceError | InternalError)
            raise (StoreMisfit if opening and not passing else StoreUnavailable)(self._explained(error)) from error
        except PoolTimeout as error:
            raise StoreUnavailable(f"all {CONNECTIONS} connections have been in use for {WAIT_SECONDS} s") from error

    def _explained(self, error: DBAPIError) -> str:
        problem = " ".join(str(error.orig).split())
        if not self._file:
            return f"PostgreSQL: {problem}"
        remedies = [remedy for part, remedy in _REMEDIES.items() if part in problem]
        return ": ".join([str(self._file), problem, *remedies])


def _parsed(url: str) -> URL:
    """Raises `StoreMisfit`, without a word of the URL but its scheme: it may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreMisfit(
            "the database's URL cannot be read: it looks like sqlite:///heads.db or postgresql://user@host/database,"
            " and special characters of a password are percent-encoded (%40 for @)"
        ) from None
    match parsed.drivername:
        case "sqlite":
            if parsed.host or parsed.database in (None, "", ":memory:"):
                raise StoreMisfit(f"the database's URL names no file: write {_SQLITE_EXAMPLES}")
            return parsed
        case "postgresql" | "postgres":
            if "@" in (parsed.host or ""):
                raise StoreMisfit("the password in the database's URL has an @: write %40 instead")
            return parsed.set(drivername="postgresql+psycopg")
    raise StoreMisfit(f"the database's URL begins with sqlite:/// or postgresql://, not with {parsed.drivername}://")


def _engine(url: URL) -> Engine:
    options: dict[str, Any] = {
        "pool_size": CONNECTIONS // 2,
        "max_overflow": CONNECTIONS - CONNECTIONS // 2,
        "pool_timeout": WAIT_SECONDS,
        "hide_parameters": True,  # errors are logged, and labels are nobody's business
    }
    if url.get_backend_name() == "sqlite":
        # No isolation level: Python's module would begin transactions when it sees fit.
        engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS, "isolation_level": None}, **options)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        from service.store import postgresql
    except ImportError:
        raise StoreMisfit("PostgreSQL needs psycopg: pip install 'fovea[postgresql]'") from None
    engine = create_engine(url, pool_pre_ping=True, use_native_hstore=False, **options)
    event.listen(
        engine, "do_connect", lambda _dialect, _record, args, parameters: postgresql.connect(*args, **parameters)
    )
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    _write_ahead(connection)
    # NORMAL would leave the last commits before a power cut to chance, and an accepted example is a promise.
    connection.execute("PRAGMA synchronous=FULL")
    # Some builds overwrite all that is deleted, which takes three times as long; this does so where it costs nothing.
    connection.execute("PRAGMA secure_delete=FAST")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the journal with which readers and a writer do not wait for each other; it stays.

    While another process does the same with a new file, SQLite refuses at once instead of waiting.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(f"PRAGMA foreign_keys={options.get('fovea_foreign_keys', 'ON')}")
    # A writer takes the lock at once: one that began as a reader could find that another wrote meanwhile.
    connection.exec_driver_sql(options.get("fovea_begin", "BEGIN"))


def _schema_of(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num", Text)).select_from(table(VERSION_TABLE))).scalar()


def _mismatch(found: str | None) -> str:
    if found is not None and found > SCHEMA:
        return f"the database has schema {found}, made by a newer Fovea; this one knows {SCHEMA}: install the newer one"
    return f"the database has schema {found or 'none'}, needed is {SCHEMA}: run `python -m service migrate` once"
