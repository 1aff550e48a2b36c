"""The bundled backbone: what it knows of letters is enough to learn real digits from a few of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from export import data, replay
from service.spec import CONFIG_NAME, read_config

BUNDLED = Path(__file__).parents[2] / "model_repository" / "letters"


@pytest.mark.timeout(300)
def test_a_linear_classifier_on_its_features_reads_digits() -> None:
    spec = read_config(BUNDLED / CONFIG_NAME).specs["1"]
    replay.check(spec, BUNDLED / "1")
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*")) <= 5_000_000
    session = replay.session(BUNDLED / "1" / "model.onnx")
    digits = data.load("digits")
    pixels = digits.pixels(np.arange(len(digits.images)), spec.image)
    parts = [session.run(["features"], {"image": pixels[start : start + 64]})[0] for start in range(0, len(pixels), 64)]
    features = np.concatenate(parts)
    test = digits.split.test
    for shots, least in ((1, 0.75), (10, 0.95)):
        found = []
        for seed in range(5):
            train = data.few(digits, shots, seed).split.train
            scale = np.linalg.norm(features[train], axis=1).mean()
            with threadpool_limits(1):
                model = LogisticRegression(C=10, max_iter=500).fit(features[train] / scale, digits.labels[train])
            found.append(model.score(features[test] / scale, digits.labels[test]))
        assert np.mean(found) >= least, (shots, found)
