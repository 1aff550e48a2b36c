"""Every network by name.

Each module of this package may hold `ARCHITECTURES: tuple[Architecture, ...]`; whatever is in one is found here, so a
new network needs no second place. A module must import fast: libraries such as torchvision and timm are imported inside
`build` and `cut`, never at its top, so that training LeNet-5 waits for neither.

Names with a prefix are resolved when they are asked for: `timm:NAME` by `timm_zoo.resolve("NAME")`.
"""

from __future__ import annotations

import importlib
import pkgutil

from export.architectures.base import Architecture, Network
from export.errors import UnknownName

__all__ = ["ARCHITECTURES", "Architecture", "Network", "get"]

RESOLVERS = {"timm": "timm_zoo"}  # prefix: module whose `resolve(name)` answers for it


def _collect() -> dict[str, Architecture]:
    found: dict[str, Architecture] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for architecture in getattr(module, "ARCHITECTURES", ()):
            if architecture.name in found:
                raise RuntimeError(f"two architectures are called {architecture.name!r}")
            found[architecture.name] = architecture
    return found


ARCHITECTURES: dict[str, Architecture] = _collect()


def get(name: str) -> Architecture:
    """The architecture of that name.

    Args:
        name: One of `ARCHITECTURES`, or a name with a prefix such as `timm:resnet26`.

    Raises:
        UnknownName: Nothing is called that; the message holds the names most like it.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in RESOLVERS:
        module = importlib.import_module(f"{__name__}.{RESOLVERS[prefix]}")
        resolved: Architecture = module.resolve(rest)
        return resolved
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise UnknownName.among("architecture", name, ARCHITECTURES) from None
