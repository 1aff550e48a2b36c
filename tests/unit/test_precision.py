"""Which images int8 learns from and is judged by, and how closely golden images hold it to PyTorch afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import calibrate, data, precision, quantize
from export.errors import QuantizationError
from export.precision import Form, hold, lower, table
from export.quantize import Quantization, Trial
from service.preprocess import Preprocessor
from service.spec import Golden, ImageSpec
from tests import convnet
from tests.integration import few_digits
from tests.models import png

IMAGE = ImageSpec(height=convnet.SIZE, width=convnet.SIZE, resize="stretch")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    convnet.write(path)
    return path


def golden(path: Path, off: list[float]) -> tuple[Golden, ...]:
    """Golden images whose top logit is promised to be higher than the graph has it."""
    images = [png(each) for each in convnet.images(len(off))]
    logits = calibrate.logits_of(path, np.stack([Preprocessor(IMAGE)(each) for each in images]))
    logits[range(len(off)), logits.argmax(axis=1)] += off
    return tuple(
        Golden(name=f"{index}.png", data=image, logits=tuple(map(float, row)))
        for index, (image, row) in enumerate(zip(images, logits, strict=True))
    )


def test_a_form_that_changes_nothing_leaves_the_file(path: Path) -> None:
    before = path.read_bytes()
    lower(path, Form(), None, IMAGE)
    assert path.read_bytes() == before
    lower(path, Form(precision="fp16"), None, IMAGE)
    assert len(path.read_bytes()) < len(before)


def test_int8_without_images_says_what_to_pass(path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"pass --data NAME, or --calibration FOLDER with a few hundred images"):
        lower(path, Form(precision="int8"), None, IMAGE)


def test_a_folder_calibrates_and_judges_with_different_images(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def fake(path: Path, out: Path, calibration: np.ndarray, judge: quantize.Judge, *_: object) -> Quantization:
        seen.update(calibration=calibration, judge=judge)
        out.write_bytes(b"int8")
        trial = Trial("fp32", 1, 1, 1, 0)
        return Quantization(trial, (trial,), "agreement", len(judge.pixels))

    monkeypatch.setattr(quantize, "quantize", fake)
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    form = Form(precision="int8", calibration=folder)
    images = convnet.images(40)
    for index, each in enumerate(images[:20]):
        (folder / f"{index:02}.png").write_bytes(png(each))
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(QuantizationError, match=r"holds 20 images; int8 needs 32, better a few hundred"):
        lower(path, form, None, IMAGE)
    for index, each in enumerate(images[20:]):
        (folder / "below" / f"{index:02}.png").write_bytes(png(each))
    lower(path, form, None, IMAGE)
    assert path.read_bytes() == b"int8"
    assert seen["judge"].labels is None
    both = np.concatenate([seen["calibration"], seen["judge"].pixels])
    assert len(seen["calibration"]) == len(seen["judge"].pixels) == 20
    assert {each.tobytes() for each in both} == {each.tobytes() for each in images}
    (folder / "00.png").write_bytes(b"no image")
    with pytest.raises(QuantizationError, match=r"00\.png: "):
        lower(path, form, None, IMAGE)


def test_a_data_set_calibrates_on_training_and_judges_on_validation() -> None:
    digits = few_digits.load()
    image = ImageSpec(height=8, width=8, channels=1, resize="stretch")
    calibration, judge = precision._images(digits, None, image)
    assert len(calibration) == precision.CALIBRATION_DRAWINGS * 18
    assert judge.labels is not None
    validation = digits.split.validation
    assert len(judge.pixels) == len(judge.labels) == 18 * len(validation)
    np.testing.assert_array_equal(judge.labels[: len(validation)], digits.labels[validation])


def test_int8_has_to_hold_on_the_test_images_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    image = ImageSpec(height=8, width=8, channels=1, resize="stretch")
    truth = np.eye(10, dtype=np.float32)[digits.labels[digits.split.test]]
    worse = truth.copy()
    worse[:2] = np.roll(truth[:2], 1, axis=1)
    monkeypatch.setattr(calibrate, "logits_of", lambda file, _: truth if file.name == "before" else worse)
    with pytest.raises(QuantizationError, match=r"costs 0\.56 on the 359 test images of digits, though not on those"):
        precision._confirm(Path("before"), Path("after"), digits, image)
    worse[1] = truth[1]
    precision._confirm(Path("before"), Path("after"), digits, image)


def test_float_precisions_are_held_to_fixed_tolerances(path: Path) -> None:
    images = golden(path, [0, 0])
    assert hold(images, path, IMAGE, 1.0, "fp32") == (images, 1e-3)
    assert hold(images, path, IMAGE, 1.0, "fp16") == (images, 2e-2)


def test_int8_is_held_to_what_it_moves_golden_images_and_a_margin(path: Path) -> None:
    still = golden(path, [0, 0, 0])
    assert hold(still, path, IMAGE, 1.0, "int8") == (still, precision.MARGIN)
    moved = golden(path, [0, -0.2, -9])
    kept, tolerance = hold(moved, path, IMAGE, 1.0, "int8")
    assert kept == moved[:2]  # the last one shows nothing about drift
    assert precision.MARGIN < tolerance < precision.MARGIN + 0.1
    assert tolerance == round(tolerance, 2)
    with pytest.raises(QuantizationError, match=r"moves the probabilities of all 2 golden images, by 0\.\d\d at least"):
        hold(golden(path, [-9, -9]), path, IMAGE, 1.0, "int8")


def test_the_table_marks_the_choice_and_says_when_int8_does_not_pay() -> None:
    trials = (Trial("fp32", 100, 1, 0.99, 0), Trial("QDQ U8S8", 250, 2.5, 0.98, 0.01), Trial("other", 50, 0.5, 0.99, 0))
    paying = table(Quantization(trials[1], trials, "accuracy", 1000))
    assert list(paying.columns[0].cells) == ["fp32", "QDQ U8S8 ←", "other"]
    assert list(paying.columns[2].cells) == ["1.00", "2.50", "0.50"]
    assert list(paying.columns[4].cells) == ["0.00", "1.00", "0.00"]
    assert paying.columns[3].header == "accuracy on 1000"
    assert paying.caption is None
    assert "slower than fp32" in str(table(Quantization(trials[2], trials, "agreement", 9)).caption)
