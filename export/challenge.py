"""Whether models know what they do not know: prediction sets and abstention, on held-out images and on strangers.

Everything goes the way that a served image goes: preprocessing, the published graph in ONNX Runtime, and the service's
own calibration. Held-out images are the test split of the data set that the spec names; nothing was chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from export import challenge_plot, data, replay
from export.calibrate import TEST, Graph, Judged, coverage_of
from export.challenged import Challenged, Shown
from export.data.base import AS_SUCH, FILTERS, SIDES
from export.errors import DataError, ExportError, UnknownName
from export.repository import newest_versions
from export.strangers import strangers
from service.calibration import energy, unfamiliar
from service.files import write_whole
from service.preprocess import Preprocessor
from service.spec import ModelSpec

GUISES = 2 * (1 + len(FILTERS) * len(SIDES))  # of a drawing


def challenge(
    repository: Path, names: Sequence[str] = (), plot: Path | None = None, console: Console | None = None
) -> tuple[list[Challenged], dict[str, str]]:
    """Show models held-out images and strangers.

    Args:
        repository: The model repository.
        names: Of models, whose newest versions are shown; all if there are none.
        plot: A PNG to be drawn.
        console: Where the progress bar goes; none if None.

    Returns:
        What they did, and why others were left out.

    Raises:
        UnknownName: There is no such model.
        ExportError: No model can be shown anything.
    """
    specs, failed = newest_versions(repository)
    for name in names:
        if name not in {*failed, *(spec.name for spec in specs)}:
            raise UnknownName.among("model", name, [*failed, *(spec.name for spec in specs)])
    specs = [spec for spec in specs if not names or spec.name in names]
    failed = {name: why for name, why in failed.items() if not names or name in names}
    found = []
    with _progress(console) as progress:
        for spec in specs:
            task = progress.add_task(spec.name, total=None)

            def tick(images: int, task: TaskID = task) -> None:
                progress.advance(task, images)

            try:
                dataset = _dataset(spec)
                others = strangers(dataset.name, spec.image)
                progress.update(task, total=_images(dataset) + sum(map(len, others.values())))
                path = repository / spec.name / spec.version / replay.model_file(spec)
                found.append(_challenged(spec, dataset, others, path, tick))
            except ExportError as error:
                failed[spec.name] = str(error)
    if not found:
        raise ExportError(f"{repository} holds no model to challenge: {'; '.join(failed.values()) or 'it is empty'}")
    if plot is not None:
        write_whole(plot, challenge_plot.draw(found))
    return found, failed


def _dataset(spec: ModelSpec) -> data.Dataset:
    if spec.accuracy is None or not spec.accuracy.data.endswith(TEST):
        raise DataError("its spec names no data set; publish a run, or with --data")
    dataset = data.load(spec.accuracy.data.removesuffix(TEST))
    if dataset.label_names != spec.labels:
        raise DataError(f"{dataset.name} has other labels by now")
    return dataset


def _images(dataset: data.Dataset) -> int:
    """How many held-out images will be shown."""
    test = dataset.split.test
    return len(test) + (len(dataset.sample(test)) * (GUISES - 1) if dataset.drawn else 0)


def _challenged(
    spec: ModelSpec,
    dataset: data.Dataset,
    others: dict[str, Sequence[bytes]],
    path: Path,
    tick: Callable[[int], object],
) -> Challenged:
    preprocess = Preprocessor(spec.image)
    graph = Graph(replay.session(path), spec.image, spec.calibration.abstain_above_distance is not None, tick)
    held_out = graph.replayed(dataset, dataset.split.test)
    # What the energy would do if it were to abstain from as many held-out images.
    rate = unfamiliar(spec.calibration, held_out.guises.outputs).mean()
    limit = float(np.quantile(energy(held_out.guises.logits), 1 - rate))

    def shown(what: str, judged: Judged, *, known: bool) -> Shown:
        coverage, size = coverage_of(spec.calibration, judged) if known else (None, None)
        return Shown(
            what=what,
            known=known,
            images=len(judged.logits),
            covered=coverage,
            set_size=size,
            abstained=float(unfamiliar(spec.calibration, judged.outputs).mean()),
            by_energy=float((energy(judged.logits) > limit).mean()),
        )

    rows = [shown(f"held out, {AS_SUCH}" if dataset.drawn else "held out", held_out.as_such, known=True)]
    if held_out.count > 1:
        rows.append(shown(f"held out, in {held_out.count} guises", held_out.guises, known=True))
    for what, images in others.items():
        pixels = np.stack([preprocess(image) for image in images])
        rows.append(shown(what, graph.shown(pixels), known=False))
    return Challenged(
        model=spec.name, version=spec.version, data=dataset.name, coverage=spec.calibration.coverage, shown=tuple(rows)
    )


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )
