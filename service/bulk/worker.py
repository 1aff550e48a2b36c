"""What a worker does, in whichever process: shards in, one part for each out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from service.bulk.manifest import Folder
from service.bulk.model import PinnedModel
from service.bulk.parts import Part
from service.bulk.predictor import Answered, Predictor
from service.bulk.sources import Image, Sources
from service.errors import FoveaError


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it travels to other processes.

    Attributes:
        model: That answers.
        sources: Of the images.
        out: The folder of answers, which has its listing.
        top_k: Classes per image.
        features: Whether they are wanted.
    """

    model: PinnedModel
    sources: Sources
    out: str
    top_k: int
    features: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """Images that have been seen to.

    Attributes:
        images: All of them.
        abstained: Those that were classified, but not to be trusted.
        bad: Those that could not be classified.
    """

    images: int = 0
    abstained: int = 0
    bad: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.images + other.images, self.abstained + other.abstained, self.bad + other.bad)


Tallies = Generator[Tally, None, None]


class Worker:
    """Has the model loaded for as many shards as come.

    Args:
        job: What is to be done.
        threads: Of one inference, and of decoding.
    """

    def __init__(self, job: Job, threads: int) -> None:
        self._job = job
        self._folder = Folder(job.out)
        self._listing = self._folder.listing()
        self._predictor = Predictor(
            job.model.load(threads),
            top_k=job.top_k,
            features=job.features,
            threads=threads,
            readers=job.sources.readers,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._predictor.__exit__(kind, error, trace)

    def run(self, shards: Iterable[int]) -> Tallies:
        """Classify shards, one after the other without a pause between them; tallies come batch by batch.

        Raises:
            OSError: A store cannot be read or written. Whatever parts are there stay, and count.
        """
        shard: int | None = None
        part = self._part()
        for answers in self._predictor.answers(self._images(shards)):
            for one, rows in _by_shard(answers):
                if shard is not None and one != shard:
                    self._folder.write(shard, part.finish())
                    part = self._part()
                shard = one
                part.add(rows)
            yield _tally(answers)
        if shard is not None:
            self._folder.write(shard, part.finish())

    def _images(self, shards: Iterable[int]) -> Iterator[Image]:
        for shard in shards:
            yield from self._job.sources.images(shard, list(self._listing.entries(shard)))

    def _part(self) -> Part:
        job = self._job
        return Part(job.model.spec, ids=job.sources.id_column is not None, features=job.features)


def _by_shard(answers: list[Answered]) -> Iterator[tuple[int, list[Answered]]]:
    start = 0
    for end in range(1, len(answers) + 1):
        if end == len(answers) or answers[end].name.shard != answers[start].name.shard:
            yield answers[start].name.shard, answers[start:end]
            start = end


def _tally(answers: list[Answered]) -> Tally:
    bad = sum(isinstance(answer.result, FoveaError) for answer in answers)
    abstained = sum(not isinstance(answer.result, FoveaError) and answer.result.abstained for answer in answers)
    return Tally(len(answers), abstained, bad)
