"""From a request's body to the encoded images in it: raw, multipart or JSON, within stated limits."""

from __future__ import annotations

import asyncio
import binascii
import time
from base64 import b64decode
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive, Scope

from service.errors import DeadlineExceeded, InvalidRequest, TooLarge, UnsupportedFormat
from service.transports.http.gate import ClientGone

# What curl says of --data-binary unless told otherwise; the bytes decide what it is.
_RAW = (b"application/octet-stream", b"application/x-www-form-urlencoded", b"")
_PART_HEADER_BYTES = 8 * 1024
_MAX_OPTIONS = 64  # of one header; thousands, in each of many parts, would take half a second
_MAX_OTHER_PARTS = 16
_JSON_VALUES_PER_IMAGE = 16


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request may hold at most."""

    max_bytes: int
    max_images: int


def header(scope: Scope, name: bytes) -> bytes:
    """The first value of a header (name in lower case), or nothing."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


async def read_body(scope: Scope, receive: Receive, max_bytes: int, deadline: float) -> bytes:
    """The whole body.

    Raises:
        TooLarge: It is, or says it will be, larger than `max_bytes`; nothing more of it is read.
        DeadlineExceeded: It was not there by the deadline (`time.monotonic` seconds).
        ClientGone: The client went away while sending.
    """
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > max_bytes:
        raise TooLarge(f"the request says it has {int(length)} bytes; at most {max_bytes} are taken")
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await _by(deadline, receive())
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"the request has more than {max_bytes} bytes")
            chunks.append(chunk)
            if not message.get("more_body"):
                return chunk if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the request had arrived") from None


async def _by(deadline: float, coming: Awaitable[Message]) -> Message:
    """A message, which may never come; only one that is not there yet is worth a timer.

    Raises:
        TimeoutError: It did not come by the deadline.
    """
    steps = coming.__await__()
    try:
        waited_for = next(steps)
    except StopIteration as over:
        message: Message = over.value
        return message
    async with asyncio.timeout(deadline - time.monotonic()):
        return await _Begun(steps, waited_for)


class _Begun:
    """The rest of what has taken its first step, and now waits."""

    def __init__(self, steps: Generator[Any, Any, Message], waited_for: Any) -> None:
        self._steps = steps
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, Message]:
        try:
            yield self._waited_for
            return (yield from self._steps)
        finally:
            self._steps.close()


def images_in(content_type: bytes, body: bytes, limits: BodyLimits) -> list[bytes]:
    """The encoded images of a body.

    Args:
        content_type: The request's header.
        body: As read.
        limits: At most this many images.

    Raises:
        InvalidRequest: The body does not parse, or holds no image.
        TooLarge: It holds too many.
        UnsupportedFormat: The content type is none of those that are taken.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"multipart/form-data":
        images = _multipart(content_type, body, limits)
    elif kind == b"application/json":
        images = _json(body, limits)
    elif kind in _RAW or kind.startswith(b"image/"):
        images = [body]
    else:
        raise UnsupportedFormat(
            "send one image as image/* or application/octet-stream, several as multipart/form-data with parts named"
            ' `image`, or JSON {"images":[{"b64":"…"}]}'
        )
    if not images:
        raise InvalidRequest("the request holds no image")
    return images


def _too_many(limits: BodyLimits) -> TooLarge:
    return TooLarge(f"more than {limits.max_images} images in one request")


def _json(body: bytes, limits: BodyLimits) -> list[bytes]:
    # Base64 holds none of these. A body full of them is made to keep the parser busy: a million [] take a second.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _JSON_VALUES_PER_IMAGE * (limits.max_images + 1):
        raise _too_many(limits)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InvalidRequest('the JSON must be {"images":[{"b64":"…"}, …]}')
    if len(entries) > limits.max_images:
        raise _too_many(limits)
    images = []
    for index, entry in enumerate(entries):
        text = entry.get("b64") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise InvalidRequest(f'images[{index}] must be {{"b64":"…"}}')
        try:
            images.append(b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"images[{index}].b64 is not standard base64") from None
    return images


def _option(header: bytes, name: bytes) -> bytes | None:
    if header.count(b";") > _MAX_OPTIONS:
        raise InvalidRequest(f"a header has more than {_MAX_OPTIONS} options")
    return parse_options_header(header)[1].get(name)


class _Parts:
    """Collects the parts named `image` from python-multipart's callbacks."""

    def __init__(self, limits: BodyLimits) -> None:
        self.images: list[bytes] = []
        self.others: list[str] = []
        self.complete = False
        self._limits = limits
        self._name: bytes | None = None
        self._chunks: list[bytes] = []
        self._field = b""
        self._value = b""
        self._header_bytes = 0

    def on_part_begin(self) -> None:
        self._name, self._chunks, self._header_bytes = None, [], 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._count(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = _option(self._value, b"name")
        self._field = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"image":
            self._chunks.append(data[start:end])

    def on_part_end(self) -> None:
        if self._name == b"image":
            if len(self.images) == self._limits.max_images:
                raise _too_many(self._limits)
            self.images.append(b"".join(self._chunks))
            return
        self.others.append((self._name or b"").decode("utf-8", "replace")[:40])
        if len(self.others) > _MAX_OTHER_PARTS:
            raise InvalidRequest(f"more than {_MAX_OTHER_PARTS} parts that are not named `image`")

    def on_end(self) -> None:
        self.complete = True

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _PART_HEADER_BYTES:
            raise InvalidRequest(f"the headers of a part have more than {_PART_HEADER_BYTES} bytes")


def _multipart(content_type: bytes, body: bytes, limits: BodyLimits) -> list[bytes]:
    boundary = _option(content_type, b"boundary")
    if not boundary:
        raise InvalidRequest("the multipart content type names no boundary")
    parts = _Parts(limits)
    names = ("part_begin", "header_field", "header_value", "header_end", "part_data", "part_end", "end")
    try:
        parser = MultipartParser(boundary, {f"on_{name}": getattr(parts, f"on_{name}") for name in names})  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from None
    if not parts.complete:
        raise InvalidRequest("the multipart body ends before its closing boundary")
    if not parts.images:
        others = f"; found {', '.join(map(repr, parts.others))}" if parts.others else ""
        raise InvalidRequest(f"the multipart body has no part named `image`{others}")
    return parts.images
