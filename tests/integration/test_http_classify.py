"""Classify and embed over HTTP, against a real server: every kind of body, every parameter, right answers."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models import png
from tests.server import Pixels, Server, expected, is_right, picture

RAW = {"content-type": "application/octet-stream"}


def b64(*images: bytes) -> dict[str, Any]:
    return {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}


def parts(*images: bytes, name: str = "image") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [(name, (f"{index}.png", image, "image/png")) for index, image in enumerate(images)]


def predictions(server: Server, **request: Any) -> list[Any]:
    answer = server.client.post("/v1/models/tiny/classify", **request)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["version"]) == ("tiny", "1")
    return list(answer.json()["predictions"])


# One image, several images.


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; x", None])
def test_a_raw_image_whatever_it_is_called(server: Server, content_type: str | None) -> None:
    """The bytes say what they are; a wrong `image/…` does no harm."""
    headers = {"content-type": content_type} if content_type else {}
    (prediction,) = predictions(server, content=png(picture(1)), headers=headers)
    assert is_right(prediction, picture(1))


def test_curl_needs_no_options_but_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(2)))
    command = ["curl", "-sS", "--data-binary", f"@{tmp_path / 'a.png'}", f"{server.url}/v1/models/tiny/classify"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert '"label":"label-' in answer


@pytest.mark.parametrize("count", [1, 2, 4])
def test_images_in_order_as_multipart_and_as_json(server: Server, count: int) -> None:
    images = [picture(10 + index) for index in range(count)]
    encoded = [png(image) for image in images]
    for request in ({"files": parts(*encoded)}, {"json": b64(*encoded)}):
        found = predictions(server, **request)
        assert len(found) == count
        assert all(map(is_right, found, images))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_every_lossless_format_gives_the_same_answer(server: Server, kind: str) -> None:
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(picture(3)).save(buffer, kind, **options)
    (prediction,) = predictions(server, content=buffer.getvalue(), headers=RAW)
    assert is_right(prediction, picture(3))


def test_jpeg_gives_nearly_the_same_answer(server: Server) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(3)).save(buffer, "JPEG", quality=100, subsampling=0)
    (prediction,) = predictions(server, content=buffer.getvalue(), headers=RAW)
    best = prediction["classes"][0]
    assert best["probability"] == pytest.approx(expected(picture(3))[best["index"]], abs=0.02)


def test_an_image_too_large_to_decode_at_once_takes_the_other_way_to_the_same_answer(server: Server) -> None:
    """Above 64 × 64 pixels images are decoded on other threads."""
    (prediction,) = predictions(server, content=png(picture(4, size=500)), headers=RAW)
    assert is_right(prediction, picture(4))


def test_the_shape_of_an_answer(server: Server) -> None:
    (prediction,) = predictions(server, content=png(picture(5)), headers=RAW)
    assert set(prediction) == {"classes", "prediction_set", "coverage", "abstained", "timings_ms"}
    probs = expected(picture(5))
    assert sum(each["probability"] for each in prediction["classes"]) == pytest.approx(1, abs=1e-5)
    inside = {f"label-{index}" for index in np.flatnonzero(probs >= 1 - 0.8)}  # the quantile in the tiny spec
    assert set(prediction["prediction_set"]) == inside
    assert prediction["coverage"] == 0.95
    assert set(prediction["timings_ms"]) == {"decode", "queue", "infer", "total"}
    timings = prediction["timings_ms"]
    assert all(value >= 0 for value in timings.values())
    assert timings["decode"] + timings["queue"] + timings["infer"] <= timings["total"] + 0.01


def test_an_unfamiliar_image_is_abstained_from(server: Server) -> None:
    """The tiny spec abstains above an energy of 0: black has logits of 0 and so -log 3; the rest is lower still."""
    (prediction,) = predictions(server, content=png(picture(0)), headers=RAW)
    assert prediction["abstained"] is False


# Parameters.


@pytest.mark.parametrize(("top_k", "classes"), [("1", 1), ("2", 2), ("3", 3), ("5", 3), ("999999999", 3)])
def test_top_k_cuts_the_list_and_nothing_else(server: Server, top_k: str, classes: int) -> None:
    (prediction,) = predictions(server, content=png(picture(6)), headers=RAW, params={"top_k": top_k})
    assert len(prediction["classes"]) == classes
    assert is_right(prediction, picture(6))


@pytest.mark.parametrize(
    "query",
    [
        "top_k=0", "top_k=-1", "top_k=1.0", "top_k=", "top_k=%EF%BC%95", "top_k=1000000000", "top_k=1&top_k=2",
        "timeout_ms=0", "timeout_ms=-5", "timeout_ms=nan", "timeout_ms=inf", "timeout_ms=soon", "timeout_ms=",
        "topk=3", "explain=true&nonsense", "%FF=1",
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_refused_and_named(server: Server, query: str) -> None:
    answer = server.client.post(f"/v1/models/tiny/classify?{query}", content=png(picture(0)), headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    name = re.split("[=&]", query)[0]
    assert name in answer.json()["detail"] or name == "%FF"


def test_a_version_can_be_named(server: Server) -> None:
    assert server.classify(picture(7), version="1").json()["version"] == "1"
    for version in ("2", "01", "latest", ""):
        answer = server.classify(picture(7), version=version)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")


def test_time_enough_is_no_hindrance(server: Server) -> None:
    assert server.classify(picture(8), timeout_ms=5000).status_code == 200
    assert server.classify(picture(8), timeout_ms="1e9").status_code == 200  # more than the server's longest


def test_without_a_name_there_has_to_be_one_model(server: Server) -> None:
    answer = server.client.post("/v1/classify", content=png(picture(0)), headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "tiny" in answer.json()["detail"]


# A bad image among good ones.


def test_a_bad_image_fails_in_its_place(server: Server) -> None:
    good = [picture(20), picture(21)]
    found = predictions(server, json=b64(png(good[0]), png(picture(0))[:-20], b"not an image", png(good[1])))
    assert is_right(found[0], good[0])
    assert is_right(found[3], good[1])
    assert [found[index]["error"]["code"] for index in (1, 2)] == ["invalid_image", "unsupported_format"]
    assert [found[index]["error"]["status"] for index in (1, 2)] == [422, 415]
    assert {"type", "title", "status", "detail", "code"} <= set(found[1]["error"])


def test_an_image_that_the_backend_fails_on_fails_in_its_place(server: Server) -> None:
    """It shares a batch with its neighbours: they get their own rows all the same."""
    white = np.full((8, 8, 3), 255, np.uint8)
    good = [picture(30), picture(31), picture(32)]
    images = [png(pixels) for pixels in (good[0], white, good[1], good[2])]
    answer = server.client.post("/v1/models/glass/classify", json=b64(*images))
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert found[1]["error"]["code"] == "backend_failed"
    assert "indices" not in answer.text  # ONNX Runtime's own words
    assert all(is_right(found[index], pixels) for index, pixels in zip((0, 2, 3), good, strict=True))


# Embed.


def test_features_of_one_and_of_many(server: Server) -> None:
    """The tiny model's features are the mean colour."""
    images: list[Pixels] = [picture(40), picture(41)]
    answer = server.client.post("/v1/models/tiny/embed", files=parts(*map(png, images)))
    assert answer.status_code == 200
    for found, pixels in zip(answer.json()["predictions"], images, strict=True):
        assert found["features"] == pytest.approx(pixels.mean(axis=(0, 1)) / 255, abs=1e-6)
    assert server.client.post("/v1/models/tiny/embed?top_k=3", content=png(images[0])).status_code == 400


def test_an_idat_that_inflates_without_end_is_cut_off(server: Server) -> None:
    """The header says 8 × 8 pixels; what follows would be a gigabyte."""
    chunk = zlib.compress(b"\0" * 50_000_000, 9)

    def framed(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    good = png(picture(0))
    bomb = good[: good.index(b"IDAT") - 4] + framed(b"IDAT", chunk) + framed(b"IEND", b"")
    answer = server.client.post("/v1/models/tiny/classify", content=bomb, headers=RAW)
    assert answer.status_code in (200, 422)
    assert server.client.get("/metrics").status_code == 200
