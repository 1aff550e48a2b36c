"""How often each key may ask: counted in this process, or by the library `limits` in a Redis that gateways share.

A rate like 100/second holds for every window of that length: never more than 100 within any second. While Redis is
away each gateway counts for itself, so a key may ask at most as often as there are gateways times its rate.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from importlib.util import find_spec

from limits import RateLimitItem, aio, parse_many
from limits.errors import ConfigurationError, StorageError

from service.errors import RateExceeded

log = logging.getLogger(__name__)

MAX_AMOUNT = 10_000  # within one window: each leaves a timestamp
REDIS_SECONDS = 0.25  # that Redis may take
PAUSE_SECONDS = 1.0  # before it is asked again after it has failed

Pending = Callable[[], Awaitable[None]]
Shared = aio.strategies.MovingWindowRateLimiter

_SCHEMES = ("redis://", "rediss://", "redis+unix://")
_EXAMPLES = "write something like 100/second, 30/minute or 5 per 10 seconds"


class RatesUnavailable(Exception):
    """Redis cannot be used with this URL; the message says why, without the URL, which may hold a password."""


def parse_rate(text: str) -> RateLimitItem:
    """A rate as `limits` has it.

    Raises:
        ValueError: It is none that can be counted here.
    """
    try:
        rates = parse_many(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a rate; {_EXAMPLES}") from None
    if len(rates) != 1:
        raise ValueError(f"{text!r} are several rates; {_EXAMPLES}")
    if not 0 < rates[0].amount <= MAX_AMOUNT:
        raise ValueError(f"a rate is of 1 to {MAX_AMOUNT}, per day, hour, minute or second; {_EXAMPLES}")
    return rates[0]


class _Window:
    """When a key asked of late, as often as it may.

    Args:
        rate: The key's.
    """

    __slots__ = ("_asked", "_rate", "_seconds")

    def __init__(self, rate: RateLimitItem) -> None:
        self._rate = rate
        self._seconds = rate.get_expiry()
        self._asked: deque[float] = deque(maxlen=rate.amount)

    def take(self, now: float) -> None:
        """Count a request.

        Raises:
            RateExceeded: It is one too many.
        """
        asked = self._asked
        if len(asked) == self._rate.amount and (left := asked[0] + self._seconds - now) >= 0:
            raise _too_often(self._rate, left)
        asked.append(now)  # the oldest goes

    def over(self, now: float) -> bool:
        """Whether what is counted here does not count any more."""
        return not self._asked or self._asked[-1] + self._seconds < now


class Rates:
    """Counts what each key asks.

    Args:
        url: `redis://…` of a Redis that several gateways share; None: each process counts for itself.

    Raises:
        RatesUnavailable: The URL makes no sense, or the client of Redis is not installed.
    """

    def __init__(self, url: str | None = None) -> None:
        self._storage = None if url is None else _redis(url)
        self._shared: Shared | None = None
        if self._storage is not None:
            self._shared = aio.strategies.MovingWindowRateLimiter(self._storage)
        self._windows: dict[str, _Window] = {}  # by key
        self._away = False
        self._ask_again = 0.0  # on the clock of `time.monotonic`, while Redis is away

    def take(self, key: str, rate: RateLimitItem) -> Pending | None:
        """Count one request of a key.

        Returns:
            What to call and wait for, where Redis has to be asked; it may raise the same.

        Raises:
            RateExceeded: The key has asked as often as it may.
        """
        shared = self._shared
        if shared is None:
            self._take_here(key, rate)
            return None
        return lambda: self._take_there(shared, key, rate)

    async def close(self) -> None:
        if self._storage is not None:
            await self._storage.bridge.storage.aclose()  # type: ignore[attr-defined] # limits leaves it open

    def _take_here(self, key: str, rate: RateLimitItem) -> None:
        now = time.monotonic()
        window = self._windows.get(key)
        if window is None:
            # Keys come and go: with a new one those are forgotten that have not asked for long.
            self._windows = {each: kept for each, kept in self._windows.items() if not kept.over(now)}
            window = self._windows[key] = _Window(rate)
        window.take(now)

    async def _take_there(self, shared: Shared, key: str, rate: RateLimitItem) -> None:
        if self._away:
            if time.monotonic() < self._ask_again:
                self._take_here(key, rate)
                return
            self._ask_again = time.monotonic() + PAUSE_SECONDS  # others do not ask as well meanwhile
        try:
            taken = await shared.hit(rate, key)
            left = 0.0 if taken else (await shared.get_window_stats(rate, key)).reset_time - time.time()
            left = min(left, rate.get_expiry())  # whatever the clock says
        except StorageError as error:
            self._note(error)
            self._take_here(key, rate)
            return
        self._note(None)
        if not taken:
            raise _too_often(rate, left)

    def _note(self, error: StorageError | None) -> None:
        if error is not None:
            self._ask_again = time.monotonic() + PAUSE_SECONDS
            if not self._away:
                what = type(error.storage_error).__name__
                log.error("Redis does not count the keys' rates (%s); until it does, each gateway counts alone", what)
        elif self._away:
            log.info("Redis counts the keys' rates again")
        self._away = error is not None


def _too_often(rate: RateLimitItem, left: float) -> RateExceeded:
    window = f"{rate.multiples} {rate.GRANULARITY.name}s" if rate.multiples > 1 else rate.GRANULARITY.name
    return RateExceeded(f"this key may ask {rate.amount} times per {window}, and has", retry_after=max(left, 0.001))


def _redis(url: str) -> aio.storage.RedisStorage:
    if find_spec("redis") is None:
        raise RatesUnavailable("counting in Redis needs its client: pip install 'fovea[redis]'")
    try:
        if not url.startswith(_SCHEMES):
            raise ConfigurationError
        return aio.storage.RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="fovea-rates",
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
        )
    except (ConfigurationError, ValueError):
        raise RatesUnavailable(
            "a Redis's URL looks like redis://:password@host:6379/0, rediss:// for TLS, or redis+unix:///path/to/socket"
        ) from None
