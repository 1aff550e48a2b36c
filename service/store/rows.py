"""What the store reads: rows of tables as records, within a transaction of the caller's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from sqlalchemy import Connection, Row, and_, func, or_, select

from service.heads.head import Backbone, HeadSpec
from service.store.records import Embedded, HeadRow, UnknownHead, VersionRow
from service.store.schema import examples, heads, state, versions

log = logging.getLogger(__name__)

STREAMED = 256  # embeddings fetched at once
PART = 100  # heads or hashes named in one query
_LARGEST = 2**63 - 1  # that the databases can look for

T = TypeVar("T")


def find(connection: Connection, name: str) -> Row[Any]:
    """A head's row.

    Raises:
        UnknownHead: There is none of that name.
    """
    found = connection.execute(select(heads).where(heads.c.name == name)).one_or_none() if storable(name) else None
    if found is None:
        raise UnknownHead(name)
    return found


def head_rows(connection: Connection, known: Iterable[HeadRow]) -> list[HeadRow]:
    """All heads by age; those that are known and still so are not read again."""
    kept = {row.id: row for row in known}
    found = connection.execute(select(heads).order_by(heads.c.id)).all()
    changed = [head for head in found if head.id not in kept or kept[head.id].revision != head.revision]
    read = {row.id: row for part in parts(changed) for row in _rows(connection, part, kept)}
    return [read.get(head.id) or kept[head.id] for head in found]


def row_of(connection: Connection, head: Row[Any]) -> HeadRow:
    """A head with its examples counted and its versions."""
    return _rows(connection, [head], {})[0]


def counts_of(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """How many examples there are by head and label, in the order of the labels."""
    table = examples.c
    counted = select(table.head, table.label, func.count()).where(table.head.in_(ids)).group_by(table.head, table.label)
    found: dict[int, dict[str, int]] = {head: {} for head in ids}
    for head, label, count in sorted(connection.execute(counted).all()):
        found[head][label] = count
    return found


def embedded(connection: Connection, head: Row[Any]) -> Embedded:
    """All examples of a head, each embedding written to its place as it comes."""
    table = examples.c
    count = sum(counts_of(connection, [head.id])[head.id].values())
    found = Embedded([], [], np.empty((count, head.features), np.float32), head.example_revision)
    labels: dict[str, str] = {}  # one object per label, not per example
    wanted = select(table.id, table.label, table.embedding).where(table.head == head.id).order_by(table.id)
    for place, row in enumerate(connection.execution_options(yield_per=STREAMED).execute(wanted)):
        found.ids.append(str(row.id))
        found.labels.append(labels.setdefault(row.label, row.label))
        found.embeddings[place] = np.frombuffer(row.embedding, "<f4")
    return found


def document(connection: Connection, key: str) -> dict[str, Any] | None:
    """One of the gateway's documents."""
    found = connection.execute(select(state.c.value).where(state.c.key == key)).scalar()
    return None if found is None else json.loads(found)


def storable(text: str) -> bool:
    """Whether both databases can hold a text; if not, they need not be asked for it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return "\0" not in text


def number_of(text: str, unknown: type[Exception]) -> int:
    """The number that an id or a version's number is.

    Raises:
        unknown: It is none.
    """
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _LARGEST:
        return int(text)
    raise unknown(text)


def parts(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """The same things, as many at once as a query can name."""
    for start in range(0, len(things), PART):
        yield things[start : start + PART]


def _rows(connection: Connection, found: Sequence[Row[Any]], kept: dict[int, HeadRow]) -> list[HeadRow]:
    counts = counts_of(connection, [head.id for head in found])
    known = {head.id: kept[head.id].versions if head.id in kept else () for head in found}
    newer = _newer_versions(connection, known)
    return [
        HeadRow(
            id=head.id,
            name=head.name,
            backbone=Backbone(name=head.backbone, version=head.backbone_version, digest=head.digest),
            features=head.features,
            pinned=None if head.pinned is None else str(head.pinned),
            revision=head.revision,
            examples=counts[head.id],
            example_revision=head.example_revision,
            versions=(*known[head.id], *newer[head.id]),
        )
        for head in found
    ]


def _newer_versions(connection: Connection, known: Mapping[int, Sequence[VersionRow]]) -> dict[int, list[VersionRow]]:
    """Versions by head: those after the known ones, as a version never changes."""
    table = versions.c
    newest = {head: int(rows[-1].number) if rows else 0 for head, rows in known.items()}
    newer = [and_(table.head == head, table.number > number) for head, number in newest.items()]
    wanted = select(table.head, table.number, table.example_revision, table.spec).where(or_(*newer))
    found: dict[int, list[VersionRow]] = {head: [] for head in known}
    for row in connection.execute(wanted.order_by(table.head, table.number)):
        try:
            spec = HeadSpec.model_validate_json(row.spec)
        except ValidationError as error:  # of a newer Fovea, say: no reason not to serve the others
            log.error("version %s of head %s cannot be read: %s", row.number, row.head, error.errors()[0]["msg"])
            continue
        found[row.head].append(VersionRow(str(row.number), spec, row.example_revision))
    return found
