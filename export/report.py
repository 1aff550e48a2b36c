"""The report of a training run: `report.html` and the pictures beside it, for a projector as for a phone.

The page is plain HTML: no scripts, no foreign addresses; it opens from a folder and from a server alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from export import report_plots, run
from service import calibration
from service.files import write_whole

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
CURVES = "learning-curves.png"
CONFUSION = "confusion-matrix.png"
RELIABILITY = "reliability-diagram.png"
FILTERS = "filters.png"
MISTAKES = "mistakes.png"
LISTED = 20  # classes at most in the table
PAIRS = 10  # of confused classes at most

Ints = NDArray[np.int64]
Row = Sequence[object]


@dataclass(frozen=True)
class Results:
    """What a run comes to, on K classes and M test images.

    Attributes:
        title: Which network on which data.
        facts: What was run, and how, in the order to be shown.
        epochs: Figures of each; none if nothing was trained step by step.
        best_epoch: From 0; without meaning if there are no epochs.
        label_names: `[K]`.
        labels: `[M]`, the true classes.
        probabilities: `[M, K]` as the network gives them.
        calibrated: `[M, K]` after temperature scaling.
        temperature: Fitted on the validation images.
        pixels: `[M, H, W, C]` as the network sees them; C is 1 or 3.
        filters: Weights of the first layer, `[F, C, h, w]`; None if they make no picture.
        accuracy: Shares by name, the most important first.
    """

    title: str
    facts: Mapping[str, str]
    epochs: Sequence[run.Epoch]
    best_epoch: int
    label_names: tuple[str, ...]
    labels: Ints
    probabilities: NDArray[np.float32]
    calibrated: NDArray[np.float32]
    temperature: float
    pixels: NDArray[np.uint8]
    filters: NDArray[np.float32] | None
    accuracy: Mapping[str, float]


def write(folder: Path, results: Results) -> list[Path]:
    """Write the pictures, then the page that shows them; each file as a whole or not at all.

    Args:
        folder: Made if it is missing; pictures of an earlier report that this one lacks are removed.
        results: At least one test image.

    Returns:
        The files, the page last.
    """
    classes = len(results.label_names)
    predicted = results.calibrated.argmax(axis=1)
    confusion = np.bincount(results.labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    mistaken = report_plots.mistaken(results.calibrated, results.labels)
    pictures = _draw(results, confusion, mistaken)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(results.title),
        scores=_definitions((name, f"{share:.2%}") for name, share in results.accuracy.items()),
        training=_training(results),
        confusion=_confusion(confusion, classes),
        mistakes=_mistakes(len(mistaken), len(results.labels)),
        calibration=_calibration(results),
        pairs=_pairs(confusion, results.label_names),
        classes=_classes(confusion, results.label_names),
        filters=_filters() if FILTERS in pictures else "",
        facts=_definitions(results.facts.items()),
        epochs=_epochs(results),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    write_whole(folder / PAGE, page.encode())
    for name in {CURVES, MISTAKES, FILTERS} - pictures.keys():
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in (*pictures, PAGE)]


def _draw(results: Results, confusion: Ints, mistaken: calibration.Ints) -> dict[str, bytes]:
    title = results.title
    labels, names = results.labels, results.label_names
    pictures = {}
    if results.epochs:
        pictures[CURVES] = report_plots.learning_curves(results.epochs, results.best_epoch, title)
    pictures[CONFUSION] = report_plots.confusion_matrix(confusion, names, title)
    pictures[RELIABILITY] = report_plots.reliability_diagram(results.probabilities, results.calibrated, labels, title)
    if results.filters is not None:
        pictures[FILTERS] = report_plots.filters(results.filters, title)
    if len(mistaken):
        pictures[MISTAKES] = report_plots.mistakes(results.pixels, results.calibrated, labels, names, mistaken, title)
    return pictures


def _training(results: Results) -> str:
    if not results.epochs:
        return "<p>Nothing was trained step by step, so there are no learning curves.</p>"
    best = results.epochs[results.best_epoch]
    number = f"epoch {results.best_epoch + 1} of {len(results.epochs)}"
    return _figure(
        CURVES,
        f"Training and validation loss, validation accuracy and learning rate per epoch. {number.capitalize()} is the "
        f"best: validation accuracy {best.validation_accuracy:.2%}, training loss {best.loss:.4f}, "
        f"validation loss {best.validation_loss:.4f}.",
        f"The network kept is that of {number} (dotted line).",
    )


def _confusion(confusion: Ints, classes: int) -> str:
    right, images = int(np.trace(confusion)), int(confusion.sum())
    missing = int((confusion.sum(axis=1) == 0).sum())
    notes = f"{right:,} of {images:,} test images are on the diagonal. Each row is coloured by its share."
    if missing:
        hatched = " (hatched)" if classes <= report_plots.CELLS else ""
        notes += f" Classes without test images{hatched}: {missing:,} of {classes:,}."
    return _figure(CONFUSION, f"Confusion matrix of {classes} classes, true against predicted. {notes}", notes)


def _mistakes(wrong: int, images: int) -> str:
    if not wrong:
        return f"<p>None among {images:,} test images.</p>"
    shown = min(wrong, report_plots.MISTAKES)
    which = f"the {shown} most confident of them" if shown < wrong else "all of them, the most confident first"
    return _figure(
        MISTAKES,
        f"{shown} misclassified test images, each with true class, predicted class and its probability.",
        f"{wrong:,} of {images:,} test images were taken for something else; here are {which}, with calibrated "
        "probabilities.",
    )


def _calibration(results: Results) -> str:
    before, after = (
        calibration.expected_calibration_error(each, results.labels)
        for each in (results.probabilities, results.calibrated)
    )
    return _figure(
        RELIABILITY,
        f"Accuracy against confidence in {calibration.BINS} bins, before and after temperature scaling, with the "
        f"number of images in each bin. Expected calibration error {before:.2%} before, {after:.2%} after.",
        f"Temperature {results.temperature:.3g}, fitted on the validation images, takes the expected calibration error "
        f"(ECE) on the test images from {before:.2%} to {after:.2%}. On the dotted line, confidence is accuracy.",
    )


def _filters() -> str:
    figure = _figure(
        FILTERS,
        "The weights of the first layer as small images.",
        "Each filter is scaled for itself; mid-grey is zero, lighter is positive, darker negative.",
    )
    return f'<section aria-labelledby="filters">\n<h2 id="filters">First layer</h2>\n{figure}\n</section>'


def _pairs(confusion: Ints, label_names: Sequence[str]) -> str:
    """The pairs of classes with the most mistakes; of equals, those with the larger share first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return "<p>No class was taken for another.</p>"
    support = confusion.sum(axis=1)
    pairs = sorted(
        (
            (int(wrong[true, said]), float(wrong[true, said] / support[true]), true, said)
            for true, said in np.argwhere(wrong)
        ),
        key=lambda pair: (-pair[0], -pair[1], pair[2], pair[3]),
    )
    rows = [
        (label_names[true], label_names[said], f"{images:,}", f"{share:.1%}") for images, share, true, said in pairs
    ]
    return _table(
        f"The {len(rows[:PAIRS])} most frequent of {len(rows):,} kinds of mistakes; shares of the true class's images",
        ("true", "predicted", "images", "share"),
        rows[:PAIRS],
        words=2,
    )


def _classes(confusion: Ints, label_names: Sequence[str]) -> str:
    """Precision and recall; with many classes, those of the least F1 among them that have images."""
    right = np.diagonal(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    order = list(range(len(label_names)))
    caption = "All classes, in their order"
    if len(order) > LISTED:
        f1 = 2 * right / np.maximum(support + predicted, 1)
        order = sorted(np.flatnonzero(support).tolist(), key=lambda index: (f1[index], -support[index]))[:LISTED]
        caption = f"The {len(order)} worst of {len(label_names):,} classes, by F1"
    rows = [
        (
            label_names[index],
            index,
            _share(right[index], predicted[index]),
            _share(right[index], support[index]),
            f"{support[index]:,}",
        )
        for index in order
    ]
    return _table(caption, ("class", "number", "precision", "recall", "support"), rows)


def _epochs(results: Results) -> str:
    if not results.epochs:
        return ""
    rows = [
        (
            f"{index + 1} (best)" if index == results.best_epoch else index + 1,
            f"{epoch.loss:.4f}",
            f"{epoch.validation_loss:.4f}",
            f"{epoch.validation_accuracy:.2%}",
            f"{epoch.learning_rate:.3g}",
        )
        for index, epoch in enumerate(results.epochs)
    ]
    header = ("epoch", "loss", "validation loss", "validation accuracy", "learning rate")
    return (
        f"<details>\n<summary>Epochs</summary>\n{_table('Figures at the end of each epoch', header, rows)}\n</details>"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _text(value: object) -> str:
    return escape(str(value))


def _definitions(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f'<div><dt>{_text(name)}</dt><dd dir="auto">{_text(value)}</dd></div>' for name, value in items)


def _figure(file: str, alternative: str, caption: str) -> str:
    image = f'<img src="{file}" alt="{_text(alternative)}">'
    return f'<figure>\n<a href="{file}">{image}</a>\n<figcaption>{_text(caption)}</figcaption>\n</figure>'


def _table(caption: str, header: Sequence[str], rows: Iterable[Row], words: int = 1) -> str:
    """A table whose first column names the row; the first `words` columns hold words, the others numbers."""
    kinds = ["" if column < words else ' class="number"' for column in range(len(header))]
    heads = "".join(f'<th scope="col"{kind}>{_text(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    lines = []
    for first, *others in rows:
        cells = "".join(
            f'<td dir="auto"{kind}>{_text(each)}</td>' for each, kind in zip(others, kinds[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row" dir="auto">{_text(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{_text(caption)}" tabindex="0">\n<table>\n'
        f"<caption>{_text(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>\n</div>"
    )
