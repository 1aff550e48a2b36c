"""Stores of taught heads for tests, and what is put into them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from sqlalchemy import create_engine, make_url

from service.heads.head import Backbone, ClassReport, HeadSpec, Report
from service.spec import ImageSpec
from service.store.store import HeadRow, NewExample, Store

HEAD = "head"
DIGEST = "d" * 64
FEATURES = 8
BATCH = 5
BACKBONE = Backbone(name="letters", version="1", digest=DIGEST)
OTHER = Backbone(name="letters", version="2", digest="e" * 64)
PLENTY = {"max_examples": 10**6, "max_labels": 1000}
SPEC = HeadSpec(
    name="any",
    version="1",
    image=ImageSpec(height=28, width=28, resize="stretch"),
    labels=("ä", "b"),
    backbone=BACKBONE,
    report=Report(examples=2, strength=1.0, classes=(ClassReport(label="ä", examples=1),)),
    created="2026-11-21T16:00:00Z",
)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Store]:
    """A store with a head on the newest schema."""
    store = Store(url)
    store.migrate()
    store.open()
    store.create(HEAD, BACKBONE, FEATURES)
    yield store
    store.close()


def example(image: str, label: str = "a", embedding: Any = None) -> NewExample:
    values = np.zeros(FEATURES, np.float32) if embedding is None else np.asarray(embedding, np.float32)
    return NewExample(image.rjust(64, "0"), label, values)


def batch(prefix: str, call: int) -> list[NewExample]:
    """Examples of images that are known by their number."""
    return [
        NewExample(
            hashlib.sha256(f"{prefix}{call * BATCH + place}".encode()).hexdigest(),
            str(place),
            np.full(FEATURES, call * BATCH + place, np.float32),
        )
        for place in range(BATCH)
    ]


def teach(store: Store, *new: NewExample, digest: str = DIGEST, **limits: int) -> list[tuple[str, str, str]]:
    stored = store.add(HEAD, digest, new, **PLENTY | limits)
    return [(each.outcome, each.id, each.label) for each in stored]


def head(store: Store) -> HeadRow:
    (row,) = store.heads()
    return row


@contextlib.contextmanager
def raw(url: str) -> Iterator[Any]:
    """A connection past the store."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg" if "postgres" in url else "sqlite"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()
