"""The models of a repository side by side, as Canziani, Paszke and Culurciello 2017 (arXiv:1605.07678) compared them.

What a model costs is measured here and now (`export.measure`), what it is worth comes from its spec. Everything lands
in one folder: `compare.json`, `table.md`, and the plots (`export.compare_plots`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export import compare_plots, replay
from export.comparison import Comparison, Entry, Machine, amount, conditions
from export.errors import ExportError
from export.measure import Measured
from export.repository import newest_versions
from service.spec import ModelSpec

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
THREADS = 2
TIMEOUT = 600.0  # seconds for one model
JSON, TABLE = "compare.json", "table.md"


def compare(
    repository: Path,
    out: Path,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int = THREADS,
    console: Console | None = None,
) -> Comparison:
    """Run the newest version of every model in a repository, and draw.

    Args:
        repository: The model repository.
        out: Folder for the results.
        batch_sizes: Images; a model's largest ones are left out where they take too long.
        threads: On a CPU.
        console: Where the progress bar goes; none if None.

    Raises:
        ExportError: There is nothing to run.
    """
    newest, failed = newest_versions(repository)
    if not newest:
        raise ExportError(f"{repository} holds no model to compare: {'; '.join(failed.values()) or 'it is empty'}")
    entries = []
    with _progress(console) as progress:
        task = progress.add_task("", total=len(newest))
        for spec in newest:
            progress.update(task, description=spec.name)
            try:
                entries.append(_entry(repository / spec.name, spec, batch_sizes, threads))
            except ExportError as error:
                failed[spec.name] = str(error)
            progress.advance(task)
    if not entries:
        raise ExportError(f"no model in {repository} could be run: {'; '.join(failed.values())}")
    comparison = Comparison(
        machine=Machine(processor=_processor(), cores=os.cpu_count() or 1, onnxruntime=onnxruntime.__version__),
        models=tuple(sorted(entries, key=lambda entry: (entry.macs, entry.name))),
        failed=failed,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / TABLE).write_text(markdown(comparison), encoding="utf-8")
    compare_plots.draw(comparison, out)
    return comparison


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table, its header first."""
    power = any(entry.measured.watts is not None for entry in comparison.models)
    header = ("model", "precision", "accuracy", "parameters", "MACs", "latency", "images/s", "batch", "memory")
    found = [header + ("power",) * power]
    for entry in comparison.models:
        first, fastest = entry.measured.batches[0], entry.fastest
        row = (
            entry.name,
            entry.precision,
            "" if entry.accuracy is None else f"{entry.accuracy:.2%}",
            amount(entry.parameters),
            amount(entry.macs),
            f"{first.latency_ms:.3g} ms" if first.images == 1 else "",
            f"{fastest.images_per_second:,.0f}"
            if fastest.images_per_second > 100
            else f"{fastest.images_per_second:.3g}",
            str(fastest.images),
            f"{entry.memory_bytes / 2**20:,.0f} MiB",
        )
        watts = entry.measured.watts
        found.append(row + ("" if watts is None else f"{watts:.0f} W",) * power)
    return found


def markdown(comparison: Comparison) -> str:
    """The table with what it needs to be understood."""
    header, *body = rows(comparison)
    lines = [
        f"| {' | '.join(header)} |",
        "| --- | --- |" + " ---: |" * (len(header) - 2),
        *(f"| {' | '.join(row)} |" for row in body),
        "",
        f"{conditions(comparison)}. MACs: multiply-accumulates per image. Latency: of one image. Images/s: at the "
        "batch size that suits the model best. Memory: what the model adds to a process, at most.",
    ]
    data = sorted({entry.accuracy_data for entry in comparison.models if entry.accuracy_data})
    if data:
        lines.append(f"Accuracy: top-1, {'; '.join(data)}.")
    lines += [f"Not run: {name}: {reason}" for name, reason in sorted(comparison.failed.items())]
    return "\n".join(lines) + "\n"


def _entry(folder: Path, spec: ModelSpec, batch_sizes: Sequence[int], threads: int) -> Entry:
    line = [sys.executable, "-m", "export.measure", str(folder), spec.version]
    line += ["--threads", str(threads), "--batch-sizes", *map(str, batch_sizes)]
    try:
        done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        measured = Measured.model_validate_json(done.stdout)
    except subprocess.CalledProcessError as error:
        raise ExportError((error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]) from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"not done in {TIMEOUT:.0f} s") from error
    except ValidationError as error:
        raise ExportError(f"unreadable figures: {error}") from error
    return Entry(
        name=spec.name,
        version=spec.version,
        architecture=spec.architecture,
        precision=spec.precision,
        accuracy=spec.accuracy.top1 if spec.accuracy else None,
        accuracy_data=spec.accuracy.data if spec.accuracy else None,
        parameters=spec.parameters,
        macs=spec.macs,
        file_bytes=(folder / spec.version / replay.model_file(spec)).stat().st_size,
        measured=measured,
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _progress(console: Console | None) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=console is None,
    )
