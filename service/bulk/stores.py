"""Where bytes lie: a file system of this machine, or an object store."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow
from pyarrow import fs

from service.errors import InvalidImage, TooLarge
from service.files import write_whole
from service.settings import InvalidSettings

SCHEMES = ("s3", "gs")  # of addresses whose path begins with a bucket
READERS = 32  # of an object store at once: each waits for the network most of the time


class Store(Protocol):
    """Files by path. Paths are text; what is no UTF-8 in a name survives as surrogates."""

    @property
    def readers(self) -> int:
        """Threads that are worth reading with, where more than decode are."""
        ...

    def is_pattern(self, path: str) -> bool:
        """Whether a path is one for `matches`."""
        ...

    def is_folder(self, path: str) -> bool:
        """Whether a path is a folder rather than a file.

        Raises:
            FileNotFoundError: It is neither.
        """
        ...

    def files(self, folder: str) -> Iterator[str]:
        """All files below a folder, in no order."""
        ...

    def matches(self, pattern: str) -> Iterator[str]:
        """All files whose paths match; `*` matches inside a name, `**` any number of folders."""
        ...

    def image(self, path: str, max_bytes: int) -> bytes:
        """The bytes of a file that should be an image.

        Raises:
            FoveaError: There is something wrong with this file.
            OSError: There is something wrong with the store.
        """
        ...

    def open(self, path: str) -> pyarrow.NativeFile:
        """A file for reading anywhere in it."""
        ...

    def names(self, folder: str) -> set[str]:
        """Of the files directly in a folder; none if it is not there."""
        ...

    def write(self, path: str, data: pyarrow.Buffer) -> None:
        """A whole file, in folders that are made; nobody ever sees a part of it."""
        ...

    def shown(self, path: str) -> str:
        """The path as people and tables should have it."""
        ...


class Disk:
    """The file systems of this machine. Satisfies `Store`."""

    readers = 0

    def is_pattern(self, path: str) -> bool:
        return glob.has_magic(path) and not os.path.exists(path)  # noqa: PTH110 - as below

    def is_folder(self, path: str) -> bool:
        if not os.path.exists(path):  # noqa: PTH110 - here and below: a million paths need no objects
            raise FileNotFoundError(f"{self.shown(path)} does not exist")
        return os.path.isdir(path)  # noqa: PTH112

    def files(self, folder: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self.files(entry.path)
                elif entry.is_file():
                    yield entry.path

    def matches(self, pattern: str) -> Iterator[str]:
        return (path for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path))  # noqa: PTH113, PTH207

    def image(self, path: str, max_bytes: int) -> bytes:
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                _check_size(os.fstat(file.fileno()).st_size, max_bytes)
                return file.read()
        except OSError as error:  # one file more or less: a disk that is gone shows when a part is written
            raise InvalidImage(f"cannot be read: {error.strerror}") from error

    def open(self, path: str) -> pyarrow.NativeFile:
        return pyarrow.OSFile(path)

    def names(self, folder: str) -> set[str]:
        try:
            return set(os.listdir(folder))  # noqa: PTH208
        except FileNotFoundError:
            return set()

    def write(self, path: str, data: pyarrow.Buffer) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)

    def shown(self, path: str) -> str:
        return os.fsencode(path).decode("utf-8", "replace")  # names need not be text, tables have to be


class Objects:
    """An object store, through pyarrow. Satisfies `Store`.

    Args:
        filesystem: That reaches it.
        scheme: Of its addresses.
    """

    readers = READERS

    def __init__(self, filesystem: fs.FileSystem, scheme: str) -> None:
        self._fs = filesystem
        self._scheme = scheme

    def is_pattern(self, path: str) -> bool:
        return "*" in path

    def is_folder(self, path: str) -> bool:
        kind = self._fs.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.shown(path)} does not exist")
        return bool(kind == fs.FileType.Directory)

    def files(self, folder: str) -> Iterator[str]:
        return self._list(folder, recursive=True)

    def matches(self, pattern: str) -> Iterator[str]:
        base, _, wild = pattern.partition("*")
        base, _, start = base.rpartition("/")
        wanted = re.compile(_regex(f"{start}*{wild}"))
        for path in self._list(base, recursive="/" in wild or "**" in pattern):
            if wanted.fullmatch(path[len(base) + 1 :]):
                yield path

    def image(self, path: str, max_bytes: int) -> bytes:
        try:
            with self._fs.open_input_file(path) as file:
                _check_size(file.size(), max_bytes)
                return bytes(file.read())
        except FileNotFoundError as error:
            raise InvalidImage("cannot be read: it is not there any more") from error

    def open(self, path: str) -> pyarrow.NativeFile:
        return self._fs.open_input_file(path)

    def names(self, folder: str) -> set[str]:
        selector = fs.FileSelector(folder, allow_not_found=True)
        return {info.base_name for info in self._fs.get_file_info(selector) if info.is_file}

    def write(self, path: str, data: pyarrow.Buffer) -> None:
        # An object appears when its stream is closed, even by an exception: so everything goes in one call.
        with self._fs.open_output_stream(path) as stream:
            stream.write(data)

    def shown(self, path: str) -> str:
        return f"{self._scheme}://{path}"

    def _list(self, folder: str, *, recursive: bool) -> Iterator[str]:
        for info in self._fs.get_file_info(fs.FileSelector(folder, recursive=recursive)):
            if info.is_file:
                yield info.path


def locate(given: str) -> tuple[Store, str]:
    """The store of a path or an address, and the path in it.

    Args:
        given: A path of this machine, `file:///…`, `s3://bucket/prefix` or `gs://bucket/prefix`; the query of an
            address may say how the store is reached, in pyarrow's words.

    Raises:
        InvalidSettings: The address makes no sense.
    """
    if "://" not in given:
        return Disk(), absolute(given)
    parts = urlsplit(given)
    if parts.scheme == "file":
        return Disk(), absolute(unquote(parts.path))
    if parts.scheme not in SCHEMES:
        raise InvalidSettings(f"{public(given)}: paths, file://, s3:// and gs:// are known")
    root = urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))
    bucket = parts.netloc.rpartition("@")[2]
    return _objects(root), f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")


def absolute(given: str) -> str:
    """A path or an address that means the same in every folder of this machine."""
    return given if "://" in given else os.path.abspath(given)  # noqa: PTH100 - a link stays what it is


def public(given: str) -> str:
    """An absolute path or an address, without what may be secret in it."""
    if "://" not in given:
        return Disk().shown(given)
    parts = urlsplit(given)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


@functools.cache
def _objects(root: str) -> Objects:
    try:
        filesystem, _ = fs.FileSystem.from_uri(quote(root, safe="/:@?&=%+.,-_~"))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidSettings(f"{public(root)}: {str(error).splitlines()[0]}") from error
    return Objects(filesystem, root.partition(":")[0])


def _check_size(size: int, max_bytes: int) -> None:
    """Before a file is read that may be larger than memory."""
    if size > max_bytes:
        raise TooLarge(f"{size} bytes are more than {max_bytes}; scale the image down")


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)
