"""Checks as rows: each passed, failed, or was skipped, and says why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["passed", "failed", "skipped"]
OURS = ("deploy", "export", "service")  # where one of these is missing, something is broken
REMEDIES = {"tensorrt": "python -m pip install tensorrt"}  # for what `make gpu-check` does not install


class Skipped(Exception):
    """The check cannot run here; the message says what is missing."""


class Failed(Exception):
    """What ran is wrong; the message says by how much."""


@dataclass(frozen=True)
class Row:
    """What one check came to.

    Attributes:
        name: Of the check.
        state: A check that raises anything but `Skipped` has failed.
        detail: The figures, what is wrong, or why it was skipped.
        seconds: That it took.
    """

    name: str
    state: State
    detail: str
    seconds: float


def run(name: str, check: Callable[[], str]) -> Row:
    """Run a check, which returns its figures, and never raise."""
    started = time.perf_counter()
    state: State = "failed"
    try:
        state, detail = "passed", check()
    except Skipped as reason:
        state, detail = "skipped", str(reason)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        detail = f"{error}"
        if package not in OURS:
            state, detail = "skipped", f"{package} is not installed: {REMEDIES.get(package, 'make gpu-check')}"
    except Failed as error:
        detail = str(error)
    except Exception as error:  # noqa: BLE001 - the other checks still have something to tell
        detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Row(name, state, detail, time.perf_counter() - started)
