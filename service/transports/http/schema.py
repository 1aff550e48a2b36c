"""The shapes of what HTTP answers, for the OpenAPI document; the hot path writes them without these models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.heads.head import Backbone, Report
from service.routes.table import Canary
from service.transports.http.problems import CONTENT_TYPE, PROBLEMS


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Responses that are problem details, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = PROBLEMS[code]
        responses[status] = {
            "description": f"`{code}`: {title}",
            "content": {CONTENT_TYPE.decode(): {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return responses


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Problem(BaseModel):
    """Problem details, RFC 9457."""

    model_config = _example(
        {
            "type": "urn:fovea:error:invalid_image",
            "title": PROBLEMS["invalid_image"][1],
            "status": 422,
            "detail": "the PNG ends before its last chunk",
            "code": "invalid_image",
            "request_id": "5f0c6e0d9b1a4c7e",
        }
    )
    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None


class Timings(BaseModel):
    """Milliseconds."""

    decode: float
    queue: float
    infer: float
    total: float


class ClassScore(BaseModel):
    label: str
    index: int
    probability: float


class Explanation(BaseModel):
    """What speaks for one class in one image."""

    label: str
    index: int
    map: list[list[float]] = Field(description="`h` rows of `w` numbers from 0 to 1, the class activation map.")
    region: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom of what the map covers, in pixels of the upright image; beyond the"
        " image where the model pads it."
    )
    image_size: tuple[int, int] = Field(description="Width and height of the upright image.")


class Prediction(BaseModel):
    """The answer for one image."""

    classes: list[ClassScore]
    prediction_set: list[str] | None
    coverage: float | None
    abstained: bool
    timings_ms: Timings
    explanation: Explanation | None = Field(default=None, description="With `explain=true`, of the best class.")


class Failed(BaseModel):
    """Stands in the place of an image that could not be answered, in a request of several."""

    error: Problem


class ClassifyAnswer(BaseModel):
    model_config = _example(
        {
            "model": "lenet5-digits",
            "version": "1",
            "predictions": [
                {
                    "classes": [
                        {"label": "7", "index": 7, "probability": 0.998},
                        {"label": "9", "index": 9, "probability": 0.001},
                    ],
                    "prediction_set": ["7"],
                    "coverage": 0.95,
                    "abstained": False,
                    "timings_ms": {"decode": 0.05, "queue": 0.02, "infer": 0.2, "total": 0.4},
                }
            ],
        }
    )
    model: str
    version: str
    predictions: list[Prediction | Failed]


class Explained(Explanation):
    probability: float
    colormap: str = Field(description="Of the PNG overlay.")
    timings_ms: Timings


class ExplainAnswer(BaseModel):
    model_config = _example(
        {
            "model": "lenet5-digits",
            "version": "1",
            "predictions": [
                {
                    "label": "7",
                    "index": 7,
                    "map": [[0.0, 0.0821, 0.2114], [0.0, 0.4373, 1.0], [0.0, 0.3052, 0.6127]],
                    "region": [0.0, 0.0, 32.0, 32.0],
                    "image_size": [32, 32],
                    "probability": 0.998,
                    "colormap": "viridis",
                    "timings_ms": {"decode": 0.05, "queue": 0.02, "infer": 0.3, "total": 0.6},
                }
            ],
        }
    )
    model: str
    version: str
    predictions: list[Explained | Failed]


class Features(BaseModel):
    features: list[float]
    timings_ms: Timings


class EmbedAnswer(BaseModel):
    model: str
    version: str
    predictions: list[Features | Failed]


class ModelVersion(BaseModel):
    version: str
    state: Literal["loading", "ready", "failed", "unloaded"]
    problem: str | None
    golden_difference: float | None


class ModelSummary(BaseModel):
    """`version` answers requests that name none; it is the `pinned` one or, where that does not serve, the newest."""

    name: str
    kind: Literal["model", "head"]
    state: Literal["loading", "ready", "failed", "unloaded"]
    version: str | None
    pinned: str | None
    problem: str | None
    architecture: str | None
    labels: int | None
    versions: list[ModelVersion]


class Models(BaseModel):
    """`default` is the model or route that answers requests that name none; null where they have to name one."""

    default: str | None
    models: list[ModelSummary]


class ModelCard(ModelSummary):
    """A summary and the whole spec of the version that answers by default; golden images without their bytes."""

    spec: dict[str, Any] | None


class Pin(BaseModel):
    """The version that answers requests that name none; null: the newest."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "1"}]})
    version: str | None = Field(max_length=20)


class RouteCounts(BaseModel):
    """Since the route was last changed: requests; images for `compared`, `disagreements` and `dropped`."""

    requests: int
    canary: int
    canary_share: float | None
    fallbacks: int
    compared: int
    disagreements: int
    dropped: int


class RouteCard(BaseModel):
    model_config = _example(
        {
            "name": "digits",
            "primary": "lenet5-digits:1",
            "canary": {"model": "lenet5-digits:2", "weight": 0.1},
            "shadow": "lenet5-digits:2",
            "problems": [],
            "counts": {
                "requests": 1000,
                "canary": 97,
                "canary_share": 0.097,
                "fallbacks": 0,
                "compared": 880,
                "disagreements": 3,
                "dropped": 23,
            },
        }
    )
    name: str
    primary: str
    canary: Canary | None
    shadow: str | None
    problems: list[str]
    counts: RouteCounts


class Routes(BaseModel):
    routes: list[RouteCard]


class NewHead(BaseModel):
    """On which model a head is taught."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"backbone": "letters"}]})
    backbone: str = Field(min_length=1, max_length=200, description="A model, or a version of it: `letters:1`.")


class LabelCount(BaseModel):
    label: str
    count: int


class ExampleCounts(BaseModel):
    total: int
    labels: list[LabelCount]


class HeadVersion(BaseModel):
    """`stored` versions are not in memory; rolling back to one brings it there."""

    version: str
    created: str
    examples: int
    labels: int
    accuracy: float | None
    ece: float | None
    warnings: list[str]
    state: Literal["ready", "stored", "failed"]


class HeadCard(BaseModel):
    """`version` answers requests that name none; it is the `pinned` one or the newest."""

    name: str
    state: Literal["untaught", "ready", "failed"]
    problem: str | None
    version: str | None
    pinned: str | None
    backbone: Backbone
    examples: ExampleCounts
    changed_since_fit: bool
    versions: list[HeadVersion]


class Heads(BaseModel):
    heads: list[HeadCard]


class TaughtExample(BaseModel):
    """`index` is the image's place in the request, from 0."""

    index: int
    id: str
    label: str
    name: str | None = Field(default=None, description="Of a zip's file.")


class Conflict(TaughtExample):
    """The image is known under `label`, not as `given`."""

    given: str


class Untaught(BaseModel):
    index: int
    name: str | None = None
    error: Problem


class TaughtAnswer(BaseModel):
    head: str
    added: list[TaughtExample]
    duplicates: list[TaughtExample]
    conflicts: list[Conflict]
    errors: list[Untaught]
    examples: ExampleCounts


class Example(BaseModel):
    id: str
    label: str
    sha256: str = Field(description="Of the encoded image.")
    created: str


class Examples(BaseModel):
    examples: list[Example]
    next: str | None = Field(description="Ask for what comes `after` it; null if there is no more.")


class Deleted(BaseModel):
    deleted: int


class Fitted(Report):
    """What became of a fit; figures are null where examples were too few to hold any out, and `warnings` say so."""

    head: str
    version: str
    labels: list[str]
    coverage: float
    prediction_sets: bool
    seconds: float


class Neighbor(BaseModel):
    id: str
    label: str
    distance: float


class Neighbors(BaseModel):
    head: str
    neighbors: list[Neighbor]


class Health(BaseModel):
    status: str
