"""Commands that see to the database: `migrate`, and `keys create | list | revoke`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from service.access.keys import SCOPES, Key, new_key
from service.settings import InvalidSettings, Settings, load
from service.tables import show_table

_FIELDS = ("id", "name", "scopes", "rate", "created", "revoked")


def add(commands: Any) -> None:
    """Add the commands to those of the command line."""
    migrate = commands.add_parser(
        "migrate",
        help="bring the database to the schema of this version",
        description="A database file is brought there by itself when the server starts; a database server is not.",
    )
    migrate.set_defaults(run=_migrate)

    keys = commands.add_parser(
        "keys",
        help="make, list and revoke API keys",
        description="Keys are in the database that FOVEA_DATABASE_URL names; every server on it knows them within a"
        " second. Servers take calls with a key only, once there is one.",
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make a key and print its secret, once",
        description="Standard output gets the secret and nothing else.",
    )
    create.add_argument("--name", required=True, help="whose key it is")
    create.add_argument(
        "--scope",
        dest="scopes",
        nargs="+",
        choices=SCOPES,
        default=["infer"],
        help="infer (default): ask models and read; admin: that, and change the server",
    )
    create.add_argument("--rate", metavar="RATE", help="how often it may ask, like 100/second (default: no limit)")
    create.add_argument(
        "--secret-stdin",
        action="store_true",
        help="read the secret from standard input instead of making one: fovea_, twelve hexadecimal digits, _, and 43"
        " characters of base64url; if that key is there already, nothing is done",
    )
    create.set_defaults(run=_create_key)
    listing = actions.add_parser("list", help="list all keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")
    listing.set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="have a key be valid no more")
    revoke.add_argument("id", metavar="ID", help="of the key, as `keys list` shows it")
    revoke.set_defaults(run=_revoke_key)


def make_first_key(settings: Settings) -> None:
    """Make a key of scope admin and show it, if there never was a key in the database.

    Raises:
        InvalidSettings: The database cannot be used.
    """
    with _store(settings) as store:
        store.open()
        if store.keys.all():
            return
        key, secret = new_key("first", ["admin"])
        store.keys.add(key)
    print(f"key {key.id}, the first one, of scope admin, shown this once: {secret}", file=sys.stderr, flush=True)


@contextmanager
def _store(settings: Settings | None = None) -> Iterator[Any]:
    """The database, whose problems are one line."""
    from service.store.store import Store, StoreMisfit, StoreUnavailable

    url = (settings or load(model_repository=Path())).database_url  # who sees to the database need not have the models
    try:
        store = Store(url)
        try:
            yield store
        finally:
            store.close()
    except (StoreMisfit, StoreUnavailable) as error:
        raise InvalidSettings(f"FOVEA_DATABASE_URL: {error}") from None


def _migrate(arguments: argparse.Namespace) -> int:
    del arguments
    with _store() as store:
        store.migrate()
    return 0


def _create_key(arguments: argparse.Namespace) -> int:
    from service.access.rates import parse_rate

    try:
        if arguments.rate is not None:
            parse_rate(arguments.rate)
        given = sys.stdin.readline().strip() if arguments.secret_stdin else None
        key, secret = new_key(arguments.name, arguments.scopes, arguments.rate, given)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None
    with _store() as store:
        store.open()
        known = next((one for one in store.keys.all() if one.id == key.id), None)
        if known is None:
            store.keys.add(key)
    if known is not None:
        return _known_key(known, secret)
    if given is not None:
        print(f"key {key.id} for {key.name}, as given", file=sys.stderr)
        return 0
    print(f"key {key.id} for {key.name}, shown this once:", file=sys.stderr, flush=True)
    print(secret)
    return 0


def _known_key(key: Key, secret: str) -> int:
    """Say that a key is there already, if it is this one and opens."""
    if not key.opens(secret):
        raise InvalidSettings(f"there is another key {key.id!r}; give a secret with another id")
    if key.revoked is not None:
        raise InvalidSettings(f"the key {key.id} of {key.name} was revoked at {key.revoked}; give another secret")
    print(f"key {key.id} for {key.name} is there already", file=sys.stderr)
    return 0


def _list_keys(arguments: argparse.Namespace) -> int:
    found = []
    with _store() as store:
        if store.exists():
            store.open()
            found = store.keys.all()
    if arguments.json:
        rows = [{name: getattr(key, name) for name in _FIELDS} | {"scopes": sorted(key.scopes)} for key in found]
        print(orjson.dumps(rows).decode())
    else:
        show_table(
            _FIELDS,
            [
                (key.id, key.name, " ".join(sorted(key.scopes)), key.rate or "", key.created, key.revoked or "")
                for key in found
            ],
        )
    return 0


def _revoke_key(arguments: argparse.Namespace) -> int:
    from service.store.store import UnknownKey

    with _store() as store:
        store.open()
        try:
            key = store.keys.revoke(arguments.id)
        except UnknownKey:
            raise InvalidSettings(
                f"there is no key {arguments.id!r}; `python -m service keys list` shows them"
            ) from None
    print(f"the key {key.id} of {key.name} was revoked at {key.revoked}", file=sys.stderr)
    return 0
