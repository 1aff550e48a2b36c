"""What the store of taught heads takes and gives, and what can go wrong; nothing here knows of a database.

The store's exceptions are not a client's errors: whoever calls it says them in the client's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.heads.head import Backbone, HeadSpec

Floats = NDArray[np.float32]
Outcome = Literal["added", "duplicate", "conflict"]


class StoreUnavailable(Exception):
    """The database does not do its work now: it cannot be reached, is locked, full or may not be written.

    The message is for the log. A change was not made, unless the connection broke while it was being committed.
    """


class StoreMisfit(Exception):
    """A person has to act: the URL makes no sense, or the database is not as it has to be. The message says how."""


class UnknownHead(Exception):
    """There is no such head (any more)."""


class UnknownKey(Exception):
    """There is no such key."""


class UnknownVersion(Exception):
    """The head has no such version."""


class UnknownExample(Exception):
    """The head has no such example."""


class BackboneChanged(Exception):
    """The head is on another backbone (by now)."""


class HasExamples(Exception):
    """The head has examples, which mean nothing on another backbone."""


class TooMany(Exception):
    """More examples or labels than a head may have; the message is fit for clients."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a head, without its parameters. It never changes.

    Attributes:
        number: "1", "2", …
        spec: Everything about it.
        example_revision: That of the examples it was fitted on.
    """

    number: str
    spec: HeadSpec
    example_revision: int


@dataclass(frozen=True, slots=True)
class HeadRow:
    """A head, without its embeddings and parameters.

    Attributes:
        id: Another head of the same name, made after this one was deleted, has another.
        name: Of the head.
        backbone: What it is taught on.
        features: D of the backbone.
        pinned: The version that answers; None: the newest.
        revision: Changes with anything of this head.
        examples: How many of each label, in the order of the labels.
        example_revision: Changes with the examples.
        versions: From the oldest to the newest.
    """

    id: int
    name: str
    backbone: Backbone
    features: int
    pinned: str | None
    revision: int
    examples: Mapping[str, int]
    example_revision: int
    versions: tuple[VersionRow, ...]


@dataclass(frozen=True, slots=True)
class NewExample:
    """What a labelled image leaves behind.

    Attributes:
        sha256: Of the encoded image, in hex.
        label: Of its class.
        embedding: `[D]`.
    """

    sha256: str
    label: str
    embedding: Floats


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a new example.

    Attributes:
        outcome: duplicate: the head had the image already; conflict: it had it under another label, which stays.
        id: Of the example that is stored.
        label: Of that example.
    """

    outcome: Outcome
    id: str
    label: str


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """An example, without its embedding.

    Attributes:
        id: Rises with every example of a head; none is used twice.
        label: Of its class.
        sha256: Of the encoded image, in hex.
        created: ISO 8601, UTC.
    """

    id: str
    label: str
    sha256: str
    created: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """All examples of a head, in the order of their ids.

    Attributes:
        ids: N of them.
        labels: N of them.
        embeddings: `[N, D]`.
        example_revision: Of the head, when they were read.
    """

    ids: list[str]
    labels: list[str]
    embeddings: Floats
    example_revision: int
