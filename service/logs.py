"""Logs: JSON lines for machines, plain lines on a terminal; every line carries the id of the request it is about."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, NamedTuple

import orjson

request_id_context: ContextVar[str | None] = ContextVar("request_id", default=None)

_access = logging.getLogger("fovea.access")

FLUSH_SECONDS = 0.2
FLUSH_LINES = 256

# What a client can put into a path must neither begin a line of the log nor speak to the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Entry(NamedTuple):
    """What a line is made of.

    Attributes:
        created: Seconds since 1970.
        level: Its name, in small letters.
        logger: Its name.
        message: What happened.
        extras: What stands beside it, by name.
        exception: The traceback, if there is one.
    """

    created: float
    level: str
    logger: str
    message: str
    extras: Mapping[str, object]
    exception: str | None = None


class LineFormatter(logging.Formatter, ABC):
    """Makes lines of what a record holds, and of what never was one."""

    def format(self, record: logging.LogRecord) -> str:
        exception = self.formatException(record.exc_info) if record.exc_info else None
        extras = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        level = record.levelname.lower()
        return self.line(Entry(record.created, level, record.name, record.getMessage(), extras, exception))

    @abstractmethod
    def line(self, entry: Entry) -> str:
        """One line, or several with a traceback."""


class JsonFormatter(LineFormatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id and the record's extras."""

    def line(self, entry: Entry) -> str:
        seconds = int(entry.created)
        line: dict[str, object] = {
            "time": f"{_second(seconds)}.{int((entry.created - seconds) * 1000):03d}Z",
            "level": entry.level,
            "logger": entry.logger,
            "message": entry.message,
        }
        if request_id := request_id_context.get():
            line["request_id"] = request_id
        line |= entry.extras
        if entry.exception is not None:
            line["exception"] = entry.exception
        text = orjson.dumps(line, default=str).decode()
        # JSON need not escape these, but readers that know Unicode end a line at some, and terminals obey others.
        return text if text.isascii() else _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class TextFormatter(LineFormatter):
    """For people: time, level, message, extras, request id."""

    def line(self, entry: Entry) -> str:
        extras = entry.extras
        if request_id := request_id_context.get():
            extras = {**extras, "request_id": request_id}
        clock = time.strftime("%H:%M:%S", time.localtime(entry.created))
        tail = "  " + " ".join(f"{key}={value}" for key, value in extras.items()) if extras else ""
        text = _CONTROL.sub(lambda match: repr(match[0])[1:-1], f"{clock} {entry.level:7} {entry.message}{tail}")
        return text if entry.exception is None else f"{text}\n{entry.exception}"


class BufferedHandler(logging.Handler):
    """Writes lines to standard error, several at a time: a system call a line would cost more than the line.

    Warnings and errors are written at once, with what waits before them; other lines within `FLUSH_SECONDS`.
    """

    def __init__(self, formatter: LineFormatter | None = None) -> None:
        super().__init__()
        self.lines = formatter or JsonFormatter()
        self.setFormatter(self.lines)
        self._lines: list[str] = []
        self._waiting = threading.Event()
        threading.Thread(target=self._flush_now_and_then, name="log-flush", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(self.format(record))
        except Exception:  # noqa: BLE001 - logging never breaks what it logs
            self.handleError(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def write(self, line: str) -> None:
        """Have a line written before long."""
        with self.lock or contextlib.nullcontext():
            self._lines.append(line)
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif len(self._lines) == 1:
            self._waiting.set()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                # A full disk or a closed pipe under the log is no reason to fail what is logged.
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write("\n".join(lines) + "\n")
                    sys.stderr.flush()

    def _flush_now_and_then(self) -> None:
        while self._waiting.wait():
            self._waiting.clear()
            time.sleep(FLUSH_SECONDS)
            self.flush()


def access(line: str, values: tuple[object, ...], extras: Mapping[str, object]) -> None:
    """Write a line like `%s %d` to the access log.

    `logging` takes several times as long as the line itself: for a record, and the caller's place in the code.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    for handler in logging.root.handlers:
        if isinstance(handler, BufferedHandler):
            handler.write(handler.lines.line(Entry(time.time(), "info", _access.name, line % values, extras)))
            return
    _access.info(line, *values, extra=extras)


def configure(level: str, style: Literal["auto", "json", "text"], *, access: bool) -> None:
    """Send all logs to standard error.

    Args:
        level: Name of the lowest level shown.
        style: "auto" is text on a terminal, else JSON.
        access: Whether each request is logged; failures of the server are logged in any case.
    """
    # grpc's core writes lines of its own to standard error, one for each handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # No line shows them, and looking them up takes a third of the time of writing one.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    handler = BufferedHandler(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _access.disabled = not access
    for chatty in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
