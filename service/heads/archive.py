"""Labelled images in one body: a zip of one folder per label, read in memory and within stated limits.

zipfile reads it. It checks signatures, compression flags, that a file's header repeats its name, and checksums, and it
inflates no further than the declared size. It would walk a directory of any length, let files share bytes, and take
names in an unstated encoding for code page 437; that and what a path may be is checked here, before anything is
inflated.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zipfile import ZipInfo

from service.errors import InvalidRequest, TooLarge
from service.heads.labels import label_of, quoted

_TYPES = (b"application/zip", b"application/x-zip-compressed")
_RAW = (b"application/octet-stream", b"application/x-www-form-urlencoded", b"")  # the bytes decide, as for images

_END = struct.Struct("<4s4H2IH")  # of the central directory: disks, entries, size, start, length of the comment
_LOCATOR = struct.Struct("<4sIQI")  # of the zip64 record, right behind it
_END64 = struct.Struct("<4sQ2H2I4Q")
_DIRECTORY_RECORD = 46  # bytes, without name, extra fields and comment
_FILE_HEADER = 30  # bytes, without name and extra fields
_MAX_RECORD_TEXT = 1024  # bytes of name, extra fields and comment; zipfile's time grows with their square
_MAX_RATIO = 100  # of all files to the archive; deflate reaches 1032

_ABSOLUTE = re.compile("/|[A-Za-z]:")
_SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # and everything hidden
_LAYOUT = "a zip holds one folder per label with files directly in it, or one folder of such folders"


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may hold at most.

    Attributes:
        max_entries: Files, folders and what is ignored.
        max_file_bytes: Of one file, inflated.
        max_bytes: Of all files that are read, inflated.
    """

    max_entries: int
    max_file_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive.

    Attributes:
        label: Of its folder, as `label_of` makes it.
        name: Its whole path in the archive.
        data: Inflated.
    """

    label: str
    name: str
    data: bytes


def is_archive(content_type: bytes, data: bytes) -> bool:
    """Whether a body with this header is to be read as an archive: it says so, or says nothing and begins like one."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in _TYPES or (kind in _RAW and data.startswith(b"PK\3\4"))


def read_archive(data: bytes, limits: ArchiveLimits) -> list[Entry]:
    """The files of a zip of one folder per label, in the archive's order.

    One folder around all of them is taken off. System files and everything hidden are ignored. The archive is taken
    whole or not at all. It is inflated on the calling thread, at hundreds of megabytes a second.

    Raises:
        InvalidRequest: It is damaged, laid out otherwise, or made to deceive.
        TooLarge: It holds more than the limits.
    """
    start = _directory_start(data, limits)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data), metadata_encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"a name in the archive is not UTF-8: {error.object[:60]!a}; zip the folders with a program that"
            " writes names as Unicode, like 7-Zip"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError):
        raise _damaged("the archive's directory") from None
    with archive:
        _check_places(data, archive.infolist(), start)
        files = _files(archive.infolist())
        _check_sizes(files.values(), len(data), limits)
        labels = [label_of(folder) for folder in _folders(list(files))]
        return [
            Entry(label, "/".join(path), _content(archive, info))
            for label, (path, info) in zip(labels, files.items(), strict=True)
        ]


def _damaged(what: str) -> InvalidRequest:
    return InvalidRequest(f"{what} is damaged; zip the folders again and send the whole file")


def _unread(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{quoted(name)} in the archive is encrypted or compressed in a way that is not read here; zip the folders with"
        " deflate and without a password"
    )


def _directory_start(data: bytes, limits: ArchiveLimits) -> int:
    """Where the central directory begins, once it is known that zipfile finds the same one, and can walk it."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - _END.size - 0xFFFF))
    if end < 0 or len(data) < end + _END.size:
        raise InvalidRequest("the archive has no end: send a zip, and the whole of it")
    _, disk, first_disk, here, entries, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise _damaged("the archive's end")
    if end >= _LOCATOR.size and data.startswith(b"PK\6\7", end - _LOCATOR.size):
        end -= _LOCATOR.size + _END64.size
        place = _LOCATOR.unpack_from(data, end + _END64.size)[2]
        if place != end or not data.startswith(b"PK\6\6", end):
            raise _damaged("the archive's zip64 end")
        _, length, _, _, disk, first_disk, here, entries, size, start = _END64.unpack_from(data, end)
        if length != _END64.size - 12:
            raise _damaged("the archive's zip64 end")
    if disk or first_disk or here != entries:
        raise InvalidRequest("the archive is split; send it in one piece")
    if entries > limits.max_entries:
        raise TooLarge(
            f"the archive says it has {entries} entries; at most {limits.max_entries} are taken: send several"
        )
    if start + size != end:
        raise _damaged("the archive's directory")
    _check_records(data, start, end, entries)
    return int(start)


def _check_records(data: bytes, at: int, end: int, entries: int) -> None:
    """The directory holds as many as it says, and zipfile takes each in little time."""
    for _ in range(entries):
        if at + _DIRECTORY_RECORD > end:
            raise _damaged("the archive's directory")
        text = sum(struct.unpack_from("<3H", data, at + 28))
        if text > _MAX_RECORD_TEXT:
            raise InvalidRequest(
                f"an entry's name, extra fields and comment take {text} bytes; at most {_MAX_RECORD_TEXT} are taken:"
                " shorten the names"
            )
        at += _DIRECTORY_RECORD + text
    if at != end:
        raise _damaged("the archive's directory")


def _check_places(data: bytes, infos: Iterable[ZipInfo], start: int) -> None:
    """Each file has bytes of its own: shared ones inflate without end (Fifield 2019, "A better zip bomb")."""
    free = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        at = info.header_offset
        if free <= at <= start - _FILE_HEADER:
            name, extra = struct.unpack_from("<2H", data, at + 26)
            free = at + _FILE_HEADER + name + extra + info.compress_size
            if free <= start:
                continue
        raise InvalidRequest(
            f"{quoted(info.orig_filename)} in the archive shares its bytes with something else; zip the folders again"
        )


def _files(infos: Iterable[ZipInfo]) -> dict[tuple[str, ...], ZipInfo]:
    """The files that are meant, by the parts of their paths."""
    files: dict[tuple[str, ...], ZipInfo] = {}
    for info in infos:
        name = info.orig_filename  # `filename` ends at a null
        path = tuple(part for part in name.split("/") if part != ".")
        if _ABSOLUTE.match(name) or "\\" in name or "\0" in name or ".." in path or "" in path[:-1] or not path:
            raise InvalidRequest(f"{quoted(name)} in the archive is not a path below it; zip the folders again")
        if path[-1] == "" or any(part.startswith(".") or part.lower() in _SYSTEM_FILES for part in path):
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InvalidRequest(f"{quoted(name)} in the archive is a link or device; zip the files themselves")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _unread(name)
        if path in files:
            raise InvalidRequest(f"{quoted(name)} is in the archive twice; zip the folders again")
        files[path] = info
    if not files:
        raise InvalidRequest(f"the archive holds no file, hidden ones apart; {_LAYOUT}")
    return files


def _check_sizes(infos: Iterable[ZipInfo], archive_bytes: int, limits: ArchiveLimits) -> None:
    total = 0
    for info in infos:
        total += info.file_size
        if info.file_size > limits.max_file_bytes:
            raise TooLarge(
                f"{quoted(info.orig_filename)} in the archive says it has {info.file_size} bytes; at most"
                f" {limits.max_file_bytes} are taken"
            )
    if total > limits.max_bytes:
        raise TooLarge(f"the files in the archive say they have {total} bytes; at most {limits.max_bytes} are taken")
    if total > _MAX_RATIO * archive_bytes:
        raise TooLarge(
            f"the files in the archive say they are more than {_MAX_RATIO} times as large as it; save them in a"
            " compressed format, like PNG"
        )


def _folders(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The folder that names each file's label."""
    outer = len({path[0] for path in paths}) == 1 and any(len(path) > 2 for path in paths)
    for path in paths:
        if len(path) - outer != 2:
            where = "lies in no label's folder" if len(path) - outer < 2 else "lies in too many folders"
            raise InvalidRequest(f"{quoted('/'.join(path))} {where}; {_LAYOUT}")
    return [path[-2] for path in paths]


def _content(archive: zipfile.ZipFile, info: ZipInfo) -> bytes:
    """Inflated; never more than the declared size, at which zipfile stops."""
    try:
        with archive.open(info) as file:
            content = file.read(info.file_size + 1)  # a byte more, or the checksum of an empty file would go unread
        if len(content) != info.file_size:
            raise EOFError
    except RuntimeError:  # NotImplementedError is one
        raise _unread(info.orig_filename) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError):
        raise _damaged(f"{quoted(info.orig_filename)} in the archive") from None
    return content
