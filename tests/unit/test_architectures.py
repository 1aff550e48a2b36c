"""The networks themselves: what the literature says of them, and that cutting them changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn

from export import architectures
from export.architectures import neocognitron, timm_zoo, torchvision_zoo
from export.architectures.alexnet2012 import response_normalisation
from export.architectures.base import Network
from export.cam import class_activation_maps
from export.describe import build_on_meta, describe
from export.errors import ExportError, UnknownName
from export.torchvision_shim import import_timm, import_torchvision
from service.spec import ImageSpec
from tests import zoo

pytestmark = pytest.mark.timeout(100)

HUGE = 300_000_000  # parameters; above, shapes must do
SMALLER = {
    "linear",
    "mlp",
    "lenet1989",
    "lenet5",
    "neocognitron",
    "alexnet2012",
    "zfnet",
    "maxvit_t",
}  # sizes are fixed
QUICK = {
    *("linear", "mlp", "lenet1989", "lenet5", "neocognitron", "alexnet2012", "highway"),
    *("googlenet", "resnet18", "densenet121", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"),
    *("mnasnet0_5", "regnet_y_400mf"),
}
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in architectures.ARCHITECTURES]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def side_of(name: str) -> int | None:
    """Of an input as small as the network takes."""
    if name in SMALLER:
        return None
    return {"highway": 32, "inception_v3": 96, "inception_v4": 96}.get(name, 64)


def grad_cam(network: Network, maps: Tensor, classes: Tensor) -> Tensor:
    """Selvaraju et al. 2017 by autograd, without the rectification."""
    maps = maps.clone().requires_grad_()
    logits = network.head(maps)
    found = []
    for column in classes.T:
        (gradient,) = torch.autograd.grad(logits.gather(1, column[:, None]).sum(), maps, retain_graph=True)
        found.append((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))
    return torch.stack(found, dim=1).detach()


# Cutting


@pytest.mark.parametrize("name", EVERY)
def test_a_cut_network_computes_what_its_module_does(name: str) -> None:
    architecture = architectures.get(name)
    if sum(each.numel() for each in build_on_meta(architecture, 7).parameters()) > HUGE:
        pytest.skip("too large to be run here; see the test on shapes")
    _, image, module, network = zoo.network(name, side_of(name))
    pixels = zoo.images(image)
    with torch.no_grad():
        maps = network.trunk(pixels)
        logits, features = network(pixels), network.features(pixels)
        torch.testing.assert_close(logits, module(pixels), rtol=1e-4, atol=1e-5)
    assert maps.ndim == 4
    assert logits.shape == (2, 7)
    assert features.ndim == 2
    assert float(maps.abs().max()) > 1e-3, "a network of zeros shows nothing"
    classes = logits.topk(5, dim=1).indices
    cam = class_activation_maps(network.head, maps, classes)
    expected = grad_cam(network, maps, classes)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_shapes_as_published(name: str) -> None:
    architecture = architectures.get(name)
    network = architecture.cut(build_on_meta(architecture, architecture.labels)).eval()
    image = architecture.image
    pixels = torch.empty(2, image.channels, image.height, image.width, device="meta")
    with torch.no_grad():
        maps = network.trunk(pixels)
        assert maps.ndim == 4
        assert network.head(maps).shape == (2, architecture.labels)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "densenet121", "inception_v4", "timm:dla34", "lenet1989"]
)
def test_a_cut_shares_parameters_and_owns_each_once(name: str) -> None:
    architecture = architectures.get(name)
    module = build_on_meta(architecture, 7)
    network = architecture.cut(module)
    trunk, head = ({id(each) for each in part.parameters()} for part in (network.trunk, network.head))
    assert not trunk & head, "freezing the trunk would freeze the head"
    assert trunk | head == {id(each) for each in module.parameters()}
    statistics = {id(each) for each in module.buffers()}
    assert {id(each) for each in network.buffers()} >= statistics


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_answer_in_training_only(name: str) -> None:
    architecture = architectures.get(name)
    module = build_on_meta(architecture, 7).train()
    answer = module(torch.empty(2, 3, 299, 299, device="meta"))
    assert {"logits"} < set(answer._fields)
    network = architecture.cut(module)
    unused = {key.split(".")[0] for key in module.state_dict()} - {
        key.split(".")[1] for key in network.trunk.state_dict()
    }
    assert any(key.lower().startswith("aux") for key in unused)
    assert network(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet1989", "neocognitron", "highway", "mlp"])
def test_state_dicts_come_back(name: str) -> None:
    architecture, image, module, _ = zoo.network(name)
    other = architecture.build(7).eval()
    other.load_state_dict(module.state_dict())
    pixels = zoo.images(image)
    assert torch.equal(other(pixels), module(pixels))


# Ours, against their publications


def test_lenet1989_has_the_published_units_connections_and_parameters() -> None:
    architecture = architectures.get("lenet1989")
    module = architecture.build(10)
    planes = ["h1", "h2", "h3", "output"]
    layers = {layer.name: layer for layer in describe(module, (1, 16, 16)).layers}
    cells = {name: torch.Size(layers[name].output).numel() for name in planes}
    assert cells == {"h1": 768, "h2": 192, "h3": 30, "output": 10}
    units = 16 * 16 + sum(cells.values())
    connections = sum(layers[name].macs + cells[name] for name in planes)  # each unit has one to its bias
    parameters = sum(each.numel() for each in module.parameters())
    assert (units, connections, parameters) == (1256, 64_660, 9760)
    assert [layers[name].parameters for name in planes] == [1068, 2592, 5790, 310]


def test_lenet1989_sees_a_background_of_minus_one_beyond_its_edges() -> None:
    h1 = architectures.get("lenet1989").build(10).get_submodule("h1")
    ground = torch.full((1, 1, 16, 16), -1.0)
    maps = h1(ground)
    assert torch.allclose(maps, maps[:, :, :1, :1].expand_as(maps), atol=1e-6), "an empty image has no edges"


def test_each_map_of_h2_sees_eight_of_twelve() -> None:
    h2 = architectures.get("lenet1989").build(10).get_submodule("h2")
    maps = torch.zeros(1, 12, 8, 8, requires_grad=True)
    seen = []
    for each in range(12):
        (gradient,) = torch.autograd.grad(h2(maps)[0, each].sum(), maps)
        seen.append(tuple(bool(gradient[0, source].any()) for source in range(12)))
    assert [sum(each) for each in seen] == [8] * 12
    assert len(set(seen)) == 3
    assert all(sum(each[source] for each in seen) == 8 for source in range(12)), "every map of H1 is seen as often"


def test_alexnet2012_has_the_published_size() -> None:
    layers = {each.name: each for each in describe(architectures.get("alexnet2012").build(1000), (3, 227, 227)).layers}
    assert sum(each.parameters for each in layers.values()) == 60_965_224
    outputs = {name.removeprefix("features."): each.output for name, each in layers.items()}
    assert outputs["conv1"] == (96, 55, 55)
    assert outputs["conv2"] == (256, 27, 27)
    assert outputs["conv5"] == (256, 13, 13)
    assert outputs["pool5"] == (256, 6, 6)


def test_response_normalisation_is_the_papers() -> None:
    maps = torch.rand(1, 9, 2, 2) * 10
    expected = torch.stack(
        [
            maps[:, i] / (2 + 1e-4 * maps[:, max(0, i - 2) : min(8, i + 2) + 1].square().sum(dim=1)) ** 0.75
            for i in range(9)
        ],
        dim=1,
    )
    torch.testing.assert_close(response_normalisation()(maps), expected)


def test_zfnet_has_the_figures_sizes() -> None:
    layers = {each.name: each for each in describe(architectures.get("zfnet").build(1000), (3, 224, 224)).layers}
    sizes = {name.removeprefix("features."): each.output for name, each in layers.items()}
    assert sizes["conv1"] == (96, 110, 110)
    assert sizes["pool1"] == (96, 55, 55)
    assert sizes["conv2"] == (256, 26, 26)
    assert sizes["pool2"] == (256, 13, 13)
    assert sizes["pool5"] == (256, 6, 6)
    assert sum(each.parameters for each in layers.values()) == 62_357_608


def test_highway_has_19_layers_and_2_3_million_parameters() -> None:
    module = architectures.get("highway").build(10)
    gates = [layer for layer in module.modules() if type(layer).__name__ == "Highway"]
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in module.modules()) - len(gates)
    assert convolutions + 2 == 19  # with the 1×1 convolution, here linear, and softmax, as FitNet 4 counts
    assert sum(each.numel() for each in module.parameters()) == pytest.approx(2.3e6, rel=0.02)


def test_highway_layers_start_by_carrying() -> None:
    layer = next(each for each in architectures.get("highway").build(10).modules() if type(each).__name__ == "Highway")
    maps = torch.rand(1, 32, 8, 8)
    nn.init.zeros_(layer.gate.weight)
    carried = layer(maps)
    share = torch.sigmoid(torch.tensor(-2.0))
    expected = share * torch.relu(layer.transform(maps)) + (1 - share) * maps
    torch.testing.assert_close(carried, expected)
    assert float(share) < 0.15


def test_the_neocognitrons_layers_have_the_published_sizes() -> None:
    layers = describe(architectures.get("neocognitron").build(5), (1, 16, 16)).layers
    assert [layer.output for layer in layers[:-1]] == [
        *((24, 16, 16), (24, 10, 10), (24, 8, 8), (24, 6, 6), (24, 2, 2), (24, 1, 1))
    ]


def test_cells_compute_the_neocognitrons_equations() -> None:
    torch.manual_seed(0)
    s, c = neocognitron.SCells(3, selectivity=1.5, padding=0), neocognitron.CCells(5, padding=0)
    nn.init.constant_(s.log_inhibition, 0.5)
    below = torch.rand(1, 3, 9, 9)
    s_cells = s(below)
    area = below[0, :, 2:7, 1:6]  # of the cell at (2, 1)
    a, b = s.log_excitation[4].exp(), s.log_inhibition[4].exp()
    v = (neocognitron.fall_off(5) / 3 * area.square()).sum().sqrt()
    x = (1 + (a * area).sum()) / (1 + 2 * 1.5 / 2.5 * b * v) - 1
    torch.testing.assert_close(s_cells[0, 4, 2, 1], 1.5 * F.relu(x[0, 0]))
    c_cells = c(s_cells)
    blurred = (neocognitron.fall_off(5) * s_cells[0]).sum(dim=(1, 2))
    net = F.relu((1 + blurred) / (1 + blurred.mean()) - 1)
    torch.testing.assert_close(c_cells[0, :, 0, 0], net / (0.5 + net))
    assert bool((c_cells > 0).any())
    assert not neocognitron.SCells(1, 4.0, 2)(torch.zeros(1, 1, 16, 16)).any(), "nothing seen, nothing said"


def test_a_neocognitron_learns_by_supervision() -> None:
    torch.manual_seed(0)
    bars = torch.zeros(64, 1, 16, 16)
    labels = torch.arange(64) % 2
    for at, label in enumerate(labels):
        place = 4 + at % 8
        bars[at, 0, place, 3:13] = 1 - label
        bars[at, 0, 3:13, place] += label
    module = architectures.get("neocognitron").build(2)
    optimizer = torch.optim.AdamW(module.parameters(), 0.03)
    for _ in range(25):
        loss = F.cross_entropy(module(bars), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (module(bars).argmax(dim=1) == labels).all(), "level and upright bars, wherever they are"


# torchvision's, against torchvision


@pytest.fixture(scope="module")
def torchvision_models() -> object:
    return import_torchvision().models


def test_every_classifier_of_torchvisions_is_here_but_vision_transformers(torchvision_models: object) -> None:
    names = {architecture.name for architecture in torchvision_zoo.ARCHITECTURES}
    theirs = set(torchvision_models.list_models(module=torchvision_models))
    assert names == {name for name in theirs if not name.startswith("vit_")}
    with pytest.raises(UnknownName):
        architectures.get("vit_b_16")


def test_the_table_says_what_torchvision_says(torchvision_models: object) -> None:
    for architecture in torchvision_zoo.ARCHITECTURES:
        enum = torchvision_models.get_model_weights(architecture.name)
        entries = [entry for entry in enum if entry.meta.get("categories")]
        assert architecture.weights == tuple(entry.name for entry in entries), architecture.name
        transforms = entries[0].transforms()
        expected = ImageSpec(
            height=transforms.crop_size[0],
            width=transforms.crop_size[0],
            resize_to=transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
        assert architecture.image == expected, architecture.name


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_inceptions_rescale_as_their_published_weights_want_it(name: str) -> None:
    module = build_on_meta(architectures.get(name), 7)
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(torchvision_zoo.Rescale()(images), module._transform_input(images))


# timm's


def test_inception_v4_is_what_timm_says() -> None:
    ours, theirs = architectures.get("inception_v4"), architectures.get("timm:inception_v4")
    assert (ours.image, ours.weights, ours.labels, ours.paper) == (
        theirs.image,
        theirs.weights,
        theirs.labels,
        theirs.paper,
    )


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "resnetv2_18", "pvt_v2_b0"])
def test_any_convolutional_network_of_timms_can_be_cut(name: str) -> None:
    _, image, module, network = zoo.network(f"timm:{name}", 224 if name == "pvt_v2_b0" else 64)
    pixels = zoo.images(image)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), module(pixels), rtol=1e-4, atol=1e-5)
        maps = network.trunk(pixels)
        classes = network.head(maps).topk(5, dim=1).indices
    cam = class_activation_maps(network.head, maps, classes)
    expected = grad_cam(network, maps, classes)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "not convolutional"),
        ("swin_tiny_patch4_window7_224", "not convolutional"),
        ("efficientformerv2_s0", "no row of layers"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(name: str, reason: str) -> None:
    architecture = architectures.get(f"timm:{name}")
    with pytest.raises(ExportError, match=reason):
        architecture.cut(build_on_meta(architecture, 7))


def test_timms_names_and_tags() -> None:
    tagged = architectures.get("timm:resnet50.a1_in1k")
    assert tagged.image.resize_to == 235  # 224 / 0.95, downwards
    assert "a1_in1k" in architectures.get("timm:resnet50").weights
    with pytest.raises(UnknownName, match="resnet50"):
        architectures.get("timm:resnet5")
    with pytest.raises(UnknownName, match="a1_in1k"):
        architectures.get("timm:resnet50.a1_in2k")


def test_cutting_leaves_the_mode_of_every_part_alone() -> None:
    module = timm_zoo.build("resnet10t", 7).train()
    module.layer1.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    timm_zoo.cut(module)
    assert {name: part.training for name, part in module.named_modules()} == modes


def test_timms_papers_are_of_modules_that_it_has() -> None:
    timm = import_timm()
    modules = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert set(timm_zoo._PAPERS) <= modules


# All of them


def test_every_network_says_where_it_is_from() -> None:
    for architecture in architectures.ARCHITECTURES.values():
        assert str(architecture.year) in architecture.paper
        assert architecture.origin in ("fovea", "torchvision", "timm")
        assert bool(architecture.weights) == (architecture.origin != "fovea")


def test_listing_networks_imports_no_zoo() -> None:
    code = "import sys, export.listing as l; l.as_json(); print('torchvision' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
