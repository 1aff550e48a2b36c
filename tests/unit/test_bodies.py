"""From bodies to images: what is taken, what is refused, and that nothing else can happen."""

from __future__ import annotations

import base64
import contextlib
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import FoveaError, InvalidRequest, TooLarge, UnsupportedFormat
from service.transports.http.bodies import BodyLimits, images_in

LIMITS = BodyLimits(max_bytes=64 * 2**20, max_images=4)
MULTIPART = b"multipart/form-data; boundary=XX"
JSON = b"application/json"


def part(data: bytes, name: str = "image", more: str = "") -> bytes:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


def multipart(*images: bytes) -> bytes:
    return b"".join(map(part, images)) + b"--XX--\r\n"


def as_json(*images: bytes) -> bytes:
    return orjson.dumps({"images": [{"b64": base64.b64encode(image).decode()} for image in images]})


# What is taken.


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"image/png",
        b"IMAGE/JPEG",
        b"image/whatever; q=1",
        b"application/octet-stream",
        b"application/x-www-form-urlencoded",  # what curl says of --data-binary
    ],
)
def test_a_raw_body_is_one_image(content_type: bytes) -> None:
    assert images_in(content_type, b"\x00raw", LIMITS) == [b"\x00raw"]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_multipart_and_json_carry_any_bytes(images: list[bytes]) -> None:
    assert images_in(JSON, as_json(*images), LIMITS) == images
    if not any(b"\r\n--XX" in b"\r\n" + image for image in images):
        assert images_in(MULTIPART, multipart(*images), LIMITS) == images


def test_multipart_reads_what_browsers_and_clients_write() -> None:
    body = (
        b'--XX\r\ncontent-disposition: form-data; filename="a;b.png"; name=image\r\n'
        b"Content-Type: image/png\r\n\r\none\r\n"
        + part(b"not an image", name="comment")
        + part(b"two", more='; filename="\xe9.png"')
        + b"--XX--\r\nan epilogue"
    )
    assert images_in(b'Multipart/Form-Data; charset=utf-8; boundary="XX"', body, LIMITS) == [b"one", b"two"]


def test_json_may_say_more_than_is_asked() -> None:
    body = b' {"comment": "x", "images": [{"name": "a.png", "b64": "AAE="}]}\n'
    assert images_in(b"application/json; charset=utf-8", body, LIMITS) == [b"\x00\x01"]


# What is refused, and how.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", '"images"'),
        (b'"images"', '"images"'),
        (b"{}", '"images"'),
        (b'{"images": {}}', '"images"'),
        (b'{"images": null}', '"images"'),
        (b'{"images": []}', "no image"),
        (b'{"images": ["AAE="]}', r"images\[0\]"),
        (b'{"images": [{"b64": "AAE="}, {"B64": "AAE="}]}', r"images\[1\]"),
        (b'{"images": [{"b64": 5}]}', r"images\[0\]"),
        (b'{"images": [{"b64": "AAE"}]}', r"images\[0\].*base64"),
        (b'{"images": [{"b64": "AA-_"}]}', r"images\[0\].*base64"),
        ('{"images": [{"b64": "ÄÄÄÄ"}]}'.encode(), r"images\[0\].*base64"),
    ],
)
def test_json_that_holds_no_images_says_where(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        images_in(JSON, body, LIMITS)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        (b"multipart/form-data", multipart(b"x"), "no boundary"),
        (b"multipart/form-data; boundary=", multipart(b"x"), "no boundary"),
        (b"multipart/form-data; boundary=YY", multipart(b"x"), "malformed"),
        (MULTIPART, b"", "ends before"),
        (MULTIPART, multipart(b"x")[:-10], "ends before"),
        (MULTIPART, b"--XX--\r\n", "no part named `image`"),
        (MULTIPART, part(b"x", name="picture") + b"--XX--\r\n", "no part named `image`; found 'picture'"),
        (MULTIPART, b"--XX\r\n" + b"A: " + b"x" * 9000 + b"\r\n\r\n--XX--", "malformed|headers of a part"),
        (MULTIPART, part(b"", name="other") * 20 + b"--XX--\r\n", "more than 16 parts"),
    ],
)
def test_multipart_that_holds_no_images_says_why(content_type: bytes, body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        images_in(content_type, body, LIMITS)


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/xml", b"video/mp4", b"imagepng", b"\xff"])
def test_another_content_type_is_refused(content_type: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="multipart"):
        images_in(content_type, b"x", LIMITS)


@pytest.mark.parametrize(("content_type", "body"), [(JSON, as_json(*[b"x"] * 5)), (MULTIPART, multipart(*[b"x"] * 5))])
def test_too_many_images_are_refused(content_type: bytes, body: bytes) -> None:
    with pytest.raises(TooLarge, match="more than 4 images"):
        images_in(content_type, body, LIMITS)


PIECES = [
    b"--XX", b"--", b"\r\n", b"\r", b"\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="image"', b":", b";",
    b"name=", b'{"images":', b"[", b"]", b"{", b"}", b'"b64":', b'"AAAA"', b",", b'"', b"\\", b"\x00",
]  # fmt: skip
CONTENT_TYPES = [MULTIPART, JSON, b'multipart/form-data; boundary="', b"multipart/form-data; boundary*0*=''%"]


@given(
    st.sampled_from(CONTENT_TYPES) | st.binary(max_size=40).map(lambda tail: b"multipart/form-data;" + tail),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=30).map(b"".join),
)
def test_no_body_does_anything_but_parse_or_be_refused(content_type: bytes, body: bytes) -> None:
    try:
        images = images_in(content_type, body, LIMITS)
    except FoveaError:
        return
    assert 1 <= len(images) <= 4


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b'{"images":[' + b"[]," * 500_000 + b"[]]}"),
        (JSON, b'{"images":[' + b"1," * 2_000_000 + b"1]}"),
        (JSON, b"[" * 4_000_000),
        (MULTIPART, part(b"\r" * 4_000_000) + b"--XX--"),
        (MULTIPART, part(b"\r\n-" * 1_000_000) + b"--XX--"),
        (MULTIPART, part(b"\r\n--" * 1_000_000) + b"--XX--"),
        (MULTIPART, part(b"", name="x") * 100_000 + b"--XX--"),
        (MULTIPART, b"\r\n" * 2_000_000),
        (MULTIPART, part(b"x", more=";" * 8000) * 20 + b"--XX--"),
        (MULTIPART + b';"' * 100_000, multipart(b"x")),
    ],
    ids=["lists", "numbers", "depth", "returns", "dashes", "near-boundaries", "parts", "preamble", "options", "quotes"],
)
def test_a_body_made_to_be_slow_is_not(content_type: bytes, body: bytes) -> None:
    """It is parsed on the event loop: 4 MB that took a second would stop everybody else for a second."""
    started = time.thread_time()  # of this thread alone: other tests may be running beside it
    with contextlib.suppress(FoveaError):
        images_in(content_type, body, LIMITS)
    assert time.thread_time() - started < 0.2
