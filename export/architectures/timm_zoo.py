"""timm's convolutional networks: `inception_v4`, and any other as `timm:NAME` or `timm:NAME.TAG`.

Their modules are timm's own, so are the names in their state dicts. What a network's head does is not read from its
source but seen: the layers that timm's `forward_head` calls are put in a row and held against it. Networks whose last
features are not `[N, A, h, w]` (transformers give tokens, some hybrids `[N, h, w, A]`) and heads that do more than
pool by means, normalise, multiply and activate are refused, with the reason.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.architectures._heads import batch_norm, layer_norm, network
from export.architectures.base import Architecture, Network
from export.errors import ExportError, UnknownName
from export.torchvision_shim import import_timm
from service.spec import ImageSpec

PREFIX = "timm:"
INCEPTION_V4 = "Szegedy et al.: Inception-v4, Inception-ResNet and the Impact of Residual Connections, 2016"
SIDE = 7  # of the maps that heads are tried with; VGG's needs exactly that


class Features(nn.Module):
    """A timm network up to its head: images `[N, C, H, W]` to maps `[N, A, h, w]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return maps


def resolve(name: str) -> Architecture:
    """An architecture of timm's.

    Args:
        name: As timm has it, with or without a tag of pretrained weights: `resnet26`, `resnet26.bt_in1k`.

    Raises:
        UnknownName: timm has no such network, or no such weights of it.
    """
    timm = import_timm()
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UnknownName.among("network of timm's", base, timm.list_models())
    tags = tuple(full.partition(".")[2] for full in timm.models.get_arch_pretrained_cfgs(base))
    if tag and tag not in tags:
        raise UnknownName.among(f"tag of timm's {base}", tag, tags)
    config = timm.get_pretrained_cfg(name)
    module = timm.model_entrypoint(base).__module__.rpartition(".")[2]
    paper, year = _PAPERS.get(module, (f"see timm.models.{module}", 0))
    return Architecture(
        name=PREFIX + name,
        paper=paper,
        year=year,
        origin="timm",
        image=image_spec(config),
        labels=config.num_classes or 1000,
        build=functools.partial(build, name),
        cut=cut,
        weights=tuple(tag for tag in tags if tag),
    )


def build(name: str, labels: int) -> nn.Module:
    """timm's module, randomly initialised."""
    module: nn.Module = import_timm().create_model(name, pretrained=False, num_classes=labels)
    return module


def pretrained(name: str, file: Path, labels: int) -> nn.Module:
    """timm's module with published weights, which timm may have to rearrange.

    Args:
        name: With or without a tag.
        file: The weights as they were fetched.
        labels: Number of classes; with another than the weights have, the last layer is drawn at random.
    """
    overlay = {"file": str(file)}
    module: nn.Module = import_timm().create_model(
        name, pretrained=True, num_classes=labels, pretrained_cfg_overlay=overlay
    )
    return module


def image_spec(config: Any) -> ImageSpec:
    """The image contract of a timm pretrained configuration, as `timm.data.create_transform` evaluates it."""
    channels, height, width = config.input_size
    squash = config.crop_mode == "squash"
    return ImageSpec(
        height=height,
        width=width,
        channels=channels,
        resize="stretch" if squash else "shorter_side",
        resize_to=None if squash else int(max(height, width) / config.crop_pct),
        interpolation=config.interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def cut(module: nn.Module) -> Network:
    """Cut before whatever timm's `forward_head` does.

    Raises:
        ExportError: The network has no feature maps, or its head is no row of layers of known kinds.
    """
    name = type(module).__name__
    width = int(module.num_features)  # type: ignore[arg-type]
    anchor = next(module.parameters())
    maps = torch.rand(2, width, SIDE, SIDE, device=anchor.device, dtype=anchor.dtype)
    layers: list[nn.Module] = []
    with _calls(module) as calls, _evaluating(module):
        try:
            logits = module.forward_head(maps)  # type: ignore[operator]
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise ExportError(
                f"timm's {name} is not convolutional to its end: its head takes no maps [N, {width}, h, w] ({error})"
            ) from error
        for layer, rank in calls.values():
            layers += _plain(layer, rank, layers)
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        layers.append(nn.Flatten())  # behind a convolution that stands for the last linear layer
    trunk = _without(module, {path.partition(".")[0] for path in calls})
    result = network(Features(trunk), nn.Sequential(*layers))
    with _evaluating(result):
        _check_maps(result.trunk, name, tuple(module.pretrained_cfg["input_size"]), width)  # type: ignore[index]
        same = _same(result.head, maps, logits)
    if not same:
        kinds = ", ".join(type(layer).__name__ for layer, _ in calls.values())
        raise ExportError(f"timm's {name} has a head that is no row of layers Fovea knows ({kinds})")
    return result


def _plain(layer: nn.Module, rank: int, before: list[nn.Module]) -> list[nn.Module]:
    """What stands for a layer of timm's in our head, given the rank of its input and the layers before it."""
    if isinstance(layer, nn.Identity | nn.Flatten):
        return []
    if isinstance(layer, nn.BatchNorm2d):
        return [batch_norm(layer)]
    if type(layer).__name__ in ("FastAdaptiveAvgPool", "AdaptiveAvgPool2d"):
        return [nn.AdaptiveAvgPool2d(1)]
    between: list[nn.Module] = []
    if rank == 2 or isinstance(layer, nn.LayerNorm):
        if not any(isinstance(each, nn.AdaptiveAvgPool2d) for each in before):  # means taken by a function
            between.append(nn.AdaptiveAvgPool2d(1))
        if not any(isinstance(each, nn.Flatten) for each in before):
            between.append(nn.Flatten())
    return [*between, layer_norm(layer) if isinstance(layer, nn.LayerNorm) else layer]


def _same(head: nn.Sequential, maps: Tensor, logits: Tensor) -> bool:
    """Whether the head gives these logits; on the meta device, logits of this shape."""
    try:
        found = head(maps)
    except RuntimeError:
        return False
    same_shape = bool(found.shape == logits.shape)
    return same_shape and (maps.is_meta or torch.allclose(found, logits, rtol=1e-4, atol=1e-4))


def _check_maps(trunk: nn.Module, name: str, size: tuple[int, ...], width: int) -> None:
    """Run the trunk on shapes alone and look at what comes out."""
    shapes = {
        key: torch.empty_like(value, device="meta")
        for key, value in itertools.chain(trunk.named_parameters(), trunk.named_buffers())
    }
    image = torch.empty(1, *size, device="meta")
    try:
        maps = torch.func.functional_call(trunk, shapes, (image,))
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ExportError(f"timm's {name} cannot be cut before its head: {error}") from error
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != width:
        shape = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ExportError(
            f"timm's {name} is not convolutional to its end: its features are {shape}, not maps [N, {width}, h, w]"
        )


def _without(module: nn.Module, children: set[str]) -> nn.Module:
    """The same module over the same parameters, but for some children."""
    twin = copy.copy(module)
    # A shallow copy shares the dictionary of children, so it gets its own before any is left out.
    twin.__dict__["_modules"] = {name: child for name, child in module.named_children() if name not in children}
    return twin


@contextmanager
def _calls(module: nn.Module) -> Iterator[dict[str, tuple[nn.Module, int]]]:
    """Which layers are called inside, in order: path to layer and the rank of its input."""
    calls: dict[str, tuple[nn.Module, int]] = {}

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
            calls[path] = (layer, given[0].ndim)

        return note

    handles = [
        layer.register_forward_pre_hook(hook(path))
        for path, layer in module.named_modules()
        # A batch normalisation may have an activation inside, but it is a layer by itself.
        if isinstance(layer, nn.BatchNorm2d) or not any(True for _ in layer.children())
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inference mode for the time being, and each part back to the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


_PAPERS = {  # of timm's modules, with the year of the first preprint; variants inside a module may have their own
    "byobnet": ("Lin, Chen, Yan: Neural Architecture Design for GPU-Efficient Networks, 2020", 2020),
    "convnext": ("Liu et al.: A ConvNet for the 2020s, 2022", 2022),
    "cspnet": ("Wang et al.: CSPNet: A New Backbone that can Enhance Learning Capability of CNN, 2019", 2019),
    "densenet": ("Huang et al.: Densely Connected Convolutional Networks, 2016", 2016),
    "dla": ("Yu et al.: Deep Layer Aggregation, 2017", 2017),
    "dpn": ("Chen et al.: Dual Path Networks, 2017", 2017),
    "efficientnet": ("Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019", 2019),
    "ghostnet": ("Han et al.: GhostNet: More Features from Cheap Operations, 2019", 2019),
    "hrnet": ("Wang et al.: Deep High-Resolution Representation Learning for Visual Recognition, 2019", 2019),
    "inception_resnet_v2": (INCEPTION_V4, 2016),
    "inception_v3": ("Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, 2015", 2015),
    "inception_v4": (INCEPTION_V4, 2016),
    "mobilenetv3": ("Howard et al.: Searching for MobileNetV3, 2019", 2019),
    "nasnet": ("Zoph et al.: Learning Transferable Architectures for Scalable Image Recognition, 2017", 2017),
    "nfnet": ("Brock et al.: High-Performance Large-Scale Image Recognition Without Normalization, 2021", 2021),
    "pnasnet": ("Liu et al.: Progressive Neural Architecture Search, 2017", 2017),
    "regnet": ("Radosavovic et al.: Designing Network Design Spaces, 2020", 2020),
    "res2net": ("Gao et al.: Res2Net: A New Multi-scale Backbone Architecture, 2019", 2019),
    "resnest": ("Zhang et al.: ResNeSt: Split-Attention Networks, 2020", 2020),
    "resnet": ("He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015", 2015),
    "resnetv2": ("He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016", 2016),
    "rexnet": ("Han et al.: Rethinking Channel Dimensions for Efficient Model Design, 2020", 2020),
    "senet": ("Hu et al.: Squeeze-and-Excitation Networks, 2017", 2017),
    "sknet": ("Li et al.: Selective Kernel Networks, 2019", 2019),
    "vgg": ("Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014", 2014),
    "vovnet": ("Lee et al.: An Energy and GPU-Computation Efficient Backbone Network, 2019", 2019),
    "xception": ("Chollet: Xception: Deep Learning with Depthwise Separable Convolutions, 2016", 2016),
}

ARCHITECTURES = (
    Architecture(
        name="inception_v4",
        paper=INCEPTION_V4,
        year=2016,
        origin="timm",
        image=ImageSpec(
            height=299,
            width=299,
            resize_to=341,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        labels=1000,
        build=functools.partial(build, "inception_v4"),
        cut=cut,
        weights=("tf_in1k",),
    ),
)
