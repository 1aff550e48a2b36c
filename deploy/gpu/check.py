"""Check Fovea on a machine with an NVIDIA GPU, and measure what it reaches there: `make gpu-check`.

    python -m deploy.gpu.check --out build/gpu-check.json
    python -m deploy.gpu.check --device cpu --arch resnet18

A training step, exports, ONNX Runtime on CUDA, TensorRT, Triton with a GPU instance and nvJPEG, each held against the
CPU; then throughput by engine, precision and batch. Every check passes, fails, or is skipped with the reason; the exit
status is 1 only where one failed. No network is needed. **Whatever needs a GPU has not yet run**; with `--device cpu`
the rest does, and the tests run it so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.gpu import machine, report, rows
from deploy.gpu.bench import Bench, Options

BATCHES = {"cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256), "cpu": (1, 8)}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.gpu.check", description="Check Fovea on a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: skip what needs a GPU")
    parser.add_argument("--arch", default="resnet50", metavar="A", help="the network (default: resnet50)")
    parser.add_argument(
        "--batch-sizes", type=batch_sizes, metavar="N,N,…", help="of the table (default: 1 to 256, 1 and 8 on a CPU)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/gpu-check.json"),
        metavar="FILE",
        help="where the results go as JSON, with a .md beside it (default: build/gpu-check.json)",
    )
    return parser.parse_args(arguments)


def batch_sizes(text: str) -> tuple[int, ...]:
    """`1,8,64`."""
    sizes = tuple(map(int, text.split(",")))
    if min(sizes) < 1:
        raise ValueError(text)
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check; 1 if one failed."""
    given = parse(arguments)
    options = Options(given.arch, given.batch_sizes or BATCHES[given.device], given.threads)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("torch").set_num_threads(options.threads)
    found = []
    with tempfile.TemporaryDirectory(prefix="fovea-") as folder:
        described = machine.describe(given.device, options.threads)
        bench = Bench(options, described, Path(folder))
        for name, check in bench.checks():
            row = rows.run(name, check)
            sys.stdout.write(f"{row.state:8}{row.name}: {row.detail} ({row.seconds:.1f} s)\n")
            sys.stdout.flush()
            found.append(row)
    report.write(given.out, options, described, found, bench)
    sys.stdout.write(f"written to {given.out} and {given.out.with_suffix('.md')}\n")
    return int(any(row.state == "failed" for row in found))


if __name__ == "__main__":
    sys.exit(main())
