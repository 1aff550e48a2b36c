"""What a network consists of, layer by layer: volumes, parameters, arithmetic, memory, receptive fields.

How the numbers are meant:

- Layers come in the order in which they run at inference. Dropout and identities are left out, and so are auxiliary
  heads (two in GoogLeNet, one in Inception-v3): their parameters are told apart as `training_only_parameters`.
- Parameters are counted where they are first used; `weights` and `biases` are their two parts.
- Multiply-accumulates are those of convolutions, linear layers and attention's matrix products. Pooling,
  normalisation, activation functions and the addition of biases count as none, as in the literature.
- Activation memory is that of each layer's output, in float32 for one image; the total is the sum, as if all were kept.
- The receptive field is its larger side in input pixels, see `export.receptive_field`; null behind attention.

Everything runs on PyTorch's meta device, shapes without values, so even the largest takes a second and no memory.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from export.architectures.base import Architecture
from export.errors import ExportError
from export.receptive_field import FieldTracer, tensors

FLOAT32 = 4  # bytes
_INERT = ("Identity", "Dropout", "Dropout2d", "DropPath", "StochasticDepth")  # do nothing at inference


@dataclass(frozen=True)
class Layer:
    """One row.

    Attributes:
        name: Of the module inside the network; with `:2` and so on when it runs again.
        kind: Its class.
        output: `[C, H, W]`; a vector is `[D, 1, 1]`.
        parameters: `weights + biases`.
        weights: All parameters but the biases.
        biases: The parameters called so.
        macs: Multiply-accumulates for one image.
        activation_bytes: Of the output in float32, for one image.
        receptive_field: Its larger side in pixels; None: unknown.
    """

    name: str
    kind: str
    output: tuple[int, int, int]
    parameters: int
    weights: int
    biases: int
    macs: int
    activation_bytes: int
    receptive_field: int | None


@dataclass(frozen=True)
class Description:
    """A network's layers in the order in which they run, for an image `[C, H, W]`."""

    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    training_only_parameters: int  # in the state dict, but not used at inference

    @property
    def parameters(self) -> int:
        """Those used at inference."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        """What `describe --json` prints; keys may come, none goes."""
        return {
            "input": list(self.input),
            "layers": [asdict(layer) | {"output": list(layer.output)} for layer in self.layers],
            "totals": {
                "layers": len(self.layers),
                "parameters": self.parameters,
                "weights": sum(layer.weights for layer in self.layers),
                "biases": sum(layer.biases for layer in self.layers),
                "macs": self.macs,
                "activation_bytes": sum(layer.activation_bytes for layer in self.layers),
                "training_only_parameters": self.training_only_parameters,
            },
        }


def build_on_meta(architecture: Architecture, labels: int) -> nn.Module:
    """The network without values: no initialisation, no memory.

    Args:
        architecture: Any.
        labels: Number of classes.
    """
    try:
        with torch.device("meta"):
            return architecture.build(labels)
    except NotImplementedError:  # a constructor that reads tensors back, such as RegNet's
        with _ParametersOnMeta():
            return _on_meta(architecture.build(labels))


def describe_architecture(
    architecture: Architecture, labels: int | None = None, size: tuple[int, int] | None = None
) -> Description:
    """Describe a network by name.

    Args:
        architecture: Any.
        labels: Number of classes; None: as published.
        size: Height and width of the input; None: as published.

    Raises:
        ExportError: The network cannot take an input of this size.
    """
    image = architecture.image
    height, width = size or (image.height, image.width)
    module = build_on_meta(architecture, labels or architecture.labels)
    try:
        return describe(module, (image.channels, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ExportError(
            f"{architecture.name} cannot take {height}×{width} pixels ({error}); "
            f"it was published with {image.height}×{image.width}"
        ) from error


def describe(module: nn.Module, image: tuple[int, int, int]) -> Description:
    """Describe any module.

    Args:
        module: Takes float `[1, C, H, W]`; it is neither run nor changed, a copy without values is.
        image: `(C, H, W)`.
    """
    twin = _on_meta(module).eval()
    dtype = next((each.dtype for each in twin.parameters()), torch.get_default_dtype())
    pixels = torch.empty(1, *image, device="meta", dtype=dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _Recorder(twin, pixels, flops) as recorder:
        twin(pixels)
    unused = sum(each.numel() for each in twin.parameters() if id(each) not in recorder.used)
    return Description(image, tuple(recorder.layers), unused)


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a value."""
    memo: dict[int, Any] = {}
    for each in itertools.chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(each, device="meta")
        memo[id(each)] = nn.Parameter(empty, each.requires_grad) if isinstance(each, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


class _ParametersOnMeta(TorchFunctionMode):
    """While entered, what layers allocate for their parameters is on the meta device, and all else is where it was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


@dataclass
class _Run:
    """A module while it runs."""

    macs_before: int  # of the whole network
    macs_inside: int = 0  # of modules inside it
    alone: bool = True  # no module inside it has run
    used: list[nn.Parameter] = field(default_factory=list)  # for the first time, and not by a module inside it


class _Recorder(FieldTracer):
    """Writes down a network's layers while it runs.

    A row is a module that runs no other module, or one that computes besides: that has parameters or products of
    matrices of its own, such as an attention.
    """

    def __init__(self, network: nn.Module, image: Tensor, flops: FlopCounterMode) -> None:
        super().__init__(image)
        self.layers: list[Layer] = []
        self.used: set[int] = set()  # ids of parameters
        self._flops = flops
        self._runs: list[_Run] = []
        self._times: Counter[str] = Counter()
        self._biases = {id(each) for name, each in network.named_parameters() if name.endswith("bias")}
        for name, module in network.named_modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(functools.partial(self._leave, name or type(network).__name__))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if self._runs and any(True for _ in tensors(result)):  # otherwise it asked for a shape or a type
            for each in tensors((args, kwargs or {})):
                if isinstance(each, nn.Parameter) and id(each) not in self.used:
                    self.used.add(id(each))
                    self._runs[-1].used.append(each)
        return result

    def _macs(self) -> int:
        return int(self._flops.get_total_flops()) // 2  # a multiply-accumulate is two operations

    def _enter(self, module: nn.Module, given: Any) -> None:  # noqa: ARG002
        self._runs.append(_Run(self._macs()))

    def _leave(self, name: str, module: nn.Module, given: Any, output: Any) -> None:
        run = self._runs.pop()
        macs = self._macs() - run.macs_before
        if self._runs:
            self._runs[-1].alone = False
            self._runs[-1].macs_inside += macs
        macs -= run.macs_inside
        out = next(tensors(output), None)
        kind = type(module).__name__
        if out is None or kind in _INERT or not (run.alone or run.used or macs):
            return
        self._times[name] += 1
        seen = self.of(out)
        parameters = sum(each.numel() for each in run.used)
        biases = sum(each.numel() for each in run.used if id(each) in self._biases)
        self.layers.append(
            Layer(
                name=name if self._times[name] == 1 else f"{name}:{self._times[name]}",
                kind=kind,
                output=_volume(out, self._axes(out, given)),
                parameters=parameters,
                weights=parameters - biases,
                biases=biases,
                macs=macs,
                activation_bytes=FLOAT32 * out.numel(),
                receptive_field=seen.size if seen is not None else None,
            )
        )

    def _axes(self, out: Tensor, given: Any) -> tuple[int, int]:
        """Which dimensions of an output are its rows and columns."""
        for each in (
            out,
            next(tensors(given), out),
        ):  # an attention loses track of them; then they stay where they were
            seen = self.of(each)
            if seen is not None and seen.dims is not None:
                return seen.dims
        return -2, -1


def _volume(out: Tensor, axes: tuple[int, int]) -> tuple[int, int, int]:
    """`[C, H, W]` of an output `[1, ...]`, wherever it has its rows and columns."""
    if out.ndim == 4:
        rows, columns = axes
        channels = out.numel() // (out.shape[rows] * out.shape[columns])
        return channels, out.shape[rows], out.shape[columns]
    return out.shape[-1], out.numel() // out.shape[-1], 1
