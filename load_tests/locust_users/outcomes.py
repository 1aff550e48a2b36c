"""What became of a request, and where that is written down."""

from __future__ import annotations

import collections
import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path


class Refused(Exception):
    """The server has too much to do and said so, and when to come back."""


class Late(Exception):
    """The deadline passed before the server could answer."""


class Wrong(Exception):
    """Anything but the right answer; the message says what came instead."""


@dataclass(frozen=True)
class Exchange:
    """One request and the judgement of its answer.

    Attributes:
        transport: HTTP or gRPC.
        name: In reports; one for all requests of a kind.
        images: In it.
        send: Sends it and gives the bytes of the right answer. Raises Refused, Late or Wrong.
        timed: Whether an answer is of use for some time only.
    """

    transport: str
    name: str
    images: int
    send: Callable[[], int]
    timed: bool = False


@dataclass(frozen=True)
class Record:
    """What became of one arrival; times are seconds from the start.

    Attributes:
        transport, name, images, timed: Of the exchange.
        outcome: right, refused, late or failed.
        due: When it arrived.
        sent: When somebody was free to send it.
        done: When the answer had been read, or it had failed.
    """

    transport: str
    name: str
    images: int
    timed: bool
    outcome: str
    due: float
    sent: float
    done: float


class Journal:
    """All records of a run.

    Args:
        path: Where they are saved at the end, as CSV; without one nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.tally = collections.Counter[str]()  # outcomes
        self._path = path
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self.tally[record.outcome] += 1
        if self._path:
            self._records.append(record)

    def save(self) -> None:
        if self._path:
            with self._path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(field.name for field in fields(Record))
                writer.writerows(astuple(record) for record in self._records)


def judge(answers: Sequence[tuple[str | None, str]], labels: Sequence[str]) -> None:
    """Compare the answers to a request's images with what is right.

    Args:
        answers: For each image the code of its error, or None, and the label of its best class or the error's detail.
        labels: That are right.

    Raises:
        Refused, Late: If that is what became of any of them.
        Wrong: If one is wrong, failed or missing.
    """
    for code, text in answers:
        if code == "overloaded":
            raise Refused(text)
        if code == "deadline_exceeded":
            raise Late(text)
    for (code, text), label in itertools.zip_longest(answers, labels, fillvalue=(None, "no answer")):
        if code or text != label:
            raise Wrong(f"{code or text} instead of {label}")
