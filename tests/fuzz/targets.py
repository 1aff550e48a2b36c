"""What is fuzzed: what reads strangers' input, the errors it may raise, and what must hold when it raises none."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.errors import InvalidImage, InvalidRequest, TooLarge, UnsupportedFormat
from service.heads.archive import ArchiveLimits, read_archive
from service.oip.tensors import Tensor, from_json, from_raw, to_json, to_raw
from service.preprocess import Limits, Preprocessor
from service.spec import ImageSpec, InvalidSpec, parse_config, read_config, spec_parameters
from service.transports.grpc.http2 import frames
from service.transports.grpc.http2.connection import Connection, Stream
from service.transports.grpc.http2.headers import Headers, encode, status
from service.transports.grpc.messages import parse
from service.transports.grpc.open_inference import _request as protobuf_request  # what every call goes through
from service.transports.http.bodies import BodyLimits, images_in
from service.transports.http.oip_bodies import infer_request
from tests.fuzz.seeds import (
    ARCHIVE_WORDS,
    BODY_WORDS,
    CONFIG_WORDS,
    CONVERSATION_WORDS,
    IMAGE_WORDS,
    TENSOR_WORDS,
    archives,
    bodies,
    configs,
    conversations,
    images,
    tensors,
)

T = TypeVar("T")

REFUSALS = (InvalidImage, InvalidRequest, TooLarge, UnsupportedFormat)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that takes any bytes.

    Attributes:
        run: Takes them; what it raises is a finding, and so is to take longer than `seconds`.
        seeds: Sound inputs to start from, by name.
        dictionary: What inputs are made of.
        seconds: Of processor time, that one input may take at most.
        megabytes: Of memory, that the process may have at most.
        max_bytes: Of one input.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], dict[str, bytes]]
    dictionary: Sequence[bytes]
    seconds: float = 1.0
    megabytes: int = 1024
    max_bytes: int = 16 * 1024

    def __call__(self, data: bytes) -> None:
        """Give it one input.

        Raises:
            TooSlow: It took longer than it may.
            Exception: Whatever else it must not do.
        """
        started = time.thread_time()
        self.run(data)
        taken = time.thread_time() - started
        if taken > self.seconds:
            raise TooSlow(f"{len(data)} bytes took {taken:.2f} s; at most {self.seconds} are allowed")


class TooSlow(Exception):
    """An input takes longer than any should."""


# Images.

_LIMITS = Limits(max_pixels=1_000_000)
_PREPROCESSORS = (
    Preprocessor(ImageSpec(height=19, width=23, resize_to=32), _LIMITS),
    Preprocessor(ImageSpec(height=5, width=6, channels=1, resize="letterbox", interpolation="nearest"), _LIMITS),
)


def decode(data: bytes) -> None:
    """Both networks' inputs of an image, or the reason why there are none; for both the same."""
    outcomes, told = [], ""
    for preprocess in _PREPROCESSORS:
        try:
            out = preprocess(data)
        except (InvalidImage, TooLarge, UnsupportedFormat) as error:
            outcomes.append(error.code)
            told = error.message
        else:
            assert out.dtype == np.uint8
            assert out.flags.c_contiguous
            outcomes.append("decoded")
    assert "0x" not in told, told
    assert len(set(outcomes)) == 1 or data.startswith(b"\xff\xd8"), outcomes  # a JPEG is decoded at two sizes


# Bodies: a content type, a line's end, the body.

_BODY_LIMITS = BodyLimits(max_bytes=2**20, max_images=4)


def read_body(data: bytes) -> None:
    """The images of a body."""
    content_type, _, body = data.partition(b"\n")
    try:
        images_ = images_in(content_type, body, _BODY_LIMITS)
    except REFUSALS:
        return
    assert 1 <= len(images_) <= _BODY_LIMITS.max_images
    assert sum(map(len, images_)) <= len(body)


# Tensors: a byte says how they come.


def read_tensors(data: bytes) -> None:
    """The tensors of a request, which come back the same from what they are written as."""
    form, rest = data[:1], data[1:]
    try:
        if form == b"J":
            request = finished(infer_request("m", "", rest, b""))[0]
        elif form == b"B":
            request = finished(infer_request("m", "", rest[2:], b"%d" % int.from_bytes(rest[:2], "big")))[0]
        else:
            request = protobuf_request(parse(pb.ModelInferRequest, rest))
    except REFUSALS:
        return
    for tensor in request.inputs:
        again = from_raw(tensor.name, tensor.datatype, list(tensor.shape), to_raw(tensor))
        assert same(again, tensor)
        try:
            numbers = orjson.loads(orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY))
        except InvalidRequest:  # FP16, or no text
            continue
        if None not in numbers:  # infinities are no JSON
            assert same(from_json(tensor.name, tensor.datatype, list(tensor.shape), numbers), tensor)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, bit for bit."""
    return (one.datatype, tuple(one.shape), to_raw(one)) == (other.datatype, tuple(other.shape), to_raw(other))


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for; large JSON, which it has, is read on another thread."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError("small requests are read at once")


# A model's config, as it lies in a repository that somebody has damaged.


@cache
def _config_path() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fovea-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "tiny").mkdir()
    return folder / "tiny" / "config.pbtxt"


def read_spec(data: bytes) -> None:
    """The specs of a config, which come back the same from what they are written as."""
    path = _config_path()
    path.write_bytes(data)
    try:
        model = read_config(path, lenient=True)
    except InvalidSpec:
        return
    assert model.max_batch_size >= 1 <= model.keep_versions
    config = ModelConfig(name=model.name)
    for key, text in spec_parameters(model.specs).items():
        config.parameters[key].string_value = text
    again = parse_config(config)
    assert not again.refused
    assert repr(again.specs) == repr(model.specs)  # of numbers that are none, too


# An archive of labelled images.

_ARCHIVE_LIMITS = ArchiveLimits(max_entries=50, max_file_bytes=10_000, max_bytes=20_000)


def unpack(data: bytes) -> None:
    """The files of an archive."""
    try:
        entries = read_archive(data, _ARCHIVE_LIMITS)
    except REFUSALS:
        return
    assert 1 <= len(entries) <= _ARCHIVE_LIMITS.max_entries
    assert sum(len(entry.data) for entry in entries) <= _ARCHIVE_LIMITS.max_bytes
    for entry in entries:
        assert entry.label
        assert not {"..", ""} & set(entry.name.split("/"))


# A connection of HTTP/2, which is answered.


class _Echo:
    """Answers each request with its body. Satisfies `Receiver`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.body = b""
        self.over = False

    def received(self, data: bytes) -> None:
        assert not self.over
        self.body += data
        self.stream.consumed(len(data))

    def ended(self) -> None:
        assert not self.over
        self.over = True
        self.stream.send(status(200), self.body, encode((b"grpc-status", b"0")))

    def broken(self) -> None:
        self.over = True

    def drained(self) -> None:
        assert not self.stream.pending


def talk(data: bytes) -> None:
    """Whatever a client says, it is told in whole frames, and on streams that it has opened."""
    said = bytearray()
    opened = [0]

    def begun(stream: Stream, headers: Headers) -> _Echo:
        assert headers.values[b":path"]
        assert stream.number > opened[-1]
        opened.append(stream.number)
        return _Echo(stream)

    connection = Connection(said.extend, begun, max_streams=10)
    connection.start()
    half = len(data) // 2
    for part in (frames.PREFACE, data[:half], data[half:]):
        connection.receive(part)
        assert len(connection.streams) <= 10
    connection.drain()
    connection.close()
    place = 0
    while place < len(said):
        if said[place + 3] in (frames.DATA, frames.HEADERS):
            assert int.from_bytes(said[place + 5 : place + 9]) in opened
        place += frames.HEAD_BYTES + int.from_bytes(said[place : place + 3])
    assert place == len(said)


TARGETS = {
    "decoder": Target(decode, images, IMAGE_WORDS),
    "bodies": Target(read_body, bodies, BODY_WORDS, seconds=0.25),
    "tensors": Target(read_tensors, tensors, TENSOR_WORDS, seconds=0.25),
    "config": Target(read_spec, configs, CONFIG_WORDS),
    "archive": Target(unpack, archives, ARCHIVE_WORDS, seconds=0.25),
    "http2": Target(talk, conversations, CONVERSATION_WORDS, seconds=0.25),
}
