"""Receptive fields of every tensor that a network makes, followed through its graph while it runs.

Each tensor that depends on the image has a `Field`: which stretch of input rows and of input columns its units see
(Araujo, Norris and Sim 2019, Computing Receptive Fields of Convolutional Neural Networks). Convolutions and poolings
widen it, pointwise functions keep it, and where branches meet the union of what they see goes on: so residual,
inception and dense networks need no special case. The fields are theoretical: padding counts as input, as in the
literature, so they may be wider than the image.

What mixes places in a way that no rule here covers (attention, rolling, upsampling, cutting into windows) gives an
unknown field, and so does everything that depends on it: better no number than a wrong one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Axis:
    """What the units along one axis see: unit i sees `size` inputs, from `start + i * step` on.

    `step` 0: every unit sees the same, as after pooling over all places.
    """

    start: int
    size: int
    step: int
    units: int

    def window(self, kernel: int, stride: int, outside: int, units: int) -> Axis:
        """After a window of `kernel` units that starts `outside` of the first and moves by `stride`."""
        return Axis(self.start - outside * self.step, self.size + (kernel - 1) * self.step, self.step * stride, units)

    def everything(self, units: int = 1) -> Axis:
        """After something that sees all units."""
        return Axis(self.start, self.size + (self.units - 1) * self.step, 0, units)

    def union(self, other: Axis) -> Axis:
        """Where two branches meet; the one with fewer units is broadcast."""
        one, two = self, other
        if (one.step, one.units) != (two.step, two.units):
            units = max(one.units, two.units)
            one, two = one.everything(units), two.everything(units)
        start = min(one.start, two.start)
        return Axis(start, max(one.start + one.size, two.start + two.size) - start, one.step, one.units)


@dataclass(frozen=True)
class Field:
    """What the units of a tensor see.

    Attributes:
        rows: Along the height of the image.
        columns: Along its width.
        dims: Which dimensions of the tensor these are, counted from its end; None once they are flattened away.
        known: Whether there was a rule for everything on the way here.
    """

    rows: Axis
    columns: Axis
    dims: tuple[int, int] | None = (-2, -1)
    known: bool = True

    @property
    def size(self) -> int | None:
        """The larger side of the receptive field in pixels; None: unknown."""
        return max(self.rows.size, self.columns.size) if self.known else None

    @property
    def single(self) -> bool:
        """Whether there is but one place, so that no function can mix places any more."""
        return self.rows.units == self.columns.units == 1

    def everything(self, rows: int = 1, columns: int = 1) -> Field:
        """After something that sees all places, with so many units of it along each axis."""
        return replace(self, rows=self.rows.everything(rows), columns=self.columns.everything(columns))

    def unknown(self, out: Tensor) -> Field:
        """After something without a rule; the axes are followed as long as they can be."""
        dims = self.dims if self.dims is not None and out.ndim >= -min(self.dims) else None
        if dims is None:
            return replace(self, dims=None, known=False)
        rows, columns = (out.shape[dim] for dim in dims)
        return Field(replace(self.rows, units=rows), replace(self.columns, units=columns), dims, known=False)

    def union(self, other: Field) -> Field:
        """Where two branches meet."""
        dims = other.dims if self.dims is None or self.single else self.dims
        together = self.single or other.single or self.dims == other.dims
        rows, columns = self.rows.union(other.rows), self.columns.union(other.columns)
        return Field(rows, columns, dims, self.known and other.known and together)


@dataclass(frozen=True)
class Call:
    """A call of one of torch's functions."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]  # of its first tensor, before the call

    def get(self, name: str, position: int, default: Any = None) -> Any:
        """An argument by its name, or else by its position."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else default


class FieldTracer(TorchFunctionMode):
    """While entered, follows the fields of all tensors that are computed from the image, float `[1, C, H, W]`."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        height, width = image.shape[-2:]
        # The tensors are kept, so that no id is used twice; on the meta device they hold no memory.
        self._fields = {id(image): (image, Field(Axis(0, 1, 1, height), Axis(0, 1, 1, width)))}

    def of(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None: it doesn't depend on the image."""
        entry = self._fields.get(id(tensor))
        return entry[1] if entry is not None else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = [field for each in tensors((args, kwargs)) if (field := self.of(each)) is not None]
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        result = func(*args, **kwargs)
        if before:
            call = Call(getattr(func, "__name__", ""), args, kwargs, shape)
            for out in tensors(result):
                self._fields[id(out)] = (out, field_after(call, before, out))
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def field_after(call: Call, before: list[Field], out: Tensor) -> Field:
    """The field of a call's result, given those of all tensors that went in."""
    field = functools.reduce(Field.union, before)
    if field.single or call.name.strip("_") in _POINTWISE:
        return field
    rule = _RULES.get(call.name.strip("_"))
    return rule(field, call, out) if rule is not None else field.unknown(out)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _window(field: Field, call: Call, out: Tensor) -> Field:
    """Convolutions and poolings."""
    if field.dims != (-2, -1) or out.ndim != 4:
        return field.unknown(out)
    if call.name == "conv2d":
        kernel = tuple(call.get("weight", 1).shape[-2:])
        stride, padding = _pair(call.get("stride", 3, 1)), call.get("padding", 4, 0)
        dilation = _pair(call.get("dilation", 5, 1))
    else:
        kernel = _pair(call.get("kernel_size", 1))
        stride, padding = _pair(call.get("stride", 2) or kernel), call.get("padding", 3, 0)
        dilation = _pair(call.get("dilation", 4, 1)) if call.name == "max_pool2d" else (1, 1)
    reach = [(size - 1) * spread + 1 for size, spread in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        padding = [(size - 1) // 2 if padding == "same" else 0 for size in reach]
    rows, columns = (
        axis.window(*each)
        for axis, each in zip(
            (field.rows, field.columns), zip(reach, stride, _pair(padding), out.shape[-2:], strict=True), strict=True
        )
    )
    return replace(field, rows=rows, columns=columns)


def _adaptive(field: Field, call: Call, out: Tensor) -> Field:  # noqa: ARG001
    """Poolings that are told the size of their output."""
    if field.dims != (-2, -1):
        return field.unknown(out)

    def pooled(axis: Axis, units: int) -> Axis:
        if units == 1:
            return axis.everything()
        windows = [(-(-(at + 1) * axis.units // units)) - at * axis.units // units for at in range(units)]
        return axis.window(max(windows), max(1, axis.units // units), 0, units)

    return replace(field, rows=pooled(field.rows, out.shape[-2]), columns=pooled(field.columns, out.shape[-1]))


def _pad(field: Field, call: Call, out: Tensor) -> Field:
    amounts = call.get("pad", 1)
    if field.dims is None:
        return field.unknown(out)

    def padded(axis: Axis, dim: int) -> Axis:
        before = amounts[2 * (-dim - 1)] if 2 * (-dim - 1) < len(amounts) else 0
        return axis.window(1, 1, before, out.shape[dim])

    return replace(field, rows=padded(field.rows, field.dims[0]), columns=padded(field.columns, field.dims[1]))


def _reduced(field: Field, call: Call, out: Tensor) -> Field:
    """Means and the like over some dimensions."""
    given = call.get("dim", 1)
    rank = len(call.shape)
    if given is None:
        return replace(field.everything(), dims=None)
    over = {dim - rank if dim >= 0 else dim for dim in ([given] if isinstance(given, int) else given)}
    kept = out.ndim == rank
    if field.dims is None or (len(over & set(field.dims)) == 1 and not kept):
        return field.unknown(out)
    axes = [
        axis.everything() if dim in over else axis
        for axis, dim in zip((field.rows, field.columns), field.dims, strict=True)
    ]
    if kept or over >= set(field.dims):
        dims = field.dims if kept else None
    else:
        first, second = (dim + sum(gone > dim for gone in over) for dim in field.dims)
        dims = (first, second)
    return Field(axes[0], axes[1], dims, field.known)


def _linear(field: Field, call: Call, out: Tensor) -> Field:
    if field.dims is None and len(call.shape) == 2:
        return field.everything()
    return field.unknown(out) if field.dims is None or -1 in field.dims else field


def _normalised(field: Field, call: Call, out: Tensor) -> Field:  # noqa: ARG001
    """Statistics over places make every unit see everything; statistics over channels alone do not."""
    if call.name == "layer_norm" and field.dims is not None and max(field.dims) < -len(call.get("normalized_shape", 1)):
        return field
    return field.everything(field.rows.units, field.columns.units)


def _reshaped(field: Field, call: Call, out: Tensor) -> Field:
    """The axes stay where a dimension of their size has as many values before it as it had."""
    if field.dims is None:
        return field
    found = []
    for dim in field.dims:
        place = len(call.shape) + dim
        ahead = math.prod(call.shape[:place])
        found += [
            at - out.ndim
            for at, size in enumerate(out.shape)
            if size == call.shape[place] and math.prod(out.shape[:at]) == ahead
        ][:1]
    return replace(field, dims=(found[0], found[1]) if len(found) == 2 else None)


def _permuted(field: Field, call: Call, out: Tensor) -> Field:
    if field.dims is None:
        return field.unknown(out)
    order = list(range(-out.ndim, 0))
    if call.name == "permute":
        given = call.get("dims", 1)
        given = [given, *call.args[2:]] if isinstance(given, int) else given
        order = [dim - out.ndim if dim >= 0 else dim for dim in given]
    else:
        one, two = call.get("dim0", 1), call.get("dim1", 2)
        order[one], order[two] = order[two], order[one]
    first, second = (order.index(dim) - out.ndim for dim in field.dims)
    return replace(field, dims=(first, second))


def _sliced(field: Field, call: Call, out: Tensor) -> Field:  # noqa: ARG001
    """Parts of a tensor, or several together: fine as long as all places stay."""
    if field.dims is not None and out.ndim >= -min(field.dims):
        rows, columns = (out.shape[dim] for dim in field.dims)
        if (rows, columns) == (field.rows.units, field.columns.units):
            return field
    return field.unknown(out)


_POINTWISE = frozenset(
    """
    abs add batch_norm celu clamp clamp_min clamp_max clone contiguous detach div dropout dropout2d elu erf exp
    feature_dropout float gelu hardsigmoid hardswish hardtanh leaky_relu local_response_norm log maximum minimum mish
    mul neg pow prelu relu relu6 rsqrt rsub selu sigmoid silu softplus sqrt square sub tanh to true_divide type_as
    where iadd imul isub itruediv radd rmul rsub rtruediv truediv
    """.split()  # noqa: SIM905 - a list would take a line for each
)
_RULES: dict[str, Callable[[Field, Call, Tensor], Field]] = {
    **dict.fromkeys(("conv2d", "max_pool2d", "avg_pool2d"), _window),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    "pad": _pad,
    **dict.fromkeys(("mean", "sum", "amax", "max", "var", "std"), _reduced),
    "linear": _linear,
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), _normalised),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), _permuted),
    **dict.fromkeys(("cat", "concat", "chunk", "split", "split_with_sizes", "getitem", "unbind", "narrow"), _sliced),
}
