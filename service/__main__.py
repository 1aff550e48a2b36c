"""Command line: `python -m service serve | classify | models | keys | migrate | settings`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from service import __version__, bulk_command, database_commands, logs
from service.errors import FoveaError
from service.settings import InvalidSettings, Settings, load
from service.tables import show_table
from service.workers.member import Member


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Fovea serves convolutional image classifiers.",
        epilog="Every setting is also an environment variable FOVEA_<NAME> or a line of a .env file; flags win. "
        "`python -m service settings` lists them.",
    )
    parser.add_argument("--version", action="version", version=f"fovea {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    repository = argparse.ArgumentParser(add_help=False)
    repository.add_argument(
        "--model-repository", type=Path, metavar="DIR", help="directory of the models (default: model_repository)"
    )

    serve = commands.add_parser("serve", parents=[repository], help="serve over HTTP and gRPC until SIGTERM or Ctrl-C")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port of HTTP (default: 8080); 0 takes a free one")
    serve.add_argument("--grpc-port", metavar="PORT", help="port of gRPC (default: 8081); 0 takes a free one, or off")
    serve.add_argument(
        "--backend", choices=("embedded", "triton"), help="ONNX Runtime in this process (default), or a Triton server"
    )
    serve.add_argument("--triton-url", metavar="HOST:PORT", help="Triton's gRPC address (default: 127.0.0.1:8001)")
    serve.add_argument("--decode-on", choices=("gateway", "triton"), help="where images are decoded (default: gateway)")
    serve.add_argument("--workers", type=int, metavar="N", help="processes that serve (default: 1)")
    serve.add_argument("--member", type=Member.parse, help=argparse.SUPPRESS)  # a worker's; the supervisor says it
    serve.add_argument("--default-model", metavar="NAME", help="model of requests that name none")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="lowest level logged")
    serve.add_argument("--log-format", choices=("auto", "json", "text"), help="auto: text on a terminal, else JSON")
    serve.add_argument("--no-access-log", dest="access_log", action="store_false", default=None)
    serve.add_argument(
        "--traces",
        choices=("off", "otlp"),
        help="otlp: send traces to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names (default: off)",
    )
    serve.add_argument(
        "--insecure", action="store_true", default=None, help="serve anybody who can reach the address, without keys"
    )
    serve.add_argument(
        "--first-key", action="store_true", default=None, help="make a key if there never was one, and show it"
    )
    serve.set_defaults(run=_serve)

    classify = commands.add_parser(
        "classify",
        parents=[repository],
        help="classify files or folders, without a server; a few, or millions",
        description="Classifies files, and the images in folders, and exits with 1 if any of them failed.",
    )
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="a file or a folder")
    classify.add_argument("--model", dest="default_model", metavar="NAME", help="needed if there are several")
    classify.add_argument("--top-k", type=int, default=3, metavar="K", help="classes shown per image (default: 3)")
    classify.add_argument("--json", action="store_true", help="a JSON object per line instead of a table")
    bulk_command.add(classify)
    classify.set_defaults(run=_classify)

    models = commands.add_parser("models", parents=[repository], help="load and verify every model, and list them")
    models.add_argument("--json", action="store_true", help="JSON instead of a table")
    models.set_defaults(run=_models)

    database_commands.add(commands)

    settings = commands.add_parser("settings", help="list every setting with its default")
    settings.set_defaults(run=_settings)
    return parser


def _load(arguments: argparse.Namespace) -> Settings:
    """Settings with the given flags on top."""
    return load(**{name: value for name, value in vars(arguments).items() if name in Settings.model_fields})


def _serve(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    logs.configure(settings.log_level, settings.log_format, access=settings.access_log)
    # Before numpy is imported. Heads multiply small matrices, for which more threads only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if settings.first_key and not settings.insecure and arguments.member is None:
        database_commands.make_first_key(settings)
    if arguments.member is None:
        from service.exposure import check_exposure

        check_exposure(settings)
        if settings.workers > 1:
            from service.workers.supervisor import Supervisor

            return asyncio.run(Supervisor(settings, arguments.line).run())
    # Not before: a wrong flag answers at once, and gRPC reads its verbosity when it is imported.
    from service.app import serve

    try:
        import uvloop as loop
    except ImportError:  # not on Windows
        loop = asyncio  # type: ignore[misc]
    status: int = loop.run(serve(settings, arguments.member))
    return status


def _classify(arguments: argparse.Namespace) -> int:
    if arguments.top_k < 1:
        raise InvalidSettings("--top-k must be at least 1")
    settings = _load(arguments)
    logs.configure("error", settings.log_format, access=False)
    if arguments.out is not None:
        return bulk_command.run(arguments, settings)
    bulk_command.check_unused(arguments)
    return asyncio.run(_classify_files(arguments, settings))


async def _classify_files(arguments: argparse.Namespace, settings: Settings) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from service.app import local
    from service.local import classify_files, image_files

    files = image_files(map(Path, arguments.images))
    failed = 0
    rows: list[tuple[str, ...]] = []
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with local(settings) as classifier:
        classifier.resolve(None, None)
        silent = not sys.stderr.isatty()
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=silent) as progress:
            results = classify_files(classifier, files, model=None, top_k=arguments.top_k, at_once=settings.max_queue)
            bar = progress.add_task("", total=len(files))
            async for path, result in results:
                progress.advance(bar)
                failed += isinstance(result, FoveaError)
                if arguments.json:
                    print(_line(path, result))
                else:
                    rows.append(_row(path, result))
    if rows:
        show_table(("file", "class", "probability", "next", "note"), rows)
    if failed:
        print(f"{failed} of {len(files)} files failed", file=sys.stderr)
    if not files:
        print("no images found", file=sys.stderr)
    return 1 if failed or not files else 0


def _line(path: Path, result: Any) -> str:
    file = os.fsencode(path).decode("utf-8", "replace")  # names need not be text, JSON has to be
    if isinstance(result, FoveaError):
        return orjson.dumps({"file": file, "error": {"code": result.code, "detail": result.message}}).decode()
    return orjson.dumps({"file": file, **{name: getattr(result, name) for name in result.__slots__}}).decode()


def _row(path: Path, result: Any) -> tuple[str, ...]:
    if isinstance(result, FoveaError):
        return (str(path), "—", "", "", f"{result.code}: {result.message}")
    best, *others = result.classes
    rest = ", ".join(f"{one.label} {one.probability:.3f}" for one in others)
    return (str(path), best.label, f"{best.probability:.3f}", rest, "abstained" if result.abstained else "")


def _models(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    logs.configure("error", settings.log_format, access=False)

    async def statuses() -> list[Any]:
        from service.app import local

        async with local(settings) as classifier:
            return list(classifier.models())

    found = asyncio.run(statuses())
    fields = ("name", "version", "state", "problem", "golden_difference")
    if arguments.json:
        print(orjson.dumps([{name: getattr(one, name) for name in fields} for one in found]).decode())
    else:
        show_table(
            ("model", "version", "state", "labels", "top-1", "golden difference", "problem"),
            [
                (
                    one.name,
                    one.version,
                    one.state,
                    str(len(one.spec.labels)) if one.spec else "",
                    _accuracy(one),
                    f"{one.golden_difference:.2g}" if one.golden_difference is not None else "",
                    one.problem or "",
                )
                for one in found
            ],
        )
    return 0 if found and all(one.state == "ready" for one in found) else 1


def _accuracy(status: Any) -> str:
    """Of held-out images; of a head, in cross-validation."""
    if status.spec is None:
        return ""
    found = status.spec.report.accuracy if status.kind == "head" else status.spec.accuracy and status.spec.accuracy.top1
    return "" if found is None else f"{found:.2%}"


def _settings(arguments: argparse.Namespace) -> int:
    del arguments
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append((f"FOVEA_{name.upper()}", "" if default is None else str(default), field.description or ""))
    show_table(("variable", "default", "meaning"), rows)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors of use are one line and exit status 2."""
    line = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(line, argparse.Namespace(line=line))
    try:
        status: int = arguments.run(arguments)
    except (InvalidSettings, FoveaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
