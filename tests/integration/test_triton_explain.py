"""What is seen of the bundled models in front of the real Triton is what the embedded backend shows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export import data
from service.spec import CONFIG_NAME, read_config
from tests.images import encoded
from tests.server import ROOT, Server
from tests.triton import Triton, needs_triton

pytestmark = [needs_triton, pytest.mark.timeout(180)]

MODELS = ("lenet5-digits", "letters")
RAW = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    for name in MODELS:
        shutil.copytree(ROOT / "model_repository" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def gateways(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """In front of Triton, and with the embedded backend."""
    place = tmp_path_factory.mktemp("gateways")
    (place / "nothing").mkdir()
    with (
        Triton(models, place).start() as triton,
        Server(place / "nothing", place / "nothing", backend="triton", triton_url=triton.grpc_url).start() as remote,
        Server(models, place, threads=1).start() as embedded,
    ):
        yield remote, embedded


def images() -> list[bytes]:
    """Digits, a letter that is higher than wide, and noise."""
    digits, letters = data.load("digits"), data.load("letters")
    with Image.open(io.BytesIO(letters.images[0])) as letter:
        high = encoded(letter.resize((40, 90)), "PNG")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    return [*(digits.images[index] for index in digits.split.test[:6]), high, encoded(noise, "PNG")]


def ask(server: Server, path: str, image: bytes, **query: str) -> dict[str, Any]:
    answer = server.client.post(path, content=image, headers=RAW, params=query)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    return dict(prediction)


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same explanation, up to what two runtimes differ by."""
    assert {name: one[name] for name in ("label", "index", "region", "image_size")} == {
        name: other[name] for name in ("label", "index", "region", "image_size")
    }
    np.testing.assert_allclose(one["map"], other["map"], atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_maps_and_abstentions_are_those_of_the_embedded_backend(gateways: tuple[Server, Server], model: str) -> None:
    remote, embedded = gateways
    path = f"/v1/models/{model}"
    abstained = []
    for image in images():
        alone, expected = (ask(server, f"{path}/explain", image) for server in gateways)
        alike(alone, expected)
        both, classes = (ask(server, f"{path}/classify", image, explain="true") for server in gateways)
        alike(both["explanation"], classes["explanation"])
        alike(both["explanation"], alone)
        assert [each["label"] for each in both["classes"]] == [each["label"] for each in classes["classes"]]
        for one, other in zip(both["classes"], classes["classes"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=2e-5)
        assert both["prediction_set"] == classes["prediction_set"]
        assert both["abstained"] == classes["abstained"]
        abstained.append(both["abstained"])
        second = classes["classes"][1]["label"]
        alike(*(ask(server, f"{path}/explain", image, label=second) for server in gateways))
    assert abstained[-1]
    if model == "lenet5-digits":
        assert not all(abstained[:6])
        assert np.max(alone["map"]) == 1
    before, after = remote.metrics(), embedded.metrics()
    assert before("abstained_total", model=model) == after("abstained_total", model=model) == sum(abstained)


def test_the_distance_comes_from_triton(gateways: tuple[Server, Server]) -> None:
    spec = read_config(ROOT / "model_repository" / "letters" / CONFIG_NAME).specs["1"]
    pixels = data.load("letters").pixels(np.arange(3), spec.image)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}
    body = {"inputs": [tensor], "outputs": [{"name": "distance"}]}
    found = [server.client.post("/v2/models/letters/infer", json=body).json()["outputs"][0] for server in gateways]
    assert [each["shape"] for each in found] == [[3, 1], [3, 1]]
    np.testing.assert_allclose(found[0]["data"], found[1]["data"], rtol=1e-4)


def test_the_picture_is_the_same(gateways: tuple[Server, Server]) -> None:
    image = images()[6]
    drawn = []
    for server in gateways:
        answer = server.client.post(
            "/v1/models/letters/explain", content=image, headers=RAW | {"accept": "image/png"}, params={"alpha": "1"}
        )
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        drawn.append(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int))
    assert drawn[0].shape == (90, 40, 3)
    assert np.abs(drawn[0] - drawn[1]).max() <= 4  # one step of the colours
