"""A network with its trained parameters: published ones by name, a file of them, or none.

What the gateway needs to know about them comes along: labels, preprocessing, origin, hash. A file is read as plain
tensors, never as a program: `weights_only` for PyTorch's format, or safetensors. State dicts that training scripts
wrap (`{"state_dict": …}`, `{"model": …}`, `module.` before every name) are unwrapped, and the number of classes is read
off the shape of the classifier in them, so a fine-tuned network loads without being told anything.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from export import published
from export.architectures import timm_zoo
from export.architectures.base import Architecture
from export.describe import build_on_meta
from export.errors import ExportError
from export.replay import sha256
from service.spec import CONFIG_NAME, ImageSpec, InvalidSpec, ModelSpec, Weights, read_config

WEIGHTS_FILE = "weights.safetensors"  # beside the file of a model that was published with its weights
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")  # averaged parameters first
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
LABELS = ("labels", "classes", "class_names")  # under which a checkpoint may bring its own
LISTED = 4  # names per kind in an error message
IMAGENET = 1000  # labels
COUNTER = "num_batches_tracked"  # files from before 2018 lack it; training alone needs it

REMEDY = "save the state dict alone: torch.save(model.state_dict(), …)"

# torchvision's published DenseNets still have the names of before 2018, which Python no longer takes for attributes.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class Loaded(NamedTuple):
    """A network, ready to be cut or trained.

    Attributes:
        module: Of its origin's own class, in evaluation mode.
        weights: Where they come from.
        labels: `[K]`; None: nothing says.
        image: The image contract to use it under.
    """

    module: nn.Module
    weights: Weights
    labels: tuple[str, ...] | None
    image: ImageSpec


def load(
    architecture: Architecture,
    weights: str | None = None,
    classes: int | None = None,
    *,
    labels: Path | None = None,
    seed: int = 0,
) -> Loaded:
    """Build a network and give it weights.

    Args:
        architecture: The network.
        weights: Name of published ones, path of a file, or None: random ones.
        classes: How many classes it shall have; if the weights have another number, their classifier is left out and
            a new one drawn. None: as many as the weights have.
        labels: Text file with one label per line; goes before what the weights say.
        seed: Of whatever is drawn.

    Raises:
        UnknownName: The network has no published weights of that name.
        ExportError: They cannot be fetched or read, or don't fit the network, or the labels don't fit them.
    """
    image, names = architecture.image, None
    if weights is None:
        count = classes or architecture.labels
        module = _drawn(architecture, count, seed)
        origin = Weights(source=f"random initial weights (seed {seed})")
    elif Path(weights).is_dir():
        path, spec = of_model(Path(weights))
        module, _ = _fitted(architecture, read(path)[0], classes, seed, weights)
        count = classes or len(spec.labels)
        image, names = spec.image, spec.labels
        source = f"model {spec.name} version {spec.version}, {spec.weights.source}"
        origin = Weights(source=source, sha256=sha256(path), license=spec.weights.license)
    elif is_file(weights):
        path = Path(weights)
        state, names = read(path)
        module, count = _fitted(architecture, state, classes, seed, path.name)
        origin = Weights(source=f"file {path.name}", sha256=sha256(path))
        if names is None and count == architecture.labels == IMAGENET:
            names = published.imagenet_labels()
    else:
        known = published.fetch(architecture, weights)
        image, names = known.image, known.labels
        if architecture.origin == "timm":
            count = classes or known.classes
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                module = timm_zoo.pretrained(known.network, known.path, count)
        else:
            module, count = _fitted(architecture, read(known.path)[0], classes, seed, known.name)
        origin = Weights(source=known.name, sha256=sha256(known.path), license=known.license)
    if labels is not None:
        names = read_labels(labels)
        if len(names) != count:
            raise ExportError(f"{labels} holds {len(names)} labels, the network has {count} classes")
    elif names is not None and len(names) != count:
        names = None  # they were those of the classifier that was left out
    return Loaded(module.eval(), origin, names, image)


def of_model(folder: Path) -> tuple[Path, ModelSpec]:
    """The newest weights that were published with a model, and the spec of that version.

    Args:
        folder: Of the model, in a model repository.

    Raises:
        ExportError: It is none, or was published without.
    """
    try:
        specs = read_config(folder / CONFIG_NAME).specs
    except (InvalidSpec, OSError) as error:
        raise ExportError(f"{folder} is no model's folder in a model repository: {error}") from error
    for version in sorted(specs, key=int, reverse=True):
        path = folder / version / WEIGHTS_FILE
        if path.is_file():
            if sha256(path) != specs[version].files.get(WEIGHTS_FILE):
                raise ExportError(f"{path} is not what was published: fetch or publish the model again")
            return path, specs[version]
    raise ExportError(f"{folder} was published without its weights: publish it again with --with-weights")


def architecture_of(weights: str) -> str:
    """The architecture of a published model that is named as weights.

    Raises:
        ExportError: That is something else, which does not tell.
    """
    if not Path(weights).is_dir():
        raise ExportError("--arch says which network these weights are of; only a model's folder tells by itself")
    return of_model(Path(weights))[1].architecture


def dump(module: nn.Module) -> bytes:
    """A state dict as a file that `read` takes."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in module.state_dict().items()}, buffer)
    return buffer.getvalue()


def is_file(weights: str) -> bool:
    """Whether a user means a file by this, be it there or not."""
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels from a text file, one per line; empty lines don't count.

    Raises:
        ExportError: It cannot be read, or says a label twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read as labels, one per line: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExportError(f"{path} says {twice!r} twice; labels must differ")
    return names


def read(path: Path) -> tuple[OrderedDict[str, Tensor], tuple[str, ...] | None]:
    """A state dict from a file, unwrapped, and the labels that came with it.

    Args:
        path: `.safetensors`, or whatever `torch.save` wrote.

    Raises:
        ExportError: There is no such file, or it holds something else; the message says what to do.
    """
    if not path.is_file():
        raise ExportError(f"there is no file {path}; published weights go by name, see `list`")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # given rubbish, an unpickler may raise anything
        more = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        reason = "it holds more than tensors" if more else f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExportError(f"{path} cannot be read as weights: {reason}; {REMEDY}") from error
    names = _labels_in(content)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ExportError(f"{path} holds no state dict; {REMEDY}")
    return _renamed(content), names


def _labels_in(content: Any) -> tuple[str, ...] | None:
    if isinstance(content, Mapping):
        for key in LABELS:
            value = content.get(key)
            if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
                return tuple(value)
    return None


def _renamed(state: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """The tensors under the names that a single network has, with what else PyTorch keeps about them."""
    prefix = next((each for each in PREFIXES if all(key.startswith(each) for key in state)), "")
    renamed = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", key.removeprefix(prefix)), value)
        for key, value in state.items()
        if isinstance(value, Tensor)
    )
    versions = getattr(state, "_metadata", None)
    if versions is not None:  # by which modules recognise and mend what earlier versions of theirs have saved
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (key.removeprefix(prefix.removesuffix(".")).removeprefix("."), value) for key, value in versions.items()
        )
    return renamed


@dataclass(frozen=True)
class _Layout:
    """What a network's state dict looks like.

    Attributes:
        shapes: By name, for the published number of classes.
        by_class: Where the number of classes is in those shapes that depend on it: name to dimension.
        training_only: Names of what inference doesn't use, such as auxiliary heads.
    """

    shapes: dict[str, torch.Size]
    by_class: dict[str, int]
    training_only: frozenset[str]

    @classmethod
    def of(cls, architecture: Architecture) -> _Layout:
        module = build_on_meta(architecture, architecture.labels)
        one_more = build_on_meta(architecture, architecture.labels + 1).state_dict()
        state = module.state_dict(keep_vars=True)
        inference = {id(value) for value in architecture.cut(module).state_dict(keep_vars=True).values()}
        return cls(
            shapes={key: value.shape for key, value in state.items()},
            by_class={
                key: next(dim for dim, size in enumerate(value.shape) if size != one_more[key].shape[dim])
                for key, value in state.items()
                if value.shape != one_more[key].shape
            },
            training_only=frozenset(key for key, value in state.items() if id(value) not in inference),
        )

    def classes(self, state: Mapping[str, Tensor]) -> int | None:
        """How many classes these weights have; None: they lack the classifier."""
        for key in reversed(self.by_class):
            if key in state and key not in self.training_only and state[key].ndim > self.by_class[key]:
                return state[key].shape[self.by_class[key]]
        return None


def _drawn(architecture: Architecture, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return architecture.build(classes)


def _fitted(
    architecture: Architecture, state: OrderedDict[str, Tensor], classes: int | None, seed: int, source: str
) -> tuple[nn.Module, int]:
    """The network with these weights, and its number of classes.

    Raises:
        ExportError: They don't fit; the message names what is missing, too much or of another shape.
    """
    layout = _Layout.of(architecture)
    found = layout.classes(state)
    count = classes or found or architecture.labels
    module = _drawn(architecture, count, seed)
    target = module.state_dict()
    # Auxiliary heads may be absent, or be those of another number of classes; so may a classifier that is replaced.
    replaced = classes is not None and classes != found
    optional = layout.training_only | (layout.by_class.keys() if replaced else frozenset())
    given = OrderedDict(
        (key, value)
        for key, value in state.items()
        if not (key in optional and key in target and value.shape != target[key].shape)
    )
    problems = {
        "missing": [key for key in target if key not in given and key not in optional and not key.endswith(COUNTER)],
        "unexpected": [key for key in given if key not in target],
        "of another shape": [
            f"{key}: {list(value.shape)} for {list(target[key].shape)}"
            for key, value in given.items()
            if key in target and value.shape != target[key].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in problems.items() if keys)
        raise ExportError(
            f"{source} is not a state dict of {architecture.name}: {listed}; "
            f"is it another architecture's? A replaced classifier must be one layer, and called as before"
        )
    versions = getattr(state, "_metadata", None) or {"": {"version": module._version}}
    given._metadata = versions  # type: ignore[attr-defined]
    module.load_state_dict(given, strict=False)  # what may be missing was seen to above
    return module, count


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
