"""Zips of one folder per label: what comes back, and that no archive, however it is made, does anything else."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import FoveaError, InvalidRequest, TooLarge
from service.heads.archive import ArchiveLimits, Entry, is_archive, read_archive
from service.heads.labels import label_of

LIMITS = ArchiveLimits(max_entries=1000, max_file_bytes=2**20, max_bytes=4 * 2**20)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """As Python writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@dataclass
class File:
    """A file of an archive made by hand; what is not said is as it should be."""

    name: bytes = b"7/x.png"
    packed: bytes = b"x"
    method: int = 0
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    flags: int = 0x800  # the name is UTF-8
    version: int = 20
    mode: int = 0  # of Unix
    extra: bytes = b""
    local_name: bytes | None = None
    at: int | None = None

    def local(self) -> bytes:
        name = self.name if self.local_name is None else self.local_name
        return struct.pack("<4s5H3I2H", b"PK\3\4", 20, self.flags, 0, 0, 0, 0, 0, 0, len(name), 0) + name + self.packed

    def central(self, at: int) -> bytes:
        crc = zlib.crc32(self.packed) if self.crc is None else self.crc
        packed_size = len(self.packed) if self.packed_size is None else self.packed_size
        size = packed_size if self.size is None else self.size
        head = struct.pack(
            "<4s6H3I", b"PK\1\2", 20, self.version, self.flags, self.method, 0, 0, crc, packed_size, size
        )
        lengths = struct.pack("<5H2I", len(self.name), len(self.extra), 0, 0, 0, self.mode << 16, at)
        return head + lengths + self.name + self.extra


def deflated(data: bytes, **more: Any) -> File:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    return File(packed=packed, **{"method": 8, "crc": zlib.crc32(data), "size": len(data), **more})


def made(*files: File, comment: bytes = b"", zip64: dict[str, int] | None = None, **end: int) -> bytes:
    """An archive by hand.

    Args:
        files: Those with `at` have no bytes of their own.
        comment: Behind everything.
        zip64: Fields of the zip64 end, as `end`; `place` is where it says that it is.
        end: `disk`, `here`, `entries`, `size`, `start` of the directory, if they are to lie.
    """
    body, directory = b"", b""
    for file in files:
        directory += file.central(len(body) if file.at is None else file.at)
        body += file.local() if file.at is None else b""
    true = {"disk": 0, "here": len(files), "entries": len(files), "size": len(directory), "start": len(body)}
    data = body + directory
    if zip64 is not None:
        place = len(data)
        fields = {**true, "length": 44, "place": place, **zip64}
        data += struct.pack("<4sQ2H2I", b"PK\6\6", fields["length"], 45, 45, fields["disk"], 0)
        data += struct.pack("<4Q", *(fields[key] for key in ("here", "entries", "size", "start")))
        data += struct.pack("<4sIQI", b"PK\6\7", 0, fields["place"], 1)
        true |= {"here": 0xFFFF, "entries": 0xFFFF, "size": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    fields = {**true, **end}
    counts = (fields["disk"], 0, fields["here"], fields["entries"])
    return data + struct.pack("<4s4H2IH", b"PK\5\6", *counts, fields["size"], fields["start"], len(comment)) + comment


# What is taken.


@pytest.mark.parametrize(
    ("content_type", "data", "expected"),
    [
        (b"application/zip", b"", True),
        (b"Application/X-Zip-Compressed; charset=binary", b"", True),
        (b"application/octet-stream", b"PK\3\4", True),
        (b"application/x-www-form-urlencoded", b"PK\3\4", True),  # what curl says of --data-binary
        (b"", b"PK\3\4", True),
        (b"application/octet-stream", b"\x89PNG", False),
        (b"image/png", b"PK\3\4", False),
        (b"application/json", b"PK\3\4", False),
        (b"multipart/form-data; boundary=x", b"PK\3\4", False),
    ],
)
def test_an_archive_is_known_by_its_type_or_its_first_bytes(content_type: bytes, data: bytes, expected: bool) -> None:
    assert is_archive(content_type, data) is expected


def test_folders_are_labels_and_the_order_stays() -> None:
    files = {"кот/б.png": b"1", "7/b.png": b"2" * 5000, "7/a.png": b"", " a b /x": b"3", "кот/а.png": b"4"}
    expected = [Entry(label_of(name.split("/")[0]), name, data) for name, data in files.items()]
    assert [entry.label for entry in expected] == ["кот", "7", "7", "a b", "кот"]
    assert read_archive(zipped(files), LIMITS) == expected
    assert read_archive(zipped(files, zipfile.ZIP_STORED), LIMITS) == expected


def test_one_folder_around_all_is_taken_off() -> None:
    found = read_archive(zipped({"digits/7/x.png": b"a", "digits/8/x.png": b"b"}), LIMITS)
    assert found == [Entry("7", "digits/7/x.png", b"a"), Entry("8", "digits/8/x.png", b"b")]
    assert [entry.label for entry in read_archive(zipped({"digits/7": b"a", "digits/8": b"b"}), LIMITS)] == [
        "digits"
    ] * 2


def test_what_systems_leave_behind_is_ignored() -> None:
    junk = [
        "__MACOSX/7/._x.png",
        "__MACOSX/._7",
        ".DS_Store",
        "7/.DS_Store",
        "7/Thumbs.db",
        "8/desktop.ini",
        ".git/7/x",
        "7/",
    ]
    data = zipped({**dict.fromkeys(junk, b"junk"), "7/x.png": b"x"})
    assert read_archive(data, LIMITS) == [Entry("7", "7/x.png", b"x")]


@pytest.mark.parametrize(
    "data",
    [
        made(File(flags=0, name="кот/x".encode())),  # as Info-ZIP and macOS write names
        made(File(name=b"./\xd0\xba\xd0\xbe\xd1\x82/./x"), File(name=b"./", packed=b"")),  # as bsdtar does
        made(File(name="кот/x".encode()), comment=b"PK\1\2 a comment"),
        made(File(name="кот/x".encode()), zip64={}),
        made(
            File(name="кот/x".encode(), mode=stat.S_IFREG | 0o644, size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 1))
        ),
    ],
    ids=["unflagged", "dots", "comment", "zip64-end", "zip64-size"],
)
def test_what_other_programs_write_is_read(data: bytes) -> None:
    assert read_archive(data, LIMITS) == [Entry("кот", "кот/x", b"x")]


SEGMENTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=8)


def is_seen(segment: str) -> bool:
    system = segment.lower() in ("__macosx", "thumbs.db", "desktop.ini")
    return not (system or segment.startswith(".") or segment[1:2] == ":")


def is_label(text: str) -> bool:
    with contextlib.suppress(FoveaError):
        return bool(label_of(text))
    return False


@given(
    st.none() | SEGMENTS.filter(is_seen),
    st.dictionaries(
        st.tuples(SEGMENTS.filter(is_seen).filter(is_label), SEGMENTS.filter(is_seen)),
        st.binary(),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_what_zipfile_writes_comes_back(top: str | None, files: dict[tuple[str, str], bytes], method: int) -> None:
    prefix = "" if top is None else f"{top}/"
    expected = [Entry(label_of(folder), f"{prefix}{folder}/{name}", data) for (folder, name), data in files.items()]
    assert read_archive(zipped({entry.name: entry.data for entry in expected}, method), LIMITS) == expected


# What is refused, and how.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.png", "'x.png' lies in no label's folder; a zip holds one folder per label"),
        ("top/x.png", "'top/x.png' lies in no label's folder"),
        ("train/7/8/x.png", "'train/7/8/x.png' lies in too many folders"),
        ("../7/x.png", "'../7/x.png' in the archive is not a path below it"),
        ("7/../../x.png", "not a path below"),
        ("7/..", "not a path below"),
        ("/7/x.png", "not a path below"),
        ("7//x.png", "not a path below"),
        ("C:/7/x.png", "not a path below"),
        ("c:x.png", "not a path below"),
        ("7\\x.png", r"'7\\\\x.png' in the archive is not a path below"),
        ("__MACOSX/../7/x.png", "not a path below"),
        ("../", "not a path below"),
        ("7/x.png\0.txt", r"x00.txt' in the archive is not a path below"),
        (" /x.png", "a label is 1 to 64 characters"),
        ("\u202e7/x.png", r"'\\u202e7' has U\+202E"),
        ("x" * 65 + "/x.png", "is longer"),
    ],
)
def test_a_path_that_leads_elsewhere_is_named(name: str, message: str) -> None:
    others = [File(name=b"top/8/x.png")] if name.startswith("top") else [File(name=b"8/x.png")]
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_archive(made(*others, File(name=name.encode())), LIMITS)
    assert caught.value.message.isprintable()


BOMB = b"\0" * 2**20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no end: send a zip"),
        (b"PK\3\4", "no end"),
        (b"\x89PNG" * 100, "no end"),
        (made(), "holds no file"),
        (made(File(name=b"7/.hidden"), File(name=b"7/")), "holds no file"),
        (made(File()) + b"\n", "end is damaged"),
        (made(File(), comment=b"PK\5\6" + b"x" * 30), "end is damaged"),
        (b"#!self-extracting" + made(File()), "directory is damaged"),
        (made(File(), disk=1), "is split"),
        (made(File(), here=2), "is split"),
        (made(File(), here=2, entries=2), "directory is damaged"),
        (made(File(), File(name=b"7/y"), here=1, entries=1), "directory is damaged"),
        (made(File(), size=50), "directory is damaged"),
        (made(File(), start=0), "directory is damaged"),
        (made(File(), zip64={"here": 2, "entries": 2}), "directory is damaged"),
        (made(File(), zip64={"size": 2**63}), "directory is damaged"),
        (made(File(), zip64={"disk": 7}), "is split"),
        (made(File(), zip64={"place": 0}), "zip64 end is damaged"),
        (made(File(), zip64={"length": 45}), "zip64 end is damaged"),
        (made(File(extra=b"\1\0\xff\xff")), "directory is damaged"),
        (made(File(size=0xFFFFFFFF, extra=b"\1\0\4\0abcd")), "directory is damaged"),
        (made(File(version=64)), "directory is damaged"),
        (made(File(extra=b"x" * 3000)), "3007 bytes.*shorten the names"),
        (made(File(name=b"\x8a\xae\xe2/x.png", flags=0)), r"is not UTF-8: b'\\x8a\\xae\\xe2/x.png'.*7-Zip"),  # cp866
        (made(File(name=b"\xff/x.png")), "is not UTF-8"),
        (made(File(local_name=b"8/x.png")), "'7/x.png' in the archive is damaged"),
        (made(File(local_name=b"\xff/x.png")), "'7/x.png' in the archive is damaged"),
        (made(File(), File()), "'7/x.png' is in the archive twice"),
        (made(File(), File(name=b"7/./x.png")), "'7/./x.png' is in the archive twice"),
        (made(File(mode=stat.S_IFLNK | 0o777)), "'7/x.png' in the archive is a link or device"),
        (made(File(mode=stat.S_IFCHR)), "link or device"),
        (made(File(mode=stat.S_IFDIR)), "link or device"),
        (made(File(flags=0x801)), "'7/x.png' in the archive is encrypted or"),
        (made(File(flags=0x841)), "encrypted or"),
        (made(File(flags=0x820)), "encrypted or"),  # a patch
        (made(File(method=99, flags=0x801)), "encrypted or"),  # as 7-Zip writes AES
        (zipped({"7/x.png": b"x"}, zipfile.ZIP_BZIP2), "compressed in a way that is not read"),
        (zipped({"7/x.png": b"x"}, zipfile.ZIP_LZMA), "compressed in a way that is not read"),
        (made(File(crc=0)), "'7/x.png' in the archive is damaged"),
        (made(File(packed=b"", crc=1)), "'7/x.png' in the archive is damaged"),
        (made(File(method=8, packed=b"\xff" * 9)), "'7/x.png' in the archive is damaged"),
        (made(deflated(b"x" * 99, size=98)), "'7/x.png' in the archive is damaged"),
        (made(deflated(b"x" * 99, size=100)), "'7/x.png' in the archive is damaged"),
        (made(deflated(BOMB, size=99)), "'7/x.png' in the archive is damaged"),
        (made(File(size=9)), "'7/x.png' in the archive is damaged"),
        (made(File(packed_size=10**6, size=1)), "'7/x.png' in the archive shares its bytes"),
        (made(File(name=b"7/" + b"x" * 100), File(name=b"7/" + b"x" * 100, at=0)), "'7/x{58}'… in the archive shares"),
        (made(File(packed=File(name=b"7/y").local()), File(name=b"7/y", at=37)), "'7/y' in the archive shares"),
        (made(File(), File(name=b"7/y", at=10**6)), "'7/y' in the archive shares"),
        (made(File(), File(name=b"7/y", at=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 2**64 - 1))), "shares"),
        (made(File(), File(name=b".hidden", at=0)), "shares its bytes"),
    ],
)  # fmt: skip
def test_an_archive_that_is_damaged_or_made_to_deceive_is_refused_whole(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_archive(data, LIMITS)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (made(deflated(BOMB + b"\0")), "'7/x.png' in the archive says it has 1048577 bytes; at most 1048576"),
        (made(File(size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 2**63))), "says it has 9223372036854775808 bytes"),
        (made(*(File(name=b"7/%d" % n, packed=BOMB) for n in range(5))), "have 5242880 bytes; at most 4194304"),
        (made(deflated(BOMB)), "more than 100 times as large"),
        (made(*(File(name=b"7/%d" % n) for n in range(1001))), "1001 entries; at most 1000"),
        (made(File(), zip64={"here": 2**40, "entries": 2**40}), f"{2**40} entries; at most 1000"),
    ],
    ids=["file", "zip64-file", "total", "ratio", "entries", "zip64-entries"],
)
def test_more_than_the_limits_is_too_large(data: bytes, message: str) -> None:
    with pytest.raises(TooLarge, match=message):
        read_archive(data, LIMITS)


def test_as_much_as_the_limits_is_not() -> None:
    files = [File(name=b"7/%d" % n, packed=BOMB if n < 4 else b"") for n in range(1000)]
    assert len(read_archive(made(*files), LIMITS)) == 1000


def test_no_part_of_an_archive_passes_for_the_whole() -> None:
    data = zipped({"7/x.png": b"abc" * 99, "8/y.png": b"abc"})
    for length in range(len(data)):
        with pytest.raises(InvalidRequest):
            read_archive(data[:length], LIMITS)


def test_no_more_is_inflated_than_is_declared() -> None:
    data = made(deflated(b"\0" * 64 * 2**20, size=1000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="damaged"):
            read_archive(data, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


VALID = (
    zipped({"7/x.png": b"abc" * 99, "кот/y.png": b"abc"}),
    made(File(), File(name=b"7/y"), zip64={}, comment=b"comment"),
)
PIECES = [
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
    b"PK\6\6",
    b"PK\6\7",
    b"\0",
    b"\xff\xff\xff\xff",
    b"../",
    b"\1\0\10\0",
    File().local(),
]
SMALL = ArchiveLimits(max_entries=3, max_file_bytes=400, max_bytes=500)


@settings(max_examples=500)
@given(st.sampled_from(VALID), st.data())
def test_no_mutation_does_anything_but_come_back_or_be_refused(data: bytes, draw: st.DataObject) -> None:
    mutant = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        start = draw.draw(st.integers(0, len(mutant)))
        stop = start + draw.draw(st.integers(0, 8))
        mutant[start:stop] = draw.draw(
            st.sampled_from(PIECES) | st.binary(min_size=stop - start, max_size=stop - start)
        )
    try:
        entries = read_archive(bytes(mutant), SMALL)
    except FoveaError:
        return
    assert 1 <= len(entries) <= 3
    assert max(len(entry.data) for entry in entries) <= 400
    assert sum(len(entry.data) for entry in entries) <= 500
    assert all(entry.label == label_of(entry.label) for entry in entries)


def test_no_changed_byte_does_anything_but_come_back_or_be_refused() -> None:
    for data in VALID:
        for place in range(len(data)):
            for value in (0, 1, 0xFF, data[place] ^ 1, data[place] ^ 0x80):
                with contextlib.suppress(FoveaError):
                    read_archive(data[:place] + bytes([value]) + data[place + 1 :], SMALL)


MILLION = File(name=b"7/x", at=0).central(0) * 1_000_000
LONG = File(extra=b"\0\0\0\0" * 16_000).central(0) * 900
BUSY = File(extra=b"\0\0\0\0" * 255).central(0) * 1000


@pytest.mark.parametrize(
    ("directory", "counts"),
    [(MILLION, 1000), (MILLION, 16_960), (LONG, 900), (BUSY, 1000), (b"PK\5\6" * 10_000_000, 1)],
    ids=["hidden-million", "million", "extra-fields", "small-extra-fields", "ends"],
)
def test_an_archive_made_to_be_slow_is_not(directory: bytes, counts: int) -> None:
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, counts, counts, len(directory), 0, 0)
    started = time.thread_time()  # of this thread alone: other tests may be running beside it
    with pytest.raises(FoveaError):
        read_archive(directory + end, LIMITS)
    assert time.thread_time() - started < 0.5
