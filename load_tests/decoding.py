"""Whether our way from bytes to pixels gives what Pillow's gives, and how fast: `python -m load_tests.decoding`.

Images of every kind (`load_tests/pictures.py`) go through `service.preprocess` and through Pillow as one would write it
down: opened, turned upright, 16-bit grey scaled to 8, transparency composited, converted, resized at full size with the
same filter, then cropped. Both results go through each model of a repository. Where they differ, it is because a large
JPEG is decoded at a fraction of its size, and because what is cropped away is not resized.

Exit status 1: a model names the same top class for fewer than 99.9 % of the images.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import sys
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from load_tests import figures
from load_tests.pictures import LARGE, Picture, photograph, pictures
from service.preprocess import Preprocessor
from service.spec import CONFIG_NAME, ImageSpec, ModelSpec, read_config

ROOT = Path(__file__).resolve().parent.parent
AIM = 0.999  # of the images, the same top class
TOGETHER = 32  # images in a batch
TIMED_SIZES = (LARGE, (640, 480))
TIMED_SPEC = ImageSpec(height=224, width=224, resize="stretch")


def reference(data: bytes, spec: ImageSpec) -> NDArray[np.uint8]:
    """Pillow alone; uint8 `[height, width, channels]`."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):  # Pillow would clip it at 255
        image = Image.fromarray(((np.asarray(image).astype(np.int64) * 255 + 32_767) // 65_535).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, spec.background)
        image.paste(rgba, mask=rgba)
    image = image.convert("RGB" if spec.channels == 3 else "L")
    fitted = _fitted(image, spec, Image.Resampling[spec.interpolation.upper()])
    return np.asarray(fitted).reshape(spec.height, spec.width, spec.channels)


def _fitted(image: Image.Image, spec: ImageSpec, method: Image.Resampling) -> Image.Image:
    """Resized as a whole, then cropped or padded."""
    width, height = image.size
    if spec.resize == "stretch":
        return image.resize((spec.width, spec.height), method)
    if spec.resize_to is None:  # a letterbox
        scale = min(spec.width / width, spec.height / height)
        small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), method)
        canvas = Image.new("RGB", (spec.width, spec.height), spec.background).convert(image.mode)
        canvas.paste(small, ((spec.width - small.width) // 2, (spec.height - small.height) // 2))
        return canvas
    to = spec.resize_to
    size = (to, int(to * height / width)) if width <= height else (int(to * width / height), to)
    left, top = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    return image.resize(size, method).crop((left, top, left + spec.width, top + spec.height))


@dataclass
class Tally:
    """Of the images of one kind.

    Attributes:
        images: How many.
        agreeing: Whose top class is the same.
        pixel_mean: Mean difference of all values, summed over the images; levels of 255.
        pixel_largest: Of one value.
        probability_largest: Difference of any class's probability.
    """

    images: int = 0
    agreeing: int = 0
    pixel_mean: float = 0.0
    pixel_largest: int = 0
    probability_largest: float = 0.0

    def add(self, same: bool, pixels: NDArray[np.int16], probabilities: NDArray[np.float32]) -> None:
        """Count one image by its differences."""
        self.images += 1
        self.agreeing += same
        self.pixel_mean += float(pixels.mean())
        self.pixel_largest = max(self.pixel_largest, int(pixels.max()))
        self.probability_largest = max(self.probability_largest, float(probabilities.max()))

    def merge(self, other: Tally) -> None:
        """Add what another has counted."""
        self.images += other.images
        self.agreeing += other.agreeing
        self.pixel_mean += other.pixel_mean
        self.pixel_largest = max(self.pixel_largest, other.pixel_largest)
        self.probability_largest = max(self.probability_largest, other.probability_largest)

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "agreeing": self.agreeing,
            "pixel_difference": {"mean": self.pixel_mean / max(1, self.images), "largest": self.pixel_largest},
            "largest_probability_difference": self.probability_largest,
        }


@dataclass
class Comparison:
    """A model, given the pixels of both ways.

    Attributes:
        tallies: By the images' kind.
        differing: What is known of each image whose top class differs.
    """

    spec: ModelSpec
    session: onnxruntime.InferenceSession
    preprocess: Preprocessor
    tallies: dict[str, Tally] = field(default_factory=lambda: collections.defaultdict(Tally))
    differing: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, numbered: Sequence[tuple[int, Picture]]) -> None:
        """Count some images, in one batch for each way."""
        ours = np.stack([self.preprocess(picture.data) for _, picture in numbered])
        theirs = np.stack([reference(picture.data, self.spec.image) for _, picture in numbered])
        pixels = np.abs(ours.astype(np.int16) - theirs)
        mine, other = self._probabilities(ours), self._probabilities(theirs)
        for place, (number, picture) in enumerate(numbered):
            label, reference_label = int(mine[place].argmax()), int(other[place].argmax())
            same = label == reference_label
            self.tallies[picture.kind].add(same, pixels[place], np.abs(mine[place] - other[place]))
            if not same:
                lead = float(other[place][reference_label] - other[place][label])
                about = {"number": number, "kind": picture.kind, "width": picture.width, "height": picture.height}
                labels = {"label": self.spec.labels[label], "reference": self.spec.labels[reference_label]}
                mean = float(pixels[place].mean())
                self.differing.append(about | labels | {"reference_leads_by": lead, "mean_pixel_difference": mean})

    def _probabilities(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        (logits,) = self.session.run(["logits"], {"image": batch})
        scaled = np.asarray(logits) / (self.spec.calibration.temperature if self.spec.calibration else 1.0)
        raised = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))

    def by_format(self) -> dict[str, Tally]:
        """The tallies of each format, and of all images."""
        merged: dict[str, Tally] = collections.defaultdict(Tally)
        for kind, tally in sorted(self.tallies.items()):
            merged[kind.split()[0].rstrip(",")].merge(tally)
        for tally in self.tallies.values():
            merged["all"].merge(tally)
        return merged


def comparisons(repositories: Sequence[Path]) -> list[Comparison]:
    """The newest version of each model in some repositories."""
    found = []
    for config in sorted(path for repository in repositories for path in repository.glob(f"*/{CONFIG_NAME}")):
        specs = read_config(config).specs
        version = max(specs, key=int)
        session = onnxruntime.InferenceSession(config.parent / version / "model.onnx")
        found.append(Comparison(specs[version], session, Preprocessor(specs[version].image)))
    return found


def timed(repeat: int) -> list[dict[str, Any]]:
    """The best of so many runs of each way for one photograph in two sizes, milliseconds; the two take turns."""
    ours = Preprocessor(TIMED_SPEC)
    rows = []
    for size in TIMED_SIZES:
        data = photograph(size)

        def pillow(data: bytes = data) -> None:
            Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)

        took = [
            [1000 * timeit.timeit(way, number=1) for way in (lambda data=data: ours(data), pillow)]
            for _ in range(repeat)
        ]
        mine, other = (min(times) for times in zip(*took, strict=True))
        rows.append({"size": f"{size[0]}×{size[1]}", "ours": mine, "pillow": other, "ratio": mine / other})
    return rows


def table(comparison: Comparison) -> str:
    """Markdown, a row for each format."""
    lines = [
        f"{comparison.spec.name}, version {comparison.spec.version}\n",
        "| | images | same top class | mean pixel difference | largest | largest probability difference |",
        "| --- " * 6 + "|",
    ]
    for name, tally in comparison.by_format().items():
        share, mean = tally.agreeing / tally.images, tally.pixel_mean / tally.images
        cells = f"{tally.images:,} | {share:.2%} | {mean:.3f} | {tally.pixel_largest} | {tally.probability_largest:.4f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def timed_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| JPEG | ours ms | Pillow ms | ours ÷ Pillow |", "| --- " * 4 + "|"]
    lines += [f"| {row['size']} | {row['ours']:.1f} | {row['pillow']:.1f} | {row['ratio']:.2f} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.decoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repository", type=Path, nargs="+", default=[ROOT / "model_repository"], help="of the models; the bundled"
    )
    parser.add_argument("--images", type=int, default=2500, help="2500 unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the images; 0 unless given")
    parser.add_argument("--repeat", type=int, default=15, help="timed runs of each way; 15 unless given, 0 for none")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    arguments = parser.parse_args()
    models = comparisons(arguments.repository)
    if not models:
        raise SystemExit(f"error: no model in {', '.join(map(str, arguments.repository))}; publish one")
    times = timed(arguments.repeat) if arguments.repeat else []
    console, waiting = Console(stderr=True), list[tuple[int, Picture]]()
    drawn = track(enumerate(pictures(arguments.images, arguments.seed)), "images", arguments.images, console=console)
    for number, picture in drawn:
        waiting.append((number, picture))
        if len(waiting) == TOGETHER or number == arguments.images - 1:
            for model in models:
                model.compare(waiting)
            waiting.clear()
    print("\n".join(table(model) for model in models))
    if times:
        print(timed_table(times))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document(models, times), indent=1, ensure_ascii=False) + "\n")
    for model in models:
        total = model.by_format()["all"]
        if total.agreeing < AIM * total.images:
            print(f"error: {model.spec.name} agrees on fewer than {AIM:.1%} of the images", file=sys.stderr)
            sys.exit(1)


def document(models: Sequence[Comparison], times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All there is to know of a run, for JSON."""
    return {
        "command": " ".join(["python -m load_tests.decoding", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        **figures.machine(),
        "milliseconds": list(times),
        "models": {
            model.spec.name: {
                "version": model.spec.version,
                "formats": {name: tally.described() for name, tally in model.by_format().items()},
                "kinds": {name: tally.described() for name, tally in sorted(model.tallies.items())},
                "differing": model.differing,
            }
            for model in models
        },
    }


if __name__ == "__main__":
    main()
