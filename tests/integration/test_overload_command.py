"""`python -m load_tests.overload` against a real server: every request is accounted for, and so is memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from load_tests.overload_report import FACTORS, held, summarised
from load_tests.sender import Outcome
from tests.server import ROOT


def test_the_gateway_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "load_tests.overload", "--alone", "--seconds", "0.5", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--workers", "1", "--subject", "letters", "--images", "4", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    (rows,) = found["servers"]["fovea"]["rounds"]
    assert [row["factor"] for row in rows] == list(FACTORS)
    assert found["servers"]["fovea"]["capacities"][0] > 0
    for row in rows:
        answered = row["goodput"] * 0.5 / (row["offered"] * 0.5)
        assert abs(answered + row["refused"] + row["expired"] + row["late"] + row["failed"] - 1) < 1e-9
        assert row["failed"] == 0
        assert row["resident"] > 50
    assert max(row["batch"] or 0 for row in rows) > 0
    assert (tmp_path / "overload.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text().strip() == done.stdout.strip()


def test_an_answer_after_the_deadline_is_none() -> None:
    outcomes = [Outcome("right", 150, infer=20), Outcome("right", 230, infer=10), Outcome("expired", 260)]
    outcomes += [Outcome("refused", 2), Outcome("silent", 0), Outcome("unsent", 0), Outcome("failed: 500", 1)]
    row = summarised(outcomes, 2.0, 1.0, 200.0)
    assert (row.offered, row.goodput) == (7, 1)
    assert [round(7 * share) for share in (row.refused, row.expired, row.late, row.failed)] == [1, 1, 3, 1]
    assert (row.latest, row.batch, row.batches_late) == (60, 20, 3)
    assert (row.refusal_p99, set(row.failures)) == (2, {"failed: 500", "silent"})
    better = summarised([Outcome("right", 100)] * 4, 1.0, 1.0, 200.0)
    assert held([[better, row]], 1) == 0.25
