"""Opening and migrating the database of taught heads, and the URLs that name it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from service.store.migrations import configuration
from service.store.schema import SCHEMA, VERSION_TABLE, metadata
from service.store.store import Store, StoreMisfit, StoreUnavailable
from tests.databases import PostgreSQL
from tests.server import ROOT
from tests.stores import raw


def test_the_migrations_make_the_tables_that_the_code_knows(store: Store, database_url: str) -> None:
    with raw(database_url) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        )
        assert compare_metadata(context, metadata) == []
    assert ScriptDirectory.from_config(configuration()).get_heads() == [SCHEMA]


def test_a_database_is_migrated_once_however_many_try(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(Store.migrate, stores))
    for store in stores:
        store.open()
        store.migrate()
        assert store.revision() == 0
        store.close()


def test_a_file_is_made_and_migrated_when_it_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/folder/heads.db"
    stores = [Store(url) for _ in range(6)]
    assert not stores[0].exists()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(Store.open, stores))
    assert stores[0].exists()
    assert [store.revision() for store in stores] == [0] * 6
    for store in stores:
        store.close()
    with sqlite3.connect(tmp_path / "new/folder/heads.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_server_is_not_migrated_by_the_way(postgresql: PostgreSQL) -> None:
    store = Store(postgresql.database())
    with pytest.raises(StoreMisfit, match="python -m service migrate"):
        store.open()
    store.migrate()
    store.open()
    store.close()


def test_a_newer_schema_is_left_alone(store: Store, database_url: str) -> None:
    with raw(database_url) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for act in (store.open, store.migrate):
        with pytest.raises(StoreMisfit, match="install the newer"):
            act()


def test_opening_needs_no_alembic(store: Store, database_url: str) -> None:
    script = (
        "import sys; from service.store.store import Store; store = Store(sys.argv[1]); store.open();"
        " print(store.revision(), 'alembic' in sys.modules, 'psycopg' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, database_url], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False", str(database_url.startswith("postgresql"))]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hunter2", "looks like"),
        ("mysql://user:hunter2@host/name", "not with mysql://"),
        ("postgresql://user:hunter2@pa@host/name", "%40"),
        ("postgresql://user:pa@hunter2:x/name", "looks like"),
        ("postgresql+asyncpg://user:hunter2@host/name", "not with postgresql+asyncpg://"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://hunter2.db", "names no file"),
    ],
)
def test_a_url_that_makes_no_sense_says_what_would(url: str, words: str) -> None:
    with pytest.raises(StoreMisfit, match=re.escape(words)) as caught:
        Store(url)
    assert "hunter2" not in repr(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("query", ["", "?connect_timeout=2", "?sslmode=hunter"])
def test_a_password_is_never_said(query: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    store = Store(f"postgresql://user:hunter2@127.0.0.1:1/name{query}")
    for act in (store.open, store.migrate, store.revision):
        with pytest.raises((StoreUnavailable, StoreMisfit)) as caught:
            act()
        error: BaseException | None = caught.value
        while error:
            assert "hunter2" not in f"{error!r} {error}"
            error = error.__cause__
        assert "\n" not in str(caught.value)
    assert "hunter2" not in caplog.text


def test_an_option_that_is_none_is_a_persons_matter() -> None:
    with pytest.raises(StoreMisfit, match="conect_timeout"):
        Store("postgresql://user@127.0.0.1:1/name?conect_timeout=2").open()


def test_postgresql_without_psycopg_names_the_remedy() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from service.store.store import Store, StoreMisfit\n"
        "try: Store('postgresql://host/name')\n"
        "except StoreMisfit as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "PostgreSQL needs psycopg: pip install 'fovea[postgresql]'\n"
