"""The shape of log lines, for machines and for people."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service.logs import (
    FLUSH_LINES,
    BufferedHandler,
    JsonFormatter,
    TextFormatter,
    access,
    configure,
    request_id_context,
)


def record(message: str = "hello %s", *args: object, **extras: object) -> logging.LogRecord:
    line = logging.LogRecord("service.test", logging.INFO, __file__, 1, message, args, None)
    line.__dict__.update(extras)
    return line


@pytest.fixture
def configured() -> Iterator[None]:
    """The root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    disabled = logging.getLogger("fovea.access").disabled
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("fovea.access").disabled = disabled


def test_a_json_line_is_one_object_with_the_extras_in_it() -> None:
    text = JsonFormatter().format(record("hello %s", "wörld", model="tiny", ms=1.5))
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "service.test", "message": "hello wörld", "model": "tiny", "ms": 1.5}


def test_the_time_is_utc_to_the_millisecond() -> None:
    entry = record("x")
    entry.created = 1_700_000_000.0129
    assert json.loads(JsonFormatter().format(entry))["time"] == "2023-11-14T22:13:20.012Z"
    assert datetime.fromtimestamp(entry.created, UTC).hour == 22


def test_a_line_break_in_a_message_stays_inside_its_line() -> None:
    """A path with %0A in it must not forge a line of the log."""
    forged = 'x\n{"level":"error"}'
    assert len(JsonFormatter().format(record("%s", forged)).splitlines()) == 1
    assert len(TextFormatter().format(record("%s", forged)).splitlines()) == 1


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_the_request_id_is_on_every_line_of_its_request(formatter: logging.Formatter) -> None:
    assert "request_id" not in formatter.format(record("x"))
    token = request_id_context.set("abc-1")
    try:
        assert "abc-1" in formatter.format(record("x"))
    finally:
        request_id_context.reset(token)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_exceptions_come_with_their_traceback(formatter: logging.Formatter) -> None:
    entry = record("broken")
    try:
        raise ValueError("why")
    except ValueError:
        entry.exc_info = sys.exc_info()
    text = formatter.format(entry)
    assert "ValueError: why" in text
    assert "Traceback" in text


def test_what_json_cannot_write_is_written_as_text() -> None:
    assert json.loads(JsonFormatter().format(record("x", error=ValueError("why"))))["error"] == "why"


@pytest.mark.usefixtures("configured")
def test_lines_wait_a_moment_and_errors_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", access=True)
    log = logging.getLogger("service.test")
    log.info("first")
    log.error("second")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == ["first", "second"]  # the error brings the line before it along


@pytest.mark.usefixtures("configured")
def test_lines_leave_at_the_latest_when_there_are_many(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", access=True)
    for number in range(FLUSH_LINES):
        logging.getLogger("service.test").info("%d", number)
    assert len(capsys.readouterr().err.splitlines()) == FLUSH_LINES


@pytest.mark.usefixtures("configured")
def test_levels_and_the_access_log_can_be_turned_down(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "text", access=False)
    logging.getLogger("service.test").info("quiet")
    logging.getLogger("fovea.access").warning("a request")
    access("a %s", ("request",), {})
    logging.getLogger("service.test").warning("loud")
    shown = capsys.readouterr().err
    assert "loud" in shown
    assert "quiet" not in shown
    assert "a request" not in shown


@pytest.mark.usefixtures("configured")
def test_a_full_disk_under_the_log_fails_no_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    configure("info", "json", access=True)
    monkeypatch.setattr(sys, "stderr", Full())
    log = logging.getLogger("service.test")
    log.error("this must not raise")
    for _ in range(2 * FLUSH_LINES):
        log.info("nor this")
    monkeypatch.undo()
    log.error("there is space again")
    assert "there is space again" in capsys.readouterr().err


def test_a_handler_that_is_flushed_with_nothing_to_say_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    BufferedHandler().flush()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("configured")
def test_a_line_of_the_access_log_is_one_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json", access=True)
    token = request_id_context.set("abc-1")
    try:
        access("%s %s %d", ("POST", "/a\u2028b", 200), {"ms": 1.5})
        logging.getLogger("fovea.access").info("%s %s %d", "POST", "/a\u2028b", 200, extra={"ms": 1.5})
    finally:
        request_id_context.reset(token)
    logging.getLogger("service.test").error("now")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]  # which ends lines at U+2028, too
    assert [line.pop("time")[-1] for line in lines] == ["Z"] * 3
    assert lines[0] == lines[1]
    assert lines[0]["message"] == "POST /a\u2028b 200"
