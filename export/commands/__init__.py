"""The subcommands, one module each: what they take and what they print; nothing heavy at the top of any of them.

Each module has `add_parser(subparsers)`, which adds its parser and sets the default `run`, a function from the parsed
arguments to an exit code. `COMMANDS` says where each is; only the one that was typed is imported.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Command(NamedTuple):
    """Where a subcommand is, and what it does in a line."""

    module: str
    help: str


COMMANDS = {
    "list": Command("export.commands.listing", "list networks, their weights, and data sets"),
    "describe": Command("export.commands.describe", "show a network layer by layer"),
    "train": Command("export.commands.train", "train a network from scratch"),
    "finetune": Command("export.commands.finetune", "fit a pretrained network to images of your own"),
    "publish": Command("export.commands.publish", "export, verify and publish a run into a model repository"),
    "challenge": Command("export.commands.challenge", "show models held-out images and strangers: do they abstain?"),
    "compare": Command("export.commands.compare", "run the models of a repository side by side: a table and plots"),
}
