"""Tables for people, on standard output."""

from __future__ import annotations

from collections.abc import Sequence


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    # Nobody's screen wraps what goes into a file or another program.
    (console if console.is_terminal else Console(width=220)).print(table)
