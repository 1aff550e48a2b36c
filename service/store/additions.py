"""New examples of a head: which of them are new, and whether there is room for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, select

from service.store.records import NewExample, Outcome, Stored, TooMany
from service.store.rows import parts, storable
from service.store.schema import examples


def known_images(connection: Connection, head: int, new: Sequence[NewExample]) -> dict[str, Stored]:
    """By hash, what the head has of these images already."""
    table = examples.c
    found = {}
    for part in parts([example.sha256 for example in new]):
        wanted = select(table.id, table.label, table.sha256).where(table.head == head, table.sha256.in_(part))
        for row in connection.execute(wanted):
            found[row.sha256] = Stored("duplicate", str(row.id), row.label)
    return found


def sorted_out(
    new: Sequence[NewExample], known: Mapping[str, Stored], head: Row[Any]
) -> tuple[list[Stored], list[dict[str, Any]]]:
    """What becomes of each example, and the rows to insert.

    Raises:
        ValueError: An embedding has another size than the backbone's features, or a label cannot be stored.
    """
    known = dict(known)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    outcomes: list[Stored] = []
    rows: list[dict[str, Any]] = []
    for example in new:
        stored = known.get(example.sha256)
        if stored is not None:
            outcome: Outcome = "duplicate" if stored.label == example.label else "conflict"
            outcomes.append(replace(stored, outcome=outcome))
            continue
        number = head.last_example + len(rows) + 1
        known[example.sha256] = stored = Stored("added", str(number), example.label)
        outcomes.append(stored)
        rows.append(
            {
                "head": head.id,
                "id": number,
                "sha256": example.sha256,
                "label": _label(example.label),
                "created": created,
                "embedding": _bytes(example.embedding, head.features),
            }
        )
    return outcomes, rows


def check_room(
    counts: Mapping[str, int], rows: Sequence[Mapping[str, Any]], max_examples: int, max_labels: int
) -> None:
    """Whether a head can take these rows, too.

    Args:
        counts: Of the examples that it has, by label.
        rows: That are to be inserted.
        max_examples: That it may have then.
        max_labels: That it may have then.

    Raises:
        TooMany: It cannot.
    """
    if sum(counts.values()) + len(rows) > max_examples:
        raise TooMany(f"a head may have {max_examples} examples, and has {sum(counts.values())} already")
    if len(counts.keys() | {row["label"] for row in rows}) > max_labels:
        raise TooMany(f"a head may have {max_labels} labels, and has {len(counts)} already")


def _label(label: str) -> str:
    if not label or not storable(label):
        raise ValueError(f"{label!r} cannot be a label")
    return label


def _bytes(embedding: np.ndarray[Any, Any], features: int) -> bytes:
    if embedding.shape != (features,):
        raise ValueError(f"an embedding has the shape {embedding.shape}, not {(features,)}")
    return embedding.astype("<f4", copy=False).tobytes()
