"""The bundled models over HTTP know what they do not know: they answer held-out images and abstain from strangers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from export import data
from export.strangers import strangers
from service.spec import CONFIG_NAME, read_config
from tests.server import ROOT, Server

AT_ONCE = 60  # images in a request
MODELS = ROOT / "model_repository"
HELD_OUT = 400  # images at most

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(MODELS, tmp_path_factory.mktemp("server")).start() as running:
        yield running


def predictions(server: Server, model: str, images: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for start in range(0, len(images), AT_ONCE):
        files = [("image", each) for each in images[start : start + AT_ONCE]]
        found += server.client.post(f"/v1/models/{model}/classify", files=files).json()["predictions"]
    assert len(found) == len(images)
    return found


def abstained(found: list[dict[str, Any]]) -> float:
    return float(np.mean([each["abstained"] for each in found]))


@pytest.mark.parametrize(("model", "name"), [("lenet5-digits", "digits"), ("letters", "letters")])
def test_sets_hold_the_true_class_as_often_as_asked_and_few_are_abstained_from(
    server: Server, model: str, name: str
) -> None:
    dataset = data.load(name)
    chosen = np.random.default_rng(0).permutation(dataset.split.test)[:HELD_OUT]
    found = predictions(server, model, [dataset.images[index] for index in chosen])
    names = [dataset.label_names[dataset.labels[index]] for index in chosen]
    covered = np.mean([label in each["prediction_set"] for each, label in zip(found, names, strict=True)])
    asked = found[0]["coverage"]
    # Two points, and two standard deviations of so few images.
    assert covered == pytest.approx(asked, abs=0.02 + 2 * (asked * (1 - asked) / len(chosen)) ** 0.5)
    assert abstained(found) <= 0.05 + 0.02 + 2 * (0.05 * 0.95 / len(chosen)) ** 0.5


@pytest.mark.parametrize(("model", "name"), [("lenet5-digits", "digits"), ("letters", "letters")])
def test_strangers_are_abstained_from(server: Server, model: str, name: str) -> None:
    """Energy of the logits, by which these models would go otherwise, lets all fine noise pass for letters."""
    spec = read_config(MODELS / model / CONFIG_NAME).specs["1"]
    least = {"coarse noise": 0.93, "photographs": 0.85, "textures": 0.9, "digits": 0.8, "letters": 0.9}
    kinds = strangers(name, spec.image)
    assert len(kinds) == 7
    before = server.metrics()
    shares = {what: abstained(predictions(server, model, images[:200])) for what, images in kinds.items()}
    assert {what: share for what, share in shares.items() if share < least.get(what, 0.98)} == {}
    counted = server.metrics()("abstained_total", model=model) - before("abstained_total", model=model)
    assert counted == round(sum(share * min(200, len(kinds[what])) for what, share in shares.items()))


def test_the_distance_is_an_output_like_the_others(server: Server) -> None:
    """By the Open Inference Protocol, so that a client can draw a line of its own."""
    described = server.client.get("/v2/models/lenet5-digits").json()
    assert {"name": "distance", "datatype": "FP32", "shape": [-1, 1]} in described["outputs"]
    spec = read_config(MODELS / "lenet5-digits" / CONFIG_NAME).specs["1"]
    limit = spec.calibration.abstain_above_distance
    assert limit is not None
    (digit,) = data.load("digits").pixels(np.array([0]), spec.image)
    noise = np.random.default_rng(0).integers(0, 256, digit.shape, np.uint8)
    pixels = np.stack([digit, noise])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}
    asked = {"inputs": [tensor], "outputs": [{"name": "distance"}]}
    answer = server.client.post("/v2/models/lenet5-digits/infer", json=asked)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [2, 1]
    one, strange = output["data"]
    assert one < limit < strange
