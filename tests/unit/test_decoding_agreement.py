"""`python -m load_tests.decoding`: what is lossless is taken over as it is, and a broken way is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from load_tests.decoding import Comparison, comparisons, reference
from load_tests.pictures import pictures
from tests.server import ROOT

IMAGES = 60


@pytest.fixture(scope="module")
def models() -> list[Comparison]:
    return comparisons([ROOT / "model_repository"])


def test_the_command_says_how_far_each_model_agrees(tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    command = [sys.executable, "-m", "load_tests.decoding", "--images", str(IMAGES), "--repeat", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(out.read_text())
    assert set(found["models"]) == {"lenet5-digits", "letters"}
    for name, model in found["models"].items():
        everything = model["formats"]["all"]
        assert everything["images"] == IMAGES
        assert everything["agreeing"] == IMAGES - len(model["differing"])
        assert (everything["agreeing"] < 0.999 * IMAGES) <= (done.returncode == 1), done.stderr
        assert model["formats"]["BMP"]["pixel_difference"]["largest"] == 0
        assert everything["pixel_difference"]["mean"] < 0.5
        assert f"{name}, version 1" in done.stdout
    assert [row["size"] for row in found["milliseconds"]] == ["4000×3000", "640×480"]
    assert "| 4000×3000 |" in done.stdout


def test_the_images_are_the_same_each_time_and_of_every_format() -> None:
    first, again = list(pictures(IMAGES)), list(pictures(IMAGES))
    assert first == again
    assert {each.kind.split()[0].rstrip(",") for each in first} == {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"}


def test_what_differs_is_counted(models: list[Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a way to pixels that shows everything as a negative, nearly everything is something else."""
    model = models[0]
    ours = model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda data: 255 - ours(data))
    some = [(number, each) for number, each in enumerate(pictures(32)) if each.kind.startswith("PNG")]
    model.compare(some)
    everything = model.by_format()["all"]
    assert everything.images == len(some)
    assert everything.agreeing == len(some) - len(model.differing) < len(some)
    assert everything.pixel_largest > 100
    assert everything.probability_largest > 0.1


def test_the_reference_is_pillow(models: list[Comparison]) -> None:
    spec = models[0].spec.image
    for picture in pictures(8):
        found = reference(picture.data, spec)
        assert found.shape == (spec.height, spec.width, spec.channels)
        assert found.dtype == np.uint8
