"""Bodies of the Open Inference Protocol over HTTP: JSON, with tensors in it or as binary data behind it.

A JSON parser holds the interpreter while it runs, on whatever thread, so JSON is limited to what takes some tens of
milliseconds. Binary data is not: it is never looked at.
"""

from __future__ import annotations

import asyncio
import binascii
import zlib
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import InvalidRequest, TooLarge, UnsupportedFormat
from service.oip.description import FILES
from service.oip.protocol import InferAnswer, InferRequest, WantedOutput
from service.oip.tensors import Tensor, from_json, from_raw, to_json, to_raw

MAX_JSON_BYTES = 2 * 2**20
MAX_JSON_CONTAINERS = 65_536  # lists and objects: the garbage collector looks at each, again and again
MAX_JSON_NUMBERS = 2**17  # of an output
MAX_TENSORS = 8
ASIDE_JSON_BYTES = 64 * 1024  # from here on on another thread, where others get a turn between the steps
ASIDE_PACKED_BYTES = 4 * 1024  # likewise

_PACKINGS = {b"gzip": 31, b"deflate": 15}  # zlib's window bits, which choose the format


@dataclass(frozen=True, slots=True)
class Binary:
    """Which outputs go as binary data: as each says, or else as all."""

    default: bool
    by_name: Mapping[str, bool]

    def __call__(self, name: str) -> bool:
        return self.by_name.get(name, self.default)


async def unpacked(encoding: bytes, body: bytes, max_bytes: int) -> bytes:
    """A body without its compression.

    Args:
        encoding: The header.
        body: As it came.
        max_bytes: It may have, uncompressed.

    Raises:
        UnsupportedFormat: The encoding is neither gzip nor deflate.
        InvalidRequest: The body is not in that encoding.
        TooLarge: There is more in it.
    """
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _PACKINGS:
        raise UnsupportedFormat(
            f"content encoding {encoding[:40].decode('latin-1')} is not taken; gzip and deflate are"
        )
    return await asyncio.to_thread(_unpack, _PACKINGS[encoding], body, max_bytes)  # a few bytes may hold millions


def _unpack(window: int, body: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        found = unpacker.decompress(body, max_bytes + 1)
    except zlib.error:
        raise InvalidRequest("the body is not in its content encoding") from None
    if len(found) > max_bytes:
        raise TooLarge(f"the request has more than {max_bytes} bytes, uncompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("the body does not end where its compressed data does")
    return found


async def packed(accepted: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A body, compressed if the client asks for that; and the encoding, empty if it has none."""
    encoding = _accepted(accepted) if accepted else b""
    if not encoding:
        return body, b""
    if len(body) <= ASIDE_PACKED_BYTES:
        return zlib.compress(body, 1, _PACKINGS[encoding]), encoding
    return await asyncio.to_thread(zlib.compress, body, 1, _PACKINGS[encoding]), encoding


def _accepted(header: bytes) -> bytes:
    """The encoding of ours that an `Accept-Encoding` (RFC 9110) likes best; empty for none."""
    best, found = 0.0, b""
    for entry in header.lower().split(b","):
        name, _, weight = entry.partition(b";")
        try:
            liking = float(weight.strip().removeprefix(b"q=") or 1)
        except ValueError:
            continue
        if name.strip() in _PACKINGS and liking > best:
            best, found = liking, name.strip()
    return found


async def infer_request(model: str, version: str, body: bytes, header_length: bytes) -> tuple[InferRequest, Binary]:
    """A request to infer.

    Args:
        model: That it is for.
        version: Of the model; may be empty.
        body: Uncompressed.
        header_length: The header that says how long the JSON is; empty if it is all of the body.

    Raises:
        InvalidRequest: It is malformed, or asks for what there is not.
        TooLarge: The JSON is larger than is taken, or there are too many tensors.
    """
    length = _json_length(header_length, len(body))
    if length <= ASIDE_JSON_BYTES:
        return _parse(model, version, body, length)
    return await asyncio.to_thread(_parse, model, version, body, length)


def _json_length(header: bytes, length: int) -> int:
    if header:
        if not header.isdigit() or len(header) > 12 or not 0 < int(header) <= length:
            raise InvalidRequest(
                "Inference-Header-Content-Length must be the length of the JSON in front of the binary data; it is"
                f" {header[:40].decode('latin-1')!r}, and the body has {length} bytes"
            )
        length = int(header)
    if length > MAX_JSON_BYTES:
        raise TooLarge(f"the JSON has {length} bytes; at most {MAX_JSON_BYTES} are taken: send tensors as binary data")
    return length


def _parse(model: str, version: str, body: bytes, length: int) -> tuple[InferRequest, Binary]:
    rest = memoryview(body)[length:]
    document = parse_object(body[:length])
    parameters = _object(document, "parameters", "the request")
    inputs = []
    for entry in _entries(document, "inputs"):
        tensor, rest = _input(entry, rest)
        inputs.append(tensor)
    if len(rest):
        raise InvalidRequest(f"{len(rest)} bytes behind the JSON belong to no input; give each its binary_data_size")
    outputs, binary = [], {}
    for entry in _entries(document, "outputs"):
        output, as_binary = _output(entry)
        outputs.append(output)
        if as_binary is not None:
            binary[output.name] = as_binary
    request_id = document.get("id") or ""
    if not isinstance(request_id, str):
        raise InvalidRequest("id must be text")
    default = _boolean(parameters, "binary_data_output") or False
    return InferRequest(model, version, request_id, inputs, outputs, parameters), Binary(default, binary)


def parse_object(text: bytes) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        InvalidRequest: It is something else.
        TooLarge: It has more lists and objects than are taken.
    """
    if text.count(b"[") + text.count(b"{") > MAX_JSON_CONTAINERS:
        raise TooLarge(
            f"the JSON has more than {MAX_JSON_CONTAINERS} lists and objects: send data as flat lists or as binary data"
        )
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}; if binary data follows"
            " it, Inference-Header-Content-Length has to say how long it is"
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return document


def _entries(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidRequest(f"{key} must be a list of objects")
    if len(found) > MAX_TENSORS:
        raise TooLarge(f"there are {len(found)} {key}; at most {MAX_TENSORS} are taken")
    for entry in found:
        if not isinstance(entry.get("name"), str):
            raise InvalidRequest(f"each of the {key} must have a name")
    return found


def _object(entry: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    found = entry.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"{key} of {place} must be an object")
    return found


def _boolean(parameters: dict[str, Any], name: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise InvalidRequest(f"the parameter {name} must be true or false")
    return found


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = _object(entry, "parameters", repr(entry["name"][:80]))
    if "shared_memory_region" in found:
        raise InvalidRequest("shared memory is not served; send and ask for tensors as binary data")
    return found


def _input(entry: dict[str, Any], rest: memoryview) -> tuple[Tensor, memoryview]:
    """A tensor, and what is behind its binary data."""
    name, datatype, shape = entry["name"], entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str):
        raise InvalidRequest(f"the input {name[:80]!r} must have a datatype")
    size = _parameters(entry).get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidRequest(f"binary_data_size of {name[:80]!r} is {str(size)[:40]}; {len(rest)} bytes are left")
        if "data" in entry:
            raise InvalidRequest(f"the input {name[:80]!r} has data, and binary data as well")
        return from_raw(name, datatype, shape, rest[:size]), rest[size:]
    if "data" not in entry:
        raise InvalidRequest(f"the input {name[:80]!r} has neither data nor a binary_data_size")
    tensor = from_json(name, datatype, shape, entry["data"])
    return (_from_base64(tensor) if name == FILES and isinstance(tensor.data, list) else tensor), rest


def _from_base64(tensor: Tensor) -> Tensor:
    """Files, which JSON can only carry as base64: no image format is text."""
    files = []
    for index, text in enumerate(tensor.data):
        try:
            files.append(b64decode(text, validate=True))
        except binascii.Error:
            raise InvalidRequest(
                f"element {index} of {FILES!r} is not standard base64, which is how JSON carries files; or send binary"
                " data"
            ) from None
    return Tensor(tensor.name, tensor.datatype, tensor.shape, files)


def _output(entry: dict[str, Any]) -> tuple[WantedOutput, bool | None]:
    parameters = _parameters(entry)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes < 2**31:
        raise InvalidRequest(f"classification of {entry['name'][:80]!r} must be a number of classes")
    return WantedOutput(entry["name"], classes), _boolean(parameters, "binary_data")


def infer_answer(answer: InferAnswer, binary: Binary) -> tuple[bytes, int | None]:
    """An answer's body, and the length of its JSON if binary data stands behind it.

    Raises:
        TooLarge: More numbers were asked for as JSON than are sent so.
    """
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in answer.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary(tensor.name):
            raw.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = data = to_json(tensor)
            if len(data) > MAX_JSON_NUMBERS:
                raise TooLarge(
                    f"the output {tensor.name!r} has {len(data)} numbers, and at most {MAX_JSON_NUMBERS} are sent as"
                    " JSON: ask for it as binary data"
                )
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        document["id"] = answer.id
    if answer.parameters:
        document["parameters"] = answer.parameters
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)
