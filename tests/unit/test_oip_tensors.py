"""Tensors of the Open Inference Protocol, there and back, and what hostile clients say of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from service.errors import FoveaError, InvalidRequest, TooLarge
from service.oip.tensors import MAX_STRINGS, NUMERIC, Tensor, from_json, from_raw, to_json, to_raw

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
WORDS = st.lists(st.binary(max_size=40), max_size=12)


@st.composite
def numbers(draw: st.DrawFn, **floats: bool) -> Tensor:
    datatype = draw(st.sampled_from([name for name in NUMERIC if name != "FP16" or not floats]))
    dtype = NUMERIC[datatype]
    elements = arrays.from_dtype(dtype, **floats) if dtype.kind == "f" else arrays.from_dtype(dtype)
    data = draw(arrays.arrays(dtype, SHAPES, elements=elements))
    return Tensor("x", datatype, data.shape, data)


def strings(words: list[bytes]) -> Tensor:
    return Tensor("x", "BYTES", (len(words), 1), words)


# There and back.


@given(numbers())
def test_numbers_survive_as_bytes(tensor: Tensor) -> None:
    raw = to_raw(tensor)
    found = from_raw("x", tensor.datatype, list(tensor.shape), memoryview(raw))
    assert isinstance(found.data, np.ndarray)
    assert found.data.dtype == triton_to_np_dtype(tensor.datatype)
    assert (found.shape, found.data.shape, found.data.tobytes()) == (tensor.shape, tensor.shape, raw)


@given(numbers(allow_nan=False, allow_infinity=False))
def test_numbers_survive_as_json(tensor: Tensor) -> None:
    assert isinstance(tensor.data, np.ndarray)
    flat = orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY)
    written = [flat] if not tensor.shape else [flat, orjson.dumps(tensor.data.tolist())]
    for text in written:
        found = from_json("x", tensor.datatype, list(tensor.shape), orjson.loads(text))
        np.testing.assert_array_equal(np.asarray(found.data), tensor.data, strict=True)


@given(WORDS)
def test_strings_survive_and_travel_as_tritons_client_writes_them(words: list[bytes]) -> None:
    raw = to_raw(strings(words))
    assert from_raw("x", "BYTES", [len(words), 1], raw) == strings(words)
    theirs = serialize_byte_tensor(np.array(words, object))
    assert raw == (theirs.item() if theirs.size else b"")
    assert list(deserialize_bytes_tensor(raw)) == words


@given(st.lists(st.text(max_size=10), max_size=8))
def test_text_survives_as_json(words: list[str]) -> None:
    tensor = from_json("x", "BYTES", [len(words)], words)
    assert to_json(tensor) == words


def test_what_comes_as_bytes_is_not_copied() -> None:
    body = np.arange(12, dtype=np.uint8).tobytes()
    data = from_raw("x", "UINT8", [3, 4], memoryview(body)).data
    assert np.shares_memory(np.asarray(data), np.frombuffer(body, np.uint8))


# Whatever is sent: a tensor that is what it says, or an error in words.

ODD = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
ANY_SHAPE = st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62, 2**64]) | ODD, max_size=10) | ODD
ANY_DATA = st.recursive(ODD, lambda inner: st.lists(inner, max_size=5), max_leaves=20)
ANY_TYPE = st.sampled_from([*NUMERIC, "BYTES", "BF16", ""])


def check(tensor: Tensor) -> None:
    count = int(np.prod(tensor.shape))
    if isinstance(tensor.data, list):
        assert (tensor.datatype, len(tensor.data)) == ("BYTES", count)
        assert all(isinstance(element, bytes) for element in tensor.data)
    else:
        assert (tensor.data.dtype, tensor.data.shape) == (NUMERIC[tensor.datatype], tensor.shape)


def check_or_refusal(make: Callable[[], Tensor]) -> None:
    said = None
    try:
        check(make())
    except FoveaError as error:
        said = error.message
    assert said is None or "'x'" in said


@given(ANY_TYPE, ANY_SHAPE, st.binary(max_size=64))
def test_any_bytes(datatype: str, shape: Any, raw: bytes) -> None:
    check_or_refusal(lambda: from_raw("x", datatype, shape, raw))


@given(ANY_TYPE, ANY_SHAPE, ANY_DATA)
def test_any_json(datatype: str, shape: Any, data: Any) -> None:
    check_or_refusal(lambda: from_json("x", datatype, shape, data))


def word(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("shape", "raw", "says"),
    [
        ([1], word(b"ab", 2**32 - 1), "says it has 4294967295 bytes, and 2 are left"),
        ([1], word(b"ab", 3), "says it has 3 bytes"),
        ([1], word(b"ab", 1), "hold something else"),
        ([2], word(b"ab"), "takes 2 elements"),
        ([1], word(b"ab") + word(b"cd"), "takes 1 elements"),
        ([1], word(b"ab") + b"\0", "hold something else"),
        ([2], word(b"ab") + b"\0\0", "hold something else"),
        ([1], b"", "takes 1 elements"),
        ([0], b"\0\0\0\0", "takes 0 elements"),
    ],
)
def test_lying_lengths(shape: list[int], raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_raw("x", "BYTES", shape, raw)
    assert says in refused.value.message


@pytest.mark.parametrize("shape", [[-1, 2], [2.0], ["2"], [True], None, 4, "4", [1] * 9, [2**31], [2**64, 0]])
def test_shapes_that_are_none(shape: Any) -> None:
    for datatype in ("UINT8", "BYTES"):
        with pytest.raises(InvalidRequest, match="shape"):
            from_raw("x", datatype, shape, b"")


def test_shapes_that_overflow() -> None:
    with pytest.raises(InvalidRequest, match="absurd"):
        from_raw("x", "FP64", [0, *[2**30] * 5], b"")
    with pytest.raises(InvalidRequest, match="takes 1267650600228229401496703205376 bytes"):
        from_raw("x", "UINT8", [2**25] * 4, b"1234")


def test_more_strings_than_are_taken() -> None:
    many = MAX_STRINGS + 1
    with pytest.raises(TooLarge):
        from_raw("x", "BYTES", [many], bytes(4 * many))
    with pytest.raises(TooLarge):
        from_json("x", "BYTES", [many], [""] * many)
    assert from_raw("x", "BYTES", [MAX_STRINGS], bytes(4 * MAX_STRINGS)).data == [b""] * MAX_STRINGS


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [256, 0]),
        ("UINT8", [-1, 0]),
        ("INT8", [128, 0]),
        ("UINT8", [1.5, 0]),
        ("UINT8", ["1", 0]),
        ("UINT64", [2**64, 0]),
        ("FP32", [None, 0]),
        ("BOOL", [2, 0]),
        ("FP16", [1, 0]),
        ("BYTES", [1, "a"]),
        ("UINT8", [[1], 0]),
        ("UINT8", [1, 2, 3]),
    ],
)
def test_elements_of_another_kind(datatype: str, data: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        from_json("x", datatype, [2], data)


def test_data_nested_otherwise_than_its_shape() -> None:
    with pytest.raises(InvalidRequest, match="nested"):
        from_json("x", "UINT8", [2, 3], [[1, 2], [3, 4], [5, 6]])


def test_what_json_cannot_carry_is_not_written() -> None:
    half = Tensor("y", "FP16", (1,), np.ones(1, np.float16))
    for tensor in (half, Tensor("y", "BYTES", (1,), [b"\xff"])):
        with pytest.raises(InvalidRequest, match="binary"):
            to_json(tensor)
