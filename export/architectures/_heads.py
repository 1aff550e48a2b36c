"""Pieces of heads that several zoos share: layers of the kinds `export.cam` has rules for, over existing parameters."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import nn

from export.architectures.base import Network


def pooled(*rest: nn.Module) -> nn.Sequential:
    """Global average pooling `[N, A, h, w]` to `[N, A]`, then the rest of the head."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *rest)


def network(trunk: nn.Module, head: nn.Sequential) -> Network:
    """A network whose features are what its last linear layer is given, before any dropout."""
    head = nn.Sequential(*map(_pure, head))
    linear = [at for at, layer in enumerate(head) if isinstance(layer, nn.Linear | nn.Conv2d)]
    features_at = linear[-1] if linear else len(head)
    while isinstance(head[features_at - 1], nn.Dropout):
        features_at -= 1
    return Network(trunk, head, features_at)


def _pure(layer: nn.Module) -> nn.Module:
    """A layer that leaves its input as it is: `export.cam` looks at what every layer of a head was given."""
    if not getattr(layer, "inplace", False):
        return layer
    pure = copy.copy(layer)
    pure.inplace = False  # type: ignore[assignment]
    return pure


def chain(module: nn.Module, *names: str) -> nn.Sequential:
    """Some children of a module, one after the other, under their own names."""
    return nn.Sequential(OrderedDict((name, module.get_submodule(name)) for name in names))


def layer_norm(norm: nn.Module) -> nn.LayerNorm:
    """Over the same parameters, for pooled `[N, A]`; the libraries' own subclasses expect `[N, A, 1, 1]`."""
    if not isinstance(norm, nn.LayerNorm):
        raise TypeError(f"{norm} is no layer normalisation")
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, device="meta")
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


def batch_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Over the same parameters and statistics, without what a subclass may do besides."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    plain.num_batches_tracked = norm.num_batches_tracked
    plain.train(norm.training)
    return plain
