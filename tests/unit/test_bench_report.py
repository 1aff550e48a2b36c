"""Figures of the benchmark: ratios are of the same round, and rivals are those that get the encoded image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from load_tests.bench_report import ALONE, TRITON, Measurement, Rounds, best_rival, ratio, ratios, report, save


def rounds(**rates: list[float]) -> Rounds:
    return {name: [Measurement(rate, 1.0, 2.0, 0, 300.0) for rate in values] for name, values in rates.items()}


FOUR = rounds(fovea=[90, 45, 80], mosec=[60, 40, 70], LitServe=[50, 41, 60]) | {
    "fovea, int8": rounds(it=[200, 210, 220])["it"],
    TRITON: rounds(it=[99, 99, 99])["it"],
    ALONE: rounds(it=[100, 50, 100])["it"],
}


def test_a_machine_that_slows_down_for_a_round_changes_no_ratio() -> None:
    """The second round had half the machine."""
    assert ratio(FOUR, "fovea", ALONE) == 0.9
    assert ratio(FOUR, "fovea", "mosec") == pytest.approx(80 / 70)


def test_neither_ours_nor_what_gets_pixels_is_a_rival() -> None:
    assert best_rival(FOUR) == "mosec"
    assert best_rival({name: FOUR[name] for name in ("fovea", "fovea, int8", TRITON, ALONE)}) is None
    assert ratios(FOUR)["fovea, int8 ÷ mosec, the best rival in fp32"] == pytest.approx(200 / 60)


def test_the_table_has_a_line_for_each_contestant_and_one_for_each_ratio() -> None:
    lines = report(FOUR).splitlines()
    assert lines[3] == "| mosec | 60.0 | 1.14 | 1.00 | 2.00 | 1.00 | 300 | 0 |"
    assert lines[7] == "| ONNX Runtime alone | 100 | 0.90 |  |  |  | 300 | 0 |"
    assert lines[-len(ratios(FOUR))] == "| fovea ÷ ONNX Runtime alone | 0.900 |"


def test_what_is_saved_says_where_it_is_from(tmp_path: Path) -> None:
    save(FOUR, "four", tmp_path / "made" / "four.json")
    saved = json.loads((tmp_path / "made" / "four.json").read_text())
    assert saved["cpu"]
    assert saved["versions"]["onnxruntime"]
    assert "commit" in saved
    assert saved["command"].startswith("python -m load_tests.bench")
    assert [one["rate"] for one in saved["rounds"]["mosec"]] == [60, 40, 70]
    assert (tmp_path / "made" / "four.png").read_bytes().startswith(b"\x89PNG")
