"""API keys in the store: made, listed, revoked; never without the hash, never with the secret."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update

from service.access.keys import Key, now
from service.store.database import Database
from service.store.records import UnknownKey
from service.store.rows import storable
from service.store.schema import keys


class KeyTable:
    """The keys of a database. All methods raise `StoreUnavailable`.

    Args:
        database: Holds them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Key]:
        """In the order in which they were made, revoked ones too."""
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created, keys.c.id))]

    def add(self, key: Key) -> None:
        """Keep a new key."""
        with self._database.changing() as change:
            change.connection.execute(
                insert(keys).values(
                    id=key.id,
                    name=key.name,
                    scopes=" ".join(sorted(key.scopes)),
                    rate=key.rate,
                    sha256=key.digest.hex(),
                    created=key.created,
                    revoked=key.revoked,
                )
            )
            change.made()

    def revoke(self, identity: str) -> Key:
        """Have a key be valid no more; one that was revoked before stays as it is.

        Raises:
            UnknownKey: There is none of that id.
        """
        wanted = keys.c.id == identity
        with self._database.changing() as change:
            found = change.connection.execute(select(keys).where(wanted)).one_or_none() if storable(identity) else None
            if found is None:
                raise UnknownKey(identity)
            if found.revoked is None:
                change.connection.execute(update(keys).where(wanted).values(revoked=now()))
                change.made()
                found = change.connection.execute(select(keys).where(wanted)).one()
            return _key(found)


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(row.scopes.split())
    return Key(row.id, row.name, scopes, row.rate, row.created, row.revoked, bytes.fromhex(row.sha256))
