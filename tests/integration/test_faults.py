"""What machines do to servers: full disks, files that change under a loaded model, and clocks that jump."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from export import repository as model_repository
from export.errors import RepositoryError
from export.replay import MODEL_FILE, sha256
from tests.clients import hammering
from tests.databases import PostgreSQL
from tests.keys import bearer, command, made, problem, status
from tests.models import png, publish_tiny, tiny_model, tiny_spec
from tests.redis import Missing, Redis
from tests.rpc import Rpc
from tests.server import Server, is_right, picture

Launch = Callable[..., Server]

DISK_BYTES = 2 * 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
HOUR = 3600


class Disk:
    """A file system of its own that fills up for real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / ".ballast"

    def fill(self, left: int = 0) -> None:
        """Take all room but so many pages."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**16, PAGE):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass
            file.truncate(self._ballast.stat().st_size - left * PAGE)

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[Disk]:
    folder = Path(tempfile.mkdtemp(prefix="fovea-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a disk to fill is a tmpfs, and mounting one takes root")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


# Full disks.


def test_publishing_to_a_full_disk_changes_nothing_that_serves(disk: Disk, launch: Launch) -> None:
    """Wherever in the course of publishing the room runs out."""
    models = disk.folder / "models"
    publish_tiny(models)
    server = launch(models)
    before = sorted(models.rglob("*"))
    with hammering(server, {"1": 0, "2": 1}) as records:
        for left in range(20):
            disk.fill(left)
            try:
                publish_tiny(models, seed=1)
            except RepositoryError as error:
                assert str(error).endswith("the disk is full; free some space and publish again")  # noqa: PT017
                assert sorted(models.rglob("*")) == before
            else:
                break
            finally:
                disk.make_room()
        assert 2 < left < 19
        server.wait_until(lambda: server.models()["tiny"]["version"] == "2")
    assert [record.wrong for record in records] == [[]] * len(records)
    assert server.metrics()("model_load_failures_total") == 0


def test_teaching_on_a_full_disk_keeps_what_was_taught(disk: Disk, repository: Path, launch: Launch) -> None:
    url = f"sqlite:///{disk.folder}/fovea.db"
    server = launch(repository, database_url=url)
    number = iter(range(10**6))

    def teach(label: str, images: int) -> tuple[int, str]:
        files = [("image", png(picture(next(number)))) for _ in range(images)]
        answer = server.client.post("/v1/heads/mine/examples", params={"label": label}, files=files)
        return answer.status_code, answer.json().get("detail", "")

    def examples() -> dict[str, int]:
        found = server.client.get("/v1/heads/mine").json()["examples"]["labels"]
        return {each["label"]: each["count"] for each in found}

    assert server.client.put("/v1/heads/mine", json={"backbone": "tiny"}).status_code == 201
    assert [teach(label, 4)[0] for label in ("a", "b")] == [200, 200]
    assert server.client.post("/v1/heads/mine/fit").status_code == 200
    disk.fill()
    stored = 4
    for _ in range(200):  # the journal may have room left in its last page
        code, detail = teach("a", 4)
        if code != 200:
            break
        stored += 4
    assert code == 503
    assert "database" in detail
    assert str(disk.folder) not in detail  # where it lies is the log's business
    assert "disk is full: free some space" in server.log_text()
    assert examples() == {"a": stored, "b": 4}
    answer = server.client.put("/v1/routes/road", json={"primary": "tiny"})
    assert problem(answer) == (503, "backend_unavailable")
    assert server.client.post("/v1/heads/mine/fit").status_code == 503
    made_none = command(disk.folder, "keys", "create", "--name", "late", database_url=url)
    assert made_none.returncode == 2
    assert "free some space" in made_none.stderr
    assert len(made_none.stderr.splitlines()) == 1
    # All that is there serves on.
    assert server.ready()
    assert server.classify(picture(1), "mine").status_code == 200
    assert is_right(server.classify(picture(1)).json()["predictions"][0], picture(1))
    disk.make_room()
    assert teach("b", 4) == (200, "")
    assert examples() == {"a": stored, "b": 8}
    assert server.client.post("/v1/heads/mine/fit").status_code == 200


# Databases that go away.


def test_a_database_that_goes_away_and_comes_back(
    postgresql: PostgreSQL, repository: Path, tmp_path: Path, launch: Launch
) -> None:
    url = postgresql.database()
    assert command(tmp_path, "migrate", database_url=url).returncode == 0
    server = launch(repository, database_url=url)

    def teach(label: str, number: int) -> tuple[int, str]:
        path = f"/v1/heads/mine/examples?label={label}"
        answer = server.client.post(path, content=png(picture(number)), headers={"content-type": "image/png"})
        return answer.status_code, answer.json().get("code", "")

    assert server.client.put("/v1/heads/mine", json={"backbone": "tiny"}).status_code == 201
    assert [teach("ab"[number % 2], number)[0] for number in range(8)] == [200] * 8
    assert server.client.post("/v1/heads/mine/fit").status_code == 200
    postgresql.stop()
    try:
        server.wait_log(lambda line: line["level"] == "error" and "what has been read goes on" in line["message"])
        for number in range(5):
            assert teach("a", 100 + number) == (503, "backend_unavailable")
            assert server.classify(picture(number), "mine").status_code == 200
            assert is_right(server.classify(picture(number)).json()["predictions"][0], picture(number))
        assert server.ready()
        # It is said when it begins, and not for every call and look.
        assert sum(line["level"] == "error" for line in server.log()) <= 3
    finally:
        postgresql.start()
    server.wait_log(lambda line: "the database is back" in line["message"], 10)
    assert teach("a", 100) == (200, "")


# Files under a loaded model.


def publish_beside(models: Path, name: str = "beside") -> Path:
    """A tiny model with its weights in a file of their own; gives that file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        tiny_model(path)
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=64)
        files = {each: sha256(path.with_name(each)) for each in (MODEL_FILE, "weights")}
        spec = tiny_spec(name).model_copy(update={"files": files})
        model_repository.publish(models, spec, Path(folder))
    return models / name / "1" / "weights"


def cut_short(path: Path) -> None:
    os.truncate(path, 0)


def overwritten(path: Path) -> None:
    """In place: as many other bytes in the same file."""
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)


def replaced(path: Path) -> None:
    aside = path.with_name(".aside")
    aside.write_bytes(b"something else")
    aside.replace(path)


@pytest.mark.parametrize("damage", [cut_short, overwritten, replaced])
@pytest.mark.parametrize("which", [MODEL_FILE, "weights"])
def test_a_file_of_a_loaded_model_is_damaged(
    tmp_path: Path, launch: Launch, which: str, damage: Callable[[Path], None]
) -> None:
    """ONNX Runtime would map the file of the weights into memory."""
    models = tmp_path / "models"
    path = publish_beside(models).with_name(which)
    whole = path.read_bytes()
    server = launch(models)

    def right() -> bool:
        answer = server.classify(picture(7), "beside")
        return answer.status_code == 200 and is_right(answer.json()["predictions"][0], picture(7))

    def card() -> tuple[str, bool]:
        version = server.models()["beside"]["versions"]["1"]
        return version["state"], f"{which}: SHA-256" in (version["problem"] or "")

    maps = Path(f"/proc/{server.process.pid}/maps")
    assert not maps.exists() or str(models) not in maps.read_text()
    assert right()
    damage(path)
    server.wait_until(lambda: card() == ("ready", True))
    assert right()
    assert server.metrics()("model_load_failures_total", model="beside", reason="files") >= 1
    path.write_bytes(whole)
    server.wait_until(lambda: card() == ("ready", False))
    assert right()


def test_weights_that_the_spec_does_not_name_are_not_looked_for(tmp_path: Path, launch: Launch) -> None:
    """They would be served unchecked."""
    models = tmp_path / "models"
    publish_beside(models)
    config = models / "beside" / "config.pbtxt"
    text = config.read_text()
    unnamed = re.sub(r', ?\\"weights\\": ?\\"[0-9a-f]{64}\\"', "", text)
    assert unnamed != text
    config.write_text(unnamed)
    server = launch(models, ready=False)
    server.wait_until(lambda: '"beside"' in server.client.get("/v1/models").text)
    assert server.classify(picture(7), "beside").status_code == 503
    assert "model.onnx" in server.models()["beside"]["versions"]["1"]["problem"]


# Clocks that jump.


class Clock:
    """The wall clock of servers that are started while it is there; their monotonic clock goes on as it does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """So far from the true time."""
        aside = self._file.with_suffix(".new")
        aside.write_text(f"{seconds}\n")
        aside.replace(self._file)


# Debian's libfaketime 0.9.10 breaks `time.sleep`, which waits by the monotonic clock.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long jump(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("TEST_CLOCK"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now) *now = time.tv_sec;
    return time.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a clock that can be moved takes a C compiler")
    library = tmp_path / "clock.so"
    (tmp_path / "clock.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    moved = Clock(tmp_path / "clock")
    monkeypatch.setenv("TEST_CLOCK", str(tmp_path / "clock"))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return moved


def told(server: Server) -> float:
    """The server's wall clock, in seconds from ours."""
    date = server.client.get("/healthz", headers={"x-request-id": f"now-{time.monotonic_ns()}"})
    line = server.wait_log(lambda line: line.get("request_id") == date.request.headers["x-request-id"])
    return time.mktime(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - time.time()


@pytest.mark.parametrize("jump", [30 * 24 * HOUR, -30 * 24 * HOUR])
def test_a_clock_that_jumps_changes_no_answer(tmp_path: Path, launch: Launch, clock: Clock, jump: int) -> None:
    """By a month, while requests with deadlines are under way, over both transports."""
    models, url = tmp_path / "models", f"sqlite:///{tmp_path}/fovea.db"
    publish_tiny(models)
    server = launch(models, database_url=url)
    with Rpc(server) as calls, hammering(server, {"1": 0, "2": 1}, timeout_ms=3000) as records:
        for offset in (jump, 0, jump):
            clock.jump(offset)
            for _ in range(10):
                assert isinstance(calls.classify([png(picture(3))], timeout=5), dict)
            time.sleep(0.3)
        publish_tiny(models, seed=1)
        server.wait_until(lambda: server.models()["tiny"]["version"] == "2")
    assert abs(told(server) - jump) < 60  # it did jump
    for record in records:
        assert record.wrong == []
        assert record.slowest < 3
    assert server.classify(picture(1), timeout_ms=0.001).json()["code"] in ("overloaded", "deadline_exceeded")
    assert not [line for line in server.log() if line["level"] in ("warning", "error")]


def test_a_clock_that_jumps_gives_no_key_more_than_its_rate(
    repository: Path, tmp_path: Path, launch: Launch, clock: Clock
) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    secret = made(url, rate="3/hour")
    server = launch(repository, database_url=url)
    assert [status(server, secret) for _ in range(4)] == [200] * 3 + [429]
    for jump in (2 * HOUR, -2 * HOUR):
        clock.jump(jump)
        answer = server.client.get("/v1/models", headers=bearer(secret))
        assert problem(answer) == (429, "overloaded")
        assert HOUR - 120 < int(answer.headers["retry-after"]) <= HOUR


def test_a_clock_that_jumps_shuts_a_key_that_redis_counts_out_for_one_window(
    repository: Path, tmp_path: Path, launch: Launch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as true:
        true.delenv("LD_PRELOAD")
        try:
            redis = Redis()
        except Missing as reason:
            pytest.skip(str(reason))
    try:
        url = f"sqlite:///{tmp_path}/fovea.db"
        secret = made(url, rate="3 per 2 seconds")
        server = launch(repository, database_url=url, rate_limit_url=redis.url)
        assert [status(server, secret) for _ in range(4)] == [200] * 3 + [429]
        clock.jump(-HOUR)
        answer = server.client.get("/v1/models", headers=bearer(secret))
        assert problem(answer) == (429, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 2  # not when the clock has caught up
        server.wait_until(lambda: status(server, secret) == 200)
    finally:
        redis.remove()


def test_a_full_log_disk_fails_no_request(repository: Path, disk: Disk, tmp_path: Path) -> None:
    with Server(repository, disk.folder, database_url=f"sqlite:///{tmp_path}/fovea.db").start() as server:
        disk.fill()
        for number in range(300):
            assert is_right(server.classify(picture(number)).json()["predictions"][0], picture(number))
        disk.make_room()
        server.client.get("/healthz", headers={"x-request-id": "after"})
        server.wait_until(lambda: '"request_id":"after"' in server.log_text())
