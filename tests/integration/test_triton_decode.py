"""Triton decodes: the gateway sends files to the decode model, and answers as if it had decoded them itself."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import repository as model_repository
from export.replay import MODEL_FILE, sha256
from service.preprocess import Preprocessor
from service.settings import InvalidSettings, load
from service.spec import Golden, ImageSpec
from tests.images import encoded, exif, smooth
from tests.models import publish_tiny, tiny_logits, tiny_model, tiny_spec
from tests.server import Server, is_right, picture
from tests.triton import Triton, needs_triton

pytestmark = [needs_triton, pytest.mark.timeout(180)]

SIZE = 32
WAYS = {
    "crop": ImageSpec(height=SIZE, width=SIZE, resize="shorter_side", resize_to=36),
    "stretch": ImageSpec(height=SIZE, width=SIZE, resize="stretch", interpolation="bicubic"),
    "letterbox": ImageSpec(height=SIZE, width=SIZE, resize="letterbox", background=(10, 200, 90)),
}
LIMITS = {"max_image_bytes": 200_000, "max_pixels": 2_000_000}

PHOTO = Image.fromarray(smooth(480, 640))
CLEAR = PHOTO.resize((90, 60))
CLEAR.putalpha(Image.linear_gradient("L").resize((90, 60)))
FILES = {
    "JPEG": encoded(PHOTO, "JPEG", quality=92),
    "progressive JPEG": encoded(PHOTO.resize((1200, 900)), "JPEG", progressive=True),
    "grey JPEG": encoded(PHOTO.convert("L"), "JPEG"),
    "CMYK JPEG": encoded(PHOTO.convert("CMYK"), "JPEG"),
    **{f"turned JPEG, {way}": encoded(PHOTO, "JPEG", exif=exif(way)) for way in (2, 5, 6, 8)},
    "PNG": encoded(PHOTO.resize((90, 60)), "PNG"),
    "transparent PNG": encoded(CLEAR, "PNG"),
    "turned PNG": encoded(PHOTO.resize((90, 60)), "PNG", exif=exif(6)),
    "WebP": encoded(PHOTO, "WEBP"),
    "GIF": encoded(PHOTO.convert("P"), "GIF"),
    "BMP": encoded(PHOTO.resize((90, 60)), "BMP"),
    "TIFF": encoded(PHOTO.resize((90, 60)), "TIFF"),
}
BROKEN = {
    "truncated JPEG": (FILES["JPEG"][:-2000], "invalid_image"),
    "damaged PNG": (FILES["PNG"][:-30] + bytes([FILES["PNG"][-30] ^ 1]) + FILES["PNG"][-29:], "invalid_image"),
    "text": (b"hello", "unsupported_format"),
    "many pixels": (encoded(Image.new("1", (2000, 2000)), "PNG"), "too_large"),
    "many bytes": (FILES["PNG"] + bytes(200_000), "too_large"),
    "nothing": (b"", "invalid_image"),
}


def publish(repository: Path, name: str, image: ImageSpec) -> None:
    """A tiny model that wants images prepared so."""
    base, preprocess = tiny_spec(name), Preprocessor(image)
    golden = tuple(
        Golden(name=each.name, data=each.data, logits=tuple(map(float, tiny_logits(preprocess(each.data)[None])[0])))
        for each in base.golden
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        tiny_model(path, size=SIZE)
        changes = {"image": image, "golden": golden, "maps": (3, SIZE // 2, SIZE // 2)}
        spec = base.model_copy(update=changes | {"files": {MODEL_FILE: sha256(path)}})
        model_repository.publish(repository, spec, Path(folder))


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    models = tmp_path_factory.mktemp("models")
    for name, image in WAYS.items():
        publish(models, name, image)
    publish_tiny(models)
    with Triton(models, tmp_path_factory.mktemp("triton"), decode=True).start() as running:
        yield running


def gateway(triton: Triton, folder: Path, **settings: object) -> Server:
    return Server(folder, folder, backend="triton", triton_url=triton.grpc_url, poll_seconds=0.2, **settings)


@pytest.fixture(scope="module")
def near(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that decodes."""
    with gateway(triton, tmp_path_factory.mktemp("near"), **LIMITS).start() as running:
        yield running


@pytest.fixture(scope="module")
def far(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that has Triton decode."""
    with gateway(triton, tmp_path_factory.mktemp("far"), decode_on="triton", **LIMITS).start() as running:
        yield running


def decoded(triton: Triton) -> int:
    """Files that the decode model was ever given."""
    (stats,) = triton.client.get("/v2/models/fovea-decode/stats").json()["model_stats"]
    return int(stats["inference_count"])


def ask(server: Server, model: str, data: bytes, **query: object) -> dict[str, Any]:
    answer: dict[str, Any] = server.client.post(f"/v1/models/{model}/classify", content=data, params=query).json()
    for prediction in answer.get("predictions", []):
        prediction.pop("timings_ms", None)
    answer.pop("request_id", None)
    return answer


@pytest.mark.parametrize("model", WAYS)
def test_every_format_is_answered_as_if_the_gateway_had_decoded_it(
    triton: Triton, near: Server, far: Server, model: str
) -> None:
    before = decoded(triton)
    for name, data in FILES.items():
        answer = ask(far, model, data, explain=True)
        assert "predictions" in answer, (name, answer)
        assert answer == ask(near, model, data, explain=True), name
    triton.wait_until(lambda: decoded(triton) - before == len(FILES))


def test_each_image_has_its_own_error_in_the_same_words(triton: Triton, near: Server, far: Server) -> None:
    before = decoded(triton)
    for name, (data, code) in BROKEN.items():
        answer = ask(far, "crop", data)
        assert answer.get("code") == code, (name, answer)
        assert answer == ask(near, "crop", data), name
    triton.wait_until(lambda: decoded(triton) - before == 2)  # the header gives the others away
    mixed = [data for data, _ in BROKEN.values()] + [FILES["JPEG"], FILES["PNG"]]
    body = {"images": [{"b64": base64.b64encode(data).decode()} for data in mixed if data]}

    def answers(server: Server) -> list[dict[str, Any]]:
        found = server.client.post("/v1/models/crop/classify", json=body).json()["predictions"]
        return [{key: value for key, value in each.items() if key != "timings_ms"} for each in found]

    assert answers(far) == answers(near)
    assert ["error" in each for each in answers(far)] == [True] * (len(mixed) - 3) + [False, False]


def test_features_and_tensors_of_clients_beside_files(far: Server) -> None:
    features = [
        far.client.post("/v1/models/crop/embed", content=FILES["JPEG"]).json()["predictions"][0]["features"]
        for _ in range(2)
    ]
    assert len(features[0]) == 3
    assert features[0] == features[1]

    def ask_either(number: int) -> bool:
        if number % 2:
            return is_right(far.classify(picture(number)).json()["predictions"][0], picture(number))
        pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": picture(number).ravel().tolist()}
        answer = far.client.post("/v2/models/tiny/infer", content=json.dumps({"inputs": [pixels]})).json()
        (logits,) = (each["data"] for each in answer["outputs"] if each["name"] == "logits")
        return bool(np.allclose(logits, tiny_logits(picture(number)[None])[0], atol=1e-4))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask_either, range(200)))


def test_the_decode_model_is_no_model_of_clients(near: Server, far: Server) -> None:
    for server in (near, far):
        assert set(server.models()) == {*WAYS, "tiny"}
        assert server.classify(picture(1), "fovea-decode").json()["code"] == "unknown_model"


def test_without_the_decode_model_nothing_is_ready_and_the_reason_says_so(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models")
    with (
        Triton(tmp_path / "models", tmp_path).start() as triton,
        gateway(triton, tmp_path, decode_on="triton").start(ready=False) as server,
    ):
        server.wait_until(lambda: "fovea-decode" in str(server.client.get("/readyz").json()))
        assert "--decode-on gateway" in server.client.get("/readyz").json()["reasons"][0]
        assert server.classify(picture(1)).json()["code"] == "backend_unavailable"
        triton.decode = True
        triton.restart()
        server.wait_until(server.ready, 10)
        assert is_right(server.classify(picture(1)).json()["predictions"][0], picture(1))
        assert triton.unload("fovea-decode").status_code == 200
        server.wait_until(lambda: not server.ready())
        answer = server.classify(picture(1))
        assert answer.json()["code"] == "backend_unavailable"
        assert triton.load("fovea-decode").status_code == 200
        server.wait_until(server.ready, 10)
        assert server.classify(picture(1)).status_code == 200


def test_only_triton_decodes_elsewhere() -> None:
    with pytest.raises(InvalidSettings, match="backend=triton"):
        load(decode_on="triton", backend="embedded")
