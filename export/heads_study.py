"""What taught heads are worth on images that they were not taught: `python -m export.heads_study`.

Heads are taught a few images of each class on a bundled backbone, again and again others, and asked of images held out.
They are asked of strangers too: what share of these do they abstain from, beside other scores of unfamiliarity that
could have been taken? Every score's threshold is fitted in the same way, by cross-validation among the taught images,
for 5 % of images like these.

Six minutes on one core; it prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from export import data, replay
from export.strangers import strangers
from service.calibration import energy, expected_calibration_error, probabilities, upper_quantile
from service.heads.familiarity import axes_for, fit_familiarity
from service.heads.fit import HeadFit, fit
from service.heads.head import TINY
from service.heads.judgement import FALSE_ALARMS
from service.heads.regression import USUAL, Examples, deal, fit_path
from service.preprocess import Preprocessor
from service.spec import CONFIG_NAME, read_config

ROOT = Path(__file__).resolve().parent.parent
SHOTS = (5, 10, 50)
BATCH = 64
CLASSES = 10  # taught; of `letters` the first ones, and the others are strangers
OTHERS = 600  # images of these

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# Taught features `[N, D]`, their classes `[N]`, features asked of `[M, D]` → how strange those are, `[M]`.
Score = Callable[[Floats, Ints, Floats], Floats]

# Backbone and what is taught on it.
SETTINGS = (("letters", "digits"), ("lenet5-digits", "letters"), ("letters", "textures"))


class Backbone:
    """A bundled model as it is served.

    Args:
        name: Of the model.

    Attributes:
        image: Its image contract.
    """

    def __init__(self, name: str) -> None:
        folder = ROOT / "model_repository" / name
        versions = read_config(folder / CONFIG_NAME).specs
        spec = versions[max(versions, key=int)]
        self.image = spec.image
        self._preprocess = Preprocessor(spec.image)
        self._session = replay.session(folder / spec.version / replay.model_file(spec))

    def features(self, images: Sequence[bytes]) -> Floats:
        """Of encoded images: `[N, D]`."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = np.stack([self._preprocess(image) for image in images[start : start + BATCH]])
            parts.append(self._session.run(["features"], {"image": pixels})[0])
        return np.concatenate(parts)


def _logits(taught: Floats, labels: Ints, asked: Floats, balanced: bool = True) -> Floats:
    examples = Examples.of(taught)
    (found,) = fit_path(examples.points, labels, [USUAL], balanced=balanced)
    logits: Floats = asked @ (examples.spread(found.weights) / np.float32(examples.scale)).T + found.bias
    return logits


def of_energy(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """Liu et al. 2020 (arXiv:2010.03759)."""
    return np.asarray(energy(_logits(taught, labels, asked)), np.float32)


def of_probability(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """Hendrycks and Gimpel 2017 (arXiv:1610.02136)."""
    return np.asarray(-probabilities(_logits(taught, labels, asked)).max(axis=1))


def of_diagonal(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """Mahalanobis, each feature by its own deviation inside classes (Lee et al. 2018, arXiv:1807.03888)."""
    means = _means(taught, labels)
    inside = np.square(taught - means[labels]).mean(axis=0)
    scale = 1 / np.sqrt(inside + 0.1 * inside.mean() + TINY)
    return np.asarray(_squares(asked * scale, means * scale).min(axis=1))


def of_relative(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """The same less that of one class of all (Ren et al. 2021, arXiv:2106.09022)."""
    alike = np.zeros(len(labels), np.int64)
    return of_diagonal(taught, labels, asked) - of_diagonal(taught, alike, asked)


def of_cosine(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """Of the angle to the nearest class's mean."""
    return np.asarray(-(_units(asked) @ _units(_means(_units(taught), labels)).T).max(axis=1))


def of_nearest(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """Of the angle to the nearest taught image (Sun et al. 2022, arXiv:2204.06507): keeps them all."""
    del labels
    return np.asarray(-(_units(asked) @ _units(taught).T).max(axis=1))


def of_axes(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """As in heads, but of features as long as they are."""
    means = _means(taught, labels)
    _, singular, directions = np.linalg.svd(taught - means[labels], full_matrices=False)
    count = axes_for(labels, taught.shape[1])
    variances = np.square(singular)
    rest = variances[count:].sum() / (taught.shape[1] - count)
    axes = directions[:count] * np.sqrt(1 - rest / variances[:count])[:, None]
    squares = _squares(asked, means) - _squares(asked @ axes.T, means @ axes.T)
    return np.asarray(squares.min(axis=1))


def of_direction(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """As in heads, whatever the length."""
    return of_head(_units(taught), labels, _units(asked))


def of_head(taught: Floats, labels: Ints, asked: Floats) -> Floats:
    """What heads abstain by."""
    return fit_familiarity(taught, labels, taught.shape[1], axes_for(labels, taught.shape[1])).distances(asked)


SCORES: dict[str, Score] = {
    "energy of the logits": of_energy,
    "highest probability": of_probability,
    "Mahalanobis, diagonal": of_diagonal,
    "the same, relative": of_relative,
    "Mahalanobis, few axes": of_axes,
    "cosine to a class's mean": of_cosine,
    "cosine to the nearest image": of_nearest,
    "few axes, at length one": of_direction,
    "**the same, longer is further**": of_head,
}


def _means(rows: Floats, labels: Ints) -> Floats:
    return np.stack([rows[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])


def _units(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
    return found


def _squares(rows: Floats, others: Floats) -> Floats:
    """Squared distances `[N, K]` of rows `[N, D]` from others `[K, D]`."""
    found: Floats = np.square(rows).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * rows @ others.T
    return found


def threshold(score: Score, taught: Floats, labels: Ints) -> float:
    """Beyond which a score abstains: from images held out of the taught ones."""
    folds = deal(labels, np.arange(len(labels)))
    found = np.zeros(len(labels))
    for fold in np.unique(folds):
        inside = folds == fold
        found[inside] = score(taught[~inside], labels[~inside], taught[inside])
    limit = upper_quantile(found, 1 - FALSE_ALARMS)
    return np.inf if limit is None else limit


def drawn(labels: Ints, shots: int, seed: int) -> tuple[Ints, Ints]:
    """Places of the images to teach, so many of each class, and of up to 100 others of each."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return (
        np.concatenate([order[:shots] for order in orders]),
        np.concatenate([order[shots : shots + 100] for order in orders]),
    )


def worth(head: HeadFit, features: Floats, labels: Ints) -> list[float]:
    """Per cent: accuracy by cross-validation and on held-out images, likewise calibration error and coverage of
    prediction sets, their mean size, and the share abstained from."""
    logits = features @ head.parameters.weights.T + head.parameters.bias
    probs = probabilities(logits, head.calibration.temperature)
    sets = 1 - probs <= (head.calibration.conformal_quantile or 1.0)
    far = [head.parameters.distance(each) > (head.calibration.abstain_above_distance or np.inf) for each in features]
    return [
        100 * (head.report.accuracy or 0.0),
        100 * float((logits.argmax(axis=1) == labels).mean()),
        100 * (head.report.ece or 0.0),
        100 * expected_calibration_error(probs, labels),
        100 * float(sets[np.arange(len(labels)), labels].mean()),
        float(sets.sum(axis=1).mean()),
        100 * float(np.mean(far)),
    ]


def uneven(features: Floats, labels: Ints, seed: int) -> list[float]:
    """Per cent right of held-out images of the even classes, taught fewest images each, and of the odd ones, taught
    most: with every image weighing as much, and with every class weighing as much."""
    train, held_out = drawn(labels, max(SHOTS), seed)
    kept = train[(labels[train] % 2 == 1) | (np.arange(len(train)) % max(SHOTS) < min(SHOTS))]
    few = labels[held_out] % 2 == 0
    found = []
    for balanced in (False, True):
        right = _logits(features[kept], labels[kept], features[held_out], balanced).argmax(axis=1) == labels[held_out]
        found += [100 * float(right[few].mean()), 100 * float(right[~few].mean())]
    return found


def study(backbone: str, taught: str, draws: int) -> None:
    """Print the tables of a data set taught on a backbone."""
    network, dataset = Backbone(backbone), data.load(taught)
    known = np.flatnonzero(dataset.labels < CLASSES)
    features, labels = network.features([dataset.images[int(index)] for index in known]), dataset.labels[known]
    kinds = strangers(taught, network.image)
    if len(dataset.label_names) > CLASSES:
        rest = np.random.default_rng(0).permutation(np.flatnonzero(dataset.labels >= CLASSES))[:OTHERS]
        kinds[f"other {taught}"] = [dataset.images[int(index)] for index in rest]
    others = {kind: network.features(images) for kind, images in kinds.items()}
    ends = np.cumsum([len(each) for each in others.values()])[:-1]
    strange = np.concatenate(list(others.values()))
    worths, alarms = [], []
    for shots in SHOTS:
        heads: list[list[float]] = []
        shares: dict[str, list[list[float]]] = {name: [] for name in SCORES}
        for seed in range(draws):
            train, held_out = drawn(labels, shots, seed)
            head = fit(features[train], [str(label) for label in labels[train]])
            heads.append(worth(head, features[held_out], labels[held_out]))
            for name, score in SCORES.items():
                limit = threshold(score, features[train], labels[train])
                asked = score(features[train], labels[train], np.concatenate([features[held_out], strange])) > limit
                parts = [asked[: len(held_out)], *np.split(asked[len(held_out) :], ends)]
                shares[name].append([100 * float(each.mean()) for each in parts])
        worths.append([shots, *np.mean(heads, axis=0)])
        alarms += [[name, shots, *np.mean(each, axis=0)] for name, each in shares.items()]
    _table(
        f"{taught} on {backbone}, means of {draws} draws",
        ["of each", "accuracy, cross-validated", "held out", "ECE, cross-validated", "held out", "covered", "in a set",
         "abstained"],
        worths,
    )  # fmt: skip
    few, most = min(SHOTS), max(SHOTS)
    _table(
        f"{taught} on {backbone}: {few} of each even class, {most} of each odd one; held-out images right, per cent",
        [f"by images: taught {few}", f"taught {most}", f"by classes: taught {few}", f"taught {most}"],
        [list(np.mean([uneven(features, labels, seed) for seed in range(draws)], axis=0))],
    )
    _table(f"{taught} on {backbone}: share abstained from, per cent", ["score", "of each", "held out", *others], alarms)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *cells)]
    sys.stdout.write("\n".join([title, "", *lines, "", ""]))
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20, help="of the images that are taught")
    arguments = parser.parse_args()
    with threadpool_limits(1):
        for backbone, taught in SETTINGS:
            study(backbone, taught, arguments.draws)


if __name__ == "__main__":
    main()
