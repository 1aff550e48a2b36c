"""Data sets that are folders of one's own images."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from export import data
from export.errors import DataError
from service.spec import ImageSpec
from tests.images import encoded


def picture(number: int, kind: str = "PNG") -> bytes:
    """A file; another one for each number."""
    return encoded(Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 20, 3), np.uint8)), kind)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def fill(folder: Path, classes: str = "ab", count: int = 5, offset: int = 0) -> Path:
    """Different images for each class: those of `offset` and the numbers after it, and for the next from 1000 on."""
    for label, name in enumerate(classes):
        for number in range(count):
            put(folder / name / f"{number}.png", picture(offset + 1000 * label + number))
    return folder


def load(folder: Path) -> data.Dataset:
    return data.load(f"folder:{folder}")


def paths(dataset: data.Dataset) -> dict[str, str]:
    """Skipped files by their last two names: why."""
    return {"/".join(Path(each.path).parts[-2:]): each.reason for each in dataset.skipped}


def contents(dataset: data.Dataset, part: str) -> set[bytes]:
    return {dataset.images[index] for index in getattr(dataset.split, part)}


def test_every_class_is_a_folder_and_every_format_served_is_read(tmp_path: Path) -> None:
    kinds = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF")
    for number, kind in enumerate(kinds):
        put(tmp_path / "photos" / "cat" / "deep" / "er" / f"{number}", picture(number, kind))
        put(tmp_path / "photos" / "ant" / f"{number}.jpg", picture(100 + number, kind))
    found = load(tmp_path / "photos")
    assert found.name == "folder:photos"
    assert found.label_names == ("ant", "cat")
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    assert found.images[7] == picture(1, "PNG")
    assert found.skipped == ()
    assert not found.drawn
    assert [len(part) for part in (found.split.train, found.split.validation, found.split.test)] == [8, 2, 2]
    assert found.pixels(found.split.test, ImageSpec(height=8, width=8, resize="stretch")).shape == (2, 8, 8, 3)


def test_what_cannot_be_served_is_skipped_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path)
    jpeg = picture(7, "JPEG")
    put(tmp_path / "a" / "cut.jpg", jpeg[: len(jpeg) * 2 // 3])
    put(tmp_path / "a" / "empty.png", b"")
    put(tmp_path / "a" / "notes.txt", b"not an image")
    put(tmp_path / "b" / "big.bmp", b"BM" + bytes(20 * 2**20))
    put(tmp_path / "labels.csv", b"a,b")
    (tmp_path / "b" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    for litter in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/0.png", ".git/config", "b/.cache/0.png"):
        put(tmp_path / litter, picture(8))
    found = load(tmp_path)
    reasons = paths(found)
    assert len(found.images) == 10
    assert list(reasons) == sorted(reasons)
    assert "truncated" in reasons.pop("a/cut.jpg")
    assert "empty" in reasons.pop("a/empty.png")
    assert "not an image" in reasons.pop("a/notes.txt")
    assert "bytes are more than" in reasons.pop("b/big.bmp")
    assert "no class" in reasons.pop(f"{tmp_path.name}/labels.csv")
    assert reasons == {"b/nowhere.png": "no file", "b/pipe.png": "no file"}


def test_images_stay_on_the_disk(tmp_path: Path) -> None:
    found = load(fill(tmp_path))
    put(tmp_path / "a" / "0.png", b"changed")
    assert found.images[0] == b"changed"
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"a/1\.png is gone"):
        found.images[1]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere")
    for name in "ab":
        (tmp_path / "links" / name).mkdir(parents=True)
        (tmp_path / "links" / name / "there").symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / "loop").symlink_to(tmp_path / "links" / "a")
    assert len(load(tmp_path / "links").images) == 10


def test_copies_stay_together_and_contradictions_are_dropped(tmp_path: Path) -> None:
    fill(tmp_path, count=9)
    for number in range(9):
        put(tmp_path / "a" / f"copy-{number}.png", picture(number))
    put(tmp_path / "b" / "odd.png", picture(3))
    found = load(tmp_path)
    parts = [contents(found, part) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 8 + 9
    reasons = paths(found)
    assert set(reasons) == {"a/3.png", "a/copy-3.png", "b/odd.png"}
    assert reasons["b/odd.png"].startswith("also under class a")
    assert reasons["a/3.png"].startswith("also under class b")


def test_a_split_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    first = load(fill(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = load(tmp_path / "second")
    for part in ("train", "validation", "test"):
        assert contents(first, part) == contents(second, part) != set()


@pytest.mark.parametrize("validation", ["val", "validation", None])
def test_a_given_split_is_kept(tmp_path: Path, validation: str | None) -> None:
    fill(tmp_path / "train", count=12)
    fill(tmp_path / "test", count=3, offset=100)
    if validation:
        fill(tmp_path / validation, count=2, offset=200)
    found = load(tmp_path)
    assert found.label_names == ("a", "b")

    def counts(part: str) -> list[int]:
        return np.bincount(found.labels[getattr(found.split, part)]).tolist()

    assert counts("test") == [3, 3]
    assert contents(found, "test") == {path.read_bytes() for path in tmp_path.glob("test/*/*")}
    if validation:
        assert contents(found, "validation") == {path.read_bytes() for path in tmp_path.glob("val*/*/*")}
        assert counts("train") == [12, 12]
    else:
        assert counts("validation") == [2, 2]
        assert counts("train") == [10, 10]


def test_copies_across_a_given_split_stay_in_the_test_images(tmp_path: Path) -> None:
    for offset, part in ((0, "train"), (100, "val"), (200, "test")):
        fill(tmp_path / part, count=4, offset=offset)
    put(tmp_path / "train" / "a" / "in-test.png", picture(200))
    put(tmp_path / "train" / "a" / "in-val.png", picture(100))
    put(tmp_path / "val" / "b" / "in-test.png", picture(1200))
    put(tmp_path / "val" / "b" / "under-a.png", picture(201))
    found = load(tmp_path)
    reasons = {str(Path(each.path).relative_to(tmp_path)): each.reason.partition(":")[0] for each in found.skipped}
    assert reasons == {
        "train/a/in-test.png": "also in test",
        "train/a/in-val.png": "also in validation",
        "val/b/in-test.png": "also in test",
        "val/b/under-a.png": "also under class a",
        "test/a/1.png": "also under class b",
    }
    assert [len(part) for part in (found.split.train, found.split.validation, found.split.test)] == [8, 8, 7]


def test_training_and_validation_folders_give_their_test_images_from_training(tmp_path: Path) -> None:
    fill(tmp_path / "train", count=6)
    fill(tmp_path / "val", count=6, offset=100)
    split = load(tmp_path).split
    assert [len(part) for part in (split.train, split.validation, split.test)] == [10, 12, 2]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "bus", "x")
    fill(tmp_path / "train", "x", offset=100)
    assert load(tmp_path).label_names == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no folder"),
        ({}, "holds no folders"),
        ({"1.png": 1, "2.png": 2}, "holds no folders"),
        ({"a/1.png": 1, "a/2.png": 2}, "one class only, a"),
        ({"a/1.png": 1, "a/2.png": 2, "a/3.png": 3, "b/1.txt": None}, "no image of class b can be read"),
        (
            {"a/1.png": 1, "a/2.png": 2, "a/3.png": 3, "b/1.png": 4, "b/2.png": 4, "b/3.png": 5},
            "class b has 2 different images that can be used, and needs 3",
        ),
        ({"train/a/1.png": 1, "train/b/1.png": 2, "test/a/1.png": 3}, "test lacks b"),
        ({"train/a/1.png": 1, "test/a/1.png": 3, "masks/1.png": 3}, "move masks out"),
        (
            {"train/a/1.png": 1, "train/b/1.png": 2, "test/a/1.png": 3, "test/b/1.png": 4},
            "train of class a has 1 different images that can be used, and needs 2",
        ),
        (
            {"train/a/1.png": 1, "train/a/2.png": 2, "train/b/1.png": 3, "train/b/2.png": 4}
            | {"test/a/1.png": 5, "test/b/1.png": None},
            "test of class b has 0 different",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_says_why(
    tmp_path: Path, files: dict[str, int | None] | None, message: str
) -> None:
    folder = tmp_path / "set"
    if files is not None:
        folder.mkdir()
        for name, number in files.items():
            put(folder / name, b"text" if number is None else picture(number))
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["folder:", "folder: "])
def test_no_path_is_not_the_working_directory(name: str) -> None:
    with pytest.raises(DataError, match="folder:PATH"):
        data.load(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path / "set.zip", b"PK")
    with pytest.raises(DataError, match="is a file: unpack it"):
        load(tmp_path / "set.zip")


def test_progress_goes_to_the_console_that_is_given(tmp_path: Path) -> None:
    shown = io.StringIO()
    data.load(f"folder:{fill(tmp_path)}", console=Console(file=shown, force_terminal=True))
    assert "reading images" in shown.getvalue()
