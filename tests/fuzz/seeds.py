"""Sound inputs that fuzzing starts from, and what such inputs are made of."""

from __future__ import annotations

import io
import struct
import zipfile
from base64 import b64encode
from functools import cache
from typing import Any

import h2.connection
import hpack
import numpy as np
import orjson
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.spec import spec_parameters
from tests.images import HEIGHT, WIDTH, encoded, exif, noise, png, tiff
from tests.models import tiny_spec


@cache
def images() -> dict[str, bytes]:
    """A small file of every format, and of every kind of it that is read in a way of its own."""
    colour = Image.fromarray(noise())
    grey, indexed = colour.convert("L"), colour.convert("P")
    turned = [colour, colour.rotate(90)]
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 1))
    motion: dict[str, Any] = {"save_all": True, "append_images": turned[1:]}
    return {
        "png": encoded(colour, "PNG", exif=exif(6)),
        "png-palette": encoded(indexed, "PNG", transparency=3),
        "png-interlaced": png(noise(), 8, 2, interlaced=True),
        "png-16-bits": png(deep, 16, 0, (b"tRNS", b"\0\1")),
        "png-alpha": png(noise(channels=4), 8, 6),
        "png-1-bit": encoded(colour.convert("1"), "PNG"),
        "png-animated": encoded(turned[0], "PNG", **motion),
        "jpeg": encoded(colour, "JPEG", exif=exif(6)),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-progressive": encoded(colour, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(colour.convert("CMYK"), "JPEG"),
        "webp": encoded(colour, "WEBP"),
        "webp-lossless": encoded(colour, "WEBP", lossless=True),
        "webp-alpha": encoded(Image.fromarray(noise(channels=4)), "WEBP", exif=exif(3)),
        "webp-animated": encoded(turned[0], "WEBP", **motion),
        "bmp": encoded(colour, "BMP"),
        "bmp-palette": encoded(indexed, "BMP"),
        "bmp-1-bit": encoded(colour.convert("1"), "BMP"),
        "gif": encoded(indexed, "GIF"),
        "gif-animated": encoded(turned[0], "GIF", **motion),
        "tiff": encoded(colour, "TIFF", exif=exif(6)),
        "tiff-lzw": encoded(colour, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-packbits": encoded(colour, "TIFF", compression="packbits"),
        "tiff-jpeg": encoded(colour, "TIFF", compression="jpeg"),
        "tiff-palette": encoded(indexed, "TIFF"),
        "tiff-cmyk": encoded(colour.convert("CMYK"), "TIFF"),
        "tiff-motorola": tiff(
            {256: (3, [WIDTH]), 257: (3, [HEIGHT]), 258: (3, [8]), 262: (3, [1])}, noise(channels=1).tobytes(), ">"
        ),
    }


IMAGE_WORDS = [
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"iCCP",
    b"\xff\xd8\xff", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xdd", b"\xff\xe1",
    b"\xff\xd9", b"Exif\0\0", b"GIF89a", b"\x21\xf9\x04", b"\x2c", b"\x3b", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"WEBP",
    b"VP8 ",
    b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"\x9d\x01\x2a", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f",
]  # fmt: skip


def bodies() -> dict[str, bytes]:
    """A body of each kind."""
    image = images()["gif"]
    part = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a.gif"\r\nContent-Type: image/gif\r\n\r\n'
    text = b'--XX\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    as_json = orjson.dumps({"images": [{"b64": b64encode(image).decode()}, {"b64": "AAE="}]})
    return {
        "raw": b"image/gif\n" + image,
        "multipart": b"multipart/form-data; boundary=XX\n" + (part + b"abc\r\n") * 2 + text + b"--XX--\r\n",
        "multipart-quoted": b'multipart/form-data; boundary="XX"\n' + part + image + b"\r\n--XX--",
        "json": b"application/json\n" + as_json,
        "json-deep": b'application/json\n{"images":[{"b64":"","x":[[[[{"y":{}}]]]]}]}',
    }


BODY_WORDS = [
    b"multipart/form-data; boundary=XX\n", b"application/json\n", b"--XX", b"--XX--", b"--XX\r\n", b"\r\n", b"\r\n\r\n",
    b"\r",
    b"\n", b'Content-Disposition: form-data; name="image"', b"filename*=utf-8''%2e", b"boundary=", b"name=", b";", b":",
    b'"',
    b"\\", b"\0", b'{"images":[', b'{"b64":"', b"AAAA", b"[", b"]", b"{", b"}", b",", b"null", b"1e999",
]  # fmt: skip


def tensors() -> dict[str, bytes]:
    """A request of each kind."""
    text = {"name": "encoded_image", "datatype": "BYTES", "shape": [2, 1], "data": ["AAE=", "AAA="]}
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 3], "data": [[[[1, 2, 3]], [[4, 5, 6]]]]}
    floats = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, -2]}
    asked = {"outputs": [{"name": "logits", "parameters": {"classification": 2, "binary_data": True}}]}
    as_json = orjson.dumps({"id": "1", "inputs": [text, pixels, floats], **asked, "parameters": {"timeout": 9}})
    raw = [b"\1\0\0\0a\2\0\0\0bc", bytes(6), struct.pack("<2f", 1, 2)]
    binary = [
        {key: value for key, value in each.items() if key != "data"} | {"parameters": {"binary_data_size": len(part)}}
        for each, part in zip((text, pixels, floats), raw, strict=True)
    ]
    head = orjson.dumps({"inputs": binary})
    message = pb.ModelInferRequest(model_name="m", id="1", raw_input_contents=raw)
    for each in (text, pixels, floats):
        message.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
    message.parameters["timeout"].int64_param = 9
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    typed.inputs.add(name="e", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"abc")
    typed.outputs.add(name="logits").parameters["classification"].int64_param = 3
    return {
        "json": b"J" + as_json,
        "binary": b"B" + len(head).to_bytes(2, "big") + head + b"".join(raw),
        "protobuf": b"P" + message.SerializeToString(),
        "protobuf-typed": b"P" + typed.SerializeToString(),
    }


TENSOR_WORDS = [
    *(f'"{name}"'.encode() for name in ("FP16", "FP32", "FP64", "INT8", "INT64", "UINT64", "BOOL", "BYTES")),
    b'"shape":', b'"data":', b'"inputs":', b'"outputs":', b'"parameters":', b'"binary_data_size":', b"[0,2147483647,0]",
    b"-1", b"1e999", b"18446744073709551616", b"[[[[", b"]]]]", b"null", b"true", b'"\\ud800"', b'"\\u0000"',
    b"\xff\xff\xff\xff", b"BYTES", b"FP16", b"shared_memory_region",
]  # fmt: skip


def configs() -> dict[str, bytes]:
    """A config with a spec, and what else it may hold."""
    spec = tiny_spec()
    config = ModelConfig(name="tiny", backend="onnxruntime", max_batch_size=8)
    bare = text_format.MessageToString(config)
    for key, text in spec_parameters({"1": spec}).items():
        config.parameters[key].string_value = text
    return {
        "config": text_format.MessageToString(config).encode(),
        "bare": bare.encode() + b'version_policy { latest { num_versions: 2 } }\nparameters { key: "x" value {} }\n',
    }


CONFIG_WORDS = [
    b"{", b"}", b"<", b">", b"[", b"]", b":", b'"', b"'", b"\\", b"#", b"inf", b"nan", b"-1", b"99999999999999999999",
    b"ensemble_scheduling {", b"version_policy { latest { num_versions: ", b"parameters {", b"fovea.", b"NaN", b"null",
    b"\\n", b"\xff", b"\\u0000", b"optimization { graph {", b'"files":{"../../x":""}', b"string_value",
]  # fmt: skip


def archives() -> dict[str, bytes]:
    """An archive of each method."""
    files = {"7/a.png": b"seven" * 20, "8/b.png": b"eight", "8/.hidden": b""}
    found = {}
    for name, top, method in (("deflated", "", zipfile.ZIP_DEFLATED), ("stored", "top/", zipfile.ZIP_STORED)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for path, data in files.items():
                archive.writestr(top + path, data)
        found[name] = out.getvalue()
    return found


ARCHIVE_WORDS = [
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
    b"PK\6\6",
    b"PK\6\7",
    b"../",
    b"/",
    b"\0",
    b"\\",
    b"C:",
    b"\xff\xff\xff\xff",
]


_REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x"), ("te", "trailers")]


def conversations() -> dict[str, bytes]:
    """What HTTP/2 clients say after the preface: a call, several with all kinds of frames, and one of its own."""
    found = {}
    for name, calls in (("one", 1), ("three", 3)):
        client = h2.connection.H2Connection()
        client.initiate_connection()
        for call in range(calls):
            number = client.get_next_available_stream_id()
            client.send_headers(number, [*_REQUEST, ("x-call", str(call) * 30)], priority_weight=call + 1)
            client.send_data(number, b"\0\0\0\0\5hello" * 20, pad_length=call)
            client.ping(b"12345678")
            client.increment_flow_control_window(1000)
            if call % 2:
                client.reset_stream(number)
            else:
                client.end_stream(number)
        found[name] = client.data_to_send()[24:]
    block = hpack.Encoder().encode(_REQUEST)
    parts = [
        *((1, 0, block[:9]), (9, 0, block[9:12]), (9, 4, block[12:])),
        *((0, 1, b"data"), (4, 0, b"\0\4\0\0\0\1"), (7, 0, bytes(8))),
    ]
    found["continued"] = b"".join(
        len(data).to_bytes(3) + bytes([kind, flags]) + (kind in (0, 1, 9)).to_bytes(4) + data
        for kind, flags, data in parts
    )
    return found


CONVERSATION_WORDS = [
    *(
        b"\0\0\4" + bytes([kind, flags]) + stream.to_bytes(4)
        for kind in range(10)
        for flags, stream in ((0, 1), (5, 3), (1, 0))
    ),
    b"\x82\x86\x84",  # indexed fields
    b"\x3f\xe1\x1f",  # the size of the table
    b"\x7f\xff\xff\xff",
    *(bytes([0, setting]) for setting in range(1, 7)),
]
