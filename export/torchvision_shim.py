"""Import torchvision, and timm which needs it, beside a PyTorch without CUDA too.

torchvision's wheel is built for CUDA. Beside a CPU build of PyTorch its compiled operators don't load, and `import
torchvision` then fails on the missing `torchvision::nms`, which classification never calls. Declaring the two operators
that its Python code refers to is enough for models, transforms and data sets; it is done only where they are absent.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
from types import ModuleType

import torch

from export.errors import ExportError

_ABSENT = ("nms", "qnms")  # the operators that torchvision's Python code registers something for
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> ModuleType:
    """torchvision, ready to use.

    Raises:
        ExportError: It is not installed.
    """
    _declare_operators()
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """timm, ready to use.

    Raises:
        ExportError: It or torchvision is not installed.
    """
    _declare_operators()
    if importlib.util.find_spec("timm") is None:
        raise ExportError("timm is not installed: pip install 'fovea[export]'")
    return importlib.import_module("timm")


@functools.cache  # an operator can be declared once
def _declare_operators() -> None:
    package = importlib.util.find_spec("torchvision")
    if package is None:
        raise ExportError("torchvision is not installed: pip install 'fovea[export]'")
    compiled = importlib.machinery.PathFinder.find_spec("_C", list(package.submodule_search_locations or ()))
    if compiled is not None and compiled.origin is not None:
        try:
            torch.ops.load_library(compiled.origin)  # type: ignore[no-untyped-call]
        except OSError:  # built for another PyTorch
            pass
        else:
            return
    for name in _ABSENT:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
