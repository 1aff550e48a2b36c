"""The store as the event loop sees it: asked on threads, and watched, so that every worker and replica agrees.

Whoever keeps something of the store in memory reads it again whenever anything has changed there. So what is done
through one gateway is seen by all within a second. While the database is away, what has been read goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from service.errors import BackendUnavailable
from service.store.store import Store, StoreMisfit, StoreUnavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.4
THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")


class SharedStore:
    """Watches a store.

    Args:
        store: To be watched.
        poll_seconds: Between two looks.
    """

    def __init__(self, store: Store, poll_seconds: float = POLL_SECONDS) -> None:
        self.store = store
        self._poll_seconds = poll_seconds
        self._readers: list[Callable[[], Awaitable[None]]] = []
        self._revision: int | None = None
        self._trouble: str | None = None  # with the last look
        self._looking = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    def follow(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Have something read anew whenever anything has changed; it asks through `ask`. Call before `start`."""
        self._readers.append(reader)

    async def start(self) -> None:
        """Read everything and watch for changes; while the database cannot be reached, keep trying."""
        await self._look()
        self._watcher = asyncio.create_task(self._watch(), name="watch-store")

    async def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._threads, self.store.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def problem(self) -> str | None:
        """Why nothing of it is known; None once it has been read, even if it is away now."""
        if self._revision is not None:
            return None
        return "the database cannot be read; the log says why" if self._trouble else "the database is being read"

    async def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Have the store, or anything that blocks as long, do something on a thread.

        Raises:
            BackendUnavailable: The database cannot be reached, or cannot do that; the log says why.
        """
        try:
            return await self._ask(work, *args, **kwargs)
        except BackendUnavailable as error:
            if str(error.__cause__) != self._trouble:  # which the log has
                log.error("the database: %s; the call that needed it fails", error.__cause__)
            raise

    async def _ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same without a line in the log."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))
        except StoreUnavailable as error:
            message = "the database does not do its work, the server's log says why; try again later"
            raise BackendUnavailable(message, retry_after=1.0) from error

    async def refresh(self) -> None:
        """Have everybody read what has changed.

        Raises:
            BackendUnavailable: The database cannot be reached.
        """
        async with self._looking:
            revision = await self._ask(self.store.revision)
            if revision != self._revision:
                for reader in self._readers:
                    await reader()
                self._revision = revision

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._look()

    async def _look(self) -> None:
        """Refresh, and log what stands in the way of that when it begins and when it is over."""
        try:
            if self._revision is None:
                await self._ask(self.store.open)
            await self.refresh()
        except (BackendUnavailable, StoreMisfit) as error:
            self._note(str(error.__cause__ or error))
        except Exception as error:  # the watcher outlives whatever surprises it
            log.exception("the database cannot be read")
            self._note(repr(error))
        else:
            self._note(None)

    def _note(self, trouble: str | None) -> None:
        if trouble and trouble != self._trouble:
            log.error("the database: %s; what has been read goes on serving", trouble)
        if self._trouble and not trouble:
            log.info("the database is back")
        self._trouble = trouble
