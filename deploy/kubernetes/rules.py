"""Write Prometheus' rules as the operator wants them: `python deploy/kubernetes/rules.py` after changing them.

Kustomize reads no files outside its folder, so `components/monitoring/rules.yaml` is a copy, which a test compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "prometheus" / "rules"
COPY = HERE / "components" / "monitoring" / "rules.yaml"


def resource() -> dict[str, Any]:
    """The rules of all files as one PrometheusRule."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "fovea", "namespace": "fovea"},
        "spec": {"groups": groups},
    }


def text() -> str:
    """What the copy should hold."""
    head = "# Made by deploy/kubernetes/rules.py from deploy/prometheus/rules: change those.\n"
    return head + yaml.safe_dump(resource(), sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    COPY.write_text(text())
