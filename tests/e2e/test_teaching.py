"""Digits taught over HTTP to the bundled backbone, which has seen letters only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export import data
from tests.server import Server

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 60  # images in a request
SHOTS = 10  # images of each class
DRAWS = 3


def test_ten_digits_of_each_class_are_enough(tmp_path: Path) -> None:
    digits = data.load("digits")
    held_out = list(digits.split.test)
    truth = [digits.label_names[digits.labels[index]] for index in held_out]
    right, covered = [], []
    with Server(ROOT / "model_repository", tmp_path).start() as server:
        for draw in range(DRAWS):
            head = f"digits-{draw}"
            server.client.put(f"/v1/heads/{head}", json={"backbone": "letters"}).raise_for_status()
            for label in digits.label_names:
                train = data.few(digits, SHOTS, draw).split.train
                files = [("image", digits.images[i]) for i in train if digits.label_names[digits.labels[i]] == label]
                answer = server.client.post(f"/v1/heads/{head}/examples", params={"label": label}, files=files)
                assert len(answer.json()["added"]) == SHOTS
            server.client.post(f"/v1/heads/{head}/fit").raise_for_status()
            predictions = []
            for start in range(0, len(held_out), AT_ONCE):
                files = [("image", digits.images[index]) for index in held_out[start : start + AT_ONCE]]
                predictions += server.client.post(f"/v1/models/{head}/classify", files=files).json()["predictions"]
            pairs = list(zip(predictions, truth, strict=True))
            right.append(np.mean([one["classes"][0]["label"] == label for one, label in pairs]))
            covered.append(np.mean([label in one["prediction_set"] for one, label in pairs]))
    assert np.mean(right) >= 0.94, right
    assert abs(np.mean(covered) - 0.95) <= 0.03, covered
