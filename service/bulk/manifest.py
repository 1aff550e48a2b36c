"""What a folder of answers holds: which model's, to which images, with which options; and how it is cut into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow
from pyarrow import compute, parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from service.bulk.sources import Entry
from service.bulk.stores import locate
from service.settings import InvalidSettings

MANIFEST, LISTING = "_manifest.json", "_listing.parquet"  # readers of a folder of Parquet pass over an underscore

_LISTING = pyarrow.schema(
    [
        ("source", pyarrow.int32()),
        ("path", pyarrow.binary()),  # names need not be text
        ("row_group", pyarrow.int32()),
        ("first", pyarrow.int64()),
        ("rows", pyarrow.int64()),
    ]
)


class Work(BaseModel):
    """What decides the answers; a folder holds the answers of one such."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: str
    digest: str  # of all that decides what the model answers
    sources: tuple[str, ...]
    column: str
    id_column: str | None
    top_k: int
    features: bool
    images_per_part: int
    max_image_bytes: int
    max_pixels: int


class Manifest(BaseModel):
    """Of a folder of answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    fovea: str  # release that began it
    created: str  # ISO 8601, UTC
    work: Work
    parts: int
    images: int


class Folder:
    """A folder of answers, on disk or in an object store.

    Args:
        given: Path or address.
    """

    def __init__(self, given: str) -> None:
        self._store, self._path = locate(given)
        self.shown = self._store.shown(self._path)

    def manifest(self) -> Manifest | None:
        """What the folder holds; None of one that is new.

        Raises:
            InvalidSettings: It is of something else.
        """
        names = self._store.names(self._path)
        if MANIFEST not in names:
            if any(name.endswith(".parquet") and name != LISTING for name in names):
                raise InvalidSettings(f"--out: {self.shown} holds other Parquet files: name a new folder")
            return None
        with self._store.open(f"{self._path}/{MANIFEST}") as file:
            try:
                return Manifest.model_validate_json(file.read())
            except ValidationError as error:
                raise InvalidSettings(f"--out: {self.shown}/{MANIFEST} is of another release of Fovea") from error

    def begin(self, manifest: Manifest, listing: pyarrow.Buffer) -> None:
        """Make a new one; the manifest comes last."""
        self._store.write(f"{self._path}/{LISTING}", listing)
        self._store.write(f"{self._path}/{MANIFEST}", pyarrow.py_buffer(manifest.model_dump_json(indent=2).encode()))

    def listing(self) -> Listing:
        return Listing(parquet.ParquetFile(self._store.open(f"{self._path}/{LISTING}")))

    def done(self) -> set[int]:
        """The shards whose parts are there."""
        names = self._store.names(self._path)
        return {int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet")}

    def write(self, shard: int, part: pyarrow.Buffer) -> None:
        """A whole part, at once."""
        self._store.write(f"{self._path}/{_name(shard)}", part)


class Listing:
    """The entries of every shard, one row group each, read when they are needed."""

    def __init__(self, table: parquet.ParquetFile) -> None:
        self._table = table

    def entries(self, shard: int) -> Iterator[Entry]:
        columns = self._table.read_row_group(shard).to_pydict()
        for source, path, *rest in zip(*(columns[name] for name in _LISTING.names), strict=True):
            yield Entry(source, path.decode("utf-8", "surrogateescape"), *rest)

    def images(self, shard: int) -> int:
        """How many there are in a shard."""
        return int(compute.sum(self._table.read_row_group(shard, columns=["rows"])["rows"]).as_py())


def listed(entries: Iterable[Entry], images_per_part: int) -> Iterator[tuple[Sequence[Entry], int]]:
    """Shards of about so many images: their entries, and their images; a row group is not cut."""
    shard: list[Entry] = []
    images = 0
    for entry in entries:
        shard.append(entry)
        images += entry.rows
        if images >= images_per_part:
            yield shard, images
            shard, images = [], 0
    if shard:
        yield shard, images


class ListingWriter:
    """Gathers a listing, compressed, in memory: some ten bytes a file."""

    def __init__(self) -> None:
        self._sink = pyarrow.BufferOutputStream()
        self._writer = parquet.ParquetWriter(self._sink, _LISTING, compression="zstd")

    def add(self, shard: Sequence[Entry]) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in _LISTING.names}
        for entry in shard:
            encoded = entry._replace(path=entry.path.encode("utf-8", "surrogateescape"))  # type: ignore[arg-type]
            for name, value in encoded._asdict().items():
                columns[name].append(value)
        self._writer.write_table(pyarrow.table(columns, schema=_LISTING), row_group_size=len(shard))

    def finish(self) -> pyarrow.Buffer:
        self._writer.close()
        return self._sink.getvalue()


def check(found: Manifest, asked: Work, shown: str) -> None:
    """See that a folder's answers are those that are asked for.

    Raises:
        InvalidSettings: They are others, with every difference.
    """
    differences = [
        f"{name} {_shown(getattr(found.work, name))}, not {_shown(getattr(asked, name))}"
        for name in Work.model_fields
        if getattr(found.work, name) != getattr(asked, name)
    ]
    if differences:
        raise InvalidSettings(
            f"--out: the answers begun in {shown} are of {'; '.join(differences)}:"
            " ask for the same to continue them, or name another folder"
        )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _name(shard: int) -> str:
    return f"part-{shard:06}.parquet"
