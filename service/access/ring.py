"""The keys in memory: who may ask, and who may change the server. Every transport asks here, before it reads a body.

The keys are the store's and read again whenever anything changes there, so that one made or revoked counts on every
worker and replica within a second.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from limits import RateLimitItem

from service.access.keys import Key, id_in
from service.access.rates import Pending, Rates, parse_rate
from service.errors import BackendUnavailable, Forbidden, Unauthorized
from service.store.shared import SharedStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the server was told about those who come without a key.

    Attributes:
        loopback: Nobody but this machine reaches it.
        insecure: They are taken wherever they come from, as long as there is no valid key.
        admin: Whether calls that change the server are taken; None: with a key that may make them, or where there are
            no keys, on a loopback address.
    """

    loopback: bool
    insecure: bool
    admin: bool | None


class Caller:
    """Who asks: a valid key, and its share.

    Attributes:
        id: The key's.
        scopes: The key's.
    """

    __slots__ = ("_key", "_rate", "_rates", "_valid", "id", "scopes")

    def __init__(self, key: Key, rate: RateLimitItem | None, rates: Rates) -> None:
        self.id = key.id
        self.scopes = key.scopes
        self._key = key
        self._rate = rate
        self._rates = rates
        self._valid = True

    def opens(self, secret: str) -> bool:
        """Whether a secret is this caller's."""
        return self._key.opens(secret)

    def charge(self) -> Pending | None:
        """Count a request; see `Rates.take`.

        Raises:
            RateExceeded: The key has asked as often as it may.
            Unauthorized: It was revoked since the call began.
        """
        if not self._valid:
            raise _revoked(self.id)
        return None if self._rate is None else self._rates.take(self.id, self._rate)

    def end(self) -> None:
        """Be no caller any more: the key is revoked, and what it has begun comes to an end."""
        self._valid = False


class Ring:
    """All keys.

    Args:
        shared: The store that holds them.
        rates: Counts what they ask.
        policy: What holds where there are none.

    Attributes:
        needed: Calls need a key. They do until the keys have been read: nobody knows yet.
    """

    def __init__(self, shared: SharedStore, rates: Rates, policy: Policy) -> None:
        self.needed = True
        self._shared = shared
        self._rates = rates
        self._policy = policy
        self._read_once = False
        self._callers: dict[str, Caller] = {}  # by id
        self._revoked: dict[str, Key] = {}  # by id
        shared.follow(self._read)

    def check(self, secret: str | None) -> Caller | None:
        """Who asks; None where no key is needed.

        Args:
            secret: That came with the call.

        Raises:
            Unauthorized: It is no valid key's.
            BackendUnavailable: It is not known yet which keys there are.
        """
        if not self.needed:
            return None
        if not self._read_once:
            raise BackendUnavailable("the keys have not been read from the database yet", retry_after=1.0)
        if secret is None:
            raise Unauthorized("send a key: Authorization: Bearer fovea_…; `python -m service keys create` makes one")
        identity = id_in(secret)
        caller = self._callers.get(identity or "")
        if caller is not None and caller.opens(secret):
            return caller
        revoked = self._revoked.get(identity or "")
        if revoked is not None and revoked.opens(secret):
            raise _revoked(revoked.id)
        raise Unauthorized("this key is not known here; `python -m service keys list` shows those that are")

    def permit_change(self, caller: Caller | None) -> None:
        """Whether a call may change the server.

        Raises:
            Forbidden: It may not.
        """
        policy = self._policy
        if caller is None:
            if not (policy.loopback if policy.admin is None else policy.admin):
                raise Forbidden("this server takes no calls that change it; start it with FOVEA_ADMIN=true")
        elif policy.admin is False:
            raise Forbidden("this server takes no calls that change it, whoever makes them: FOVEA_ADMIN is false")
        elif "admin" not in caller.scopes:
            raise Forbidden("this call needs a key of scope admin: python -m service keys create --scope admin")

    async def _read(self) -> None:
        keys = await self._shared.ask(self._shared.store.keys.all)
        valid = {key.id: key for key in keys if key.revoked is None}
        for identity in self._callers.keys() - valid.keys():
            self._callers.pop(identity).end()
        for identity in valid.keys() - self._callers.keys():
            self._admit(valid[identity])
        self._revoked = {key.id: key for key in keys if key.revoked is not None}
        # Revoking the last key shuts the door, it does not take it away.
        optional = self._policy.insecure or (self._policy.loopback and not keys)
        self.needed = bool(valid) or not optional
        self._read_once = True

    def _admit(self, key: Key) -> None:
        try:
            rate = None if key.rate is None else parse_rate(key.rate)
        except ValueError as error:  # of a newer Fovea, say: no reason to let it ask without one
            log.error("the key %s cannot be used: %s", key.id, error)
            return
        self._callers[key.id] = Caller(key, rate, self._rates)


def _revoked(identity: str) -> Unauthorized:
    return Unauthorized(f"the key {identity} was revoked")
