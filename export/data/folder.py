"""`folder:PATH`: your own images, a sub-folder for each class.

    PATH/cat/1.jpg                 the classes are the sub-folders, in the order of their names;
    PATH/dog/puppies/2.png         images lie anywhere below them

Or already split, as torchvision's ImageFolder has it, with the same classes in every part:

    PATH/train/cat/1.jpg
    PATH/val/cat/2.jpg             or validation/; this or test/ may be missing and is then carved out of train/
    PATH/test/cat/3.jpg

Files are checked with the service's own decoder, so what is trained on is what would be served; what it refuses is
skipped. So are copies: what lies in two classes altogether, and in train/ what validation or test has too, in
validation what test has. Hidden files and what macOS and Windows leave behind are passed over. The images themselves
stay on the disk; each is read when it is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.data.base import Dataset, OnAccess, Skipped, Split, clashes, completed, stratified
from export.errors import DataError
from service.errors import FoveaError
from service.preprocess import Limits, Preprocessor
from service.spec import ImageSpec

PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
RANKS = ("train", "validation", "test")  # copies stay in the last of them
LITTER = ("__macosx", "thumbs.db", "desktop.ini")
FEWEST = 3  # different images of a class, one for each part
# Small, so that large JPEGs are checked at a fraction of their size; they are read to the end all the same.
CHECK = Preprocessor(ImageSpec(height=32, width=32, resize="stretch"))
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclass(frozen=True)
class File:
    """A file in the folder of a class.

    Attributes:
        path: Of the file.
        label: Index of the class.
        part: A value of `PARTS`; "" where there are none.
        digest: SHA-256 of what it holds.
    """

    path: Path
    label: int
    part: str
    digest: bytes = b""


def load(argument: str, console: Console | None = None) -> Dataset:
    """The images of a folder.

    Args:
        argument: Path of the folder; `~` is the home directory.
        console: Where a progress bar goes while the files are checked; nowhere if None.

    Returns:
        The data set, called after the last part of the path: where it lies on this machine is nobody's business.

    Raises:
        DataError: There is no such folder, it is not laid out as above, or a class has too few images.
    """
    if not argument.strip():
        raise DataError("name the folder, as in folder:PATH")
    root = Path(argument).expanduser()
    places, strays = _parts(root)
    names = _class_names(root, places)
    skipped = [Skipped(str(path), "in the folder of no class") for path in strays]
    files = [
        File(path, label, part)
        for place, part in places
        for label, name in enumerate(names)
        for path in _files(place / name, skipped)
    ]
    readable = _readable(files, skipped, console)
    for label, name in enumerate(names):
        if not any(file.label == label for file in readable):
            raise DataError(
                f"{root}: no image of class {name} can be read: put JPEG, PNG, WebP, BMP, GIF or TIFF there"
            )
    kept = _without_copies(readable, names, skipped)
    parts = {part for _, part in places}
    _check_enough(root, kept, names, parts)
    paths = tuple(file.path for file in kept)
    labels = np.array([file.label for file in kept], np.int64)
    return Dataset(
        name=f"folder:{root.resolve().name}",
        images=OnAccess(len(paths), partial(_read, paths)),
        labels=labels,
        label_names=names,
        split=_split(kept, labels, parts),
        skipped=tuple(sorted(skipped, key=lambda each: each.path)),
    )


def _parts(root: Path) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The folders that hold class folders, each with its part, and the files beside these."""
    folders, strays = _children(root)
    places = [(folder, PARTS[folder.name.lower()]) for folder in folders if folder.name.lower() in PARTS]
    named = {part for _, part in places}
    if "train" not in named or len(named) < 2:  # a class may be called train
        return [(root, "")], strays
    others = [folder.name for folder in folders if folder.name.lower() not in PARTS]
    if others:
        raise DataError(f"{root} is split into {', '.join(sorted(named))}: move {', '.join(others)} out of it")
    return places, strays + [path for place, _ in places for path in _children(place)[1]]


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files right in a folder, by name."""
    try:
        children = sorted(path for path in folder.iterdir() if not _litter(path.name))
    except FileNotFoundError:
        raise DataError(
            f"there is no folder {folder}: folder:PATH names one with a sub-folder for each class"
        ) from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file: unpack it, and name the folder") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): see to its permissions") from error
    folders = [path for path in children if path.is_dir()]
    return folders, [path for path in children if path not in set(folders)]


def _class_names(root: Path, places: Sequence[tuple[Path, str]]) -> tuple[str, ...]:
    """The names that the class folders have in every part."""
    found = {place: [folder.name for folder in _children(place)[0]] for place, _ in places}
    names = sorted(set().union(*found.values()))
    if not names:
        raise DataError(f"{root} holds no folders: put the images of each class into a folder named after it")
    for place, there in found.items():
        missing = [name for name in names if name not in there]
        if missing:
            raise DataError(f"{place} lacks {', '.join(missing)}: every part needs a folder for every class")
    if len(names) == 1:
        raise DataError(f"{root} holds one class only, {names[0]}: add a folder of images that are something else")
    return tuple(names)


def _litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _files(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """All files below a folder, through links too; folders that cannot be read are skipped."""

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"cannot be read: {error.strerror}"))

    found: list[Path] = []
    seen = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:  # a link that leads upwards
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not _litter(name))
        found.extend(Path(place, name) for name in sorted(names) if not _litter(name))
    return found


def _readable(files: Sequence[File], skipped: list[Skipped], console: Console | None) -> list[File]:
    """Those that the service would decode, with their digests."""
    from rich.progress import track

    found = []
    with ThreadPoolExecutor(THREADS) as pool:
        checks: Iterable[bytes | str] = pool.map(_checked, [file.path for file in files])
        bar = track(
            checks, "reading images", total=len(files), console=console, disable=console is None, transient=True
        )
        for file, digest in zip(files, bar, strict=True):
            if isinstance(digest, str):
                skipped.append(Skipped(str(file.path), digest))
            else:
                found.append(File(file.path, file.label, file.part, digest))
    return found


def _checked(path: Path) -> bytes | str:
    """The SHA-256 of an image file, or why it is none."""
    limit = Limits().max_bytes
    try:
        if not path.is_file():  # a link to nothing, or a pipe, which would never end
            return "no file"
        size = path.stat().st_size
        if size > limit:
            return f"{size} bytes are more than {limit}; scale the image down"
        data = path.read_bytes()
        CHECK(data)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except FoveaError as error:
        return error.message
    return hashlib.sha256(data).digest()


def _without_copies(files: list[File], names: Sequence[str], skipped: list[Skipped]) -> list[File]:
    """Without what lies in two classes, and without what a later part has too."""
    clashing = clashes([file.digest for file in files], np.array([file.label for file in files]))
    last: dict[bytes, File] = {}
    for file in files:
        if not file.part or file.digest not in last or _rank(file) > _rank(last[file.digest]):
            last[file.digest] = file
    kept = []
    for index, file in enumerate(files):
        keeper = last[file.digest]
        if index in clashing:
            other = files[clashing[index]]
            skipped.append(Skipped(str(file.path), f"also under class {names[other.label]}: {other.path}"))
        elif file.part != keeper.part:
            skipped.append(Skipped(str(file.path), f"also in {keeper.part}: {keeper.path}"))
        else:
            kept.append(file)
    return kept


def _rank(file: File) -> int:
    return RANKS.index(file.part)


def _check_enough(root: Path, files: Sequence[File], names: Sequence[str], parts: set[str]) -> None:
    contents: dict[tuple[str, int], set[bytes]] = {
        (part, label): set() for part in parts for label in range(len(names))
    }
    for file in files:
        contents[file.part, file.label].add(file.digest)
    # Whatever is not given comes out of the first part.
    needed = {part: 1 if part in RANKS[1:] else FEWEST + 1 - len(parts) for part in parts}
    for (part, label), found in sorted(contents.items()):
        if len(found) < needed[part]:
            where = f"{part} of class" if part else "class"
            raise DataError(
                f"{root}: {where} {names[label]} has {len(found)} different images that can be used, and needs "
                f"{needed[part]} at least: train, validation and test each take one"
            )


def _split(files: Sequence[File], labels: NDArray[np.int64], parts: set[str]) -> Split:
    contents = [file.digest for file in files]
    if parts == {""}:
        return stratified(contents, labels)
    given = {
        part: np.array([index for index, file in enumerate(files) if file.part == part], np.int64) for part in parts
    }
    return completed(contents, labels, given)


def _read(paths: Sequence[Path], index: int) -> bytes:
    try:
        return paths[index].read_bytes()
    except OSError as error:
        raise DataError(f"{paths[index]} is gone ({error.strerror}): put it back, or start again without it") from error
