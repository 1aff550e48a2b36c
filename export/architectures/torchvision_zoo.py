"""torchvision's classifiers: all that have convolutional feature maps at their end.

The modules are torchvision's own, so published and fine-tuned state dicts load unchanged. Facts about them (sizes,
preprocessing, names of weights) are written down here, so that listing them imports nothing; a test holds them against
torchvision. `year` is that of the first preprint.

GoogLeNet and Inception-v3 are built with their auxiliary heads, which answer in training only, and take images
normalised as all the others do: they rescale them themselves, which is how their published weights want it. Their
initial weights are PyTorch's own, not the truncated normal ones, which take seconds to draw.

Left out: `vit_b_16`, `vit_b_32`, `vit_l_16`, `vit_l_32` and `vit_h_14`. A vision transformer answers from a class
token; it has no feature maps that a class activation map could be drawn from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from export.architectures._heads import chain, layer_norm, network, pooled
from export.architectures.base import Architecture, Network
from export.torchvision_shim import import_torchvision
from service.spec import ImageSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
HALF = (0.5, 0.5, 0.5)
RESCALING = ("googlenet", "inception_v3")


def build(name: str, labels: int) -> nn.Module:
    """torchvision's module, randomly initialised.

    Args:
        name: As torchvision has it.
        labels: Number of classes.
    """
    options = {"transform_input": True, "init_weights": False} if name in RESCALING else {}
    module: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=labels, **options)
    return module


class Rescale(nn.Module):
    """From ImageNet's mean and deviation to [-1, 1], float `[N, 3, H, W]`: the Inceptions' own `transform_input`."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (MEAN, STD))
        self.register_buffer("scale", 2 * std, persistent=False)
        self.register_buffer("shift", 2 * mean - 1, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


# How each family is cut. torchvision's `forward` pools by calling functions here and layers there; the layers below
# compute the same, and the parameters are the module's own.


def _fully_connected(module: nn.Module) -> Network:
    """AlexNet and VGG: pooling to a fixed grid, then three linear layers."""
    classifier = module.get_submodule("classifier")
    head = nn.Sequential(module.get_submodule("avgpool"), nn.Flatten(), *classifier.children())
    return network(module.get_submodule("features"), head)


def _features(module: nn.Module) -> Network:
    """MobileNet, EfficientNet, MNASNet: what comes before the classifier has a name of its own."""
    first = "layers" if hasattr(module, "layers") else "features"
    return network(module.get_submodule(first), pooled(*module.get_submodule("classifier").children()))


def _densenet(module: nn.Module) -> Network:
    trunk = nn.Sequential(module.get_submodule("features"), nn.ReLU(inplace=True))
    return network(trunk, pooled(module.get_submodule("classifier")))


def _stages(*names: str) -> Callable[[nn.Module], Network]:
    """Stages one after the other, global average pooling, dropout where there is some, and `fc`."""

    def cut(module: nn.Module) -> Network:
        dropout = [module.get_submodule("dropout")] if hasattr(module, "dropout") else []
        return network(chain(module, *names), pooled(*dropout, module.get_submodule("fc")))

    return cut


def _inception(module: nn.Module) -> Network:
    """Without the auxiliary heads: the other children, in the order in which they are defined, are a chain."""
    rest = ("aux1", "aux2", "AuxLogits", "avgpool", "dropout", "fc")
    cut = _stages(*(name for name, _ in module.named_children() if name not in rest))(module)
    rescale = Rescale().to(next(module.parameters()).device)
    cut.trunk = nn.Sequential(rescale, *cut.trunk.children())
    return cut


def _squeezenet(module: nn.Module) -> Network:
    """Its last convolution makes one map per class, so these maps, pooled, are features and logits in one."""
    dropout, convolution, relu, _ = module.get_submodule("classifier").children()
    return network(nn.Sequential(module.get_submodule("features"), dropout, convolution, relu), pooled())


def _convnext(module: nn.Module) -> Network:
    norm, _, linear = module.get_submodule("classifier").children()
    return network(module.get_submodule("features"), pooled(layer_norm(norm), linear))


def _swin(module: nn.Module) -> Network:
    return network(chain(module, "features", "norm", "permute"), pooled(module.get_submodule("head")))


def _maxvit(module: nn.Module) -> Network:
    trunk = nn.Sequential(module.get_submodule("stem"), *module.get_submodule("blocks").children())
    return network(trunk, nn.Sequential(*module.get_submodule("classifier").children()))


_resnet = _stages("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class _Family(NamedTuple):
    names: str
    paper: str
    year: int
    cut: Callable[[nn.Module], Network]


_FAMILIES = (
    _Family(
        "alexnet",
        "Krizhevsky: One Weird Trick for Parallelizing Convolutional Neural Networks, 2014",
        2014,
        _fully_connected,
    ),
    _Family(
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
        "Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014",
        2014,
        _fully_connected,
    ),
    _Family("googlenet", "Szegedy et al.: Going Deeper with Convolutions, 2014", 2014, _inception),
    _Family(
        "inception_v3",
        "Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, 2015",
        2015,
        _inception,
    ),
    _Family(
        "resnet18 resnet34 resnet50 resnet101 resnet152",
        "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015",
        2015,
        _resnet,
    ),
    _Family(
        "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
        "Xie et al.: Aggregated Residual Transformations for Deep Neural Networks, 2016",
        2016,
        _resnet,
    ),
    _Family("wide_resnet50_2 wide_resnet101_2", "Zagoruyko, Komodakis: Wide Residual Networks, 2016", 2016, _resnet),
    _Family(
        "densenet121 densenet161 densenet169 densenet201",
        "Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2016",
        2016,
        _densenet,
    ),
    _Family(
        "squeezenet1_0 squeezenet1_1",
        "Iandola et al.: SqueezeNet: AlexNet-Level Accuracy with 50x Fewer Parameters, 2016",
        2016,
        _squeezenet,
    ),
    _Family(
        "mobilenet_v2", "Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018", 2018, _features
    ),
    _Family(
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        "Ma, Zhang, Zheng, Sun: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, 2018",
        2018,
        _stages("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    ),
    _Family(
        "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
        "Tan et al.: MnasNet: Platform-Aware Neural Architecture Search for Mobile, 2018",
        2018,
        _features,
    ),
    _Family("mobilenet_v3_small mobilenet_v3_large", "Howard et al.: Searching for MobileNetV3, 2019", 2019, _features),
    _Family(
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3"
        " efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7",
        "Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019",
        2019,
        _features,
    ),
    _Family(
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf"
        " regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf"
        " regnet_y_128gf",
        "Radosavovic et al.: Designing Network Design Spaces, 2020",
        2020,
        _stages("stem", "trunk_output"),
    ),
    _Family(
        "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
        "Tan, Le: EfficientNetV2: Smaller Models and Faster Training, 2021",
        2021,
        _features,
    ),
    _Family(
        "swin_t swin_s swin_b",
        "Liu et al.: Swin Transformer: Hierarchical Vision Transformer Using Shifted Windows, 2021",
        2021,
        _swin,
    ),
    _Family(
        "swin_v2_t swin_v2_s swin_v2_b",
        "Liu et al.: Swin Transformer V2: Scaling Up Capacity and Resolution, 2021",
        2021,
        _swin,
    ),
    _Family(
        "convnext_tiny convnext_small convnext_base convnext_large",
        "Liu et al.: A ConvNet for the 2020s, 2022",
        2022,
        _convnext,
    ),
    _Family("maxvit_t", "Tu et al.: MaxViT: Multi-Axis Vision Transformer, 2022", 2022, _maxvit),
)

# Input and shorter side before the cut, in pixels, and interpolation, where they are not 224, 256 and bilinear:
# those of the first published weights.
_SIZES: dict[str, tuple[int, int, str]] = {
    "convnext_tiny": (224, 236, "bilinear"),
    "convnext_small": (224, 230, "bilinear"),
    **dict.fromkeys(("convnext_base", "convnext_large", "mnasnet0_75", "mnasnet1_3"), (224, 232, "bilinear")),
    **dict.fromkeys(("resnext101_64x4d", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"), (224, 232, "bilinear")),
    "inception_v3": (299, 342, "bilinear"),
    "efficientnet_b0": (224, 256, "bicubic"),
    "efficientnet_b1": (240, 256, "bicubic"),
    "efficientnet_b2": (288, 288, "bicubic"),
    "efficientnet_b3": (300, 320, "bicubic"),
    "efficientnet_b4": (380, 384, "bicubic"),
    "efficientnet_b5": (456, 456, "bicubic"),
    "efficientnet_b6": (528, 528, "bicubic"),
    "efficientnet_b7": (600, 600, "bicubic"),
    "efficientnet_v2_s": (384, 384, "bilinear"),
    "efficientnet_v2_m": (480, 480, "bilinear"),
    "efficientnet_v2_l": (480, 480, "bicubic"),
    "maxvit_t": (224, 224, "bicubic"),
    "regnet_y_128gf": (384, 384, "bicubic"),
    "swin_t": (224, 232, "bicubic"),
    "swin_s": (224, 246, "bicubic"),
    "swin_b": (224, 238, "bicubic"),
    "swin_v2_t": (256, 260, "bicubic"),
    "swin_v2_s": (256, 260, "bicubic"),
    "swin_v2_b": (256, 272, "bicubic"),
}

# Names of weights, where they are not IMAGENET1K_V1 alone.
_V2 = """
    efficientnet_b1 mobilenet_v2 mobilenet_v3_large resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d
    wide_resnet50_2 wide_resnet101_2 regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf
    regnet_x_16gf regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf
    """
_SWAG = ("IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1")
_WEIGHTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_V2.split(), ("IMAGENET1K_V1", "IMAGENET1K_V2")),
    **dict.fromkeys(("regnet_y_16gf", "regnet_y_32gf"), ("IMAGENET1K_V1", "IMAGENET1K_V2", *_SWAG)),
    "regnet_y_128gf": _SWAG,
}


def _architecture(name: str, family: _Family) -> Architecture:
    side, shorter_side, interpolation = _SIZES.get(name, (224, 256, "bilinear"))
    mean, std = (HALF, HALF) if name == "efficientnet_v2_l" else (MEAN, STD)
    return Architecture(
        name=name,
        paper=family.paper,
        year=family.year,
        origin="torchvision",
        image=ImageSpec(
            height=side,
            width=side,
            resize_to=shorter_side,
            interpolation=interpolation,
            mean=mean,
            std=std,
        ),
        labels=1000,
        build=functools.partial(build, name),
        cut=family.cut,
        weights=_WEIGHTS.get(name, ("IMAGENET1K_V1",)),
    )


ARCHITECTURES = tuple(_architecture(name, family) for family in _FAMILIES for name in family.names.split())
