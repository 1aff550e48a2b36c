"""What a challenge of models found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shown(_Frozen):
    """Images of one kind, and what the model did with them; shares of 1."""

    what: str
    known: bool  # like those that it was trained on; else strangers
    images: int
    covered: (
        float | None
    )  # of the prediction sets, those that hold the true class; None: there are no sets, or no class
    set_size: float | None  # classes per prediction set
    abstained: float
    by_energy: float  # the same by the energy of the logits, at the same share of held-out images


class Challenged(_Frozen):
    """One version of a model."""

    model: str
    version: str
    data: str  # that it was trained on
    coverage: float  # asked of its prediction sets
    shown: tuple[Shown, ...]  # held-out images first
