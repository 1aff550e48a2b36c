"""wrk, the client that loads servers: its script, and what it says afterwards. Debian: `apt-get install wrk`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SCRIPT = """
local file = io.open("{path}", "rb"); wrk.body = file:read("*a"); file:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "{type}"
{headers}
"""
# The first index in an answer is that of the best class, in our answers and in those of the peers. wrk runs `response`
# in its thread, and `setup` and `done` outside of it.
JUDGE = """
local asked
right = 0
function setup(thread) asked = thread end
function response(status, headers, body)
    if status == 200 and body:match('"index":%s*(%d+)') == "{top}" then right = right + 1 end
end
function done() io.write("right answers: " .. asked:get("right") .. "\\n") end
"""


class Load(NamedTuple):
    """What a client got out of a server.

    Attributes:
        rate: Right answers a second.
        p50, p99: Latency, milliseconds.
        failed: Other answers.
    """

    rate: float
    p50: float
    p99: float
    failed: int


def wanted() -> None:
    """Raises SystemExit if wrk is not installed."""
    if not shutil.which("wrk"):
        raise SystemExit("error: wrk is not installed; Debian: apt-get install wrk")


def wrk_script(body: Path, kind: str, headers: dict[str, str] | None = None, top: int | None = None) -> str:
    """What has wrk post a file of a certain type, with further headers.

    Args:
        body: The file.
        kind: Its type.
        headers: Further ones.
        top: Index of the class that a right answer puts first; None: whatever is answered with 2xx is right.
    """
    lines = "; ".join(f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items())
    return SCRIPT.format(path=body, type=kind, headers=lines) + ("" if top is None else JUDGE.format(top=top))


def load(url: str, script: Path, seconds: float, connections: int) -> Load:
    """Let wrk load a URL, on one thread of its own."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency"]
    text = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    count, took = re.search(r"(\d+) requests in ([\d.]+)s", text).groups()  # type: ignore[union-attr]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    judged = re.search(r"right answers: (\d+)", text)
    right = int(judged.group(1)) if judged else int(count) - (int(failed.group(1)) if failed else 0)
    return Load(right / float(took), _milliseconds(text, "50%"), _milliseconds(text, "99%"), int(count) - right)


def _milliseconds(text: str, percentile: str) -> float:
    value, unit = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
