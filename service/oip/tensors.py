"""Tensors of the Open Inference Protocol, to and from what travels: raw little-endian bytes, and JSON lists.

Whatever a client says of a length or a shape is checked before anything is made of it.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, TooLarge

MAX_DIMENSIONS = 8
MAX_STRINGS = 16_384  # elements of one BYTES tensor; each costs an object, however short

Buffer = bytes | bytearray | memoryview

_TYPES = {  # numpy's type code, and that of array.array
    "BOOL": ("?", "B"),
    "UINT8": ("u1", "B"),
    "UINT16": ("<u2", "H"),
    "UINT32": ("<u4", "I"),
    "UINT64": ("<u8", "Q"),
    "INT8": ("i1", "b"),
    "INT16": ("<i2", "h"),
    "INT32": ("<i4", "i"),
    "INT64": ("<i8", "q"),
    "FP16": ("<f2", ""),
    "FP32": ("<f4", "f"),
    "FP64": ("<f8", "d"),
}
NUMERIC: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, (code, _) in _TYPES.items()}
DATATYPES = (*NUMERIC, "BYTES")

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: Of the model's input or output.
        datatype: One of `DATATYPES`.
        shape: All dimensions.
        data: An array of that shape; of BYTES, the elements in row-major order.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | list[bytes]


def checked_shape(name: str, shape: object) -> tuple[tuple[int, ...], int]:
    """A shape that a client sent, and its number of elements.

    Raises:
        InvalidRequest: It is not a short list of whole numbers, or one is negative.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"the shape of {_quoted(name)} must be a list of at most {MAX_DIMENSIONS} whole numbers")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**31:
            raise InvalidRequest(f"the shape of {_quoted(name)} has a dimension that is no size: {str(size)[:40]}")
    return tuple(shape), math.prod(shape)


def from_raw(name: str, datatype: str, shape: object, raw: Buffer) -> Tensor:
    """A tensor from little-endian bytes, of which numbers stay a view.

    Args:
        name: Of the tensor.
        datatype: As the client says.
        shape: As the client says.
        raw: Row-major; of BYTES, each element behind its length, four bytes.

    Raises:
        InvalidRequest: Datatype, shape and length do not agree.
        TooLarge: More elements of BYTES than are taken.
    """
    dimensions, count = checked_shape(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, dimensions, _strings(name, count, raw))
    dtype = _numeric(name, datatype)
    if len(raw) != count * dtype.itemsize:
        raise InvalidRequest(
            f"{_quoted(name)}: {datatype} of shape {list(dimensions)} takes {count * dtype.itemsize} bytes,"
            f" and there are {len(raw)}"
        )
    return Tensor(name, datatype, dimensions, _shaped(name, np.frombuffer(raw, dtype), dimensions))


def to_raw(tensor: Tensor) -> bytes:
    """Little-endian bytes, row-major; of BYTES, each element behind its length."""
    if isinstance(tensor.data, list):
        return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in tensor.data))
    return tensor.data.astype(NUMERIC[tensor.datatype], copy=False).tobytes()


def from_json(name: str, datatype: str, shape: object, data: object) -> Tensor:
    """A tensor from a JSON list, flat and row-major or nested as its shape.

    Args:
        name: Of the tensor.
        datatype: As the client says.
        shape: As the client says.
        data: As a JSON parser gives it. Elements of BYTES are text and become UTF-8.

    Raises:
        InvalidRequest: Datatype, shape and data do not agree; or it is FP16, which JSON does not carry.
        TooLarge: More elements of BYTES than are taken.
    """
    dimensions, count = checked_shape(name, shape)
    if datatype == "FP16":
        raise InvalidRequest(f"{_quoted(name)}: FP16 cannot be sent as JSON; send it as binary data")
    if not isinstance(data, list):
        raise InvalidRequest(f"{_quoted(name)}: data must be a list")
    elements = _flat(name, data, dimensions)
    if len(elements) != count:
        raise InvalidRequest(
            f"{_quoted(name)}: shape {list(dimensions)} takes {count} elements, and there are {len(elements)}"
        )
    if datatype == "BYTES":
        _check_strings(name, count)
        if not all(type(element) is str for element in elements):
            raise InvalidRequest(f"{_quoted(name)}: elements of BYTES must be text")
        return Tensor(name, datatype, dimensions, [element.encode() for element in elements])
    dtype = _numeric(name, datatype)
    try:
        # Both check type and range of every number; numpy would take 1.5 and "1" for whole ones.
        code = _TYPES[datatype][1]
        packed = bytes(elements) if code == "B" else array(code, elements)
        values = np.frombuffer(packed, np.uint8).view(dtype)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{_quoted(name)}: an element of data is no {datatype}") from None
    if datatype == "BOOL" and (values.view(np.uint8) > 1).any():
        raise InvalidRequest(f"{_quoted(name)}: an element of data is no BOOL")
    return Tensor(name, datatype, dimensions, _shaped(name, values, dimensions))


def to_json(tensor: Tensor) -> list[str] | NDArray[Any]:
    """A flat list for JSON; of numbers an array, which orjson writes as one.

    Raises:
        InvalidRequest: It is FP16, or holds bytes that are not UTF-8: neither can be written as JSON.
    """
    if isinstance(tensor.data, list):
        try:
            return [element.decode() for element in tensor.data]
        except UnicodeDecodeError:
            raise InvalidRequest(f"{tensor.name} is not text; ask for it as binary data") from None
    if tensor.datatype == "FP16":
        raise InvalidRequest(f"{tensor.name} is FP16, which JSON does not carry; ask for it as binary data")
    return np.ascontiguousarray(tensor.data).reshape(-1)


def _strings(name: str, count: int, raw: Buffer) -> list[bytes]:
    _check_strings(name, count)
    found: list[bytes] = []
    end = 0
    while end < len(raw) and len(found) < count:
        start = end + _LENGTH.size
        if start > len(raw):
            break
        end = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
        if end > len(raw):
            raise InvalidRequest(
                f"{_quoted(name)}: element {len(found)} says it has {end - start} bytes, and {len(raw) - start} are"
                " left; each element of BYTES stands behind its length, four bytes little-endian"
            )
        found.append(bytes(raw[start:end]))
    if len(found) != count or end != len(raw):
        raise InvalidRequest(
            f"{_quoted(name)}: its shape takes {count} elements of BYTES, each behind its length of four bytes, and its"
            f" {len(raw)} bytes hold something else"
        )
    return found


def _check_strings(name: str, count: int) -> None:
    if count > MAX_STRINGS:
        raise TooLarge(f"{_quoted(name)} has {count} elements; at most {MAX_STRINGS} of BYTES are taken")


def _flat(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The elements of a nested list, which has to be nested as the shape says."""
    if not data or type(data[0]) is not list:
        return data  # flat already; whatever else is in it is no element of any type
    for size in shape[1:]:
        if not (set(map(type, data)) <= {list} and set(map(len, data)) <= {size}):
            raise InvalidRequest(f"{_quoted(name)}: data is not nested as its shape {list(shape)} says; it may be flat")
        data = list(chain.from_iterable(data))
    return data


def _numeric(name: str, datatype: object) -> np.dtype[Any]:
    dtype = NUMERIC.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InvalidRequest(f"{_quoted(name)}: there is no datatype {str(datatype)[:40]!r}; {', '.join(DATATYPES)}")
    return dtype


def _shaped(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return values.reshape(shape)
    except ValueError:  # no elements, and dimensions whose product overflows
        raise InvalidRequest(f"{_quoted(name)}: the shape {list(shape)} is absurd") from None


def _quoted(name: str) -> str:
    return repr(name[:80])
