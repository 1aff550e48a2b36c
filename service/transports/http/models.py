"""What there is to ask: the list of models and each one's card."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.backends.base import ModelStatus
from service.classifier import Classifier
from service.errors import InvalidRequest, UnknownModel
from service.heads.head import HeadSpec
from service.heads.live import LiveHeads
from service.routes.control import Control
from service.spec import Contract, ModelSpec
from service.transports.http import schema


def add(app: FastAPI, classifier: Classifier, control: Control, heads: LiveHeads) -> None:
    """Add the calls to an application."""

    @app.get("/v1/models", response_model=schema.Models, tags=["models"], summary="All models")
    async def models() -> Any:
        by_name: dict[str, list[ModelStatus]] = {}
        for status in classifier.models():
            by_name.setdefault(status.name, []).append(status)
        return {
            "default": _default(classifier),
            "models": [_summary(statuses, control, heads) for statuses in by_name.values()],
        }

    @app.get(
        "/v1/models/{model}",
        response_model=schema.ModelCard,
        responses=schema.problems("unknown_model"),
        tags=["models"],
        summary="A model's card",
    )
    async def model_card(model: str) -> Any:
        return card(classifier, control, heads, model)


def card(classifier: Classifier, control: Control, heads: LiveHeads, model: str) -> dict[str, Any]:
    """Everything known of a model.

    Raises:
        UnknownModel: There is none of that name.
    """
    statuses = [status for status in classifier.models() if status.name == model]
    if not statuses:
        raise UnknownModel(f"there is no model {model!r}; GET /v1/models lists them, GET /v1/routes the routes")
    spec = _current(statuses).spec
    return _summary(statuses, control, heads) | {
        "spec": spec and spec.model_dump(mode="json", exclude={"golden": {"__all__": {"data"}}})
    }


def _default(classifier: Classifier) -> str | None:
    try:
        return classifier.named(None)
    except InvalidRequest:
        return None


def _current(statuses: list[ModelStatus]) -> ModelStatus:
    """The version that answers by default, or the newest if none is ready."""
    return next((status for status in statuses if status.current), statuses[-1])


def _architecture(spec: Contract | None) -> str | None:
    if isinstance(spec, HeadSpec):
        return f"head on {spec.backbone.name}"
    return spec.architecture if isinstance(spec, ModelSpec) else None


def _summary(statuses: list[ModelStatus], control: Control, heads: LiveHeads) -> dict[str, Any]:
    current = _current(statuses)
    return {
        "name": current.name,
        "kind": current.kind,
        "state": current.state,
        "version": current.version or None,
        "pinned": heads.row(current.name).pinned if current.kind == "head" else control.pinned(current.name),
        "problem": control.problem(current.name, current if current.current else None),
        "architecture": _architecture(current.spec),
        "labels": current.spec and len(current.spec.labels),
        "versions": [
            {
                "version": status.version,
                "state": status.state,
                "problem": status.problem,
                "golden_difference": status.golden_difference,
            }
            for status in statuses
        ],
    }
