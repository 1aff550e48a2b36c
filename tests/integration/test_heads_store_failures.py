"""What the store of taught heads survives: crowds, kills, full disks, and databases that go away."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.store.store import Store, StoreMisfit, StoreUnavailable
from tests.databases import PostgreSQL
from tests.server import ROOT
from tests.stores import BATCH, HEAD, batch, example, head, opened, teach


class Writers:
    """Processes that teach; they begin together."""

    def __init__(self, url: str, calls: int, *prefixes: str) -> None:
        command = [sys.executable, "-m", "tests.integration.store_writer", url, str(calls)]
        self.processes = [
            subprocess.Popen(
                [*command, prefix],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for prefix in prefixes
        ]

    def __enter__(self) -> Writers:
        for process in self.processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        return self

    def acknowledged(self) -> list[list[str]]:
        """Until they end, per writer: the ids of all that it added."""
        found = []
        for process in self.processes:
            assert process.stdout
            found.append([each for line in process.stdout if line.endswith("\n") for each in json.loads(line)])
            process.wait()
        return found

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def test_processes_lose_and_double_nothing(store: Store, database_url: str) -> None:
    calls = 30
    with Writers(database_url, calls, "same", "same", "own") as writers:
        *same, own = writers.acknowledged()
        assert [process.returncode for process in writers.processes] == [0, 0, 0]
    assert len(own) == calls * BATCH
    assert sorted(same[0] + same[1] + own, key=int) == store.embeddings(HEAD).ids
    assert len(store.embeddings(HEAD).ids) == 2 * calls * BATCH


def test_what_was_acknowledged_survives_a_kill(store: Store, database_url: str) -> None:
    for number in range(3):
        with Writers(database_url, 10**6, f"{number}-") as writers:
            first = writers.processes[0].stdout.readline()
            time.sleep(0.05 * number)
            writers.processes[0].send_signal(signal.SIGKILL)
            acknowledged = json.loads(first) + writers.acknowledged()[0]
        reopened = Store(database_url)
        reopened.open()
        found = reopened.embeddings(HEAD)
        reopened.close()
        assert set(acknowledged) <= set(found.ids)
        assert len(found.ids) % BATCH == 0  # no call is there in part
        for place, label in enumerate(found.labels):
            assert str(int(found.embeddings[place, 0]) % BATCH) == label
    assert teach(store, example("after"))[0][0] == "added"  # no lock was left behind


@pytest.mark.slow
def test_a_writer_that_hangs_keeps_no_reader_waiting_and_no_writer_for_ever(store: Store) -> None:
    hold, held = threading.Event(), threading.Event()

    def hang(_: object) -> dict[str, Any]:
        held.set()
        hold.wait(60)
        return {"hung": True}

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(store.update_state, "key", hang)
        held.wait(10)
        start = time.monotonic()
        assert (store.revision(), len(store.heads())) == (1, 1)
        assert time.monotonic() - start < 2
        with pytest.raises(StoreUnavailable):
            teach(store, example("1"))
        assert time.monotonic() - start < 20
        hold.set()
        writer.result()
    assert store.state("key") == {"hung": True}


def test_a_database_that_stops_is_missed_at_once_and_found_again(postgresql: PostgreSQL) -> None:
    with opened(postgresql.database()) as store:
        teach(store, example("1"))
        postgresql.stop()
        try:
            for _ in range(2):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable, match="PostgreSQL"):
                    store.revision()
                with pytest.raises(StoreUnavailable):
                    teach(store, example("2"))
                with pytest.raises(StoreUnavailable):
                    store.open()
                assert time.monotonic() - start < 5
        finally:
            postgresql.start()
        assert teach(store, example("2")) == [("added", "2", "a")]
        postgresql.stop()
        postgresql.start()
        assert head(store).examples == {"a": 2}  # a restart between two calls is not even noticed


@pytest.mark.slow
def test_a_database_that_says_nothing_is_given_up(postgresql: PostgreSQL) -> None:
    with opened(postgresql.database()) as store:
        postgresql.signal(signal.SIGSTOP)
        start = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable):
                store.revision()
        finally:
            postgresql.signal(signal.SIGCONT)
        assert time.monotonic() - start < 40
        assert store.revision() == 1


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/heads.db") as store:
        teach(store, *batch("x", 0))
        before = (store.revision(), head(store))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(StoreUnavailable, match=r"heads\.db: disk"):
                teach(store, *(each for call in range(1, 2000) for each in batch("x", call)))
            assert (store.revision(), head(store)) == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert teach(store, *batch("x", 1))[0][0] == "added"


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Not as root, who may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(os.path.realpath("/tmp")) / f"fovea-readonly-{os.getpid()}"  # above a test's own folder all is root's
    folder.mkdir(mode=0o555)
    try:
        for name, words in (("heads.db", "must be able to write"), ("a/heads.db", "cannot be made")):
            with unprivileged(), pytest.raises(StoreUnavailable, match=words) as caught:
                Store(f"sqlite:///{folder}/{name}").open()
            assert str(folder) in str(caught.value)
    finally:
        folder.rmdir()


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "heads.db"
    path.write_bytes(b"holiday photographs" * 1000)
    with pytest.raises(StoreMisfit, match=r"heads\.db: file is not a database"):
        Store(f"sqlite:///{path}").open()
    assert path.read_bytes() == b"holiday photographs" * 1000
