"""Fitting in a process of its own: what it answers, what becomes of the process, and what happens when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, Overloaded
from service.heads.fit import TooFewClasses, fit
from service.heads.fit_process import NICENESS
from service.heads.fitter import Fitter

PATIENCE = 60.0  # seconds, on a busy machine

Examples = tuple[NDArray[np.float32], list[str]]


def examples(count: int = 60, classes: int = 3, features: int = 16) -> Examples:
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    means = random.normal(size=(classes, features))
    points = means[labels] + random.normal(size=(count, features))
    return points.astype(np.float32), [f"class {label}" for label in labels]


def hard() -> Examples:
    """Examples that take many seconds to fit."""
    random = np.random.default_rng(0)
    return random.normal(size=(10_000, 800)).astype(np.float32), [str(each) for each in random.integers(0, 80, 10_000)]


def running(parent: int | None = None) -> list[int]:
    """Processes that fit for a process; this one unless told otherwise."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and "service.heads.fit_process" in (folder / "cmdline").read_text().split("\0"):
                parent_of = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent_of) == (parent or os.getpid()) and runs(int(folder.name)):
                    found.append(int(folder.name))
    return found


def runs(process: int) -> bool:
    """Whether a process is there, and not only what is left of it."""
    folder = Path(f"/proc/{process}")
    with contextlib.suppress(OSError):
        dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not dead or len([*(folder / "task").iterdir()]) > 1
    return False


async def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)


async def busy() -> int:
    """The process, once it fits."""
    await until(lambda: running() and _processor_seconds(running()[0]) > 0.2)
    await asyncio.sleep(0.2)
    return running()[0]


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _held(process: int) -> list[str]:
    """What its file descriptors are of."""
    return [str(each.readlink()) for each in Path(f"/proc/{process}/fd").iterdir()]


@pytest_asyncio.fixture
async def fitter() -> AsyncIterator[Fitter]:
    found = Fitter(waiting=1)
    yield found
    await found.close()
    assert not running()


async def test_it_answers_as_a_fit_in_this_process_and_keeps_its_own(fitter: Fitter) -> None:
    assert not running()
    fitter.warm()
    await until(running)
    process = running()
    found, expected = await fitter.fit(*examples(), coverage=0.9), fit(*examples(), coverage=0.9)
    assert found.parameters.to_bytes() == expected.parameters.to_bytes()
    assert (found.labels, found.calibration, found.report) == (expected.labels, expected.calibration, expected.report)
    with pytest.raises(TooFewClasses, match="teach at least two"):
        await fitter.fit(examples()[0], ["one"] * 60)
    assert running() == process
    assert os.getpriority(os.PRIO_PROCESS, process[0]) == min(19, os.nice(0) + NICENESS)


async def test_its_process_has_none_of_the_servers_sockets(fitter: Fitter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        await fitter.fit(*examples())
        held = _held(*running())
    assert len(held) >= 3
    assert not [each for each in held if each.startswith("socket:")]


async def test_a_killed_process_fails_its_fit_and_the_next_one_works(
    fitter: Fitter, caplog: pytest.LogCaptureFixture
) -> None:
    fitting = asyncio.create_task(fitter.fit(*hard()))
    os.kill(await busy(), signal.SIGKILL)
    with pytest.raises(BackendFailed, match="try again"):
        await fitting
    assert "exit status -9" in caplog.text
    assert (await fitter.fit(*examples())).report.examples == 60


async def test_a_process_that_died_while_it_had_nothing_to_do_is_started_again(fitter: Fitter) -> None:
    await fitter.fit(*examples())
    (process,) = running()
    os.kill(process, signal.SIGKILL)
    await until(lambda: not runs(process))
    assert (await fitter.fit(*examples())).report.examples == 60


async def test_what_fails_in_the_process_is_logged_here_and_not_told(
    fitter: Fitter, caplog: pytest.LogCaptureFixture
) -> None:
    embeddings, labels = examples()
    embeddings[0] = np.nan
    with pytest.raises(BackendFailed) as failure:
        await fitter.fit(embeddings, labels)
    assert "no number" in caplog.text
    assert "no number" not in failure.value.message
    assert (await fitter.fit(*examples())).report.examples == 60


async def test_a_cancelled_fit_ends_its_process(fitter: Fitter) -> None:
    fitting = asyncio.create_task(fitter.fit(*hard()))
    process = await busy()
    fitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fitting
    await until(lambda: not runs(process))
    assert (await fitter.fit(*examples())).report.examples == 60


async def test_a_fit_that_takes_too_long_ends_with_its_process() -> None:
    fitter = Fitter(limit=1.0)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="fewer examples"):
        await fitter.fit(*hard())
    assert time.monotonic() - began < 10
    await until(lambda: not running())
    await fitter.close()


async def test_fits_wait_for_each_other_and_not_too_many(fitter: Fitter) -> None:
    first = asyncio.create_task(fitter.fit(*hard()))
    await busy()
    second = asyncio.create_task(fitter.fit(*examples()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await fitter.fit(*examples())
    assert refused.value.retry_after
    assert len(running()) == 1
    assert not second.done()
    first.cancel()
    assert (await second).report.examples == 60


async def test_the_server_goes_on_while_a_fit_runs(fitter: Fitter) -> None:
    embeddings, labels = hard()
    fitting = asyncio.create_task(fitter.fit(np.tile(embeddings, (1, 3)), labels))  # 96 MB to hand over
    turns = 0
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 100
    fitting.cancel()


async def test_a_process_without_work_ends_after_a_while() -> None:
    fitter = Fitter(idle=1)
    await fitter.fit(*examples())
    await until(lambda: not running())
    fitter.warm()
    await until(running)
    await until(lambda: not running())
    assert (await fitter.fit(*examples())).report.examples == 60
    await fitter.close()
    assert not running()


async def test_closing_ends_what_runs_and_takes_no_more() -> None:
    fitter = Fitter()
    fitting = asyncio.create_task(fitter.fit(*hard()))
    waiting = asyncio.create_task(fitter.fit(*examples()))
    await busy()
    await fitter.close()
    assert not running()
    with pytest.raises(BackendFailed):
        await fitting
    with pytest.raises(BackendUnavailable):
        await waiting
    with pytest.raises(BackendUnavailable):
        await fitter.fit(*examples())


ORPHANING = """
import asyncio
from service.heads.fitter import Fitter
from tests.integration.test_heads_fitter import busy, hard

async def main():
    fitting = asyncio.create_task(Fitter().fit(*hard()))
    print(await busy(), flush=True)
    await fitting

asyncio.run(main())
"""


def test_a_process_does_not_outlive_its_server() -> None:
    command = [sys.executable, "-c", ORPHANING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as server:
        assert server.stdout
        fitting = int(server.stdout.readline())
        assert running(server.pid) == [fitting]
        server.kill()
    ends = time.monotonic() + PATIENCE
    while runs(fitting):
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_server_that_may_fit_has_not_imported_scikit_learn() -> None:
    code = "import sys, service.app, service.heads.fitter; print({'sklearn', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
