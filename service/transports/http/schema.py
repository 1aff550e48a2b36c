"""The shapes of what HTTP answers, for the OpenAPI document; the hot path writes them without these models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.transports.http.problems import PROBLEMS


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


class Prediction(BaseModel):
    """The answer for one image."""

    classes: list[ClassScore]
    prediction_set: list[str] | None
    coverage: float | None
    abstained: bool
    timings_ms: Timings


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


class Features(BaseModel):
    features: list[float]
    timings_ms: Timings


class EmbedAnswer(BaseModel):
    model: str
    version: str
    predictions: list[Features | Failed]


class ModelVersion(BaseModel):
    version: str
    state: Literal["loading", "ready", "failed"]
    problem: str | None
    golden_difference: float | None


class ModelSummary(BaseModel):
    name: str
    kind: Literal["model"]
    state: Literal["loading", "ready", "failed"]
    version: str | None
    architecture: str | None
    labels: int | None
    versions: list[ModelVersion]


class Models(BaseModel):
    models: list[ModelSummary]


class ModelCard(ModelSummary):
    """A summary and the whole spec of the version that answers by default; golden images without their bytes."""

    spec: dict[str, Any] | None


class Health(BaseModel):
    status: str
