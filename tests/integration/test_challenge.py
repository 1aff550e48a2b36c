"""`python -m export challenge`: what it shows, prints and draws, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from export.__main__ import main
from service.spec import CONFIG_NAME, read_config
from tests.models import publish_tiny
from tests.server import ROOT

pytestmark = pytest.mark.timeout(300)


def test_the_bundled_digits_are_challenged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "abstained.png"
    arguments = ["challenge", "--repository", str(ROOT / "model_repository"), "--model", "lenet5-digits"]
    assert main([*arguments, "--json", "--plot", str(plot)]) == 0
    answer = json.loads(capsys.readouterr().out)
    (model,) = answer["models"]
    assert answer["failed"] == {}
    calibration = read_config(ROOT / "model_repository" / "lenet5-digits" / CONFIG_NAME).specs["1"].calibration
    as_such, guises, *others = model["shown"]
    assert (as_such["images"], guises["images"]) == (359, 359 * 18)
    # In all guises: what was measured when it was published.
    assert guises["covered"] == pytest.approx(calibration.measured_coverage)
    assert guises["set_size"] == pytest.approx(calibration.mean_set_size)
    assert guises["abstained"] == pytest.approx(calibration.false_alarm_rate)
    assert guises["by_energy"] == pytest.approx(guises["abstained"], abs=0.001)
    assert [each["known"] for each in model["shown"]] == [True, True, *[False] * len(others)]
    assert all(each["covered"] is None and each["abstained"] > 0.9 for each in others)
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_models_without_a_data_set_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_tiny(tmp_path)
    assert main(["challenge", "--repository", str(tmp_path)]) == 2
    assert "its spec names no data set" in capsys.readouterr().err
    assert main(["challenge", "--repository", str(tmp_path), "--model", "tinny"]) == 2
    assert "no model is called 'tinny': did you mean tiny?" in capsys.readouterr().err
    assert main(["challenge", "--repository", str(tmp_path / "none")]) == 2
    assert "holds no model to challenge: it is empty" in capsys.readouterr().err
