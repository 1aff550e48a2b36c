"""Protobuf messages from what came, which is looked through before it is parsed.

A parser makes an object of every two bytes if a client wants it so: 64 MiB of empty submessages kept it busy for
seconds and took two gigabytes. No message of use has many fields: what is large is one image, or one tensor, in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from service.errors import InvalidRequest, TooLarge

SMALL_BYTES = 8 * 1024  # up to here nothing can take long
MAX_FIELDS = 4096  # with those of submessages
MAX_NUMBER_BYTES = 2**20  # of lists of numbers, each of which becomes up to eight bytes

M = TypeVar("M", bound=Message)
# By number, the fields of a message that hold more: a message's own, or None for a list of numbers.
Inner: TypeAlias = "Mapping[int, Inner | None]"

_UNPACKED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def parse(kind: type[M], message: bytes) -> M:
    """A message from its bytes.

    Raises:
        InvalidRequest: They are something else.
        TooLarge: It has more fields, or longer lists of numbers, than are taken.
    """
    try:
        if len(message) > SMALL_BYTES:
            _Look(message).through(_inner(kind.DESCRIPTOR), 0, len(message))
        request: M = kind.FromString(message)
    except (DecodeError, IndexError):
        raise InvalidRequest(f"the message is no {kind.DESCRIPTOR.full_name}") from None
    return request


@lru_cache
def _inner(kind: Descriptor) -> Inner:
    return {
        field.number: None if field.message_type is None else _inner(field.message_type)
        for field in kind.fields
        if field.type not in _UNPACKED
    }


class _Look:
    """Counts what is in a message.

    Raises:
        IndexError, DecodeError: It is malformed.
        TooLarge: There is too much.
    """

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._place = 0
        self._fields = 0
        self._number_bytes = 0

    def through(self, inner: Inner, start: int, end: int) -> None:
        self._place = start
        while self._place < end:
            tag = self._varint()
            if tag < 8:
                raise DecodeError  # no field has the number 0
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise TooLarge(f"the message has more than {MAX_FIELDS} fields; tensors go in raw_input_contents")
            match tag & 7:  # the wire type: a varint, eight bytes, four, or a length and so many bytes
                case 0:
                    self._varint()
                case 1:
                    self._place += 8
                case 5:
                    self._place += 4
                case 2:
                    self._length_delimited(inner, tag >> 3, end)
                case _:
                    raise DecodeError  # groups, which nothing has written for long
        if self._place != end:
            raise DecodeError

    def _length_delimited(self, inner: Inner, number: int, end: int) -> None:
        length = self._varint()
        stop = self._place + length
        if stop > end:
            raise DecodeError
        if number in inner:
            within = inner[number]
            if within is None:
                self._number_bytes += length
                if self._number_bytes > MAX_NUMBER_BYTES:
                    raise TooLarge(
                        f"the message has more than {MAX_NUMBER_BYTES} bytes of numbers in lists; send them as"
                        " raw_input_contents"
                    )
            else:
                self.through(within, self._place, stop)
        self._place = stop

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._message[self._place]
            self._place += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise DecodeError
