"""The artefact contract: what a model is, as its `config.pbtxt` says it.

A model is a directory of a Triton model repository. Its `config.pbtxt` belongs to the model; the spec of each
version travels in the config's `parameters` map as JSON under the key `fovea.<version>`, so whoever can ask
Triton for a model's config, or read the file, knows all there is to know. `export` writes specs, `service` reads them.

Tensors of every model (N is the batch, K the number of labels, C = min(5, K)):

| name          | type                  | meaning                                                                |
| ------------- | --------------------- | ---------------------------------------------------------------------- |
| `image`       | uint8 `[N, H, W, ch]` | the input; scaling, mean and standard deviation are inside the graph   |
| `logits`      | float `[N, K]`        | before temperature and softmax                                         |
| `features`    | float `[N, D]`        | penultimate activations                                                |
| `cam`         | float `[N, C, h, w]`  | class activation maps of the C highest logits, best first, signed      |
| `activations` | float `[N, A, h, w]`  | the last feature maps                                                  |
| `distance`    | float `[N, 1]`        | from the training images, as far as features tell; not all have it     |
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from google.protobuf import text_format
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG_NAME = "config.pbtxt"
SPEC_KEY = "fovea."
OUTPUTS = ("logits", "features", "cam", "activations")  # of every model
DISTANCE = "distance"  # of those that were published with their training images
GOLDEN_BYTES = 100_000  # all golden images of a version together

Precision = Literal["fp32", "fp16", "int8"]

_BY_ENERGY = frozenset({"logits"})
_BY_DISTANCE = frozenset({"logits", DISTANCE})


class InvalidSpec(ValueError):
    """A config or a spec inside it that breaks the contract."""


def _bytes_from_base64(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Base64 = Annotated[
    bytes,
    BeforeValidator(_bytes_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), when_used="json"),
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class ImageSpec(_Frozen):
    """From encoded bytes to the uint8 `[height, width, channels]` that the graph takes.

    The order is fixed: first frame, EXIF orientation, 8 bits, transparency composited on `background`,
    colour conversion, resize and crop. `mean` and `std` are applied inside the graph to values scaled to
    [0, 1]; they are here for people to read.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    # shorter_side: scale so that the shorter side is `resize_to`, then cut the centre out (torchvision's way);
    # stretch: scale both sides to the input, whatever the aspect; letterbox: scale to fit, pad with `background`.
    resize: Literal["shorter_side", "stretch", "letterbox"] = "shorter_side"
    resize_to: int | None = Field(default=None, ge=1, le=8192)  # pixels
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)  # RGB
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _consistent(self) -> ImageSpec:
        if (self.resize == "shorter_side") != (self.resize_to is not None):
            raise ValueError("resize_to belongs to resize=shorter_side, and only to it")
        if self.resize_to is not None and self.resize_to < max(self.height, self.width):
            raise ValueError("resize_to must be at least the larger side of the input")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} must have one value or one per channel")
        if any(not 0 <= value <= 255 for value in self.background):
            raise ValueError("background must be 8-bit RGB")
        return self


class Weights(_Frozen):
    """Where the trained parameters come from."""

    source: str  # e.g. "trained on digits (seed 0)", "torchvision ResNet50_Weights.IMAGENET1K_V2"
    sha256: str | None = None  # of the weights file
    license: str | None = None


class Accuracy(_Frozen):
    """Accuracy on images that neither training nor calibration saw."""

    data: str  # e.g. "digits, test split"
    images: int
    top1: float = Field(ge=0, le=1)
    top5: float | None = Field(default=None, ge=0, le=1)


class Calibration(_Frozen):
    """How logits become probabilities, prediction sets and abstentions; see `service.calibration`."""

    temperature: float = Field(default=1.0, gt=0)
    ece_before: float | None = None  # expected calibration error, 15 bins
    ece_after: float | None = None
    coverage: float = Field(default=0.95, gt=0, lt=1)
    conformal_quantile: float | None = None  # of 1 - p(true class); None: no prediction sets
    measured_coverage: float | None = None  # share of prediction sets that hold the true class, on other images
    mean_set_size: float | None = None  # classes per prediction set, on those
    abstain_above_energy: float | None = None  # energy of the raw logits; None: never abstain
    # From what a model was trained on, or a head was taught; then the energy does not matter. A model that has it has
    # the output `distance`.
    abstain_above_distance: float | None = None
    false_alarm_rate: float | None = None  # share of held-out images abstained from
    # Of calibrated probabilities on other images, per bin that is not empty: confidence, accuracy, images.
    reliability: tuple[tuple[float, float, int], ...] = ()
    data: str | None = None  # what it was fitted on


class Parity(_Frozen):
    """What the exported graph was held against before it was published."""

    tolerance: float  # on logits, relative to max(1, largest |logit|)
    images: int
    max_difference: dict[str, float]  # per output, relative in the same way
    reference: str  # e.g. "PyTorch 2.13.0"


class TensorRT(_Frozen):
    """What a TensorRT plan was built with. A plan is machine code: it runs with nothing else."""

    version: str  # of TensorRT, e.g. "10.13.3.9"
    compute_capability: str  # of the GPU, e.g. "9.0"
    batch: tuple[int, int, int]  # images: the fewest, those it is fastest with, and the most

    @model_validator(mode="after")
    def _consistent(self) -> TensorRT:
        fewest, best, most = self.batch
        if not 1 <= fewest <= best <= most:
            raise ValueError("batch must rise: the fewest images, the best number, the most")
        return self

    def mismatch(self, version: str, compute_capability: str) -> str | None:
        """Why the plan cannot run here; None if it can.

        Args:
            version: Of the TensorRT that is to run it.
            compute_capability: Of the GPU that is to run it.
        """
        differences = []
        if version != self.version:
            differences.append(f"TensorRT {self.version}, not {version}")
        if compute_capability != self.compute_capability:
            differences.append(f"a GPU of compute capability {self.compute_capability}, not {compute_capability}")
        if not differences:
            return None
        return f"the plan was built for {' and for '.join(differences)}: publish it again on this machine"


class Golden(_Frozen):
    """An encoded image and the logits that PyTorch gave for it; replayed whenever the version is loaded."""

    name: str
    data: Base64
    logits: tuple[float, ...]


class Contract(_Frozen):
    """What an answer takes, whoever gives it: a network's own classifier or a head taught on its features."""

    name: str
    version: str
    image: ImageSpec
    labels: tuple[str, ...]
    calibration: Calibration = Calibration()

    @field_validator("version")
    @classmethod
    def _version_is_a_number(cls, value: str) -> str:
        if not value.isdecimal() or value != str(int(value)) or int(value) < 1:
            raise ValueError("a version is a positive whole number, as Triton wants it")
        return value

    @field_validator("labels")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) < 2:
            raise ValueError("labels must be at least two")
        return value

    @property
    def counted_as(self) -> str:
        """The name that metrics give it: what clients have named does not make time series."""
        return self.name

    def counted_label(self, label: str) -> str:
        """The name that metrics give a class."""
        return label

    @property
    def judged_by(self) -> frozenset[str]:
        """The outputs that a prediction takes."""
        return _BY_ENERGY if self.calibration.abstain_above_distance is None else _BY_DISTANCE


class ModelSpec(Contract):
    """Everything about one version of one model."""

    format: Literal[1] = 1
    architecture: str
    paper: str | None = None
    precision: Precision = "fp32"
    weights: Weights
    features: int = Field(ge=1)  # D
    maps: tuple[int, int, int]  # A, h, w
    # The features are the means of the activations over a grid of so many rows and columns of places, `[A, rows,
    # columns]` flattened: a linear head on them has exact activation maps. None: they are something else.
    places: tuple[int, int] | None = None
    parameters: int = Field(ge=0)
    macs: int = Field(ge=0)  # multiply-accumulates per image
    accuracy: Accuracy | None = None
    parity: Parity | None = None
    golden: tuple[Golden, ...] = Field(min_length=1)
    golden_tolerance: float = Field(default=1e-3, gt=0)  # on probabilities
    tensorrt: TensorRT | None = None  # None: not a plan
    files: dict[str, str]  # path inside the version's directory: SHA-256 in hex

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.places and self.features != self.maps[0] * self.places[0] * self.places[1]:
            raise ValueError("features must be one per map and place")
        if any(len(golden.logits) != len(self.labels) for golden in self.golden):
            raise ValueError("a golden image must carry one logit per label")
        if sum(len(golden.data) for golden in self.golden) > GOLDEN_BYTES:
            raise ValueError(f"golden images may take {GOLDEN_BYTES} bytes together")
        if not self.files:
            raise ValueError("files must name the model file and its hash")
        return self

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output, without its batch dimension."""
        _, height, width = self.maps
        shapes: dict[str, tuple[int, ...]] = {
            "logits": (len(self.labels),),
            "features": (self.features,),
            "cam": (self.cam_classes, height, width),
            "activations": self.maps,
        }
        if self.calibration.abstain_above_distance is not None:
            shapes[DISTANCE] = (1,)
        return shapes

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of what decides its features: its files, and how it wants images prepared."""
        image = self.image.model_dump_json(exclude_defaults=True)  # a field added later must change no digest
        return hashlib.sha256(f"{sorted(self.files.items())}{image}".encode()).hexdigest()

    @property
    def cam_classes(self) -> int:
        """C, the number of class activation maps that the graph computes."""
        return min(5, len(self.labels))


class RepositoryModel(BaseModel):
    """A model's config as far as the gateway needs it."""

    model_config = ConfigDict(frozen=True)

    name: str
    max_batch_size: int
    keep_versions: int  # how many of the latest versions are served
    specs: dict[str, ModelSpec]  # by version
    refused: dict[str, str]  # why a version's spec was refused


def specs_from_config(config: ModelConfig) -> dict[str, ModelSpec]:
    """Read the spec of every version out of a Triton model config.

    Args:
        config: From `config.pbtxt` or from Triton's model-config call.

    Returns:
        Specs by version; empty for a model that Fovea did not publish.

    Raises:
        InvalidSpec: A spec does not parse or contradicts its key or the config.
    """
    specs, refused = _specs(config)
    for problem in refused.values():
        raise InvalidSpec(problem)
    return specs


def _specs(config: ModelConfig) -> tuple[dict[str, ModelSpec], dict[str, str]]:
    """The specs that keep the contract, and what is wrong with the others; both by version."""
    specs, refused = {}, {}
    for key, parameter in config.parameters.items():
        if not key.startswith(SPEC_KEY):
            continue
        version = key.removeprefix(SPEC_KEY)
        try:
            spec = ModelSpec.model_validate_json(parameter.string_value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "spec"
            refused[version] = f"{config.name} version {version}: {place}: {first['msg']}"
            continue
        if (spec.name, spec.version) != (config.name, version):
            refused[version] = f"{config.name} version {version}: the spec says {spec.name} version {spec.version}"
            continue
        specs[version] = spec
    return specs, refused


def read_config(path: Path, *, lenient: bool = False) -> RepositoryModel:
    """Read `config.pbtxt`.

    Args:
        path: Of the file.
        lenient: Take the versions whose specs are sound and list the others in `refused`, instead of raising: one
            bad spec must not keep a model's other versions from serving.

    Raises:
        InvalidSpec: The file is not a model config, or a spec in it breaks the contract.
        OSError: The file cannot be read.
    """
    place = f"{path.parent.name}/{path.name}"  # clients read this too: where the repository lies is not their business
    try:
        config = text_format.Parse(path.read_bytes(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{place}: not a Triton model config: {error}") from error
    if config.name != path.parent.name:
        raise InvalidSpec(f"{place}: the config's name is {config.name!r}, its directory's {path.parent.name!r}")
    parsed = parse_config(config)
    if parsed.refused and not lenient:
        raise InvalidSpec(next(iter(parsed.refused.values())))
    return parsed


def parse_config(config: ModelConfig) -> RepositoryModel:
    """What the gateway needs of a model config, from a file or from Triton; unsound specs are in `refused`."""
    specs, refused = _specs(config)
    latest = config.version_policy.latest.num_versions if config.version_policy.HasField("latest") else 1
    return RepositoryModel(
        name=config.name,
        max_batch_size=max(1, config.max_batch_size),
        keep_versions=max(1, latest),
        specs=specs,
        refused=refused,
    )


def spec_parameters(specs: Mapping[str, ModelSpec]) -> dict[str, str]:
    """The `parameters` of a config that carry these specs: key to JSON."""
    return {SPEC_KEY + version: spec.model_dump_json() for version, spec in specs.items()}
