"""API keys: what is kept of one, and how its secret is made and recognised.

A secret is `fovea_<id>_<43 characters>`: the characters are 256 random bits, so one SHA-256 of the whole is all that
has to be kept of it. Slow hashes protect what people think up; nobody guesses this.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["infer", "admin"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_NAME = 64  # characters

_PREFIX = "fovea_"
_ID_BYTES = 6
_SECRET_BYTES = 32
_ID = slice(len(_PREFIX), len(_PREFIX) + 2 * _ID_BYTES)
_LENGTH = len(_PREFIX) + 2 * _ID_BYTES + 1 + 43
_SECRET = re.compile(rf"{_PREFIX}[0-9a-f]{{{2 * _ID_BYTES}}}_[A-Za-z0-9_-]{{43}}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret.

    Attributes:
        id: Public: the log shows it.
        name: Whose it is.
        scopes: What it may do: infer asks and reads, admin changes the server, and may do what infer may.
        rate: How often it may ask, like 100/second; None: as often as it likes.
        created: ISO 8601, UTC.
        revoked: When it was; None: it is valid.
        digest: SHA-256 of the secret.
    """

    id: str
    name: str
    scopes: frozenset[str]
    rate: str | None
    created: str
    revoked: str | None = None
    digest: bytes = field(repr=False, default=b"")

    def opens(self, secret: str) -> bool:
        """Whether a secret is this key's; how long it takes to say so tells nothing."""
        return hmac.compare_digest(self.digest, _digest(secret))


def new_key(name: str, scopes: Iterable[Scope], rate: str | None = None, secret: str | None = None) -> tuple[Key, str]:
    """Make a key, and its secret, which is not kept anywhere.

    Args:
        name: Whose it is.
        scopes: What it may do.
        rate: How often it may ask.
        secret: One that was made elsewhere in the same way; unless given, a new one.

    Raises:
        ValueError: The name cannot be one, there is no scope, or the secret is none.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"a key's name has 1 to {MAX_NAME} printable characters, with no space around them")
    granted = frozenset[str](scopes)
    if not granted or not granted <= set(SCOPES):
        raise ValueError(f"a key has one or more of the scopes {', '.join(SCOPES)}")
    if secret is None:
        secret = f"{_PREFIX}{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    elif not _SECRET.fullmatch(secret):
        raise ValueError(
            f"a secret is {_PREFIX}, {2 * _ID_BYTES} hexadecimal digits, an underscore and 43 characters of base64url"
        )
    identity = secret[_ID]
    return Key(identity, name, granted, rate, now(), None, _digest(secret)), secret


def id_in(secret: str) -> str | None:
    """The id of the key whose secret this would be; None if it looks like none."""
    return secret[_ID] if len(secret) == _LENGTH and secret.startswith(_PREFIX) else None


def bearer(header: str) -> str | None:
    """The secret in `Bearer <secret>`, as HTTP's Authorization and gRPC's metadata have it; None if it is not that."""
    kind, _, secret = header.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else None


def now() -> str:
    """The time, as keys have it: ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
