"""One image, one answer: the same bytes on every way into the server, whatever they are."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2 as oip

from service.calibration import probabilities
from service.errors import FoveaError
from service.preprocess import Limits, Preprocessor
from service.transports.grpc.proto.fovea.v1 import classifier_pb2 as pb
from service.transports.http.problems import PROBLEMS
from tests.images import smooth
from tests.models import png, tiny_spec
from tests.rpc import Failure, Rpc
from tests.server import Server

Found = NDArray[Any] | str  # probabilities [K], or the code of an error

SPEC = tiny_spec()


def encoded(pixels: NDArray[np.uint8], kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def images() -> Iterator[tuple[str, bytes]]:
    picture = smooth(60, 90)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        yield kind, encoded(picture, kind)
    for mode in ("L", "LA", "RGBA", "P", "1"):
        yield f"PNG of mode {mode}", encoded(picture, "PNG", mode)
    yield "CMYK", encoded(picture, "JPEG", "CMYK")
    yield "turned", encoded(picture, "JPEG", exif=_turned())
    for height, width in ((1, 1), (8, 8), (1, 500), (700, 900)):
        yield f"{width} x {height}", encoded(smooth(height, width), "PNG")
    whole = encoded(smooth(50, 50), "JPEG")
    yield "empty", b""
    yield "no image", b"hello, this is no image"
    yield "PDF", b"%PDF-1.7\n"
    yield "truncated", whole[: len(whole) // 2]
    yield "a broken PNG", png(smooth(9, 9))[:60]
    yield "too many pixels", encoded(smooth(1000, 1001), "PNG", "1")
    yield "too many bytes", whole + bytes(200_001)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


IMAGES = dict(images())


# Each way takes an encoded image and says what was found.


def found(prediction: dict[str, Any]) -> Found:
    """In a native prediction, of either transport."""
    if "error" in prediction:
        return str(prediction["error"]["code"])
    classes = sorted(prediction["classes"], key=lambda each: each["index"])
    return np.array([each["probability"] for each in classes])


def _http(answer: httpx.Response) -> Found:
    return found(answer.json()["predictions"][0]) if answer.status_code == 200 else str(answer.json()["code"])


def http_raw(server: Server, image: bytes) -> Found:
    headers = {"content-type": "application/octet-stream"}
    return _http(server.client.post("/v1/models/tiny/classify", content=image, headers=headers))


def http_multipart(server: Server, image: bytes) -> Found:
    return _http(server.client.post("/v1/models/tiny/classify", files=[("image", image)]))


def http_json(server: Server, image: bytes) -> Found:
    body = {"images": [{"b64": base64.b64encode(image).decode()}]}
    return _http(server.client.post("/v1/models/tiny/classify", json=body))


def http_multipart_among_others(server: Server, image: bytes) -> Found:
    files = [("image", each) for each in (IMAGES["PNG"], image, IMAGES["1 x 1"])]
    return found(server.client.post("/v1/models/tiny/classify", files=files).json()["predictions"][1])


def grpc_classify(server: Server, image: bytes) -> Found:
    with Rpc(server) as rpc:
        answer = rpc.classify([image])
    return answer.code or answer.status if isinstance(answer, Failure) else found(answer["predictions"][0])


def grpc_classify_among_others(server: Server, image: bytes) -> Found:
    with Rpc(server) as rpc:
        answer = rpc.classify([IMAGES["PNG"], image, IMAGES["1 x 1"]])
    assert isinstance(answer, dict), answer
    return found(answer["predictions"][1])


def grpc_stream(server: Server, image: bytes) -> Found:
    with Rpc(server) as rpc:
        (answer,) = rpc.stream([pb.ClassifyStreamRequest(image=image, model="tiny")])
    return found(answer["prediction"])


def oip_http_encoded(server: Server, image: bytes) -> Found:
    inputs = [
        {"name": "encoded_image", "datatype": "BYTES", "shape": [1, 1], "data": [base64.b64encode(image).decode()]}
    ]
    answer = server.client.post("/v2/models/tiny.encoded/infer", json={"inputs": inputs})
    if answer.status_code != 200:
        return f"HTTP {answer.status_code}"  # the protocol has no codes
    return np.array(answer.json()["outputs"][0]["data"])


def oip_grpc_encoded(server: Server, image: bytes) -> Found:
    return _oip_grpc(server, "tiny.encoded", "encoded_image", "BYTES", [1, 1], len(image).to_bytes(4, "little") + image)


def oip_grpc_tensor(server: Server, image: bytes) -> Found:
    """The client decodes: with our own preprocessing, so that pixels are the same."""
    try:
        pixels = Preprocessor(SPEC.image, Limits(200_000, 1_000_000))(image)
    except FoveaError as error:
        return error.code
    answer = _oip_grpc(server, "tiny", "image", "UINT8", [1, *pixels.shape], pixels.tobytes())
    return answer if isinstance(answer, str) else probabilities(answer, SPEC.calibration.temperature)


def _oip_grpc(server: Server, model: str, name: str, datatype: str, shape: list[int], data: bytes) -> Found:
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    with Rpc(server) as rpc:
        answer = rpc.raw("/inference.GRPCInferenceService/ModelInfer", request.SerializeToString())
    if isinstance(answer, Failure):
        return answer.code or answer.status
    (output,) = oip.ModelInferResponse.FromString(answer).raw_output_contents
    return np.frombuffer(output, "<f4")


WAYS: list[Callable[[Server, bytes], Found]] = [
    http_multipart,
    http_json,
    http_multipart_among_others,
    grpc_classify,
    grpc_classify_among_others,
    grpc_stream,
    oip_http_encoded,
    oip_grpc_encoded,
    oip_grpc_tensor,
]


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_on_every_way(server: Server, name: str) -> None:
    image = IMAGES[name]
    first = http_raw(server, image)
    assert isinstance(first, str) == (list(IMAGES).index(name) >= list(IMAGES).index("empty"))
    for way in WAYS:
        other = way(server, image)
        if isinstance(first, str):
            assert other in (first, f"HTTP {PROBLEMS[first][0]}"), way.__name__
        else:
            assert not isinstance(other, str), (way.__name__, other)
            assert np.allclose(other, first, atol=1.1e-6), way.__name__
