"""The report of a training run, read as a browser would read it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import report, report_plots
from export.report import Results
from export.run import Epoch
from service import calibration

PICTURES = {"learning-curves.png", "confusion-matrix.png", "reliability-diagram.png", "filters.png", "mistakes.png"}


def results(
    classes: int = 3, images: int = 40, right: float = 0.7, epochs: int = 3, names: tuple[str, ...] = ()
) -> Results:
    """Made up, of a network that is right about so many images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    said = np.where(random.random(images) < right, labels, (labels + 1) % classes)
    logits[np.arange(images), said] += 4
    probabilities, calibrated = (calibration.probabilities(logits, each).astype(np.float32) for each in (1, 1.5))
    return Results(
        title="net on data",
        facts={"seed": "0"},
        epochs=[
            Epoch(loss=2 / (n + 1), validation_loss=1.5, validation_accuracy=0.5, learning_rate=0.1)
            for n in range(epochs)
        ],
        best_epoch=epochs // 2,
        label_names=names or tuple(f"name {index}" for index in range(classes)),
        labels=labels,
        probabilities=probabilities,
        calibrated=calibrated,
        temperature=1.5,
        pixels=random.integers(0, 256, (images, 8, 8, 1)).astype(np.uint8),
        filters=random.normal(size=(6, 1, 5, 5)).astype(np.float32),
        accuracy={"test accuracy": 0.98765},
    )


class Page(HTMLParser):
    """A page's elements, its text, its tables, its pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.pictures: dict[str, str] = {}
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed((folder / "report.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.pictures[known["src"] or ""] = known["alt"] or ""
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.tables and self.tables[-1] and self.tables[-1][-1] and self.tags[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the table with that header."""
        (found,) = (rows for first, *rows in self.tables if first == list(header))
        return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return report.write(tmp_path_factory.mktemp("runs") / "run", results())


def test_a_report_is_a_page_and_the_pictures_it_shows(written: list[Path]) -> None:
    folder = written[0].parent
    assert {path.name for path in written} == PICTURES | {"report.html"} == {path.name for path in folder.iterdir()}
    page = Page(folder)
    assert set(page.pictures) == PICTURES
    assert set(page.links) == PICTURES  # nothing from elsewhere
    assert all(page.pictures.values())
    assert "script" not in page.tags
    assert "98.77%" in page.text
    assert len(page.table("epoch", "loss", "validation loss", "validation accuracy", "learning rate")) == 3
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert image.width > 600


def test_the_same_results_give_the_same_bytes(written: list[Path], tmp_path: Path) -> None:
    again = report.write(tmp_path, results())
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_classes_and_confusions_are_counted(tmp_path: Path) -> None:
    labels, said = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 0, 0, 2])
    certain = np.eye(4, dtype=np.float32)[said]
    report.write(
        tmp_path,
        replace(results(4, 7), labels=labels, probabilities=certain, calibrated=certain, label_names=tuple("abcd")),
    )
    page = Page(tmp_path)
    assert page.table("class", "number", "precision", "recall", "support") == [
        ["a", "0", "60.0%", "75.0%", "4"],
        ["b", "1", "0.0%", "0.0%", "2"],
        ["c", "2", "100.0%", "100.0%", "1"],
        ["d", "3", "–", "–", "0"],
    ]
    assert page.table("true", "predicted", "images", "share") == [["b", "a", "2", "100.0%"], ["a", "b", "1", "25.0%"]]
    assert "4 of 7 test images are on the diagonal" in page.text
    assert "without test images (hatched): 1 of 4" in page.text


def test_with_many_classes_the_worst_are_listed_and_all_are_drawn(tmp_path: Path) -> None:
    many = results(classes=300, images=900, right=1.0)
    calibrated = many.calibrated.copy()
    calibrated[many.labels == 123] = np.eye(300, dtype=np.float32)[7]
    report.write(tmp_path, replace(many, calibrated=calibrated))
    page = Page(tmp_path)
    rows = page.table("class", "number", "precision", "recall", "support")
    assert len(rows) == 20
    assert rows[0][:4] == ["name 123", "123", "–", "0.0%"]
    assert page.table("true", "predicted", "images", "share")[0][:2] == ["name 123", "name 7"]


def test_names_are_words_and_nothing_else(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", '$\\frac$ & "more"', "猫", "قطة", "_", " ", "$TITLE ${x}")
    made = replace(results(len(names), 100, names=names), title="<b>猫</b> $title", facts={"<i>": "</dd>"})
    report.write(tmp_path, made)
    page = Page(tmp_path)
    assert not {"script", "b", "i"} & set(page.tags)
    assert "<b>猫</b> $title" in page.text
    rows = page.table("class", "number", "precision", "recall", "support")
    assert [row[0] for row in rows] == [name.strip() for name in names]


@pytest.mark.parametrize("epochs", [0, 1])
def test_little_is_enough(tmp_path: Path, epochs: int) -> None:
    report.write(tmp_path, replace(results(2, 8, right=0.0), filters=None))
    written = report.write(tmp_path, replace(results(2, 1, right=1.0, epochs=epochs), filters=None))
    left = {"confusion-matrix.png", "reliability-diagram.png"} | ({"learning-curves.png"} if epochs else set())
    assert set(Page(tmp_path).pictures) == left
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}  # none of the report before
    assert "None among 1 test images" in Page(tmp_path).text


def test_a_training_that_diverged_is_drawn(tmp_path: Path) -> None:
    nan = float("nan")
    gone = [Epoch(loss=loss, validation_loss=nan, validation_accuracy=0.1, learning_rate=0.0) for loss in (90, nan)]
    report.write(tmp_path, replace(results(), epochs=gone, best_epoch=0, filters=np.zeros((70, 3, 1, 1), np.float32)))
    assert "learning-curves.png" in Page(tmp_path).pictures


def test_the_most_confident_mistake_comes_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert report_plots.mistaken(probabilities, np.array([1, 1, 1, 0])).tolist() == [1, 0]
