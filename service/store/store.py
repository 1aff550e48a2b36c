"""The store of taught heads: examples, versions, and small documents of the gateway, in SQLite or PostgreSQL.

Everything blocks, and several threads may call at once. Every change is one transaction: it is made as a whole or not
at all, and changes follow one another, whichever process makes them. All methods raise `StoreUnavailable`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from service.heads.head import Backbone, HeadSpec
from service.store.additions import check_room, known_images, sorted_out
from service.store.database import Change, Database
from service.store.key_table import KeyTable
from service.store.records import (
    BackboneChanged,
    Embedded,
    ExampleRow,
    HasExamples,
    HeadRow,
    NewExample,
    Stored,
    StoreMisfit,
    StoreUnavailable,
    TooMany,
    UnknownExample,
    UnknownHead,
    UnknownKey,
    UnknownVersion,
    VersionRow,
)
from service.store.rows import counts_of, document, embedded, find, head_rows, number_of, row_of, storable
from service.store.schema import clock, examples, heads, state, versions

__all__ = [
    "BackboneChanged",
    "Embedded",
    "ExampleRow",
    "HasExamples",
    "HeadRow",
    "NewExample",
    "Store",
    "StoreMisfit",
    "StoreUnavailable",
    "Stored",
    "TooMany",
    "UnknownExample",
    "UnknownHead",
    "UnknownKey",
    "UnknownVersion",
    "VersionRow",
]

Document = dict[str, Any]


class Store:
    """Heads and what they were taught.

    Args:
        url: `sqlite:///heads.db` or `postgresql://user@host/database`. A process that forks makes its own afterwards.

    Raises:
        StoreMisfit: The URL makes no sense, or psycopg is missing.

    Attributes:
        keys: The API keys.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.keys = KeyTable(self._database)

    def exists(self) -> bool:
        """Whether there is a database, or may be; none is made."""
        return self._database.exists()

    def open(self) -> None:
        """See that the database is there; an SQLite file is made and migrated as needed. May be called again.

        Raises:
            StoreMisfit: Its schema is another; `migrate` helps, or a newer Fovea.
        """
        self._database.open()

    def migrate(self) -> None:
        """Bring the database's schema up to date; several processes may do so at once.

        Raises:
            StoreMisfit: The schema is newer than this Fovea.
        """
        self._database.migrate()

    def close(self) -> None:
        """Let go of all connections."""
        self._database.close()

    def revision(self) -> int:
        """Grows with every change of anything: one cheap query."""
        with self._database.reading() as connection:
            return int(connection.execute(select(clock.c.revision)).scalar_one())

    def heads(self, known: Iterable[HeadRow] = ()) -> list[HeadRow]:
        """All heads, in the order in which they were made.

        Args:
            known: What was read before: it is given back where it is still true, and only the rest is read.
        """
        with self._database.reading() as connection:
            return head_rows(connection, known)

    def create(self, name: str, backbone: Backbone, features: int) -> tuple[HeadRow, bool]:
        """Make a head, unless there is one of that name, whatever its backbone.

        Args:
            name: Of the head.
            backbone: On which it will be taught.
            features: D of the backbone.

        Returns:
            The head, and whether it is new.
        """
        with self._database.changing() as change:
            try:
                return row_of(change.connection, find(change.connection, name)), False
            except UnknownHead:
                marks = {"id": change.revision, "revision": change.revision, "example_revision": change.revision}
                columns = marks | _columns(backbone, features)
                change.connection.execute(insert(heads).values(name=name, last_example=0, **columns))
                change.made()
                return row_of(change.connection, find(change.connection, name)), True

    def rebind(self, name: str, backbone: Backbone, features: int) -> HeadRow:
        """Put a head on another backbone; its versions stay what they are.

        Raises:
            UnknownHead: There is none of that name.
            HasExamples: They mean nothing on the other.
        """
        with self._database.changing() as change:
            head = find(change.connection, name)
            columns = _columns(backbone, features)
            if any(getattr(head, column) != value for column, value in columns.items()):
                if head.digest != backbone.digest and counts_of(change.connection, [head.id])[head.id]:
                    raise HasExamples(name)
                _touch(change, head, **columns)
            return row_of(change.connection, find(change.connection, name))

    def delete(self, name: str) -> None:
        """Forget a head with its examples and versions.

        Raises:
            UnknownHead: There is none of that name.
        """
        with self._database.changing() as change:
            change.connection.execute(delete(heads).where(heads.c.id == find(change.connection, name).id))
            change.made()

    def add(
        self, name: str, digest: str, new: Sequence[NewExample], *, max_examples: int, max_labels: int
    ) -> list[Stored]:
        """Store examples, all that are new or none. Doing it again changes nothing.

        Args:
            name: Of the head.
            digest: Of the backbone that embedded them.
            new: An image is known by its hash, also within one call.
            max_examples: That the head may have then.
            max_labels: That it may have then.

        Returns:
            What became of each.

        Raises:
            UnknownHead: There is none of that name.
            BackboneChanged: The head is on a backbone of another digest.
            TooMany: It would have too many examples or labels.
            ValueError: An embedding has another size than the backbone's features, or a label cannot be stored.
        """
        with self._database.changing() as change:
            head = find(change.connection, name)
            if head.digest != digest:
                raise BackboneChanged(name)
            stored, fresh = sorted_out(new, known_images(change.connection, head.id, new), head)
            if fresh:
                counts = counts_of(change.connection, [head.id])[head.id]
                check_room(counts, fresh, max_examples, max_labels)
                change.connection.execute(insert(examples), fresh)
                last = head.last_example + len(fresh)
                _touch(change, head, last_example=last, example_revision=change.revision)
            return stored

    def examples(
        self, name: str, *, label: str | None = None, after: str | None = None, limit: int
    ) -> list[ExampleRow]:
        """Examples without their embeddings, in the order of their ids.

        Args:
            name: Of the head.
            label: Of those that are wanted; None: of any.
            after: The id before the first that is wanted.
            limit: How many at most.

        Raises:
            UnknownHead: There is none of that name.
            UnknownExample: `after` is no id.
        """
        table = examples.c
        with self._database.reading() as connection:
            wanted = select(table.id, table.label, table.sha256, table.created)
            wanted = wanted.where(table.head == find(connection, name).id)
            if label is not None:
                wanted = wanted.where(table.label == label)
            if after is not None:
                wanted = wanted.where(table.id > number_of(after, UnknownExample))
            if not storable(label or ""):
                return []
            found = connection.execute(wanted.order_by(table.id).limit(limit))
            return [ExampleRow(str(row.id), row.label, row.sha256, row.created) for row in found]

    def embeddings(self, name: str) -> Embedded:
        """All that a head was taught, with no copy of it on the way.

        Raises:
            UnknownHead: There is none of that name.
        """
        with self._database.reading() as connection:
            return embedded(connection, find(connection, name))

    def remove(self, name: str, *, id: str | None = None, label: str | None = None) -> int:  # noqa: A002
        """Delete one example, those of a label, or, with neither, all; how many there were.

        Raises:
            UnknownHead: There is none of that name.
            UnknownExample: There is none of that id.
        """
        with self._database.changing() as change:
            head = find(change.connection, name)
            which = delete(examples).where(examples.c.head == head.id)
            if id is not None:
                which = which.where(examples.c.id == number_of(id, UnknownExample))
            if label is not None:
                which = which.where(examples.c.label == label)
            removed = change.connection.execute(which).rowcount if storable(label or "") else 0
            if id is not None and not removed:
                raise UnknownExample(id)
            if removed:
                _touch(change, head, example_revision=change.revision)
            return removed

    def put_version(self, name: str, spec: HeadSpec, parameters: bytes, example_revision: int) -> str:
        """Store a fitted head for good.

        Args:
            name: Of the head.
            spec: Whatever its version; the next number is put in.
            parameters: `Parameters.to_bytes`.
            example_revision: Of the examples that it was fitted on.

        Returns:
            Its number.

        Raises:
            UnknownHead: The head was deleted since those examples were read.
            BackboneChanged: It was put on another backbone since.
        """
        with self._database.changing() as change:
            head = find(change.connection, name)
            if example_revision < head.id:
                raise UnknownHead(name)
            if head.digest != spec.backbone.digest:
                raise BackboneChanged(name)
            newest = select(func.max(versions.c.number)).where(versions.c.head == head.id)
            number = (change.connection.execute(newest).scalar() or 0) + 1
            change.connection.execute(
                insert(versions).values(
                    head=head.id,
                    number=number,
                    example_revision=example_revision,
                    spec=spec.model_copy(update={"name": name, "version": str(number)}).model_dump_json(),
                    parameters=parameters,
                )
            )
            _touch(change, head)
            return str(number)

    def parameters(self, head: int, number: str) -> bytes:
        """What `put_version` was given.

        Args:
            head: `HeadRow.id`: another head may have got the name.
            number: Of the version.

        Raises:
            UnknownVersion: There is none, or its head was deleted.
        """
        wanted = (versions.c.head == head, versions.c.number == number_of(number, UnknownVersion))
        with self._database.reading() as connection:
            found = connection.execute(select(versions.c.parameters).where(*wanted)).scalar()
        if found is None:
            raise UnknownVersion(number)
        return bytes(found)

    def pin(self, name: str, number: str | None) -> None:
        """Have a version answer; None: the newest, from now on.

        Raises:
            UnknownHead: There is none of that name.
            UnknownVersion: It has no such version.
        """
        with self._database.changing() as change:
            head = find(change.connection, name)
            pinned = None if number is None else number_of(number, UnknownVersion)
            there = select(versions.c.number).where(versions.c.head == head.id, versions.c.number == pinned)
            if pinned is not None and change.connection.execute(there).scalar() is None:
                raise UnknownVersion(number)
            if pinned != head.pinned:
                _touch(change, head, pinned=pinned)

    def state(self, key: str) -> Document | None:
        """A document of the gateway; None if there is none."""
        with self._database.reading() as connection:
            return document(connection, key)

    def update_state(self, key: str, change_of: Callable[[Document | None], Document]) -> Document:
        """Change a document; nobody else does meanwhile.

        Args:
            key: Its name.
            change_of: From what there is to what shall be. Others wait for it. If it raises, nothing is changed.

        Returns:
            What it is now.
        """
        with self._database.changing() as change:
            before = document(change.connection, key)
            after = change_of(before)
            if after != before:
                if before is None:
                    change.connection.execute(insert(state).values(key=key, value=json.dumps(after)))
                else:
                    change.connection.execute(update(state).where(state.c.key == key).values(value=json.dumps(after)))
                change.made()
            return after


def _columns(backbone: Backbone, features: int) -> dict[str, Any]:
    return {
        "backbone": backbone.name,
        "backbone_version": backbone.version,
        "digest": backbone.digest,
        "features": features,
    }


def _touch(change: Change, head: Row[Any], **columns: Any) -> None:
    """Write a head's columns, and that it has changed."""
    values = columns | {"revision": change.revision}
    change.connection.execute(update(heads).where(heads.c.id == head.id).values(values))
    change.made()
