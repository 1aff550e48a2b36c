"""The store of taught heads on both databases: what it keeps and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from service.store.store import (
    BackboneChanged,
    HasExamples,
    Store,
    TooMany,
    UnknownExample,
    UnknownHead,
    UnknownVersion,
)
from tests.server import ROOT
from tests.stores import BACKBONE, BATCH, DIGEST, FEATURES, HEAD, OTHER, PLENTY, SPEC, batch, example, head, raw, teach


def test_heads_come_and_go(store: Store) -> None:
    first, created = store.create("öther", BACKBONE, 4)
    assert (created, first.backbone, first.features, first.pinned, first.examples) == (True, BACKBONE, 4, None, {})
    revision = store.revision()
    assert store.create("öther", OTHER, 5) == (first, False)
    assert store.revision() == revision  # nothing changed
    assert [row.name for row in store.heads()] == [HEAD, "öther"]
    moved = store.rebind("öther", OTHER, 5)
    assert (moved.id, moved.backbone, moved.features) == (first.id, OTHER, 5)
    assert store.revision() > revision
    store.delete("öther")
    again, created = store.create("öther", BACKBONE, 4)
    assert created
    assert again.id != first.id
    for name in ("gone", "a\0b", "\ud800"):
        with pytest.raises(UnknownHead):
            store.delete(name)


def test_an_image_is_stored_once(store: Store) -> None:
    assert teach(store, example("1", "a"), example("2", "b")) == [("added", "1", "a"), ("added", "2", "b")]
    revision = store.revision()
    assert teach(store, example("2", "b"), example("1", "b")) == [("duplicate", "2", "b"), ("conflict", "1", "a")]
    assert store.revision() == revision
    # The same image several times in one call.
    assert teach(store, example("3", "c"), example("3", "c"), example("3", "a")) == [
        ("added", "3", "c"),
        ("duplicate", "3", "c"),
        ("conflict", "3", "c"),
    ]
    assert head(store).examples == {"a": 1, "b": 1, "c": 1}
    store.create("other", BACKBONE, FEATURES)
    assert store.add("other", DIGEST, [example("1", "z")], **PLENTY)[0].outcome == "added"


def test_all_examples_of_a_call_are_stored_or_none(store: Store) -> None:
    teach(store, example("1", "a"), example("2", "b"))
    before = (store.revision(), head(store))
    with pytest.raises(ValueError, match="shape"):
        teach(store, example("3"), example("4", embedding=[1, 2]))
    for label in ("a\0b", "\ud800", ""):
        with pytest.raises(ValueError, match="label"):
            teach(store, example("3"), example("4", label))
    with pytest.raises(TooMany, match="3 examples"):
        teach(store, example("3"), example("4"), max_examples=3)
    with pytest.raises(TooMany, match="2 labels"):
        teach(store, example("3"), example("4", "c"), max_labels=2)
    with pytest.raises(BackboneChanged):
        teach(store, example("3"), digest=OTHER.digest)
    with pytest.raises(UnknownHead):
        store.add("gone", DIGEST, [], **PLENTY)
    assert (store.revision(), head(store)) == before
    # What is stored already needs no room.
    assert teach(store, example("1", "a"), example("3", "b"), max_examples=3, max_labels=2)[1][0] == "added"


def test_embeddings_come_back_to_the_bit(store: Store) -> None:
    odd = np.array([0.0, -0.0, 1e-45, -3.4e38, np.pi, 1 / 3, 1, 2], np.float32)
    others = [batch("x", call) for call in range(120)]  # more than are fetched at once
    teach(store, example("1", "ü", odd), *(each for new in others for each in new))
    teach(store, example("2", "b", odd.astype(">f4")))
    found = store.embeddings(HEAD)
    assert found.embeddings.tobytes() == b"".join(
        [odd.tobytes(), *(each.embedding.tobytes() for new in others for each in new), odd.tobytes()]
    )
    assert found.ids == [str(number) for number in range(1, 603)]
    assert (found.labels[0], found.labels[1], found.labels[-1]) == ("ü", "0", "b")
    assert found.example_revision == head(store).example_revision
    store.create("empty", BACKBONE, 3)
    assert store.embeddings("empty").embeddings.shape == (0, 3)


def test_embeddings_are_read_without_a_second_copy(database_url: str) -> None:
    rows, features = 2000, 8192
    store = Store(database_url)
    store.migrate()
    store.create(HEAD, BACKBONE, features)
    store.create("small", BACKBONE, features)
    one = np.ones(features, np.float32)
    for start in range(0, rows, 500):
        new = [example(str(number), embedding=one) for number in range(start, start + 500)]
        store.add(HEAD, DIGEST, new, **PLENTY)
    store.add("small", DIGEST, new[:300], **PLENTY)
    store.close()
    script = (
        "import sys, resource; from service.store.store import Store; store = Store(sys.argv[1])\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "small = store.embeddings('small'); before = most()\n"
        "found = store.embeddings(sys.argv[2]); print(found.embeddings.nbytes, most() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, database_url, HEAD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size == rows * features * 4
    assert grown < 1.4 * size


def test_examples_are_listed_in_pages(store: Store) -> None:
    teach(store, *(example(str(number), "ab"[number % 2]) for number in range(7)))
    first = store.examples(HEAD, limit=3)
    assert [row.id for row in first] == ["1", "2", "3"]
    assert (first[0].label, first[0].sha256) == ("a", "0" * 64)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first[0].created)
    assert [row.id for row in store.examples(HEAD, after="3", limit=100)] == ["4", "5", "6", "7"]
    assert [row.id for row in store.examples(HEAD, label="b", after="3", limit=1)] == ["4"]
    assert store.examples(HEAD, label="a\0b", limit=1) == []
    with pytest.raises(UnknownExample):
        store.examples(HEAD, after="x", limit=1)


def test_examples_are_removed_one_by_one_by_label_or_all(store: Store) -> None:
    teach(store, *(example(str(number), "abc"[number % 3]) for number in range(7)))
    assert store.remove(HEAD, id="7") == 1
    for unknown in ("7", "0", "-1", "x", "٣", "9" * 19, "9" * 400):
        with pytest.raises(UnknownExample):
            store.remove(HEAD, id=unknown)
    revision = store.revision()
    assert store.remove(HEAD, label="z") == store.remove(HEAD, label="\0") == 0
    assert store.revision() == revision
    assert store.remove(HEAD, label="b") == 2
    assert head(store).examples == {"a": 2, "c": 2}
    assert head(store).example_revision == store.revision()
    assert store.remove(HEAD) == 4
    assert store.embeddings(HEAD).ids == []
    assert teach(store, example("6")) == [("added", "8", "a")]  # an id is never used again
    with pytest.raises(HasExamples):
        store.rebind(HEAD, OTHER, FEATURES)
    store.rebind(HEAD, BACKBONE.model_copy(update={"version": "3"}), FEATURES)  # the same features
    store.remove(HEAD)
    store.rebind(HEAD, OTHER, 3)


def test_versions_are_numbered_and_kept(store: Store) -> None:
    teach(store, example("1"))
    examples = store.embeddings(HEAD).example_revision
    blob = bytes(range(256)) * 1000
    assert [store.put_version(HEAD, SPEC, data, examples) for data in (blob, b"2", b"3")] == ["1", "2", "3"]
    row = head(store)
    assert row.versions[1].spec == SPEC.model_copy(update={"name": HEAD, "version": "2"})
    assert [each.example_revision for each in row.versions] == [row.example_revision] * 3
    assert [store.parameters(row.id, number) for number in ("1", "3")] == [blob, b"3"]
    for number in ("4", "0", "x"):
        with pytest.raises(UnknownVersion):
            store.parameters(row.id, number)
        with pytest.raises(UnknownVersion):
            store.pin(HEAD, number)
    store.pin(HEAD, "2")
    assert head(store).pinned == "2"
    store.pin(HEAD, None)
    assert head(store).pinned is None
    assert head(store).example_revision == examples  # of all this, nothing changed the examples
    teach(store, example("2"))
    assert head(store).example_revision > examples


def test_a_version_of_another_head_or_backbone_is_refused(store: Store) -> None:
    teach(store, example("1"))
    examples, before = store.embeddings(HEAD), head(store)
    store.put_version(HEAD, SPEC, b"1", examples.example_revision)
    store.delete(HEAD)
    store.create(HEAD, BACKBONE, FEATURES)
    with pytest.raises(UnknownHead):
        store.put_version(HEAD, SPEC, b"1", examples.example_revision)
    with pytest.raises(UnknownVersion):
        store.parameters(before.id, "1")
    revision = store.embeddings(HEAD).example_revision
    store.rebind(HEAD, OTHER, FEATURES)
    with pytest.raises(BackboneChanged):
        store.put_version(HEAD, SPEC, b"1", revision)
    assert head(store).versions == ()


def test_only_what_has_changed_is_read_again(store: Store) -> None:
    for name in ("b", "c"):
        store.create(name, BACKBONE, FEATURES)
    store.put_version(HEAD, SPEC, b"1", store.revision())
    known = store.heads()
    assert all(now is before for now, before in zip(store.heads(known), known, strict=True))
    store.put_version(HEAD, SPEC, b"2", store.revision())
    store.delete("b")
    store.create("d", BACKBONE, FEATURES)
    found = store.heads(known)
    assert [row.name for row in found] == [HEAD, "c", "d"]
    assert found == store.heads()
    assert found[0].versions[0] is known[0].versions[0]
    assert found[1] is known[2]


def test_a_version_that_cannot_be_read_hides_no_other(
    store: Store, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for data in (b"1", b"2", b"3"):
        store.put_version(HEAD, SPEC, data, store.revision())
    with raw(database_url) as connection:
        connection.execute(text("""UPDATE fovea_versions SET spec = '{"of": "tomorrow"}' WHERE number = 2"""))
    assert [version.number for version in head(store).versions] == ["1", "3"]
    assert "version 2" in caplog.text
    assert store.put_version(HEAD, SPEC, b"4", store.revision()) == "4"


def test_documents_are_changed_by_one_at_a_time(store: Store) -> None:
    assert store.state("routes") is None
    revision = store.revision()

    def count(document: dict[str, Any] | None) -> dict[str, Any]:
        return {"count": (document or {"count": 0})["count"] + 1, "text": "ä\0"}

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: store.update_state("routes", count), range(20)))
    assert store.state("routes") == {"count": 20, "text": "ä\0"}
    assert store.revision() >= revision + 20
    with pytest.raises(ZeroDivisionError):
        store.update_state("routes", lambda _: {"count": 1 // 0})
    revision = store.revision()
    store.update_state("routes", lambda document: document or {})
    assert store.revision() == revision


def test_threads_lose_and_double_nothing(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(teach, store, *batch("same", number % 20)) for number in range(60)]
        fits = [threads.submit(store.put_version, HEAD, SPEC, b"x", store.revision()) for _ in range(20)]
        added = [each for call in calls for each in call.result() if each[0] == "added"]
        numbers = sorted(int(fit.result()) for fit in fits)
    assert numbers == list(range(1, 21))
    assert len(added) == len({each[1] for each in added}) == 20 * BATCH
    assert sum(head(store).examples.values()) == 20 * BATCH
