"""Training as a user meets it: killed and resumed, in two processes, fine-tuned, averaged; through the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from export import architectures, data, finetune, optimise, run, strategies
from export.__main__ import main
from export.loader import Shares
from service.spec import CONFIG_NAME, read_config
from tests.integration import few_digits

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
FEW = [sys.executable, "-m", "tests.integration.few_digits"]
# Everything that a resumed training could get wrong: random dropout, augmentation and order, momentum, the schedule.
TRAIN = ["train", "--arch", "resnet20", "--data", "few-digits", "--dropout", "0.2", "--epochs", "4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.LOADERS, "few-digits", few_digits.load)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two snapshots."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    command = ["train", "--arch", "lenet5", "--data", "few-digits", "--epochs", "6", "--snapshots", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.LOADERS, "few-digits", few_digits.load)
        assert main([*command, "--out", str(folder)]) == 0
    return folder


def states(folder: Path, name: str = run.CHECKPOINT) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / name, weights_only=True)
    return found


@pytest.mark.slow
def test_a_killed_training_comes_to_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*TRAIN, "--out", str(whole)]) == 0
    with subprocess.Popen([*FEW, *TRAIN, "--out", str(killed)], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not (killed / run.RESUME).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (killed / run.METRICS).exists()
    (killed / f".{run.RESUME}.1").write_bytes(b"half a file")  # as a writer that was killed leaves it
    assert main([*TRAIN, "--out", str(killed)]) == 0
    ours, theirs = (run.load(folder)[1].model_copy(update={"seconds": 0}) for folder in (killed, whole))
    assert ours == theirs
    assert len(ours.epochs) == 4
    assert (killed / run.CHECKPOINT).read_bytes() == (whole / run.CHECKPOINT).read_bytes()
    assert not (killed / run.RESUME).exists()


def test_a_finished_run_is_left_alone_and_another_one_refused(
    pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--arch", "lenet5", "--data", "few-digits", "--snapshots", "2", "--out", str(pretrained)]
    before = (pretrained / run.CHECKPOINT).stat()
    assert main([*command, "--epochs", "6"]) == 0
    assert (pretrained / run.CHECKPOINT).stat() == before
    assert main([*command, "--epochs", "8", "--lr", "0.01"]) == 2
    assert "holds another run (epochs 6, not 8; learning_rate 0.006, not 0.01): remove it" in capsys.readouterr().err


def test_a_run_that_failed_at_once_stands_in_nobody_s_way(tmp_path: Path) -> None:
    command = [
        "train",
        "--arch",
        "linear",
        "--data",
        "few-digits",
        "--epochs",
        "1",
        "--out",
        str(tmp_path),
        "--augment",
    ]
    assert main([*command, "rotaton"]) == 2
    assert main([*command, "rotation"]) == 0
    assert run.load(tmp_path)[0].options.augment == "rotation"


def test_one_process_writes_to_a_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run.writer(tmp_path):
        command = ["train", "--arch", "linear", "--data", "few-digits", "--epochs", "1", "--out", str(tmp_path)]
        assert main(command) == 2
    assert "another training writes to" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(tmp_path: Path) -> None:
    command = ["train", "--arch", "lenet5", "--data", "few-digits", "--epochs", "3", "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [*launcher, "-m", "tests.integration.few_digits", *command, str(tmp_path / "two")]
    done = subprocess.run(line, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recognises") == 1
    one, two = (states(tmp_path / name) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    losses = [[epoch.loss for epoch in run.load(tmp_path / name)[1].epochs] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_processes_take_the_same_batches_together() -> None:
    def batches(world: int) -> list[list[int]]:
        dealt = []
        for rank in range(world):
            shares = Shares(50, 16, seed=3, rank=rank, world=world, shuffle=True)
            shares.set_epoch(2)
            dealt.append(list(shares))
        return [sorted(np.concatenate([part.indices for part in parts]).tolist()) for parts in zip(*dealt, strict=True)]

    assert batches(1) == batches(2)
    assert [len(batch) for batch in batches(1)] == [16, 16, 16, 2]
    assert [len(batch) for batch in batches(3)] == [16, 16, 16]  # two images are too few for three


@pytest.mark.parametrize("name", optimise.OPTIMIZERS)
@pytest.mark.parametrize("schedule", optimise.SCHEDULES)
def test_every_optimiser_and_schedule_learns(name: str, schedule: str) -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    inputs = torch.randn(64, 4)
    wanted = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    rate = 0.02 if name == "sgd" else 0.1
    optimizer = optimise.optimizer(name, [{"params": list(network.parameters()), "lr": rate}], 1e-4)
    scheduler = optimise.schedule(schedule, optimizer, 200)
    rates = []
    for _ in range(200):
        loss = (network(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert loss < 1e-2
    assert max(rates) <= rate * 1.0001
    assert (min(rates) < 0.2 * rate) == (schedule != "constant")


def test_patience_ends_a_training(tmp_path: Path) -> None:
    command = ["train", "--arch", "linear", "--data", "few-digits", "--lr", "1e-9", "--augment", "none"]
    assert main([*command, "--epochs", "50", "--patience", "2", "--out", str(tmp_path)]) == 0
    assert len(run.load(tmp_path)[1].epochs) == 3  # nothing gets better after the first


def test_snapshots_and_runs_are_published_as_one_network(pretrained: Path, tmp_path: Path) -> None:
    assert [path.name for path in run.members(pretrained)] == ["snapshot-1.pt", "snapshot-2.pt"]
    first, second = (states(pretrained, path.name) for path in run.members(pretrained))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    rates = [epoch.learning_rate for epoch in run.load(pretrained)[1].epochs]
    assert rates[2] > rates[1]  # restarted
    assert main(["publish", "--ensemble", str(pretrained), "--name", "both", "--repository", str(tmp_path)]) == 0
    spec = read_config(tmp_path / "both" / CONFIG_NAME).specs["1"]
    assert spec.architecture == "ensemble of 2 lenet5"
    assert spec.parameters == 2 * 60_850
    assert spec.maps == (32, 10, 10)


def test_an_ensemble_of_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = tmp_path / "run"
    assert main(["train", "--arch", "linear", "--data", "few-digits", "--epochs", "1", "--out", str(single)]) == 0
    assert main(["publish", "--ensemble", str(single), "--name", "x", "--repository", str(tmp_path / "models")]) == 2
    assert "an ensemble needs two members" in capsys.readouterr().err


# Fine-tuning


def test_stages_follow_the_size_of_the_maps() -> None:
    architecture = architectures.get("resnet18")
    network = architecture.cut(architecture.build(10))
    names = {id(module): name for name, module in network.trunk.named_modules()}
    found = [
        {names[id(layer)].split(".")[0] for layer in stage}
        for stage in strategies.stages(network.trunk, architecture.image)
    ]
    assert found == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]


@pytest.mark.parametrize("strategy", ["last", "full"])
def test_a_strategy_trains_what_it_says(strategy: str) -> None:
    architecture = architectures.get("resnet18")
    module = architecture.build(10)
    plan = strategies.plan(module, architecture.cut(module), architecture.image, strategy, 1.0)
    rates = {id(parameter): group["lr"] for group in plan.groups for parameter in group["params"]}
    by_part = {name.split(".")[0]: rates.get(id(parameter)) for name, parameter in module.named_parameters()}
    assert by_part["fc"] == 1
    assert (by_part["layer4"], by_part["layer3"]) == pytest.approx((0.3, 0.09))
    assert (by_part["conv1"] is None) == (strategy == "last")
    assert all(parameter.requires_grad == (id(parameter) in rates) for parameter in module.parameters())
    assert {type(layer) for layer in plan.frozen} == ({nn.Conv2d, nn.BatchNorm2d} if strategy == "last" else set())


def test_auto_tries_what_the_data_can_support() -> None:
    assert finetune.supported(1) == ("linear",)
    assert finetune.supported(10) == ("linear", "last")
    assert finetune.supported(1000) == ("linear", "last", "full")
    chosen, why = finetune.choose({"linear": 0.90, "last": 0.905, "full": 0.80}, 100)
    assert chosen == "linear"
    assert why.startswith("linear is the cheapest within one standard error (2.93%) of last on 100 validation images")
    assert finetune.choose({"linear": 0.90, "last": 0.99}, 1000)[0] == "last"


def test_from_a_published_model_and_a_folder_to_a_new_model(pretrained: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert main(["publish", str(pretrained), "--name", "base", "--repository", str(models), "--with-weights"]) == 0
    assert set(read_config(models / "base" / CONFIG_NAME).specs["1"].files) == {"model.onnx", "weights.safetensors"}
    random = np.random.default_rng(0)
    for label, slope in (("flat", 0), ("steep", 1)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            picture = random.integers(0, 60, (20, 20)) + slope * np.arange(20) * 9
            large = Image.fromarray(picture.astype(np.uint8)).resize((600, 600))  # larger than a golden image may be
            noise = random.integers(0, 30, (600, 600), np.uint8)
            Image.fromarray(np.asarray(large) // 2 + noise).save(tmp_path / "photos" / label / f"{number}.png")
    (tmp_path / "photos" / "flat" / "broken.jpg").write_bytes(b"not a picture")
    out = tmp_path / "run"
    command = [
        "finetune",
        "--weights",
        str(models / "base"),
        "--data",
        f"folder:{tmp_path / 'photos'}",
        "--epochs",
        "2",
    ]
    assert main([*command, "--out", str(out)]) == 0
    record, metrics = run.load(out)
    assert (record.architecture, record.strategy, record.labels) == ("lenet5", "auto", ("flat", "steep"))
    assert metrics.why.split()[0] in ("linear", "last")
    assert "full wants 20 images of each class" in metrics.why
    assert metrics.test_accuracy >= 0.7
    assert (out / "report.html").is_file()
    assert main(["publish", str(out), "--name", "slopes", "--repository", str(models)]) == 0
    spec = read_config(models / "slopes" / CONFIG_NAME).specs["1"]
    assert spec.labels == ("flat", "steep")
    assert spec.weights.source == "base, fine-tuned on folder:photos (seed 0)"
    assert sum(len(golden.data) for golden in spec.golden) < 50_000


# Errors, and the preview


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dropout", "0.5"], "linear has no dropout layers"),
        (["--snapshots", "3", "--epochs", "4"], "4 epochs make no 3 equal cycles"),
        (["--snapshots", "2", "--schedule", "cosine"], "pass --schedule warm-restarts"),
        (["--augment", "rotaton"], "did you mean rotation"),
        ([], "--out says where the run goes"),
    ],
)
def test_what_makes_no_sense_is_said(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")] if more else []
    assert main(["train", "--arch", "linear", "--data", "few-digits", *more, *out]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_preview_is_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    assert main(["train", "--arch", "lenet5", "--data", "few-digits", "--preview", str(path)]) == 0
    with Image.open(path) as picture:
        assert min(picture.size) > 300
