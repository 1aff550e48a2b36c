"""`python -m service classify … --out FOLDER`: images by the million, into Parquet."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from service import __version__
from service.errors import InvalidRequest, UnknownModel
from service.settings import InvalidSettings, Settings

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from service.bulk.manifest import Folder, Manifest, Work
    from service.bulk.model import PinnedModel
    from service.bulk.sources import Sources
    from service.bulk.worker import Job, Tallies

IMAGES_PER_PART = 1000


@dataclass(frozen=True)
class _Options:
    """Flags that belong to `--out`."""

    engine: str = "local"
    workers: int | None = None
    ray_address: str = "local"
    column: str = "image"
    id_column: str | None = None
    images_per_part: int = IMAGES_PER_PART
    features: bool = False

    @classmethod
    def given(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        """Those that were given."""
        names = (field.name for field in fields(cls))
        return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def add(classify: argparse.ArgumentParser) -> None:
    """Add what belongs to `--out` to the arguments of `classify`."""
    bulk = classify.add_argument_group(
        "by the million",
        "With --out the images may also be globs ('photos/**/*.jpg', in quotes), addresses in object stores "
        "(s3://bucket/prefix, gs://…) and Parquet tables with images in a column. Bad images are rows of the answer. "
        "Whatever interrupted it, the same command goes on where it stopped.",
    )
    bulk.add_argument("--out", metavar="FOLDER", help="write Parquet files into this folder or object-store prefix")
    bulk.add_argument("--engine", choices=("local", "ray"), help="in this process (default), or in many, on Ray Data")
    bulk.add_argument("--threads", type=int, metavar="N", help="of a process (default: its cores; with ray 1)")
    bulk.add_argument("--workers", type=int, metavar="N", help="processes of ray (default: cores / threads)")
    bulk.add_argument("--ray-address", metavar="ADDRESS", help="of a Ray cluster, or auto (default: one of its own)")
    bulk.add_argument("--column", metavar="NAME", help="of tables: the bytes, like image.bytes (default: image)")
    bulk.add_argument("--id-column", metavar="NAME", help="of tables: what to call the images in the answers")
    bulk.add_argument("--features", action="store_true", default=None, help="write the features of each image too")
    bulk.add_argument(
        "--images-per-part", type=int, metavar="N", help=f"about so many rows a file (default: {IMAGES_PER_PART})"
    )


def check_unused(arguments: argparse.Namespace) -> None:
    """See that nothing was asked for that takes `--out`.

    Raises:
        InvalidSettings: Something was.
    """
    for name in _Options.given(arguments):
        raise InvalidSettings(f"--{name.replace('_', '-')} belongs to --out FOLDER")
    for given in arguments.images:
        if "://" in given:
            raise InvalidSettings(f"{given} is classified with --out FOLDER")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Classify everything that has no answer in the folder yet.

    Returns:
        The exit status: 0 once every image has its answer or its error.
    """
    options = _Options(**_Options.given(arguments))
    for flag, value in (("--workers", options.workers), ("--images-per-part", options.images_per_part)):
        if value is not None and value < 1:
            raise InvalidSettings(f"{flag} must be at least 1")
    if settings.backend != "embedded":
        raise InvalidSettings("--out runs models itself: unset FOVEA_BACKEND, or say embedded")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: heads multiply small matrices
    try:
        from service.bulk.manifest import Folder, check
        from service.bulk.sources import Sources
        from service.bulk.stores import absolute
        from service.bulk.worker import Job
    except ModuleNotFoundError as error:
        raise InvalidSettings(f"--out needs {error.name}: pip install 'fovea[bulk]'") from error
    out = absolute(arguments.out)
    given = tuple(map(absolute, arguments.images))
    sources = Sources(given, options.column, options.id_column, settings.max_image_bytes)
    folder = Folder(out)
    manifest = folder.manifest()
    model = asyncio.run(_pinned(settings, manifest, folder.shown))
    work = _work(model, sources, arguments.top_k, options.features, options.images_per_part)
    if manifest is not None:
        check(manifest, work, folder.shown)
    with _progress() as progress:
        bar = progress.add_task("listing", total=None)
        if manifest is None:
            manifest = _begin(folder, work, sources, progress, bar)
        done = folder.done()
        tallies = _tallies(
            Job(model, sources, out, arguments.top_k, options.features),
            [shard for shard in range(manifest.parts) if shard not in done],
            options,
            settings,
        )
        listing = folder.listing()
        skipped = sum(map(listing.images, sorted(done)))
        progress.reset(bar, description="classifying", total=manifest.images - skipped)
        return _follow(tallies, progress, bar, folder.shown, skipped, as_json=arguments.json)


async def _pinned(settings: Settings, manifest: Manifest | None, shown: str) -> PinnedModel:
    """The version that answers; if answers were begun, the one that gave them, whatever was published since."""
    from service.app import local
    from service.bulk.model import PinnedModel
    from service.preprocess import Limits

    async with local(settings) as classifier:
        name = classifier.named(None)
        version = manifest.work.version if manifest and manifest.work.model == name else None
        try:
            served = classifier.resolve(name, version)
        except UnknownModel as error:
            if version is None:
                raise
            raise InvalidSettings(f"--out: the answers begun in {shown} cannot be continued: {error}") from error
        limits = Limits(settings.max_image_bytes, settings.max_pixels)
        return PinnedModel.of(served, settings.model_repository, limits)


def _work(model: PinnedModel, sources: Sources, top_k: int, features: bool, images_per_part: int) -> Work:
    from service.bulk.manifest import Work
    from service.bulk.stores import public

    return Work(
        model=model.spec.name,
        version=model.spec.version,
        digest=model.digest,
        sources=tuple(map(public, sources.given)),
        column=sources.column,
        id_column=sources.id_column,
        top_k=top_k,
        features=features,
        images_per_part=images_per_part,
        max_image_bytes=model.limits.max_bytes,
        max_pixels=model.limits.max_pixels,
    )


def _begin(folder: Folder, work: Work, sources: Sources, progress: Progress, bar: TaskID) -> Manifest:
    """List everything, once: what is continued later is this list."""
    from service.bulk.manifest import ListingWriter, Manifest, listed

    listing = ListingWriter()
    parts = total = 0
    for shard, images in listed(sources.entries(), work.images_per_part):
        listing.add(shard)
        parts, total = parts + 1, total + images
        progress.update(bar, completed=total)
    if not parts:
        raise InvalidRequest("no images found; tables are named themselves: FILE.parquet, or 'FOLDER/*.parquet'")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(fovea=__version__, created=created, work=work, parts=parts, images=total)
    folder.begin(manifest, listing.finish())
    return manifest


def _tallies(job: Job, shards: list[int], options: _Options, settings: Settings) -> Tallies:
    if options.engine == "ray":
        from service.bulk import ray_engine

        # Ray counts processors: of many processes with one thread each, none waits for another.
        threads = settings.threads if "threads" in settings.model_fields_set else 1
        yield from ray_engine.run(job, shards, workers=options.workers, threads=threads, address=options.ray_address)
    elif shards:
        from service.bulk.worker import Worker

        with Worker(job, settings.threads) as worker:
            yield from worker.run(shards)


def _follow(tallies: Tallies, progress: Progress, bar: TaskID, shown: str, skipped: int, *, as_json: bool) -> int:
    """Show how it goes, and what came of it."""
    from service.bulk.worker import Tally

    total, began = Tally(), time.monotonic()
    try:
        with closing(tallies):
            for tally in tallies:
                total += tally
                progress.update(bar, completed=total.images)
    except KeyboardInterrupt:
        progress.stop()
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    progress.stop()
    seconds = time.monotonic() - began
    counts = {
        "classified": total.images - total.bad,
        "abstained": total.abstained,
        "bad": total.bad,
        "skipped": skipped,
        "seconds": round(seconds, 1),
        "images_per_second": round(total.images / seconds, 1),
        "out": shown,
    }
    if as_json:
        print(orjson.dumps(counts).decode())
    else:
        print(
            f"{counts['classified']:,} classified ({total.abstained:,} of them abstained), {total.bad:,} bad,"
            f" {skipped:,} done before; {seconds:.1f} s, {total.images / seconds:,.0f} images/s; {shown}"
        )
    return 0


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> str:
            return f"{task.speed:,.0f}/s" if task.speed else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
