"""HTTP/2's frames as bytes (RFC 9113, sections 4, 6 and 7)."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

# Error codes.
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

HEAD_BYTES = 9
SMALLEST_MAX_FRAME = 2**14  # of the payload, that every peer takes; also what it is until a peer says more
LARGEST_MAX_FRAME = 2**24 - 1
LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535  # bytes, of a connection and of each stream, until something else is said

_HEAD = struct.Struct(">HBBBL")
_NUMBER = struct.Struct(">L")
_SETTING = struct.Struct(">HL")


class ConnectionFault(Exception):
    """The peer has broken the rules in a way that ends the connection."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class StreamFault(Exception):
    """The peer has broken the rules in a way that ends one stream."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame; of a payload no longer than the peer takes."""
    length = len(payload)
    return b"".join((_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream), payload))


def numbered(kind: int, stream: int, number: int) -> bytes:
    """A frame whose payload is one number: WINDOW_UPDATE, RST_STREAM."""
    return frame(kind, 0, stream, _NUMBER.pack(number))


def goaway(last: int, code: int, why: str) -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + why.encode())


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


def number(payload: bytes) -> int:
    """The number of a WINDOW_UPDATE, or the last 31 bits of what it is in.

    Raises:
        ConnectionFault: The payload is not one number.
    """
    if len(payload) != 4:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame of one number has four bytes")
    return int.from_bytes(payload) & 0x7FFFFFFF


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Raises: ConnectionFault: They are not whole."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS come in sixes")
    return list(_SETTING.iter_unpack(payload))


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding.

    Raises:
        ConnectionFault: There is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "a frame is shorter than its padding")
    return payload[1 : len(payload) - payload[0]]
