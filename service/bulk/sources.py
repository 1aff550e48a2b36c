"""What is to be classified, as given on a command line, and the images in it.

A source is a file, a folder, a glob or an address in an object store. Folders and prefixes are searched for images; a
table (`.parquet`) is named itself, or matched by a glob.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow
from pyarrow import compute, parquet

from service.bulk.stores import Store, locate
from service.errors import InvalidImage
from service.local import SUFFIXES
from service.settings import InvalidSettings

TABLE = ".parquet"
READ_BYTES = 4 * 2**20  # of a table's column at a time, however large its row groups
READ_ROWS = 64


class Entry(NamedTuple):
    """An image's file, or a row group of a table.

    Attributes:
        source: Which of the sources it came from.
        path: In that source's store.
        row_group: None of an image's file.
        first: Row in the table that the row group begins with.
        rows: Images in it.
    """

    source: int
    path: str
    row_group: int | None
    first: int
    rows: int


class Name(NamedTuple):
    """What an image is called in the answers, and in which part.

    Attributes:
        shard: Of its entry.
        file: Path or address of the file or table.
        row: In the table.
        id: What the table's column for it says.
    """

    shard: int
    file: str
    row: int | None = None
    id: str | None = None


class Image(NamedTuple):
    """One image.

    Attributes:
        name: Its name.
        read: Gives the encoded bytes; on any thread. Raises `FoveaError` if there are none.
    """

    name: Name
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Sources:
    """Where images come from; nothing is opened before it is needed, so that it travels to other processes.

    Attributes:
        given: Paths and addresses.
        column: Of tables: where the bytes are; a dot leads into a structure.
        id_column: Of tables: whose values name the images in the answers.
        max_image_bytes: A larger file is refused unread.
    """

    given: tuple[str, ...]
    column: str
    id_column: str | None
    max_image_bytes: int

    @property
    def readers(self) -> int:
        """Threads that reading is worth, where more than decode are."""
        return max(locate(given)[0].readers for given in self.given)

    def entries(self) -> Iterator[Entry]:
        """Everything there is, found again at each call.

        Raises:
            FileNotFoundError: A source does not exist.
            InvalidSettings: A table has no such column of bytes.
        """
        for index, given in enumerate(self.given):
            store, path = locate(given)
            for found in _files(store, path):
                if found.endswith(TABLE):
                    yield from self._row_groups(index, store, found)
                else:
                    yield Entry(index, found, None, 0, 1)

    def images(self, shard: int, entries: Sequence[Entry]) -> Iterator[Image]:
        """The images of some entries, in their order; files are not read yet.

        Raises:
            InvalidSettings: A table is not what it was when it was listed.
            OSError: A store cannot be read.
        """
        table: tuple[str, parquet.ParquetFile] | None = None
        for entry in entries:
            store, _ = locate(self.given[entry.source])
            shown = store.shown(entry.path)
            if entry.row_group is None:
                yield Image(Name(shard, shown), partial(store.image, entry.path, self.max_image_bytes))
                continue
            if table is None or table[0] != entry.path:
                table = entry.path, _opened(store, entry.path)
            row = entry.first
            try:
                for id_, data in self._rows(table[1], entry.row_group):
                    yield Image(Name(shard, shown, row, id_), partial(_bytes, data))
                    row += 1
            except pyarrow.ArrowInvalid as error:
                raise InvalidSettings(f"{shown}: what follows row {row} cannot be read: {error}") from error
            if row != entry.first + entry.rows:
                raise InvalidSettings(f"{shown} has changed since it was listed: classify it into another folder")

    def _row_groups(self, source: int, store: Store, path: str) -> Iterator[Entry]:
        table = _opened(store, path)
        _check_columns(store.shown(path), table.schema_arrow, self.column, self.id_column)
        first = 0
        for index in range(table.num_row_groups):
            rows = table.metadata.row_group(index).num_rows
            if rows:
                yield Entry(source, path, index, first, rows)
            first += rows

    def _rows(self, table: parquet.ParquetFile, row_group: int) -> Iterator[tuple[str | None, pyarrow.Scalar]]:
        wanted = [self.column, *([self.id_column] if self.id_column else [])]
        top, *below = self.column.split(".")
        for batch in table.iter_batches(READ_ROWS, row_groups=[row_group], columns=wanted, use_threads=False):
            images = batch.column(top)
            for name in below:
                images = compute.struct_field(images, name)
            ids = batch.column(self.id_column).to_pylist() if self.id_column else [None] * len(images)
            for id_, data in zip(ids, images, strict=True):
                yield None if id_ is None else str(id_), data


def _files(store: Store, path: str) -> Iterator[str]:
    if store.is_pattern(path):
        return (found for found in store.matches(path) if found.endswith(TABLE) or _is_image(found))
    return filter(_is_image, store.files(path)) if store.is_folder(path) else iter([path])


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _bytes(data: pyarrow.Scalar) -> bytes:
    found = data.as_py()
    if found is None:
        raise InvalidImage("there is no image in this row")
    return bytes(found)


def _opened(store: Store, path: str) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(store.open(path), buffer_size=READ_BYTES)
    except pyarrow.ArrowInvalid as error:
        raise InvalidSettings(f"{store.shown(path)} is not a Parquet file that can be read") from error


def _check_columns(shown: str, schema: pyarrow.Schema, column: str, id_column: str | None) -> None:
    names = ", ".join(schema.names)
    if id_column is not None and id_column not in schema.names:
        raise InvalidSettings(f"--id-column: {shown} has no column {id_column!r}; it has {names}")
    top, *below = column.split(".")
    if top not in schema.names:
        raise InvalidSettings(f"--column: {shown} has no column {top!r}; it has {names}")
    kind = schema.field(top).type
    for name in below:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise InvalidSettings(f"--column: {shown} has no {column!r}: {top} is {kind}")
        kind = kind.field(name).type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        inside = [kind.field(index).name for index in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        remedy = f"; name one of its fields, like {column}.{inside[0]}" if inside else ""
        raise InvalidSettings(f"--column: {column!r} of {shown} is {kind}, not the bytes of images{remedy}")
