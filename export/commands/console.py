"""Where tables go."""

from __future__ import annotations

from rich.console import Console

PIPED_WIDTH = 220  # columns; nobody's screen wraps what goes into a file or another program


def output() -> Console:
    """Standard output, as wide as the terminal, or wide enough where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
