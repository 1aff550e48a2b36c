"""Explain over HTTP, against real servers: the maps are the network's own, the pictures those of the images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.images import encoded, exif
from tests.models import png, publish_tiny, tiny_weights
from tests.server import ROOT, Pixels, Server, expected, picture

Launch = Callable[..., Server]

EXPLAIN = "/v1/models/tiny/explain"
RAW = {"content-type": "application/octet-stream"}
PNG = RAW | {"accept": "image/png"}
SEVEN = (ROOT / "docs" / "images" / "seven.png").read_bytes()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(ROOT / "model_repository", tmp_path_factory.mktemp("bundled"), threads=1).start() as running:
        yield running


def noise(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def tiny_map(pixels: Pixels, index: int, seed: int = 0) -> NDArray[np.floating[Any]]:
    """What the tiny model owes for an 8 × 8 image: the class's weights times the 2 × 2 means, as Grad-CAM shows it."""
    means = pixels.astype(float).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    positive = np.maximum(means @ tiny_weights(seed=seed)[:, index], 0)
    scaled: NDArray[np.floating[Any]] = positive / positive.max() if positive.max() > 0 else positive
    return scaled


def explained(server: Server, image: bytes, path: str = EXPLAIN, **query: str) -> dict[str, Any]:
    answer = server.client.post(path, content=image, headers=RAW, params=query)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    return dict(prediction)


def refused(server: Server, image: bytes, path: str = EXPLAIN, **query: str) -> str:
    answer = server.client.post(path, content=image, headers=RAW, params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    return str(answer.json()["detail"])


# The map.


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_the_map_is_the_networks_own(server: Server, seed: int, label: int | None) -> None:
    pixels = noise(seed)
    found = explained(server, png(pixels), **({} if label is None else {"label": f"label-{label}"}))
    probs = expected(pixels)
    index = int(probs.argmax()) if label is None else label
    assert (found["label"], found["index"]) == (f"label-{index}", index)
    assert found["probability"] == pytest.approx(probs[index], abs=2e-6)
    np.testing.assert_allclose(found["map"], tiny_map(pixels, index), atol=1e-3)
    assert (found["region"], found["image_size"], found["colormap"]) == ([0, 0, 8, 8], [8, 8], "viridis")
    assert set(found["timings_ms"]) == {"decode", "queue", "infer", "total"}


def test_classify_explains_its_best_class_in_the_same_pass(server: Server) -> None:
    image = png(noise(4))
    alone = explained(server, image)
    plain = explained(server, image, "/v1/models/tiny/classify", explain="false")
    before = server.metrics()
    both = explained(server, image, "/v1/models/tiny/classify", explain="true", top_k="2")
    after = server.metrics()
    assert both["explanation"] == {key: alone[key] for key in ("label", "index", "map", "region", "image_size")}
    assert both["classes"] == plain["classes"][:2]
    assert set(plain) == set(both) - {"explanation"}
    assert after("batch_size_count", model="tiny") - before("batch_size_count", model="tiny") == 1


def test_an_explanation_is_a_request_but_no_prediction(server: Server) -> None:
    before = server.metrics()
    explained(server, png(noise(5)))
    after = server.metrics()
    for name, more in (("requests_total", 1), ("decode_seconds_count", 1), ("predictions_total", 0)):
        assert after(name, model="tiny") - before(name, model="tiny") == more, name


def test_several_images_and_a_bad_one_in_its_place(server: Server) -> None:
    images = [png(noise(6)), png(noise(7))[:-20], png(picture(8, size=100))]
    files = [("image", (f"{index}.png", image)) for index, image in enumerate(images)]
    found = server.client.post(EXPLAIN, files=files).json()["predictions"]
    assert found[1]["error"]["code"] == "invalid_image"
    np.testing.assert_allclose(found[0]["map"], tiny_map(noise(6), found[0]["index"]), atol=1e-3)
    assert found[2]["image_size"] == [100, 100]
    answer = server.client.post(EXPLAIN, files=files, headers={"accept": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


# Through a route.


def test_a_route_answers_with_the_map_of_whichever_model_answers(tmp_path: Path, launch: Launch) -> None:
    """Two versions with other weights: an id meets the same one, whether it asks for a class or for a map."""
    publish_tiny(tmp_path / "models")
    publish_tiny(tmp_path / "models", seed=1)
    server = launch(tmp_path / "models")
    route = {"primary": "tiny:1", "canary": {"model": "tiny:2", "weight": 0.5}}
    assert server.client.put("/v1/routes/r", json=route).status_code == 200
    answered = []
    for number in range(24):
        pixels = noise(number)
        found = {}
        for path, query in (("explain", {}), ("explain", {"label": "label-2"}), ("classify", {"explain": "true"})):
            headers = RAW | {"x-request-id": f"id-{number}"}
            answer = server.client.post(f"/v1/models/r/{path}", content=png(pixels), params=query, headers=headers)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            (prediction,) = body["predictions"]
            explanation = prediction.get("explanation", prediction)
            seed = {"1": 0, "2": 1}[body["version"]]
            np.testing.assert_allclose(explanation["map"], tiny_map(pixels, explanation["index"], seed), atol=1e-3)
            found[path, *query] = (body["version"], explanation["index"])
        assert len({version for version, _ in found.values()}) == 1
        version, index = found["classify", "explain"]
        assert index == expected(pixels, seed=int(version) - 1).argmax()
        assert found["explain",][1] == index
        assert found["explain", "label"][1] == 2
        answered.append(version)
    assert {"1", "2"} == set(answered)
    counts = server.client.get("/v1/routes/r").json()["counts"]
    assert (counts["requests"], counts["canary"]) == (3 * 24, 3 * answered.count("2"))


# What is refused.


def test_a_label_has_to_be_known(server: Server) -> None:
    assert refused(server, png(picture(1)), label="label-10").endswith("close to it are label-1, label-0, label-2")
    assert "knows no label" in refused(server, png(picture(1)), label="")
    assert "knows no label" in server.client.post(EXPLAIN, params={"label": "7"}, content=SEVEN, headers=PNG).text


@pytest.mark.parametrize(
    "query", [{"alpha": "1.1"}, {"alpha": "-0.1"}, {"alpha": "nan"}, {"alpha": ""}, {"top_k": "2"}, {"explain": "true"}]
)
def test_a_wrong_parameter_is_refused_and_named(server: Server, query: dict[str, str]) -> None:
    assert next(iter(query)) in refused(server, png(picture(1)), **query)


@pytest.mark.parametrize("value", ["1", "yes", ""])
def test_explain_is_true_or_false(server: Server, value: str) -> None:
    assert "true or false" in refused(server, png(picture(1)), "/v1/models/tiny/classify", explain=value)


def test_the_errors_are_those_of_classify(server: Server) -> None:
    for path, content, query, status in (
        ("/v1/models/none/explain", SEVEN, "", 404),
        (EXPLAIN, SEVEN, "?version=9", 404),
        (EXPLAIN, SEVEN[:-9], "", 422),
        (EXPLAIN, b"no image", "", 415),
        (EXPLAIN, encoded(Image.new("L", (1001, 1000)), "PNG"), "", 413),
        ("/v1/models/slow/explain", SEVEN, "?timeout_ms=10", 429),
    ):
        for headers in (RAW, PNG):
            answer = server.client.post(path + query, content=content, headers=headers)
            assert answer.status_code == status, (path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
    assert server.client.get(EXPLAIN).status_code == 405


# The picture.


def drawn(server: Server, image: bytes, path: str = EXPLAIN, **query: str) -> NDArray[np.int64]:
    answer = server.client.post(path, content=image, headers=PNG, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(np.int64)


@pytest.mark.parametrize(("width", "height", "orientation"), [(160, 120, 1), (160, 120, 6), (30, 40, 8)])
def test_the_overlay_is_upright_and_hottest_where_the_class_is(
    server: Server, width: int, height: int, orientation: int
) -> None:
    """A red rectangle, and the tiny model's first label is red; decoded on the event loop, and on other threads."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 4, width // 2 : width * 3 // 4, 0] = 255
    image = encoded(Image.fromarray(pixels), "PNG", exif=exif(orientation))
    turns = {1: 0, 6: 3, 8: 1}[orientation]  # by 90°, counterclockwise
    upright = np.rot90(pixels, turns)
    np.testing.assert_array_equal(drawn(server, image, label="label-0", alpha="0"), upright)
    picture = drawn(server, image, label="label-0", alpha="1")
    distance = np.abs(picture - (253, 231, 37)).sum(axis=2)  # from the last colour of viridis
    assert distance.min() < 60
    assert (upright[distance == distance.min()][:, 0] == 255).all()


def test_a_large_image_is_drawn_smaller(server: Server) -> None:
    assert drawn(server, encoded(Image.new("RGB", (1100, 550)), "JPEG")).shape == (512, 1024, 3)


# The bundled models.


def test_bundled_models_show_where_they_looked(bundled: Server) -> None:
    seven = explained(bundled, SEVEN, "/v1/models/lenet5-digits/explain")
    grid = np.array(seven["map"])
    assert (seven["label"], grid.shape, grid.min(), grid.max()) == ("7", (10, 10), 0, 1)
    assert drawn(bundled, SEVEN, "/v1/models/lenet5-digits/explain").shape == (32, 32, 3)
    letter = explained(bundled, SEVEN, "/v1/models/letters/explain")
    assert np.shape(letter["map"]) == (8, 8)
    both = explained(bundled, SEVEN, "/v1/classify", explain="true")
    assert both["explanation"]["map"] == seven["map"]


def test_a_label_that_is_too_improbable_has_no_map(bundled: Server) -> None:
    ranked = explained(bundled, SEVEN, "/v1/classify", top_k="10")["classes"]
    path = "/v1/models/lenet5-digits/explain"
    for place, each in enumerate(ranked):
        if place < 5:
            assert explained(bundled, SEVEN, path, label=each["label"])["probability"] == each["probability"]
        elif each["probability"] < ranked[4]["probability"]:  # not lost in rounding
            best = ", ".join(one["label"] for one in ranked[:5])
            assert refused(bundled, SEVEN, path, label=each["label"]).endswith(best)


# The document.


def test_explain_is_documented_with_both_of_its_answers(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/models/{model}/explain"]["post"]
    query = {each["name"] for each in operation["parameters"] if each["in"] == "query"}
    assert query == {"label", "alpha", "timeout_ms", "version"}
    assert set(operation["responses"]) == {"200", "400", "401", "404", "413", "415", "422", "429", "502", "503", "504"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "image/png"}
    answer = document["components"]["schemas"]["ExplainAnswer"]
    assert set(answer["examples"][0]["predictions"][0]) == set(explained(server, png(picture(1))))
