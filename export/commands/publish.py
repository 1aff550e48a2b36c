"""`python -m export publish`: see `export.publish`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from export.errors import ExportError

if TYPE_CHECKING:
    from export.commands import Parsers


def add_parser(subparsers: Parsers) -> None:
    """Add `publish`."""
    parser = subparsers.add_parser(
        "publish",
        help="export, verify and publish a network into a model repository",
        description="Exports a trained network to ONNX, holds it against PyTorch, calibrates it where there is data to "
        "do so, and publishes it as a new version. Give a run's folder, or an architecture and its weights.",
    )
    parser.add_argument("run_folder", nargs="?", type=Path, metavar="RUN", help="folder that train wrote")
    parser.add_argument(
        "--ensemble",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="runs whose mean is to be published as one model; one with --snapshots brings all of these",
    )
    parser.add_argument("--arch", metavar="A", help="architecture, see `list`")
    parser.add_argument(
        "--weights", metavar="W", help="name of published weights, or a .pth or .safetensors file (default: random)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one label per line, if the weights bring none")
    parser.add_argument("--data", metavar="NAME", help="data set to calibrate and measure on, with the same labels")
    parser.add_argument("--name", required=True, help="of the model: a-z 0-9 . _ -")
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="default: model_repository"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of weights and arithmetic (default: fp32)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="images that int8 learns its ranges from, without --data"
    )
    parser.add_argument(
        "--format", choices=("onnx", "tensorrt"), default="onnx", help="tensorrt: a plan for this machine's GPU (unrun)"
    )
    parser.add_argument(
        "--tensorrt-accelerator",
        action="store_true",
        help="have Triton's ONNX Runtime backend use TensorRT, for all versions of the model (unrun); kept, see below",
    )
    parser.add_argument(
        "--batch-sizes",
        type=batch_sizes,
        metavar="MIN,OPT,MAX",
        help="images that TensorRT takes at once: the fewest, those it is tuned for, and the most (default: 1,16,64)",
    )
    add_deployment(parser)
    parser.add_argument(
        "--with-weights", action="store_true", help="put the checkpoint beside the model, for others to fine-tune"
    )
    parser.add_argument("--json", action="store_true", help="print the spec as JSON")
    parser.set_defaults(run=run)


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """Add what is said to Triton."""
    group = parser.add_argument_group(
        "Triton",
        "What is given here, and --tensorrt-accelerator, holds for all versions of the model and is kept by "
        "later publishes that do not give it anew. The gateway itself reads --max-batch-size.",
    )
    group.add_argument("--instances", type=positive, metavar="N", help="of the model, per device (default: 1)")
    group.add_argument(
        "--instance-kind",
        choices=("auto", "cpu", "gpu"),
        help="auto: on GPUs where there are any (default: auto; cpu for int8, gpu for TensorRT)",
    )
    group.add_argument(
        "--max-batch-size", type=positive, metavar="N", help="images (default: 64, 16 or 8, by the network's size)"
    )
    group.add_argument(
        "--max-queue-delay-us",
        type=microseconds,
        metavar="N",
        help="microseconds that Triton waits for a larger batch (default: 0: a batch is what waits anyway)",
    )
    group.add_argument(
        "--forget-overrides", action="store_true", help="keep nothing of what earlier publishes of the model gave"
    )


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def microseconds(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def batch_sizes(text: str) -> tuple[int, int, int]:
    """`1,16,64`."""
    fewest, best, most = map(int, text.split(","))
    if not 1 <= fewest <= best <= most:
        raise ValueError(text)
    return fewest, best, most


def run(arguments: argparse.Namespace) -> int:
    """Publish and print the spec's main figures."""
    given = [each for each in (arguments.run_folder, arguments.ensemble, arguments.arch) if each is not None]
    if len(given) != 1:
        raise ExportError("give either a run's folder or --ensemble or --arch; `publish --help` shows all three")
    if arguments.arch is None and (arguments.weights or arguments.labels or arguments.data):
        raise ExportError("--weights, --labels and --data go with --arch; a run's folder brings its own")
    if arguments.format == "tensorrt" and arguments.tensorrt_accelerator:
        raise ExportError("a plan needs no --tensorrt-accelerator: that is for ONNX")
    if arguments.batch_sizes and arguments.format == "onnx" and not arguments.tensorrt_accelerator:
        raise ExportError("--batch-sizes are TensorRT's: give --format tensorrt or --tensorrt-accelerator with them")
    from export.precision import Form
    from export.publish import from_ensemble, from_run, from_weights, publish
    from export.to_tensorrt import BATCH
    from export.triton_config import Deployment

    batch = arguments.batch_sizes or BATCH
    form = Form(
        precision=arguments.precision,
        plan=arguments.format == "tensorrt",
        calibration=arguments.calibration,
        batch=batch,
        deployment=Deployment(
            instances=arguments.instances,
            instance_kind=arguments.instance_kind,
            max_batch_size=arguments.max_batch_size,
            max_queue_delay_us=arguments.max_queue_delay_us,
            accelerator=batch if arguments.tensorrt_accelerator else None,
            fresh=arguments.forget_overrides,
        ),
    )
    progress = Console(stderr=True)
    with progress.status("load, export, verify, publish"):
        if arguments.run_folder is not None:
            candidate = from_run(arguments.run_folder)
        elif arguments.ensemble is not None:
            candidate = from_ensemble(arguments.ensemble)
        else:
            candidate = from_weights(arguments.arch, arguments.weights, arguments.labels, arguments.data)
        spec = publish(
            candidate,
            arguments.name,
            arguments.repository,
            form,
            progress,
            with_weights=arguments.with_weights,
        )
    output = Console()
    if arguments.json:
        output.out(spec.model_dump_json(exclude={"golden"}), highlight=False)
        return 0
    parity = max(spec.parity.max_difference.values()) if spec.parity else float("nan")
    accuracy = f"{spec.accuracy.top1:.2%} of {spec.accuracy.data}" if spec.accuracy else "accuracy unknown"
    output.print(
        f"{spec.name} version {spec.version} → {arguments.repository / spec.name / spec.version}: {accuracy}; "
        f"{spec.parameters:,} parameters, {spec.macs:,} multiply-accumulates; parity with PyTorch {parity:.1g}",
        soft_wrap=True,
    )
    return 0
