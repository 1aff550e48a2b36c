"""Of pip-audit's answers only those of a database that was reached say anything."""

from __future__ import annotations

import json

import pytest

from tests.audit import verdict

SOUND = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
BAD = {
    "name": "c",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "CVE-2", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([SOUND], 0, "1 packages, 0 known"),
        ([SOUND, SKIPPED], 0, "not audited: b"),
        ([SKIPPED], 0, "cannot be reached"),
        ([SOUND, BAD, SKIPPED], 1, "c 2: CVE-1, mended in 3\nc 2: CVE-2, mended in none\n"),
    ],
)
def test_verdicts(packages: list[dict[str, object]], status: int, says: str) -> None:
    found, text = verdict(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert (found, says in text) == (status, True)


def test_failures() -> None:
    unreached = verdict("", "requests.exceptions.ConnectionError: HTTPSConnectionPool: Max retries exceeded with url")
    assert (unreached[0], "cannot be reached" in unreached[1]) == (0, True)
    assert verdict("", "TypeError: a bug")[0] == verdict("{}", "")[0] == 1
