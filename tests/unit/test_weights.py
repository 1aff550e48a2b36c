"""Weights by name, from files, and none: what fits is loaded unchanged, what doesn't is told with the remedy."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from export import architectures, published
from export.errors import ExportError, UnknownName
from export.replay import sha256
from export.weights import load, read, read_labels
from service.spec import Weights

pytestmark = pytest.mark.timeout(100)

SMALL = "squeezenet1_1"  # 5 MB; its classifier is a convolution
UNREACHABLE = "http://127.0.0.1:9"


def built(name: str, labels: int = 1000) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return architectures.get(name).build(labels)


def save(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def same(one: nn.Module, other: nn.Module, without: str = "?") -> bool:
    """Whether two modules hold the same values, but for what is called so."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in mine.items() if without not in key
    )


# From files


@pytest.mark.parametrize("name", ["resnet18", SMALL, "lenet1989", "neocognitron", "timm:test_resnet"])
def test_a_state_dict_loads_unchanged(name: str, tmp_path: Path) -> None:
    module = built(name, 7)
    file = save(module.state_dict(), tmp_path / "seven.pth")
    loaded = load(architectures.get(name), file)
    assert same(loaded.module, module)
    assert not loaded.module.training
    assert loaded.labels is None
    assert loaded.image == architectures.get(name).image
    assert loaded.weights == Weights(source="file seven.pth", sha256=sha256(tmp_path / "seven.pth"))


def test_a_thousand_classes_of_an_imagenet_network_are_imagenets(tmp_path: Path) -> None:
    loaded = load(architectures.get(SMALL), save(built(SMALL).state_dict(), tmp_path / "own.pt"))
    assert loaded.labels is not None
    assert len(set(loaded.labels)) == 1000
    assert (loaded.labels[0], loaded.labels[999]) == ("tench", "toilet tissue")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}, "classes": ["a", "b", "c"]},
        lambda state: {"model": {}, "state_dict_ema": state},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    ],
)
def test_wrapped_state_dicts(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    module = built(SMALL, 3)
    wrapped = wrap(module.state_dict())
    loaded = load(architectures.get(SMALL), save(wrapped, tmp_path / "checkpoint.pth"))
    assert same(loaded.module, module)
    assert loaded.labels == (("a", "b", "c") if "classes" in wrapped else None)


def test_safetensors(tmp_path: Path) -> None:
    module = built(SMALL, 3)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    assert same(load(architectures.get(SMALL), str(tmp_path / "w.safetensors")).module, module)


def test_another_number_of_classes_takes_a_new_classifier(tmp_path: Path) -> None:
    module = built("resnet18", 3)
    file = save(module.state_dict(), tmp_path / "three.pth")
    loaded = load(architectures.get("resnet18"), file, classes=5, seed=2)
    assert loaded.module.get_submodule("fc").weight.shape == (5, 512)
    assert same(loaded.module, load(architectures.get("resnet18"), file, classes=5, seed=2).module)
    assert same(nn.Sequential(*list(loaded.module.children())[:-1]), nn.Sequential(*list(module.children())[:-1]))


def test_auxiliary_heads_may_be_absent_or_of_other_classes(tmp_path: Path) -> None:
    architecture = architectures.get("googlenet")
    module = built("googlenet", 1000)
    module.fc = nn.Linear(1024, 4)  # as one fine-tunes it: its auxiliary heads keep their thousand classes
    loaded = load(architecture, save(module.state_dict(), tmp_path / "four.pth"))
    assert loaded.module.get_submodule("fc").weight.shape == (4, 1024)
    assert loaded.module.get_submodule("aux1").fc2.weight.shape == (4, 1024)
    without = {key: value for key, value in module.state_dict().items() if not key.startswith("aux")}
    again = load(architecture, save(without, tmp_path / "without.pth"))
    assert same(again.module, loaded.module, without="aux")


def test_names_and_versions_of_old(tmp_path: Path) -> None:
    densenet = built("densenet121", 2)
    old = OrderedDict(
        (key.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in key else key, value)
        for key, value in densenet.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    assert same(load(architectures.get("densenet121"), save(old, tmp_path / "old.pth")).module, densenet)
    mnasnet = built("mnasnet0_5", 2)
    plain = dict(mnasnet.state_dict())  # without the versions that its class asks for
    assert same(load(architectures.get("mnasnet0_5"), save(plain, tmp_path / "plain.pth")).module, mnasnet)


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path: Path) -> None:
    file = save(built("resnet18", 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ExportError, match=r"not a state dict of resnet50: \d+ missing \(layer1.*of another shape"):
        load(architectures.get("resnet50"), file)
    state = built(SMALL, 3).state_dict()
    state["classifier.2.weight"] = torch.zeros(3)
    with pytest.raises(
        ExportError, match=r"1 unexpected \(classifier.2.weight\); .* A replaced classifier must be one"
    ):
        load(architectures.get(SMALL), save(state, tmp_path / "more.pth"))
    del state["classifier.2.weight"], state["classifier.1.weight"], state["classifier.1.bias"]
    with pytest.raises(ExportError, match=r"2 missing \(classifier.1.weight, classifier.1.bias\)"):
        load(architectures.get(SMALL), save(state, tmp_path / "headless.pth"))
    backbone = load(architectures.get(SMALL), str(tmp_path / "headless.pth"), classes=4)
    assert backbone.module.get_submodule("classifier.1").weight.shape == (4, 512, 1, 1)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rubbish.pth").write_bytes(b"hello")
    (tmp_path / "rubbish.safetensors").write_bytes(b"hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("rubbish.pth", "rubbish.safetensors", "empty.pth"):
        with pytest.raises(ExportError, match=r"cannot be read as weights.*torch\.save"):
            read(tmp_path / name)
    with pytest.raises(ExportError, match="it holds more than tensors; save the state dict alone"):
        read(Path(save(nn.Linear(2, 2), tmp_path / "program.pth")))
    with pytest.raises(ExportError, match="holds no state dict"):
        read(Path(save([1, 2], tmp_path / "list.pth")))
    with pytest.raises(ExportError, match="there is no file"):
        load(architectures.get(SMALL), str(tmp_path / "gone.pth"))


# Labels


def test_labels_from_a_file(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n\n  dog \nünicorn\n", encoding="utf-8")
    assert read_labels(labels) == ("cat", "dog", "ünicorn")
    file = save({"state_dict": built(SMALL, 3).state_dict(), "labels": ["x", "y", "z"]}, tmp_path / "w.pth")
    assert load(architectures.get(SMALL), file, labels=labels).labels == ("cat", "dog", "ünicorn")
    assert load(architectures.get(SMALL), file).labels == ("x", "y", "z")
    assert load(architectures.get(SMALL), file, classes=2).labels is None, "they were those of the old classifier"
    with pytest.raises(ExportError, match=r"holds 3 labels, the network has 5 classes"):
        load(architectures.get(SMALL), file, 5, labels=labels)
    labels.write_text("cat\ncat\n")
    with pytest.raises(ExportError, match="'cat' twice"):
        read_labels(labels)
    with pytest.raises(ExportError, match="cannot be read as labels"):
        read_labels(tmp_path / "gone.txt")


# None


def test_random_weights_are_drawn_from_the_seed_alone() -> None:
    architecture = architectures.get("lenet1989")
    before = torch.random.get_rng_state()
    one, two, three = load(architecture, seed=5), load(architecture, seed=5), load(architecture, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(one.module, two.module)
    assert not same(one.module, three.module)
    assert one.weights == Weights(source="random initial weights (seed 5)")
    assert one.labels is None


# By name


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, UNREACHABLE)
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_offline")
def test_published_weights_come_with_labels_and_preprocessing(tmp_path: Path) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    module = built("mobilenet_v2")
    save(module.state_dict(), cache / "mobilenet_v2-7ebf99e0.pth")
    for name in ("IMAGENET1K_V2", "MobileNet_V2_Weights.IMAGENET1K_V2", "DEFAULT"):
        loaded = load(architectures.get("mobilenet_v2"), name)
        assert loaded.weights.source == "torchvision MobileNet_V2_Weights.IMAGENET1K_V2"
    assert same(loaded.module, module)
    assert loaded.weights.sha256 == sha256(cache / "mobilenet_v2-7ebf99e0.pth")
    assert (loaded.image.height, loaded.image.resize_to) == (224, 232), "those of these weights, not the first ones'"
    assert loaded.labels is not None
    assert loaded.labels[:2] == ("tench", "goldfish")
    assert load(architectures.get("mobilenet_v2"), "DEFAULT", classes=3).labels is None


@pytest.mark.usefixtures("_offline")
def test_without_a_network_the_error_says_what_to_download_where(tmp_path: Path) -> None:
    expected = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    with pytest.raises(ExportError) as caught:
        load(architectures.get("resnet50"), "IMAGENET1K_V2")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet50-11ad3fa6.pth cannot be fetched" in message
    assert f"put it at {expected} or give that file" in message
    assert not list(expected.parent.iterdir()), "no half a file"


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean IMAGENET1K_V2"):
        load(architectures.get("resnet50"), "IMAGENET1K_V3")
    with pytest.raises(UnknownName, match="tf_in1k"):
        load(architectures.get("inception_v4"), "tf_in2k")
    with pytest.raises(UnknownName):
        load(architectures.get("vgg16"), "IMAGENET1K_FEATURES")  # these have no classifier
    with pytest.raises(ExportError, match=r"nobody publishes weights of lenet5: .* train --arch lenet5"):
        load(architectures.get("lenet5"), "DEFAULT")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder that a web server serves; its address is in the file `address`, beside."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (tmp_path / "address").write_text(f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()
        thread.join()


def test_downloads_are_checked_and_kept(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    address = (tmp_path / "address").read_text()
    start = hashlib.sha256(b"weights").hexdigest()[:8]
    (site / f"net-{start}.pth").write_bytes(b"weights")
    path = published.download(f"{address}/net-{start}.pth")
    assert path.read_bytes() == b"weights"
    (site / f"net-{start}.pth").unlink()
    assert published.download(f"{address}/net-{start}.pth") == path, "found in the cache"
    (site / "net-01234567.pth").write_bytes(b"tampered with")
    with pytest.raises(ExportError, match=r"net-01234567\.pth cannot be fetched: invalid hash value"):
        published.download(f"{address}/net-01234567.pth")
    with pytest.raises(ExportError, match="cannot be fetched: HTTP Error 404"):
        published.download(f"{address}/net-76543210.pth")


def test_timms_weights_come_from_its_cache_and_say_how_to_fill_it(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub looks at its environment once."""
    module = built("timm:test_resnet")
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    safetensors.torch.save_file(module.state_dict(), snapshot / "model.safetensors")
    save(module.state_dict(), tmp_path / "expected.pth")
    code = """if True:
        import sys, torch
        from export import architectures, weights
        from export.errors import ExportError
        loaded = weights.load(architectures.get("timm:test_resnet"), "r160_in1k")
        expected = torch.load(sys.argv[1], weights_only=True)
        assert all(torch.equal(value, expected[key]) for key, value in loaded.module.state_dict().items())
        assert loaded.weights.source == "timm test_resnet.r160_in1k", loaded.weights
        assert (loaded.image.height, len(loaded.labels), loaded.labels[0]) == (160, 1000, "tench"), loaded
        three = weights.load(architectures.get("timm:test_resnet.r160_in1k"), "DEFAULT", classes=3)
        assert three.labels is None and three.module.num_classes == 3
        try:
            weights.load(architectures.get("inception_v4"), "DEFAULT")
        except ExportError as error:
            print(error)
        """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "expected.pth")],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "timm/inception_v4.tf_in1k cannot be fetched" in done.stdout
    assert "https://huggingface.co/timm/inception_v4.tf_in1k/resolve/main/model.safetensors" in done.stdout
