"""Class activation maps in closed form: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) without a backward pass.

The gradient of a logit with respect to the last feature maps is a product of the head's Jacobians. For the simple
layers that heads are made of, each product of a vector with a Jacobian is itself a short formula, so the gradient can
be part of an inference graph. On a head of global average pooling and one linear layer this gives, up to the number of
pixels, the class activation maps of Zhou et al. 2016 (arXiv:1512.04150).

A new kind of layer needs one rule, registered beside its definition::

    @vjp.register
    def _(layer: MyLayer, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor: ...

Layers are taken as they are in evaluation: dropout passes everything, batch normalisation uses its running statistics.
"""

from __future__ import annotations

import math
from functools import singledispatch

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor, nn


@singledispatch
def vjp(layer: nn.Module, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:  # noqa: ARG001
    """The product of cotangents with a layer's Jacobian.

    Args:
        layer: A layer of a head.
        before: Its input, `[N, ...]`.
        after: Its output, `[N, ...]`.
        cotangent: Derivatives of C logits by `after`, `[N, C, ...]`.

    Returns:
        Derivatives of the same logits by `before`, `[N, C, ...]`.

    Raises:
        TypeError: There is no rule for this kind of layer.
    """
    raise TypeError(f"no class activation maps through {layer}: register a rule with export.cam.vjp, or cut before it")


@singledispatch
def alpha(layer: nn.Module, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    """Spatial means of what `vjp` gives, for the first layer of a head: `[N, C, A, h', w']` to `[N, C, A]`.

    Pooling has rules of its own, which never spread a derivative over the maps only to take the mean again.
    """
    return vjp(layer, before, after, cotangent).mean(dim=(-2, -1))


def trace(head: nn.Sequential, activations: Tensor) -> list[Tensor]:
    """The input of every layer of the head, and after them the logits."""
    values = [activations]
    for layer in head:
        values.append(layer(values[-1]))
    return values


def maps_of_trace(head: nn.Sequential, values: list[Tensor], classes: Tensor) -> Tensor:
    """Class activation maps from what `trace` gave, see `class_activation_maps`."""
    layers = list(head)
    if isinstance(layers[-1], nn.Linear):  # rows of its weights: less work than a product with unit vectors
        cotangent = layers.pop().get_parameter("weight")[classes]
    else:
        cotangent = F.one_hot(classes, values[-1].shape[1]).to(values[-1].dtype)
    for index in reversed(range(1, len(layers))):
        cotangent = vjp(layers[index], values[index], values[index + 1], cotangent)
    weights = alpha(layers[0], values[0], values[1], cotangent)
    return torch.unflatten(weights @ values[0].flatten(2), 2, values[0].shape[2:])


def class_activation_maps(head: nn.Sequential, activations: Tensor, classes: Tensor) -> Tensor:
    """Signed maps of how much each place speaks for (or against) each of the given classes.

    Args:
        head: From the maps to the logits.
        activations: The last feature maps, `[N, A, h, w]`.
        classes: int64 `[N, C]`.

    Returns:
        `[N, C, h, w]`: the maps, each weighted by the spatial mean of the logit's derivative by it, summed; whoever
        wants Grad-CAM's picture clips it at zero.

    Raises:
        TypeError: A layer of the head has no rule.
    """
    return maps_of_trace(head, trace(head, activations), classes)


@vjp.register(nn.Identity)
@vjp.register(nn.Dropout)
@vjp.register(nn.Dropout2d)
def _(_layer: nn.Module, _before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent


@vjp.register
def _(layer: nn.Linear, _before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent @ layer.weight


@vjp.register
def _(layer: nn.Flatten, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise TypeError(f"no class activation maps through {layer}: only whole images are flattened")
    return torch.unflatten(cotangent, 2, before.shape[1:])


@vjp.register
def _(layer: nn.Conv2d, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise TypeError(f"no class activation maps through {layer}: only zeros may pad, by a stated amount")
    if layer.kernel_size == before.shape[2:] and layer.groups == 1 and not any(layer.padding):  # sees all at once
        return torch.unflatten(cotangent.flatten(2) @ layer.weight.flatten(1), 2, before.shape[1:])
    rest = [  # rows and columns that a stride leaves out at the end
        size + 2 * padding - dilation * (kernel - 1) - 1 - (steps - 1) * stride
        for size, steps, kernel, stride, padding, dilation in zip(
            before.shape[2:],
            after.shape[2:],
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            strict=True,
        )
    ]
    back = F.conv_transpose2d(
        cotangent.flatten(0, 1),
        layer.weight,
        None,
        layer.stride,
        layer.padding,
        rest,
        layer.groups,
        layer.dilation,
    )
    return torch.unflatten(back, 0, (-1, cotangent.shape[1]))


@vjp.register(nn.BatchNorm1d)
@vjp.register(nn.BatchNorm2d)
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    if layer.running_var is None:
        raise TypeError(f"no class activation maps through {layer}: it keeps no running statistics")
    scale = torch.rsqrt(layer.running_var + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    return cotangent * scale.reshape(-1, *[1] * (before.ndim - 2))


@vjp.register
def _(layer: nn.LayerNorm, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    dims = tuple(range(-len(layer.normalized_shape), 0))
    centred = before - before.mean(dim=dims, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=dims, keepdim=True) + layer.eps)
    normal = (centred * scale).unsqueeze(1)
    if layer.elementwise_affine:
        cotangent = cotangent * layer.weight
    inner = (
        cotangent - cotangent.mean(dim=dims, keepdim=True) - normal * (cotangent * normal).mean(dim=dims, keepdim=True)
    )
    return inner * scale.unsqueeze(1)


# Pooling by means is linear and separable: one matrix for the rows, one for the columns.


def _pooled_back(cotangent: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`[N, C, A, h', w']` with `[h', h]` and `[w', w]` to `[N, C, A, h, w]`."""
    return rows.T @ (cotangent @ columns)


@vjp.register
def _(_layer: nn.AdaptiveAvgPool2d, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    def matrix(size: int, steps: int) -> Tensor:
        means = torch.zeros(steps, size, dtype=before.dtype)
        for step in range(steps):
            start, end = step * size // steps, -(-(step + 1) * size // steps)
            means[step, start:end] = 1 / (end - start)
        return means

    return _pooled_back(cotangent, *(matrix(b, a) for b, a in zip(before.shape[2:], after.shape[2:], strict=True)))


@alpha.register
def _(layer: nn.AdaptiveAvgPool2d, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    if after.shape[2:].numel() > 1:
        return vjp(layer, before, after, cotangent).mean(dim=(-2, -1))
    return cotangent.flatten(2) / before.shape[2:].numel()


@vjp.register
def _(layer: nn.AvgPool2d, before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    if layer.ceil_mode or layer.divisor_override is not None:
        raise TypeError(f"no class activation maps through {layer}: only windows inside of the maps, and their means")

    def matrix(size: int, steps: int, axis: int) -> Tensor:
        kernel, stride, padding = (
            value if isinstance(value, int) else value[axis]
            for value in (layer.kernel_size, layer.stride, layer.padding)
        )
        means = torch.zeros(steps, size, dtype=before.dtype)
        for step in range(steps):
            start = step * stride - padding
            inside = slice(max(0, start), min(size, start + kernel))
            means[step, inside] = 1 / (kernel if layer.count_include_pad else inside.stop - inside.start)
        return means

    sizes = zip(before.shape[2:], after.shape[2:], (0, 1), strict=True)
    return _pooled_back(cotangent, *(matrix(*each) for each in sizes))


# Pointwise functions: the cotangent times the derivative.


@vjp.register
def _(_layer: nn.ReLU, _before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent * (after > 0).to(cotangent.dtype).unsqueeze(1)


@vjp.register
def _(_layer: nn.Tanh, _before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent * (1 - after * after).unsqueeze(1)


@vjp.register
def _(_layer: nn.Sigmoid, _before: Tensor, after: Tensor, cotangent: Tensor) -> Tensor:
    return cotangent * (after * (1 - after)).unsqueeze(1)


@vjp.register
def _(_layer: nn.SiLU, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    gate = torch.sigmoid(before)
    return cotangent * (gate * (1 + before * (1 - gate))).unsqueeze(1)


@vjp.register
def _(_layer: nn.Hardswish, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    slope = torch.where(before.abs() < 3, before / 3 + 0.5, (before > 0).to(before.dtype))
    return cotangent * slope.unsqueeze(1)


@vjp.register
def _(layer: nn.GELU, before: Tensor, _after: Tensor, cotangent: Tensor) -> Tensor:
    if layer.approximate != "none":
        raise TypeError(f"no class activation maps through {layer}: only the exact GELU has a rule")
    below = 0.5 * (1 + torch.erf(before / math.sqrt(2)))
    density = torch.exp(-0.5 * before * before) / math.sqrt(2 * math.pi)
    return cotangent * (below + before * density).unsqueeze(1)
