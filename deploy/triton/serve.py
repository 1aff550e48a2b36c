"""Serve a model repository with the Triton that `install.py` installed: `python deploy/triton/serve.py`.

Runs from any directory. It becomes the server (the process stays, so SIGTERM and SIGINT shut Triton down cleanly) and
binds to this machine only: Triton's model control and shared memory are not for strangers. What follows `--` goes to
tritonserver as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from install import HERE, Installation, SetupError, ready

REPOSITORY = HERE.parents[1] / "model_repository"
DECODING = HERE / "decoding"  # a model repository too, with nothing but the decode model
POLL_SECONDS = 2
EXIT_SECONDS = 10  # an idle HTTP connection keeps Triton from ending until then


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Serve a model repository with Triton.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="the models (default: the bundled ones)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default: this machine only)")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument(
        "--model-control-mode",
        choices=("explicit", "poll", "none"),
        default="explicit",
        help="explicit (default): all models at the start, then by load and unload calls; "
        f"poll: look for changes every {POLL_SECONDS} seconds; none: all models at the start and no changes",
    )
    parser.add_argument(
        "--decode", action="store_true", help="serve the decode model too, for gateways with --decode-on triton"
    )
    parser.add_argument("tritonserver", nargs="*", help="after --: further options of tritonserver")
    return parser.parse_args(arguments)


def command(installation: Installation, options: argparse.Namespace) -> list[str]:
    """The command line of tritonserver."""
    control = {"explicit": ["--load-model=*"], "poll": [f"--repository-poll-secs={POLL_SECONDS}"], "none": []}
    return [
        str(installation.server),
        f"--model-repository={options.repository.resolve()}",
        *([f"--model-repository={DECODING}"] if options.decode else []),
        f"--backend-directory={installation.backends}",
        f"--cache-directory={installation.triton / 'caches'}",
        f"--model-control-mode={options.model_control_mode}",
        *control[options.model_control_mode],
        f"--http-address={options.host}",
        f"--grpc-address={options.host}",
        f"--metrics-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
        "--disable-auto-complete-config",  # our configs are complete, and completing costs a process per model
        f"--exit-timeout-secs={EXIT_SECONDS}",
        "--exit-on-error=false",  # one broken model does not keep the others from serving
        "--strict-readiness=true",
        *options.tritonserver,
    ]


def main() -> None:
    options = parse()
    try:
        installation = ready()
        environment = installation.environment()
    except SetupError as error:
        sys.exit(f"error: {error}")
    if not options.repository.is_dir():
        sys.exit(f"error: there is no model repository at {options.repository}: name one with --repository")
    host = f"[{options.host}]" if ":" in options.host else options.host
    sys.stdout.write(
        f"Triton serves {options.repository} at http://{host}:{options.http_port}, gRPC at {host}:{options.grpc_port}, "
        f"metrics at http://{host}:{options.metrics_port}/metrics\n"
    )
    sys.stdout.flush()
    os.execve(installation.server, command(installation, options), environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
