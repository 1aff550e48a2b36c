"""Published weights: torchvision's by the names in its enums, timm's by their tags.

A file is fetched into the cache of the library that it belongs to, where that library finds it too, and checked against
the hash in its name where it has one. What the weights say about themselves, labels and preprocessing and licence,
comes from the libraries and needs no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from export.architectures import timm_zoo
from export.architectures.base import Architecture
from export.errors import ExportError, UnknownName
from export.torchvision_shim import import_timm, import_torchvision
from service.spec import ImageSpec

DEFAULT = "DEFAULT"  # whatever the library recommends


@dataclass(frozen=True)
class Published:
    """Weights as published.

    Attributes:
        name: Library, network and weights, for people.
        network: As its library calls it, with timm's tag.
        path: The file, on this machine.
        classes: How many the weights have.
        labels: `[K]`; None: the library doesn't say.
        image: The image contract that they were evaluated under.
        license: None: the library doesn't say.
    """

    name: str
    network: str
    path: Path
    classes: int
    labels: tuple[str, ...] | None
    image: ImageSpec
    license: str | None


def fetch(architecture: Architecture, weights: str) -> Published:
    """Fetch published weights.

    Args:
        architecture: The network.
        weights: `IMAGENET1K_V2`, `ResNet50_Weights.IMAGENET1K_V2`, a tag of timm's, or `DEFAULT`.

    Raises:
        UnknownName: The network has no weights of that name.
        ExportError: It has none at all, or they cannot be fetched.
    """
    if architecture.origin == "torchvision":
        return _torchvision(architecture, weights)
    if architecture.origin == "timm":
        return _timm(architecture, weights)
    raise ExportError(
        f"nobody publishes weights of {architecture.name}: give a file, or none, or train it: "
        f"python -m export train --arch {architecture.name}"
    )


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 labels of ImageNet's classification challenge, in its order."""
    weights = import_torchvision().models.get_model_weights("resnet18")
    return tuple(weights.DEFAULT.meta["categories"])


def _torchvision(architecture: Architecture, weights: str) -> Published:
    enum = import_torchvision().models.get_model_weights(architecture.name)
    known = {entry.name: entry for entry in enum if entry.meta.get("categories")}  # others are no classifiers
    name = weights.removeprefix(f"{enum.__name__}.")
    entry = enum.DEFAULT if name == DEFAULT else known.get(name)
    if entry is None:
        raise _unknown(architecture, weights, known)
    transforms = entry.transforms()
    (height, width), shorter_side = (2 * transforms.crop_size)[:2], transforms.resize_size[0]
    return Published(
        name=f"torchvision {enum.__name__}.{entry.name}",
        network=architecture.name,
        path=download(entry.url),
        classes=len(entry.meta["categories"]),
        labels=tuple(entry.meta["categories"]),
        image=ImageSpec(
            height=height,
            width=width,
            resize_to=shorter_side,
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        ),
        license=entry.meta.get("license"),
    )


def _timm(architecture: Architecture, weights: str) -> Published:
    timm = import_timm()
    base, _, tag = architecture.name.removeprefix(timm_zoo.PREFIX).partition(".")
    if weights != DEFAULT:
        tag = weights.removeprefix(f"{base}.")
    configs = timm.models.get_arch_pretrained_cfgs(base)
    config = configs.get(f"{base}.{tag}") if tag else timm.get_pretrained_cfg(base)
    if config is None:
        raise _unknown(architecture, weights, architecture.weights)
    return Published(
        name=f"timm {base}.{config.tag}",
        network=f"{base}.{config.tag}",
        path=_timm_file(config),
        classes=config.num_classes,
        labels=_timm_labels(config),
        image=timm_zoo.image_spec(config),
        license=config.license,
    )


def _timm_file(config: Any) -> Path:
    if config.hf_hub_id:
        import huggingface_hub

        file = config.hf_hub_filename or "model.safetensors"
        try:
            return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, file))
        except OSError as error:  # the root of what it raises for the network's sake
            raise ExportError(
                f"{config.hf_hub_id} cannot be fetched: {error}; where there is a network, download "
                f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file} and give that file as the weights"
            ) from error
    if config.url:
        return download(config.url)
    raise ExportError(f"timm publishes no weights of {config.architecture}: give a file, or none")


def _timm_labels(config: Any) -> tuple[str, ...] | None:
    if config.num_classes == 1000:
        return imagenet_labels()
    data = import_timm().data
    subset = data.infer_imagenet_subset({"num_classes": config.num_classes})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else None


def download(url: str) -> Path:
    """Fetch a file into PyTorch's cache, or find it there.

    Args:
        url: Its name may hold the beginning of its SHA-256, as in `resnet18-f37072fd.pth`; it is checked then.

    Raises:
        ExportError: It cannot be fetched; the message says where to put it instead.
    """
    name = PurePosixPath(urlsplit(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed = torch.hub.HASH_REGEX.search(name)
    try:
        torch.hub.download_url_to_file(url, str(path), hashed[1] if hashed else None)
    except (OSError, RuntimeError) as error:  # no network; a hash that differs
        raise ExportError(
            f"{url} cannot be fetched: {error}; where there is a network, download it, and put it at {path} "
            f"or give that file as the weights"
        ) from error
    return path


def _unknown(architecture: Architecture, weights: str, known: Iterable[str]) -> UnknownName:
    return UnknownName.among(f"set of weights of {architecture.name}", weights, [*known, DEFAULT])
