"""Classifies files without a server: the same backend, classifier and answers, over paths instead of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from service.answers import Prediction
from service.classifier import Classifier
from service.errors import FoveaError, InvalidImage

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
CONCURRENCY = 128  # images under way: enough to fill batches while others are decoded


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and those with an image's suffix in the directories among them, in order.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    return found


async def classify_files(
    classifier: Classifier, files: Iterable[Path], *, model: str | None, top_k: int, at_once: int = CONCURRENCY
) -> AsyncIterator[tuple[Path, Prediction | FoveaError]]:
    """Classify files, many at once.

    Args:
        classifier: That answers.
        files: To be read.
        model: Name; None for the default.
        top_k: Classes per image.
        at_once: Files under way at most; no more than the model's queue holds.

    Yields:
        Each file with its prediction or its error, in the order given.
    """

    async def one(file: Path) -> Prediction | FoveaError:
        try:
            data = await asyncio.to_thread(file.read_bytes)
            answer = await classifier.classify([data], model=model, top_k=top_k)
        except OSError as error:
            return InvalidImage(f"cannot be read: {error.strerror}")
        except FoveaError as error:
            return error
        return answer.results[0]

    under_way: list[tuple[Path, asyncio.Task[Prediction | FoveaError]]] = []
    for file in files:
        under_way.append((file, asyncio.create_task(one(file))))
        if len(under_way) >= min(at_once, CONCURRENCY):
            path, task = under_way.pop(0)
            yield path, await task
    for path, task in under_way:
        yield path, await task
