"""`compare` on a repository of tiny models, really run, each in its own process."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from export import compare
from export.__main__ import main
from export.compare_plots import spread
from export.comparison import Comparison, amount
from export.errors import ExportError
from service.spec import CONFIG_NAME
from tests.models import publish_tiny

PLOTS = ("accuracy", "latency", "throughput", "memory")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that run, one whose file is broken, one whose config is, and one that is not ours."""
    folder = tmp_path_factory.mktemp("models")
    publish_tiny(folder, "quick")
    publish_tiny(folder, "quick", seed=1)
    publish_tiny(folder, "slow", work=4)
    publish_tiny(folder, "broken")
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
    for name in ("garbled", "foreign"):
        (folder / name).mkdir()
    (folder / "garbled" / CONFIG_NAME).write_text("{{{")
    (folder / "foreign" / CONFIG_NAME).write_text('name: "foreign"')
    return folder


@pytest.fixture(scope="module")
def compared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare.compare(models, out, (4, 1)), out


def test_every_model_that_runs_is_measured(compared: tuple[Comparison, Path]) -> None:
    comparison, _ = compared
    assert [(entry.name, entry.version) for entry in comparison.models] == [("quick", "2"), ("slow", "1")]
    for entry in comparison.models:
        assert [batch.images for batch in entry.measured.batches] == [1, 4]
        for batch in entry.measured.batches:
            assert batch.images_per_second == pytest.approx(1000 * batch.images / batch.latency_ms)
        one, four = entry.measured.batches
        assert four.latency_ms > 0.5 * one.latency_ms
        assert entry.measured.empty_bytes < one.memory_bytes <= four.memory_bytes
        assert 0 < entry.memory_bytes < 2**30
        assert (entry.measured.device, entry.measured.threads, entry.measured.watts) == ("CPU", 2, None)
        assert entry.file_bytes > 500
    quick, slow = comparison.models
    assert slow.measured.batches[0].latency_ms > 5 * quick.measured.batches[0].latency_ms
    assert slow.fastest.images == 4


def test_what_cannot_run_is_named_with_its_reason(compared: tuple[Comparison, Path]) -> None:
    failed = compared[0].failed
    assert failed.keys() == {"broken", "garbled", "foreign"}
    assert "does not load in ONNX Runtime" in failed["broken"]
    assert "not a Triton model config" in failed["garbled"]
    assert failed["foreign"] == "no version that Fovea published"


def test_the_folder_holds_json_table_and_plots(compared: tuple[Comparison, Path]) -> None:
    comparison, out = compared
    assert {path.name for path in out.iterdir()} == {
        compare.JSON,
        compare.TABLE,
        *(f"{name}{suffix}" for name in PLOTS for suffix in (".png", ".svg")),
    }
    assert Comparison.model_validate_json((out / compare.JSON).read_bytes()) == comparison
    table = (out / compare.TABLE).read_text(encoding="utf-8")
    assert table.count("\n| ") == 3
    for words in ("| quick | fp32 | 100.00% | 9 | 9 |", "| slow |", "top-1, nothing.", "Not run: broken: "):
        assert words in table
    assert "<" not in table
    for name in PLOTS:
        with Image.open(out / f"{name}.png") as image:
            assert image.size == (1280, 832)
            assert image.convert("L").getextrema() == (0, 255)
        drawn = ElementTree.parse(out / f"{name}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_command_prints_a_table_or_json(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--repository", str(models), "--out", str(tmp_path), "--batch-sizes", "1"]
    assert main([*command, "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)["models"]] == ["quick", "slow"]


def test_an_empty_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no model to compare: it is empty"):
        compare.compare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("heights", "apart"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.1, 0.5], [0.1, 0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.3, 0.35, 0.4, 0.9], [0.25, 0.35, 0.45, 0.9]),
        ([0.2, 0.29, 0.3], [0.16333, 0.26333, 0.36333]),
    ],
)
def test_names_at_the_margin_do_not_touch(heights: list[float], apart: list[float]) -> None:
    assert spread(heights, 0.1) == pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "said"), [(7, "7"), (422_824, "423 k"), (138_357_544, "138 M"), (4_089_184_256, "4.09 G")]
)
def test_amounts_are_said_as_people_say_them(value: int, said: str) -> None:
    assert amount(value) == said
