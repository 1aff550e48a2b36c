"""The arithmetic of `describe` against the literature, and receptive fields against gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn

from export import architectures, listing
from export.__main__ import main
from export.commands.describe import memory, size
from export.describe import Description, build_on_meta, describe, describe_architecture
from export.errors import ExportError
from export.torchvision_shim import import_torchvision

pytestmark = pytest.mark.timeout(60)


def described(name: str, **options: Any) -> Description:
    return describe_architecture(architectures.get(name), **options)


def last_maps(description: Description) -> int:
    """Receptive field of what has the largest before everything is pooled or fully connected."""
    return max(layer.receptive_field or 0 for layer in description.layers if layer.output[1:] != (1, 1))


# Against the literature


def test_a_convolution_as_taught() -> None:
    """CS231n: ten 5×5 filters on 32×32×3 with padding 2."""
    found = describe(nn.Conv2d(3, 10, 5, padding=2), (3, 32, 32))
    (layer,) = found.layers
    assert layer.parameters == 760
    assert (layer.weights, layer.biases) == (750, 10)
    assert layer.output == (10, 32, 32)
    assert layer.macs == 10 * 32 * 32 * 75
    assert layer.activation_bytes == 4 * 10 * 32 * 32
    assert layer.receptive_field == 5


def test_vgg16() -> None:
    found = described("vgg16")
    assert found.parameters == 138_357_544
    linear = [layer for layer in found.layers if layer.kind == "Linear"]
    assert [layer.weights for layer in linear] == [102_760_448, 16_777_216, 4_096_000]
    assert linear[0].parameters == 102_760_448 + 4096
    assert found.macs == 15_470_264_320
    convolutions = [layer for layer in found.layers if layer.kind == "Conv2d"]
    assert [layer.receptive_field for layer in convolutions] == [3, 5, 10, 14, 24, 32, 40, 60, 76, 92, 132, 164, 196]
    assert sum(layer.parameters for layer in convolutions) == 14_714_688


def test_alexnets_first_layer() -> None:
    first = described("alexnet2012").layers[0]
    assert first.output == (96, 55, 55)
    assert first.parameters == 34_944
    assert first.macs == 105_415_200


@pytest.mark.parametrize(
    ("name", "pixels"),
    [  # Araujo, Norris, Sim 2019; torchvision's ResNet-50 strides elsewhere than the one described there
        ("alexnet2012", 195),
        ("vgg16", 212),
        ("inception_v3", 1311),
        ("inception_v4", 2071),
        ("resnet18", 435),
        ("resnet50", 427),
    ],
)
def test_receptive_fields(name: str, pixels: int) -> None:
    assert last_maps(described(name)) == pixels


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "resnet50", "squeezenet1_1", "swin_t"])
def test_parameters_and_arithmetic_are_torchvisions(name: str) -> None:
    _as_torchvision_has_it(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_parameters_and_arithmetic_are_torchvisions() -> None:
    for architecture in architectures.ARCHITECTURES.values():
        if architecture.origin == "torchvision":
            _as_torchvision_has_it(architecture.name)


def _as_torchvision_has_it(name: str) -> None:
    weights = import_torchvision().models.get_model_weights(name)
    meta = next(entry for entry in weights if entry.meta.get("categories")).meta
    found = described(name)
    auxiliary = found.training_only_parameters if name != "googlenet" else 0  # left out of torchvision's count there
    assert found.parameters + auxiliary == meta["num_params"]
    assert round(found.macs / 1e9, 3) == meta["_ops"]


def test_auxiliary_heads_are_told_apart() -> None:
    found = described("inception_v3")
    assert found.parameters == 23_834_568
    assert found.training_only_parameters == 27_161_264 - 23_834_568
    assert not any("Aux" in layer.name for layer in found.layers)
    assert described("googlenet").training_only_parameters == 13_004_888 - 6_624_904


# Receptive fields against gradients


class Branches(nn.Module):
    """Paths of different reach and alignment, as in an Inception block, one around all of them, then a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 1)
        self.five = nn.Conv2d(2, 2, 5, padding=2)
        self.flat = nn.Sequential(nn.Conv2d(2, 2, (1, 7), padding=(0, 3)), nn.Conv2d(2, 2, (3, 1), padding=(1, 0)))
        self.wide = nn.Conv2d(2, 2, 3, padding=3, dilation=3)
        self.out = nn.Conv2d(8, 2, 3, stride=2, padding=1)
        self.short = nn.Conv2d(2, 2, 1, stride=2)
        self.pool = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        paths = [self.one(images), self.five(images), self.flat(images), self.wide(images)]
        return self.pool(self.out(torch.cat(paths, 1)) + self.short(images))


class Gated(nn.Module):
    """Squeeze and excitation: every unit comes to see everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.gate = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return maps * torch.sigmoid(self.gate(maps.mean(dim=(2, 3))))[:, :, None, None]


class Shuffled(nn.Module):
    """Reordered axes and channels, and a part of them carried around the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 8)
        self.depthwise = nn.Conv2d(4, 4, 7, padding=3, groups=4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.linear(self.conv(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        n, c, h, w = maps.shape
        mixed = maps.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        kept, other = mixed.chunk(2, dim=1)
        return F.pad(torch.cat((kept, self.depthwise(other)), 1), (1, 0, 1, 0))


@pytest.mark.parametrize(("module", "channels"), [(Branches(), 2), (Shuffled(), 4)])
def test_a_unit_sees_as_far_as_its_gradient_reaches(module: nn.Module, channels: int) -> None:
    image = torch.randn(1, channels, 64, 64, requires_grad=True, dtype=torch.float64)
    maps = module.double()(image)
    at = maps.shape[-1] // 2
    (gradient,) = torch.autograd.grad(maps[0, :, at, at].sum(), image)
    reached = [torch.nonzero(gradient[0].abs().sum(dim=(0, other))).flatten() for other in (2, 1)]
    expected = max(int(each.max() - each.min()) + 1 for each in reached)
    found = describe(nn.Sequential(module, nn.Conv2d(maps.shape[1], 1, 1).double()), (channels, 64, 64))
    assert found.layers[-1].receptive_field == expected


def test_global_paths_see_everything() -> None:
    found = describe(nn.Sequential(Gated(), nn.Conv2d(2, 2, 3, padding=1)), (2, 20, 20))
    by_name = {layer.name: layer.receptive_field for layer in found.layers}
    assert by_name["0.conv"] == 3
    assert by_name["0.gate"] == 22  # all places, with the padding of the outermost
    assert by_name["1"] == 22, "who sees everything sees no more through another convolution"


def test_attention_is_unknown_rather_than_wrong() -> None:
    layers = described("swin_t").layers
    first = next(at for at, layer in enumerate(layers) if "attn" in layer.name)
    assert layers[0].receptive_field == 4
    assert all(layer.receptive_field is not None for layer in layers[:first])
    assert all(layer.receptive_field is None for layer in layers[first:])


# What a row is


class Twice(nn.Module):
    """Runs a layer twice, has a parameter of its own, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.unused = nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.relu(self.conv(self.relu(self.conv(images))))) * self.scale


def test_layers_that_run_again_are_rows_again_but_their_parameters_count_once() -> None:
    found = describe(Twice(), (3, 8, 8))
    assert [(layer.name, layer.parameters) for layer in found.layers] == [
        ("conv", 81),
        ("relu", 0),
        ("conv:2", 0),
        ("relu:2", 0),
        ("Twice", 3),
    ]
    assert [layer.macs for layer in found.layers] == [81 * 64, 0, 81 * 64, 0, 0]
    assert [layer.receptive_field for layer in found.layers] == [3, 3, 5, 5, 5]
    assert found.training_only_parameters == 30


def test_parameters_that_are_used_without_their_layer_count_too() -> None:
    found = described("swin_t")
    attention = next(layer for layer in found.layers if layer.name == "features.1.0.attn")
    assert attention.parameters == 4 * 96 * 96 + 4 * 96 + 169 * 3  # qkv, projection, relative positions
    windows, cells = 64, 49
    assert attention.macs == 56 * 56 * 4 * 96 * 96 + 2 * windows * cells * cells * 96
    assert attention.output == (96, 56, 56)
    assert found.parameters == 28_288_354


def test_describing_neither_runs_nor_changes_the_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    describe(module, (3, 9, 9))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not next(module.parameters()).is_meta


def test_building_on_meta_takes_no_memory() -> None:
    for name in ("vgg19", "regnet_y_128gf", "lenet1989", "neocognitron"):  # the second reads tensors while it is built
        module = build_on_meta(architectures.get(name), 10)
        assert all(each.is_meta for each in module.parameters())


def test_other_inputs_and_classes() -> None:
    found = described("resnet18", labels=10, size=(448, 320))
    assert found.input == (3, 448, 320)
    assert found.layers[0].output == (64, 224, 160)
    assert found.layers[-1].output == (10, 1, 1)
    with pytest.raises(ExportError, match=r"vgg19 cannot take 8×8 pixels .* published with 224×224"):
        described("vgg19", size=(8, 8))


# The command line


def test_the_json_is_as_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "alexnet2012", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"architecture", "input", "layers", "totals"}
    keys = ["name", "kind", "output", "parameters", "macs", "activation_bytes", "receptive_field"]
    for layer in found["layers"]:
        assert set(layer) >= set(keys)
        assert len(layer["output"]) == 3
        assert layer["activation_bytes"] == 4 * torch.Size(layer["output"]).numel()
        assert layer["parameters"] == layer["weights"] + layer["biases"]
    totals = found["totals"]
    for key in ("parameters", "weights", "biases", "macs", "activation_bytes"):
        assert totals[key] == sum(layer[key] for layer in found["layers"])
    assert totals["layers"] == len(found["layers"])
    assert totals["parameters"] == 60_965_224


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["describe", "googlenet", "--input-size", "192x256", "--classes", "5"]) == 0
    shown = capsys.readouterr().out
    assert "3×192×256" in shown
    assert "5×1×1" in shown
    assert "parameters that only training uses" in shown
    assert main(["describe", "vgg61"]) == 2
    assert "did you mean vgg" in capsys.readouterr().err


def test_sizes_on_the_command_line() -> None:
    assert size("224") == (224, 224)
    assert size("192x256") == (192, 256)
    assert size("192×256") == (192, 256)
    for wrong in ("0", "x", "12x-3", "big"):
        with pytest.raises(ValueError):
            size(wrong)
    assert memory(512) == "0.5 KiB"
    assert memory(3 * 1024**2) == "3.0 MiB"


# The list


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {entry["name"]: entry for entry in found["architectures"]}
    assert set(by_name) == set(architectures.ARCHITECTURES)
    assert by_name["vgg16"]["parameters"] == 138_357_544
    assert by_name["vgg16"]["input"] == [3, 224, 224]
    assert by_name["resnet50"]["weights"] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert all(entry["paper"] and entry["year"] and entry["macs"] > 0 for entry in by_name.values())
    assert "digits" in found["datasets"]
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "138,357,544" in shown
    assert "timm:NAME" in shown


@pytest.mark.parametrize("name", ["lenet5", "lenet1989", "neocognitron", "highway", "resnet18", "squeezenet1_1"])
def test_kept_totals_are_right(name: str) -> None:
    kept = json.loads(listing.TOTALS.read_text())
    assert set(kept) == set(architectures.ARCHITECTURES), "run python -m export.listing"
    assert kept[name] == listing.totals_of(architectures.get(name)), "run python -m export.listing"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_kept_totals_are_right() -> None:
    kept = json.loads(listing.TOTALS.read_text())
    for name, architecture in architectures.ARCHITECTURES.items():
        assert kept[name] == listing.totals_of(architecture), f"{name}: run python -m export.listing"
