"""Header blocks: those that come, through the hpack library, and ours, which need no library.

A client's calls bring the same few bytes again and again, references into a table that it has filled with its first
call. What they stand for is remembered until the table changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import hpack
from hpack import HeaderTuple
from hpack.table import HeaderTable

from service.transports.grpc.http2.frames import COMPRESSION_ERROR, ConnectionFault

MAX_BYTES = 32 * 1024  # of a block, as it comes and as it is read
REMEMBERED, REMEMBERED_BYTES = 64, 1024  # blocks at most, and of each

# A block that says that we use no table, whatever size of one the peer allows.
NO_TABLE = b"\x20"

_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_NEEDED = frozenset((b":method", b":scheme", b":path"))
_OF_CONNECTIONS = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


@dataclass(frozen=True, slots=True)
class Headers:
    """A block that has been read.

    Attributes:
        values: By name, in small letters; of names that come twice the last.
        bytes: Of all names and values.
        malformed: It is no request's (RFC 9113, section 8.3.1).
    """

    values: dict[bytes, bytes]
    bytes: int
    malformed: bool


class _Table(HeaderTable):
    """Knows whether it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self._added = 0

    def add(self, name: bytes, value: bytes) -> None:
        self._added += 1
        super().add(name, value)

    def state(self) -> tuple[int, int, int]:
        """Another one whenever what is in it is."""
        return self._added, self.maxsize, len(self.dynamic_entries)


class Decoder:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_BYTES)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, Headers] = {}

    def decode(self, block: bytes) -> Headers:
        """Raises: ConnectionFault: It cannot be read, and with it none that follows."""
        if (known := self._known.get(block)) is not None:
            return known
        state = self._table.state()
        try:
            headers = _headers(self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"a header block cannot be read: {error}") from None
        same = self._table.state() == state
        if not same or len(self._known) >= REMEMBERED:
            self._known.clear()
        if same and len(block) <= REMEMBERED_BYTES:
            self._known[block] = headers
        return headers


def _headers(fields: Iterable[HeaderTuple]) -> Headers:
    values: dict[bytes, bytes] = {}
    malformed = False
    size = 0
    for name, value in fields:
        size += len(name) + len(value)
        if name[:1] == b":":
            malformed |= name not in _PSEUDO or name in values or next(reversed(values), b":")[:1] != b":"
        else:
            malformed |= name != name.lower() or name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers")
        values[name] = value
    return Headers(values, size, malformed or not values.keys() >= _NEEDED or not values[b":path"])


def encode(*fields: tuple[bytes, bytes]) -> bytes:
    """Fields as literals that no table remembers: a few bytes more, and no state."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def status(code: int) -> bytes:
    """The field `:status`, first of a response's."""
    return b"\x88" if code == 200 else encode((b":status", b"%d" % code))


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return b"%c%b" % (length, text)
    prefix = bytearray(b"\x7f")
    length -= 127
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + text
