"""Images a second of `classify --out` in one process and on Ray, beside the use case that the server runs.

`python -m load_tests.bulk` makes images, classifies them in each way, rounds alternating, and prints medians and
ratios; absolute figures belong to the machine they were taken on. What starting takes (a second; with Ray ten or more)
is left out: time counts from the first quarter of the parts, or lines, to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PART = 500  # images


def make_images(folder: Path, number: int, side: int) -> None:
    """So many images: PNG of noise up to 64 pixels a side, smooth JPEG above."""
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:06}.{'png' if side <= 64 else 'jpg'}")


def serving(images: Path, flags: list[str]) -> float:
    """The server's use case: every image a request of its own, in batches that form by themselves."""
    command = [sys.executable, "-m", "service", "classify", str(images), "--json", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        times = [time.monotonic() for _ in process.stdout]
    if process.returncode or not times:
        sys.exit(f"{' '.join(command)} failed")
    return _rate(times)


def bulk(images: Path, flags: list[str]) -> float:
    """`--out`, by when its parts were written."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "service", "classify", str(images), "--images-per-part", str(PART), *flags]
        subprocess.run([*command, "--out", folder, "--json"], check=True, stdout=subprocess.DEVNULL)
        times = sorted(part.stat().st_mtime for part in Path(folder).glob("part-*"))
    return PART * _rate(times)


def _rate(times: list[float]) -> float:
    start = len(times) // 4
    return (len(times) - start - 1) / (times[-1] - times[start])


CONTESTANTS = {
    "the server's use case": (serving, []),
    "--out, one process": (bulk, []),
    "--out, one process, 1 thread": (bulk, ["--threads", "1"]),
    "--out, Ray, 2 workers × 1 thread": (bulk, ["--engine", "ray", "--workers", "2", "--threads", "1"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m load_tests.bulk", description=__doc__)
    parser.add_argument("--model", default="lenet5-digits")
    parser.add_argument("--images", type=int, default=10_000, help="how many (default: 10000), in 500s")
    parser.add_argument("--side", type=int, default=28, help="of an image, pixels (default: 28)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), arguments.images, arguments.side)
        for _ in range(arguments.rounds):
            for name, (measure, flags) in CONTESTANTS.items():
                rates[name].append(measure(Path(folder), ["--model", arguments.model, *flags]))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    reference = next(iter(medians.values()))
    print(f"{arguments.model}, {arguments.images} images of {arguments.side} × {arguments.side} pixels")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; images a second")
    for name, median in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"  {name:34}{median:8,.0f}  ×{median / reference:.2f}   ({spread})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, **vars(arguments)}, default=str, indent=1))


if __name__ == "__main__":
    main()
