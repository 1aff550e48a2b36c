"""Starts the workers of a server, starts another for each that dies, and stops them all.

The supervisor answers nothing itself. It holds what outlives a worker: the listening sockets, so that no connection is
refused or lost while one is replaced, and the folder in which the workers count, so that counts outlive them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from service.settings import Settings
from service.workers import sockets
from service.workers.accepting import ABSENT, Held
from service.workers.member import TRANSPORTS, Member
from service.workers.peers import SUFFIX

log = logging.getLogger(__name__)

USAGE = 2  # exit status of a worker whose settings make no sense: the next would end the same way
SETTLED_SECONDS = 10.0  # a worker that has lived so long was not stillborn
LONGEST_PAUSE = 30.0  # seconds between two stillborn workers
SPARE_SECONDS = 5.0  # for what a worker does after its drain


class Supervisor:
    """Runs workers; nothing runs before `run`.

    Args:
        settings: The server's.
        arguments: Of the command line: the workers get the same.
    """

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._arguments = arguments
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; gives the process's exit status.

        Raises:
            OSError: An address cannot be listened on.
        """
        settings = self._settings
        scheme = "s" if settings.tls() else ""
        with contextlib.ExitStack() as held:
            http = held.enter_context(sockets.for_http(settings.host, settings.port))
            log.info("listening on %s", sockets.shown(f"http{scheme}", settings.host, http.getsockname()[1]))
            grpc = None
            if settings.grpc_port is not None:
                grpc = held.enter_context(sockets.for_grpc(settings.host, settings.grpc_port))
                log.info("listening on %s", sockets.shown(f"grpc{scheme}", settings.host, grpc.getsockname()[1]))
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="fovea-", ignore_cleanup_errors=True)))
            alive, mine = os.pipe()
            held.callback(os.close, alive)
            held.callback(os.close, mine)
            for transport in TRANSPORTS:
                Held.make(folder / f"{transport}.connections", settings.workers)
            members = [
                Member(str(folder), slot, http.fileno(), grpc.fileno() if grpc else None, alive)
                for slot in range(settings.workers)
            ]
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._pass_on, number)
            await asyncio.gather(*map(self._keep, members))
        log.info("stopped")
        return self._status

    async def _keep(self, member: Member) -> None:
        """Have one worker at all times, until the server stops."""
        pause = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await self._start(member)
            # Between a signal and the start of a worker nothing else has told it to stop.
            if self._stopping.is_set():
                process.send_signal(signal.SIGTERM)
            status = await self._ended(process, member)
            if self._stopping.is_set():
                self._status = self._status or (1 if status else 0)
                return
            if status == USAGE:
                self._status = USAGE
                self._pass_on(signal.SIGTERM)
                return
            pause = 0.0 if time.monotonic() - started > SETTLED_SECONDS else min(pause * 2 or 0.5, LONGEST_PAUSE)
            log.error(
                "a worker ended with %s; another is started%s",
                status if status >= 0 else signal.Signals(-status).name,
                f" in {pause:g} s" if pause else "",
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _start(self, member: Member) -> asyncio.subprocess.Process:
        settings = self._settings
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": member.folder}
        if "threads" not in settings.model_fields_set:
            environment["FOVEA_THREADS"] = str(max(1, settings.threads // settings.workers))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service", *self._arguments, "--member", member.argument()),
            env=environment,
            pass_fds=[each for each in (member.http, member.grpc, member.alive) if each is not None],
            start_new_session=True,  # a Ctrl-C reaches it once: through us
        )
        self._processes[process.pid] = process
        return process

    async def _ended(self, process: asyncio.subprocess.Process, member: Member) -> int:
        """Wait until it has; gives its exit status, or the negative number of the signal that ended it."""
        status = await process.wait()
        del self._processes[process.pid]
        mark_process_dead(process.pid, member.folder)  # type: ignore[no-untyped-call]
        (member.path() / f"{process.pid}{SUFFIX}").unlink(missing_ok=True)
        for transport in TRANSPORTS:
            member.held(transport).set(ABSENT)
        return status

    def _pass_on(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            settings = self._settings
            patience = settings.drain_delay + 2 * settings.drain_timeout + SPARE_SECONDS
            asyncio.get_running_loop().call_later(patience, self._kill)
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _kill(self) -> None:
        log.error("workers did not stop in time")
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
