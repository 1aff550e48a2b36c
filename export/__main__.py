"""The command line: `python -m export --help`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from export.commands import COMMANDS
from export.errors import ExportError


def parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser with all subcommands by name, and the chosen one in full: the others' modules stay unimported."""
    main_parser = argparse.ArgumentParser(
        prog="python -m export", description="Train, export, verify and publish convolutional classifiers."
    )
    subparsers = main_parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        if name == chosen:
            importlib.import_module(command.module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=command.help)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code: 0, or 2 for what the user can mend, with one line that says how.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = next((each for each in arguments if not each.startswith("-")), None)
    parsed = parser(chosen).parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was published; the same command goes on with a training", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
