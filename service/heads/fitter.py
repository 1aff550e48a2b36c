"""Fits heads in a process of its own, so that classification loses nothing but a niced process's share of the cores."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import service
from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, Overloaded
from service.heads.fit import THREADS, HeadFit, TooFewClasses
from service.heads.fit_process import Message, receive, send
from service.heads.head import Parameters, Report
from service.heads.judgement import COVERAGE
from service.spec import Calibration

log = logging.getLogger(__name__)

LIMIT = 120.0  # seconds of one fit
IDLE = 300.0  # seconds after which the process is ended
WAITING = 4  # fits, beside the one that runs
LAST_WORDS = 2000  # bytes of what the process said before it ended, in the log

Floats = NDArray[np.float32]


class Fitter:
    """Fits one head at a time.

    Args:
        limit: Seconds that one fit may take.
        idle: Seconds without a fit after which the process is ended.
        waiting: Fits that may wait for another.
    """

    def __init__(self, *, limit: float = LIMIT, idle: float = IDLE, waiting: int = WAITING) -> None:
        self._limit = limit
        self._idle = idle
        self._most_waiting = waiting
        self._waiting = 0
        self._took = 1.0  # seconds, the last fit
        self._turn = asyncio.Lock()
        self._process: _Process | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._closed = False
        # All that blocks, starting a process included; only killing one is done elsewhere.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fit")

    def warm(self) -> None:
        """Have the process started, for a fit that is soon to come; it takes a second or two, in which nobody waits."""
        if not self._closed and not self._turn.locked():
            if self._process is None:
                self._thread.submit(self._ready().start)
            self._rest()

    async def fit(self, embeddings: Floats, labels: Sequence[str], *, coverage: float = COVERAGE) -> HeadFit:
        """Fit a head; arguments as `service.heads.fit.fit`. Cancelling ends the work.

        Raises:
            TooFewClasses: There are not two.
            Overloaded: Too many fits are waiting.
            DeadlineExceeded: It took too long.
            BackendFailed: The process ended, or failed.
            BackendUnavailable: The fitter is closed.
        """
        if self._waiting >= self._most_waiting:
            raise Overloaded(
                f"{self._waiting} heads are waiting to be fitted; try again later",
                retry_after=max(1.0, self._took * self._waiting),
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._fit(embeddings, labels, coverage)
        finally:
            self._turn.release()
            self._rest()

    async def close(self) -> None:
        """End the process; a fit that runs fails."""
        self._closed = True
        if self._ending:
            self._ending.cancel()
        self._end()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _fit(self, embeddings: Floats, labels: Sequence[str], coverage: float) -> HeadFit:
        process = self._ready()
        began = time.monotonic()
        answered = False
        try:
            async with asyncio.timeout(self._limit):
                fitted = await asyncio.get_running_loop().run_in_executor(
                    self._thread, process.fit, embeddings, labels, coverage
                )
            answered = True
        except TooFewClasses:
            answered = True
            raise
        except TimeoutError:
            raise DeadlineExceeded(
                f"fitting took longer than {self._limit:g} s and was ended; teach fewer examples or classes"
            ) from None
        finally:
            self._took = time.monotonic() - began
            if not answered:
                self._end()
        return fitted

    def _ready(self) -> _Process:
        """The process, which need not run yet."""
        if self._closed:
            raise BackendUnavailable("the server is shutting down")
        if self._process is None or self._process.ended():
            self._end()
            self._process = _Process()
        if self._ending:
            self._ending.cancel()
        return self._process

    def _rest(self) -> None:
        """End the process if nothing comes for a while."""
        if self._ending:
            self._ending.cancel()
        if not self._closed:
            self._ending = asyncio.get_running_loop().call_later(self._idle, self._end)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            self._thread.submit(process.reap)


class _Process:
    """The process that fits. `kill` and `ended` return at once and are for any thread; all else blocks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None  # what it writes to standard error
        self._killed = False

    def start(self) -> None:
        """Start it, unless it runs or was killed."""
        if self._process is None and not self._killed:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `reap`
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.heads.fit_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=_environment(),
                process_group=0,  # Ctrl-C is for the server, which drains; a session would undo the niceness
            )
            if self._killed:  # meanwhile
                self._process.kill()

    def fit(self, embeddings: Floats, labels: Sequence[str], coverage: float) -> HeadFit:
        """Have it fit, and wait.

        Raises:
            TooFewClasses: There are not two.
            BackendFailed: It ended, or failed.
        """
        rows = np.ascontiguousarray(embeddings, np.float32)
        header = {"shape": rows.shape, "labels": list(labels), "coverage": coverage}
        try:
            self.start()
            answer, parameters = self._ask(header, rows.data.cast("B"))
        except (EOFError, OSError):
            if not self._killed:
                log.error("the process that fits heads ended: %s", self._last_words())
            raise BackendFailed(
                "the process that fits heads ended, for want of memory perhaps: try again, or teach fewer examples"
            ) from None
        if "refused" in answer:
            raise TooFewClasses(answer["refused"])
        if "failed" in answer:
            log.error("fitting a head failed: %s", answer["failed"])
            raise BackendFailed("the head could not be fitted; the server's log says why")
        return HeadFit(
            labels=tuple(answer["labels"]),
            parameters=Parameters.from_bytes(bytes(parameters)),
            calibration=Calibration.model_validate_json(answer["calibration"]),
            report=Report.model_validate_json(answer["report"]),
        )

    def ended(self) -> bool:
        """It ran, and runs no more; for between fits, when there is nothing to be read but an end."""
        if not self._process or not self._process.stdout:
            return False
        answers = select.poll()
        answers.register(self._process.stdout)
        return bool(answers.poll(0))

    def kill(self) -> None:
        """End it; a fit that runs fails."""
        self._killed = True
        if self._process:
            self._process.kill()

    def reap(self) -> None:
        """Wait until it has ended."""
        if self._process:
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._said):
                with contextlib.suppress(OSError):  # what was not sent is lost
                    pipe.close()  # type: ignore[union-attr]

    def _ask(self, header: dict[str, Any], payload: memoryview) -> Message:
        if not self._process or not self._process.stdin or not self._process.stdout:
            raise EOFError
        send(self._process.stdin, header, payload)
        return receive(self._process.stdout)

    def _last_words(self) -> str:
        if not self._process or not self._said:
            return "it never ran"
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - LAST_WORDS))
        words = self._said.read().decode(errors="replace").strip()
        return f"exit status {self._process.wait()}; {words or 'it said nothing'}"


def _environment() -> dict[str, str]:
    """Ours, with this very `service` to be imported, and one thread of BLAS from the start."""
    paths = [str(Path(service.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
