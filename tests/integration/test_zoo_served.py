"""Networks published by command, from a file of weights or none, and served by the real gateway."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export import architectures, samples
from export.__main__ import main
from tests.server import Server

SMALL = ("linear", "mlp", "lenet1989", "lenet5", "highway", "neocognitron")
LARGE = (
    "alexnet2012",
    "zfnet",
    "alexnet",
    "vgg11",
    "googlenet",
    "inception_v3",
    "inception_v4",
    "resnet18",
    "densenet121",
    "timm:resnet10t",
)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_resnet50_of_a_local_file_answers_a_jpeg_with_imagenets_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(architectures.get("resnet50").build(1000).state_dict(), tmp_path / "mine.pth")
    repository = tmp_path / "models"
    weights = ["--weights", str(tmp_path / "mine.pth")]
    assert main(["publish", "--arch", "resnet50", *weights, "--name", "mine", "--repository", str(repository)]) == 0
    with Server(repository, tmp_path).start() as server:
        card = server.client.get("/v1/models/mine").json()
        answer = server.client.post(
            "/v1/classify?top_k=1000",
            content=samples.photographs()["china-whole.jpg"],
            headers={"Content-Type": "image/jpeg"},
        ).json()
    assert card["state"] == "ready"
    assert card["spec"]["weights"]["source"] == "file mine.pth"
    assert len(card["spec"]["weights"]["sha256"]) == 64
    classes = answer["predictions"][0]["classes"]
    assert len(classes) == 1000
    assert {card["spec"]["labels"][index] for index in (0, 281, 999)} == {"tench", "tabby", "toilet tissue"}
    assert all(each["label"] == card["spec"]["labels"][each["index"]] for each in classes)
    assert sum(each["probability"] for each in classes) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("names", [SMALL, LARGE], ids=["small", "large"])
def test_networks_of_the_field_are_published_and_served(names: tuple[str, ...], tmp_path: Path) -> None:
    repository = tmp_path / "models"
    models = {arch: arch.replace(":", "-") for arch in names}
    for arch, name in models.items():
        assert main(["publish", "--arch", arch, "--name", name, "--repository", str(repository)]) == 0
    image = samples.photographs()["flower-whole.jpg"]
    with Server(repository, tmp_path).start(ready=False) as server:
        server.wait_until(server.ready, 120)  # ten networks, some of hundreds of megabytes
        listed = server.models()
        answers = {
            name: server.client.post(f"/v1/models/{name}/classify", content=image).status_code
            for name in models.values()
        }
    assert {name: model["state"] for name, model in listed.items()} == dict.fromkeys(models.values(), "ready")
    assert answers == dict.fromkeys(models.values(), 200)


def test_publish_wants_a_run_or_an_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "--name", "x", "--repository", str(tmp_path)]) == 2
    assert "--arch" in capsys.readouterr().err
    assert main(["publish", "run", "--weights", "w.pth", "--name", "x", "--repository", str(tmp_path)]) == 2
    assert "go with --arch" in capsys.readouterr().err
