"""What the benchmark classifies: a network, published once into build/bench, and an encoded image.

LeNet-5 is the bundled model with a 32×32 PNG. The others have random weights, which cost as much time as trained ones,
and a 640×480 JPEG of 106 KB, made of a photograph that comes with scikit-learn. What is in build/bench stays until
somebody deletes it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from load_tests.gateway import ROOT
from load_tests.pictures import photograph

FOLDER = ROOT / "build" / "bench"
SIZE = (640, 480)  # of the photograph
CROPS, CROP_SIDE = 120, 256  # that int8 learns its ranges from


@dataclass(frozen=True)
class Subject:
    """A network to classify an image with.

    Attributes:
        name: Of the network, and of the model.
        repository: That holds the model.
        image: The encoded image.
        resize_to: The shorter side before the centre is cropped out, as torchvision does it; None: stretched.
        int8: The repository of the same network, quantized; None where it is not measured.
    """

    name: str
    repository: Path
    image: Path
    resize_to: int | None = None
    int8: Path | None = None

    @property
    def path(self) -> str:
        """Of the gateway, that classifies with it."""
        return f"/v1/models/{self.name}/classify"

    @property
    def kind(self) -> str:
        """The image's media type."""
        return f"image/{self.image.suffix[1:].replace('jpg', 'jpeg')}"


def graph(repository: Path, model: str) -> Path:
    """The newest version's model file."""
    versions = (folder for folder in (repository / model).iterdir() if folder.name.isdecimal())
    return max(versions, key=lambda folder: int(folder.name)) / "model.onnx"


def lenet5() -> Subject:
    """The bundled one."""
    return Subject("lenet5-digits", ROOT / "model_repository", ROOT / "docs/images/seven.png")


def resnet18() -> Subject:
    """In fp32 and in int8."""
    return Subject(
        "resnet18",
        _published("resnet18"),
        _photograph(),
        256,
        _published("resnet18", "--precision", "int8", "--calibration", str(_crops())),
    )


def resnet50() -> Subject:
    """In fp32."""
    return Subject("resnet50", _published("resnet50"), _photograph(), 256)


SUBJECTS = {"lenet5": lenet5, "resnet18": resnet18, "resnet50": resnet50}


def _published(architecture: str, *options: str) -> Path:
    """A repository with that network alone."""
    repository = FOLDER / "-".join([architecture, *options[1:2]])
    if not (repository / architecture).exists():
        repository.mkdir(parents=True, exist_ok=True)
        print(f"publishing {architecture} {' '.join(options)} …", file=sys.stderr)
        command = [sys.executable, "-m", "export", "publish", "--arch", architecture, "--name", architecture]
        done = subprocess.run(
            [*command, *options, "--repository", str(repository)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: {architecture} could not be published:\n{done.stderr}")
    return repository


def _photograph() -> Path:
    path = FOLDER / "photo.jpg"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(SIZE))
    return path


def _crops() -> Path:
    """A folder of squares from all over the photographs."""
    from sklearn.datasets import load_sample_images  # takes a second, and is needed once

    folder = FOLDER / "crops"
    if not folder.exists():
        folder.mkdir(parents=True)
        found = [Image.fromarray(each) for each in load_sample_images().images]
        for number in range(CROPS):
            whole = found[number % len(found)]
            left = int(number * 0.618 % 1 * (whole.width - CROP_SIDE))
            top = int(number * 0.755 % 1 * (whole.height - CROP_SIDE))
            whole.crop((left, top, left + CROP_SIDE, top + CROP_SIDE)).save(folder / f"{number:03}.jpg")
    return folder
