"""Messages are looked through before they are parsed: what is good passes as it is, what is not is a clear refusal."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from service.errors import InvalidRequest, TooLarge
from service.transports.grpc.messages import MAX_FIELDS, MAX_NUMBER_BYTES, SMALL_BYTES, parse

LARGE = bytes(SMALL_BYTES)  # makes a message large enough to be looked through

names = st.text(max_size=8)
parameter = st.builds(pb.InferParameter, double_param=st.floats(allow_nan=False))
numbers = st.lists(st.integers(0, 2**32 - 1), max_size=20)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=names,
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    parameters=st.dictionaries(names, parameter, max_size=3),
    contents=st.builds(
        pb.InferTensorContents,
        bool_contents=st.lists(st.booleans(), max_size=9),
        uint_contents=numbers,
        fp64_contents=st.lists(st.floats(allow_nan=False), max_size=5),
        bytes_contents=st.lists(st.binary(max_size=20), max_size=5),
    ),
)
requests = st.builds(
    pb.ModelInferRequest,
    model_name=names,
    inputs=st.lists(inputs, max_size=4),
    raw_input_contents=st.lists(st.binary(max_size=30), max_size=4),
)


@given(requests)
def test_what_is_good_passes_as_it_is(request_: pb.ModelInferRequest) -> None:
    request_.raw_input_contents.append(LARGE)
    assert parse(pb.ModelInferRequest, request_.SerializeToString()) == request_


@given(st.binary(max_size=60))
def test_whatever_comes_is_parsed_or_refused(data: bytes) -> None:
    large = pb.ModelInferRequest(raw_input_contents=[LARGE]).SerializeToString()
    for message in (data, data + large, large + data):
        with contextlib.suppress(InvalidRequest, TooLarge):
            assert parse(pb.ModelInferRequest, message) == pb.ModelInferRequest.FromString(message)


@given(requests, st.integers(1, 400))
def test_what_is_cut_off_is_refused(request_: pb.ModelInferRequest, end: int) -> None:
    """Within the large field, which is the last."""
    request_.raw_input_contents.append(LARGE)
    with pytest.raises(InvalidRequest):
        parse(pb.ModelInferRequest, request_.SerializeToString()[:-end])


def test_as_much_as_is_taken_and_no_more() -> None:
    many = pb.ModelInferRequest(raw_input_contents=[b"12345"] * MAX_FIELDS)
    assert len(parse(pb.ModelInferRequest, many.SerializeToString()).raw_input_contents) == MAX_FIELDS
    many.raw_input_contents.append(b"")
    with pytest.raises(TooLarge, match="fields"):
        parse(pb.ModelInferRequest, many.SerializeToString())
    contents = pb.InferTensorContents(uint_contents=[1] * MAX_NUMBER_BYTES)
    long = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(contents=contents)])
    assert (
        len(parse(pb.ModelInferRequest, long.SerializeToString()).inputs[0].contents.uint_contents) == MAX_NUMBER_BYTES
    )
    long.inputs[0].contents.uint_contents.append(1)
    with pytest.raises(TooLarge, match="numbers"):
        parse(pb.ModelInferRequest, long.SerializeToString())


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x22\x00", b"\x2a\x02\x2a\x00", b"\x2a\x04\x2a\x02\x42\x00", b"\x00"])
def test_megabytes_of_nothing_are_refused_in_milliseconds(field: bytes) -> None:
    message = field * (16 * 2**20 // len(field))
    started = time.perf_counter()
    with pytest.raises((TooLarge, InvalidRequest)):
        parse(pb.ModelInferRequest, message)
    assert time.perf_counter() - started < 0.5
