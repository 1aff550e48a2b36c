"""The results as JSON, for machines, and as Markdown, for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from deploy.gpu.bench import Bench, Options
from deploy.gpu.machine import Machine
from deploy.gpu.rows import Row


def write(path: Path, options: Options, machine: Machine, rows: Sequence[Row], bench: Bench) -> None:
    """Write `path`, and the same as Markdown beside it.

    Args:
        path: Of the JSON file; the other one ends in `.md`.
        options: What was checked.
        machine: On what.
        rows: What the checks came to.
        bench: With the figures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "options": asdict(options),
        "machine": asdict(machine),
        "checks": [asdict(row) for row in rows],
        "operations_per_second": bench.rates,
        "jpeg_files_per_second": bench.decoding,
        "throughput": [asdict(entry) for entry in bench.entries],
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(options, machine, rows, bench), encoding="utf-8")


def _markdown(options: Options, machine: Machine, rows: Sequence[Row], bench: Bench) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts = [
        f"# GPU check: {machine.gpu or 'no GPU'}",
        f"{machine.cpu}, {machine.cores} cores, {machine.threads} used; {versions}.",
        _table(
            ("check", "result", "", "s"), ((each.name, each.state, each.detail, f"{each.seconds:.1f}") for each in rows)
        ),
    ]
    if bench.rates:
        parts += [
            "## Matrix products, 10¹² operations/s",
            _table(
                ("device", "type", "rate"),
                (
                    (device, name, f"{rate / 1e12:.3g}")
                    for device, rates in bench.rates.items()
                    for name, rate in rates.items()
                ),
            ),
        ]
    if bench.entries:
        parts += [
            f"## Throughput of {options.arch}",
            "The share is that of the GPU's matrix rate above, two operations to a multiply-accumulate.",
            _table(
                ("engine", "precision", "batch", "images/s", "ms", "share"),
                (
                    (
                        each.engine,
                        each.precision,
                        str(each.batch),
                        f"{each.images_per_second:,.1f}",
                        f"{each.milliseconds:.2f}",
                        "" if each.share is None else f"{each.share:.1%}",
                    )
                    for each in bench.entries
                ),
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    everything = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in everything)
