"""`make gpu-check` where there is no GPU: what can run runs, and the rest says why it does not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deploy.gpu import serving
from deploy.gpu.check import main
from deploy.gpu.engines import CPU, CUDA, Engine
from deploy.gpu.rows import Failed, Skipped, run
from deploy.gpu.table import measure
from export.publish import from_weights
from tests.triton import needs_triton

NEEDS_NO_GPU = {
    "matrix rates, cpu",
    "network lenet5",
    "training step, cpu",
    *(f"export and parity, {precision}" for precision in ("fp32", "fp16", "int8")),
    *(f"ONNX Runtime on the CPU, {precision}" for precision in ("fp32", "fp16", "int8")),
    "JPEG decoding, cpu",
    "throughput table",
}
TRITON = "Triton from the wheel, cpu instance"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_on_a_cpu_everything_runs_that_needs_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SCRIPTS", tmp_path / "nothing")  # Triton has its own test
    out = tmp_path / "new" / "check.json"
    assert main(["--device", "cpu", "--arch", "lenet5", "--batch-sizes", "1,4,16", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    states = {row["name"]: row["state"] for row in found["checks"]}
    assert {name for name, state in states.items() if state == "passed"} == NEEDS_NO_GPU
    assert states[TRITON] == "skipped"
    for row in found["checks"]:
        if row["name"] not in NEEDS_NO_GPU | {TRITON}:
            assert (row["state"], row["detail"]) == ("skipped", "needs a GPU, and this ran with --device cpu")
    entries = {(each["precision"], each["batch"]): each for each in found["throughput"]}
    assert set(entries) == {(precision, batch) for precision in ("fp32", "fp16", "int8") for batch in (1, 4)}
    entry = entries["fp32", 4]
    assert entry["images_per_second"] == pytest.approx(4000 / entry["milliseconds"])
    assert entry["share"] is None
    assert set(found["operations_per_second"]) == {"cpu"}
    assert found["machine"]["gpu"] is None
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert f"| ONNX Runtime, CPU | fp32 | 4 | {entry['images_per_second']:,.1f} |" in text
    assert capsys.readouterr().out.count("skipped GPU: needs a GPU") == 1


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_triton_serves_the_network_where_it_can(tmp_path: Path) -> None:
    candidate = from_weights("lenet5", None)
    assert "through a CPU instance; 3 executions" in serving.check(candidate, tmp_path, "cpu")  # two of warming up
    with pytest.raises(Skipped, match="put onnxruntime-gpu in its place"):
        serving.check(candidate, tmp_path, "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_fails_is_said_and_gives_1(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    assert main(["--arch", "resnet-5", "--out", str(out)]) == 1
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["checks"]}
    assert rows["network resnet-5"]["state"] == "failed"
    assert "no architecture is called 'resnet-5'" in rows["network resnet-5"]["detail"]
    assert rows["export and parity, fp32"]["detail"] == "there is no resnet-5: see above"
    for name in ("GPU", "training step, cuda", "TensorRT, int8"):
        assert rows[name]["state"] == "skipped"
        assert rows[name]["detail"].startswith("PyTorch ")


def test_the_share_is_that_of_the_rate_of_the_precision() -> None:
    pixels = np.zeros((3, 8, 8, 1), np.uint8)

    class Millisecond:
        """Computes each batch in about that."""

        def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            assert names == ["logits"]
            time.sleep(0.001)
            return [np.zeros((len(feeds["image"]), 2), np.float32)]

    engines = [
        Engine(CPU, "fp16", Millisecond()),
        Engine(CUDA, "fp16", Millisecond()),
        Engine(CUDA, "tf32", Millisecond()),
    ]
    entries = measure(engines, (16, 1), pixels, macs=5_000_000, rates={"fp16": 1e12, "fp32": 1e9})
    assert [(each.engine, each.precision, each.batch) for each in entries] == [
        (CPU, "fp16", 1),
        (CUDA, "fp16", 1),
        (CUDA, "fp16", 16),
        (CUDA, "tf32", 1),
        (CUDA, "tf32", 16),
    ]
    assert [each.share is None for each in entries] == [True, False, False, True, True]
    assert entries[2].share == pytest.approx(2 * 5_000_000 * entries[2].images_per_second / 1e12)
    assert entries[2].images_per_second == pytest.approx(16_000 / entries[2].milliseconds)


def _raises(error: Exception) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "state", "detail"),
    [
        (Skipped("no driver"), "skipped", "no driver"),
        (ModuleNotFoundError("No module", name="tensorrt.plugin"), "skipped", "tensorrt is not installed"),
        (ModuleNotFoundError("No module named 'export.gone'", name="export.gone"), "failed", "export.gone"),
        (Failed("logits differ by 3"), "failed", "logits differ by 3"),
        (RuntimeError("CUDA error:\n  out of memory"), "failed", "RuntimeError: CUDA error: out of memory"),
    ],
)
def test_only_what_is_missing_is_skipped(error: Exception, state: str, detail: str) -> None:
    row = run("a check", _raises(error))
    assert row.state == state
    assert detail in row.detail
