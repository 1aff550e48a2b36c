"""What there is: every network with its figures, and every data set.

Describing all networks takes a minute, so their parameters and multiply-accumulates are kept in `totals.json` beside
them. After adding or changing a network, write it anew:

    python -m export.listing

A network that the file doesn't know is described on the spot.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from export.architectures import ARCHITECTURES
from export.architectures.base import Architecture
from export.data import ABOUT, LOADERS
from export.describe import describe_architecture

TOTALS = Path(__file__).parent / "architectures" / "totals.json"


@dataclass(frozen=True)
class Entry:
    """A network in the list.

    Attributes:
        name: What the command line calls it.
        year: Of its publication.
        paper: As one would cite it.
        input: `[C, H, W]` as published.
        labels: Number of classes as published.
        parameters: Used at inference.
        macs: Multiply-accumulates for one image.
        origin: Where its code is from: fovea, torchvision or timm.
        weights: Names that `--weights` takes beside a file.
    """

    name: str
    year: int
    paper: str
    input: tuple[int, int, int]
    labels: int
    parameters: int
    macs: int
    origin: str
    weights: tuple[str, ...]


def entries() -> list[Entry]:
    """All networks, oldest first."""
    known: dict[str, dict[str, int]] = json.loads(TOTALS.read_text())
    found = []
    for architecture in sorted(ARCHITECTURES.values(), key=lambda each: each.year):
        totals = known.get(architecture.name) or totals_of(architecture)
        image = architecture.image
        found.append(
            Entry(
                name=architecture.name,
                year=architecture.year,
                paper=architecture.paper,
                input=(image.channels, image.height, image.width),
                labels=architecture.labels,
                parameters=totals["parameters"],
                macs=totals["macs"],
                origin=architecture.origin,
                weights=architecture.weights,
            )
        )
    return found


def as_json() -> dict[str, object]:
    """What `list --json` prints; keys may come, none goes."""
    return {
        "architectures": [asdict(entry) for entry in entries()],
        "prefixes": {"timm:": "any of timm's convolutional networks, as timm:NAME or timm:NAME.TAG"},
        "datasets": sorted(LOADERS),
        "data": [asdict(each) for each in ABOUT],
    }


def totals_of(architecture: Architecture) -> dict[str, int]:
    """Parameters and multiply-accumulates as published, computed."""
    description = describe_architecture(architecture)
    return {"parameters": description.parameters, "macs": description.macs}


if __name__ == "__main__":
    lines = (f"  {json.dumps(name)}: {json.dumps(totals_of(each))}" for name, each in sorted(ARCHITECTURES.items()))
    TOTALS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
