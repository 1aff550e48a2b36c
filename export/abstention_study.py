"""By what should models abstain? Scores of unfamiliarity side by side: `python -m export.abstention_study`.

Each is fitted on the features and logits that the bundled models give for training images, in every guise of drawings,
gets its threshold from the validation images, for 5 % of such, and is asked of test images and of strangers. Features
are averaged over their places.

Five minutes on two cores; it prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import data, familiarity, replay
from export.calibrate import BATCH, FALSE_ALARMS, TEST
from export.strangers import strangers
from service.calibration import energy, probabilities
from service.heads.familiarity import Familiarity, axes_for, fit_familiarity
from service.heads.head import TINY
from service.preprocess import Preprocessor
from service.spec import CONFIG_NAME, ModelSpec, read_config

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("lenet5-digits", "letters")
KEPT = 4000  # training images whose features the nearest one is looked for among
RIDGE = 0.01  # of the mean variance, added to all

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """What a model gives for images.

    Attributes:
        features: `[N, D]`.
        logits: `[N, K]`.
        labels: `[N]`; none of strangers.
    """

    features: Floats
    logits: Floats
    labels: Ints


Score = Callable[[Seen], Floats]  # how strange images are, `[N]`


def of_energy(_: Seen) -> Score:
    """Liu et al. 2020 (arXiv:2010.03759)."""
    return lambda asked: energy(asked.logits)


def of_probability(_: Seen) -> Score:
    """Hendrycks and Gimpel 2017 (arXiv:1610.02136)."""
    return lambda asked: -probabilities(asked.logits).max(axis=1)


def of_length(_: Seen) -> Score:
    """Short features."""
    return lambda asked: -np.linalg.norm(asked.features, axis=1)


def of_mahalanobis(known: Seen) -> Score:
    """With one covariance inside all classes (Lee et al. 2018, arXiv:1807.03888)."""
    means = _means(known.features, known.labels)
    whitened = _whitening(known.features - means[known.labels])
    return lambda asked: _squares(asked.features @ whitened, means @ whitened).min(axis=1)


def of_relative(known: Seen) -> Score:
    """The same less that of all classes as one (Ren et al. 2021, arXiv:2106.09022)."""
    near = of_mahalanobis(known)
    mean = known.features.mean(axis=0)
    whitened = _whitening(known.features - mean)
    return lambda asked: near(asked) - np.square((asked.features - mean) @ whitened).sum(axis=1)


def of_residual(known: Seen) -> Score:
    """What lies beyond half of the principal components, and the energy: ViM (Wang et al. 2022, arXiv:2203.10807)."""
    mean = known.features.mean(axis=0)
    _, vectors = np.linalg.eigh((known.features - mean).T @ (known.features - mean))
    rest = vectors[:, : vectors.shape[1] // 2]

    def beyond(seen: Seen) -> Floats:
        return np.asarray(np.linalg.norm((seen.features - mean) @ rest, axis=1))

    scale = known.logits.max(axis=1).mean() / beyond(known).mean()
    return lambda asked: scale * beyond(asked) + energy(asked.logits)


def of_nearest(known: Seen) -> Score:
    """The angle to the nearest training image (Sun et al. 2022, arXiv:2204.06507)."""
    chosen = np.random.default_rng(0).permutation(len(known.labels))[:KEPT]
    kept = _units(known.features[chosen])
    return lambda asked: -(_units(asked.features) @ kept.T).max(axis=1)


def of_classes(known: Seen) -> Score:
    """As published, but with one centre for each class."""
    return _of_centres(known, known.labels, axes=True, length=True)


def without_axes(known: Seen) -> Score:
    """As published, but with nothing left out."""
    return _of_centres(known, familiarity.groups_of(_units(known.features), known.labels), axes=False, length=True)


def without_length(known: Seen) -> Score:
    """As published, but whatever the length of the features."""
    return _of_centres(known, familiarity.groups_of(_units(known.features), known.labels), axes=True, length=False)


def as_published(known: Seen) -> Score:
    """`export.familiarity`."""
    return _of_centres(known, familiarity.groups_of(_units(known.features), known.labels), axes=True, length=True)


SCORES: Mapping[str, Callable[[Seen], Score]] = {
    "energy of the logits": of_energy,
    "highest probability": of_probability,
    "length of the features": of_length,
    "Mahalanobis": of_mahalanobis,
    "relative Mahalanobis": of_relative,
    "ViM": of_residual,
    f"nearest of {KEPT:,} images": of_nearest,
    "as published, a centre for each class": of_classes,
    "as published, without axes": without_axes,
    "as published, without length": without_length,
    "**as published**": as_published,
}


def _of_centres(known: Seen, groups: Ints, *, axes: bool, length: bool) -> Score:
    dimensions = known.features.shape[1]
    count = axes_for(groups, dimensions) if axes else 0
    found = fit_familiarity(known.features.astype(np.float32), groups, dimensions, count)
    usual = float(np.linalg.norm(known.features, axis=1).mean())

    def score(asked: Seen) -> Floats:
        lengths = np.maximum(np.linalg.norm(asked.features, axis=1), TINY)
        near = _near(found, asked.features / lengths[:, None])
        return np.asarray(near * np.maximum(lengths / usual, usual / lengths) if length else near)

    return score


def _near(found: Familiarity, units: Floats) -> Floats:
    along = np.square(units @ found.axes.T).sum(axis=1)
    return np.asarray(1 - along + (found.offsets - 2 * units @ found.centres.T).min(axis=1))


def _means(rows: Floats, labels: Ints) -> Floats:
    return np.stack([rows[labels == label].mean(axis=0) for label in np.unique(labels)])


def _whitening(rows: Floats) -> Floats:
    covariance = rows.T @ rows / len(rows)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return np.asarray(np.linalg.cholesky(np.linalg.inv(covariance)))


def _units(rows: Floats) -> NDArray[np.float32]:
    units: NDArray[np.float32] = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)).astype(
        np.float32
    )
    return units


def _squares(rows: Floats, others: Floats) -> Floats:
    """Squared distances `[N, K]` of rows `[N, D]` from others `[K, D]`."""
    return np.asarray(np.square(rows).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * rows @ others.T)


def study(spec: ModelSpec, folder: Path) -> None:
    """Print the table of a model."""
    session = replay.session(folder / replay.model_file(spec))
    side = spec.places[0] * spec.places[1] if spec.places else 1

    def seen(pixels: NDArray[np.uint8], labels: Ints) -> Seen:
        batches = np.split(pixels, range(BATCH, len(pixels), BATCH))
        parts = [session.run(["features", "logits"], {"image": batch}) for batch in batches]
        features, logits = (np.concatenate(each).astype(np.float64) for each in zip(*parts, strict=True))
        return Seen(features.reshape(len(features), -1, side).mean(axis=2), logits, labels)

    dataset = data.load(spec.accuracy.data.removesuffix(TEST) if spec.accuracy else "")
    preprocess = Preprocessor(spec.image)
    held_out = {}
    for part in ("validation", "test"):
        rendered = dataset.rendered(dataset.sample(getattr(dataset.split, part)), spec.image)
        held_out[part] = seen(np.concatenate(list(rendered.values())), np.zeros(0, np.int64))
    asked = {"held out": held_out["test"]}
    for kind, images in strangers(dataset.name, spec.image).items():
        asked[kind] = seen(np.stack([preprocess(image) for image in images]), np.zeros(0, np.int64))
    known = seen(*familiarity.training_images(dataset, spec.image))
    rows = []
    for name, fit in SCORES.items():
        score = fit(known)
        limit = float(np.quantile(score(held_out["validation"]), 1 - FALSE_ALARMS))
        rows.append([name, *(f"{100 * (score(each) > limit).mean():.1f}" for each in asked.values())])
    _table(f"{spec.name}: share abstained from, per cent", ["score", *asked], rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = ["| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *rows)]
    sys.stdout.write("\n".join([title, "", *lines, "", ""]))
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for name in MODELS:
        folder = ROOT / "model_repository" / name
        specs = read_config(folder / CONFIG_NAME).specs
        spec = specs[max(specs, key=int)]
        study(spec, folder / spec.version)


if __name__ == "__main__":
    main()
