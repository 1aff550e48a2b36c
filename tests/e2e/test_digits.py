"""The bundled model over HTTP, on the handwritten digits that neither training nor calibration saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import data
from tests.server import Server

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 60  # images in a request


def test_held_out_digits_are_read_and_know_their_limits(tmp_path: Path) -> None:
    dataset = data.load("digits")
    held_out = list(dataset.split.test)
    predictions = []
    with Server(ROOT / "model_repository", tmp_path).start() as server:
        for start in range(0, len(held_out), AT_ONCE):
            files = [("image", dataset.images[index]) for index in held_out[start : start + AT_ONCE]]
            answer = server.client.post("/v1/models/lenet5-digits/classify", files=files).json()
            predictions += answer["predictions"]
    labels = [dataset.label_names[dataset.labels[index]] for index in held_out]
    assert len(predictions) == len(labels)
    pairs = list(zip(predictions, labels, strict=True))
    right = sum(prediction["classes"][0]["label"] == label for prediction, label in pairs) / len(pairs)
    covered = sum(label in prediction["prediction_set"] for prediction, label in pairs) / len(pairs)
    abstained = sum(prediction["abstained"] for prediction in predictions) / len(pairs)
    assert right >= 0.98
    assert covered == pytest.approx(0.95, abs=0.03)  # two standard deviations of 359 images and 360 to fit on
    assert abstained < 0.1
