"""What docker-compose.yml promises, read from the file; `make compose-test` brings it up."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.access.keys import new_key
from service.settings import Settings
from tests.server import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text()
STACK: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
SECRET = r"[A-Z_]*(?:PASSWORD|KEY|SECRET|TOKEN)"


def test_only_the_gateway_and_grafana_are_published_on_loopback_unless_asked() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"gateway", "grafana"}
    assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for ports in published.values() for port in ports)


@pytest.mark.parametrize("service", ["triton", "postgres", "prometheus", "setup"])
def test_what_is_not_published_is_on_inner_networks_only(service: str) -> None:
    assert all(STACK["networks"][name].get("internal") is True for name in SERVICES[service]["networks"])


def test_only_the_gateway_and_prometheus_reach_triton() -> None:
    assert SERVICES["triton"]["networks"] == ["models"]
    assert {name for name, service in SERVICES.items() if "models" in service["networks"]} == {
        "gateway",
        "prometheus",
        "triton",
    }


def test_secrets_have_no_default() -> None:
    used = re.findall(rf"\$\{{({SECRET})(\W[^}}]*)?\}}", TEXT)
    assert {name for name, _ in used} == {
        "POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "FOVEA_KEY", "METRICS_KEY", "LOAD_KEY",
    }  # fmt: skip
    assert all(default.startswith(":?") for _, default in used)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.fullmatch(SECRET, name) or re.fullmatch(rf"\$\{{{SECRET}:\?[^}}]+\}}", value), name


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_hardened_and_their_images_can_be_replaced(service: str) -> None:
    found = SERVICES[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in found["security_opt"]
    image = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-(.+)\}", found["image"])
    assert image
    assert image[1].startswith("localhost/fovea") or re.search(r":v?\d", image[1]), "pinned"


def test_the_engine_waits_as_long_as_the_gateway_may_take_to_stop() -> None:
    drain = {name: Settings.model_fields[name].default for name in ("drain_delay", "drain_timeout")}
    grace = SERVICES["gateway"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > drain["drain_delay"] + 2 * drain["drain_timeout"]
    assert f"STOP_SECONDS = {grace.removesuffix('s')} " in (ROOT / "deploy/compose/stack.py").read_text()


def test_secrets_are_drawn_once_and_for_their_owner_only(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "compose" / "stack.py"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "compose" / "stack.py", script)

    def secrets() -> dict[str, str]:
        subprocess.run([sys.executable, script, "secrets"], check=True, capture_output=True)
        lines = (tmp_path / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    first = secrets()
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert set(first) == set(re.findall(rf"\$\{{({SECRET}):\?", TEXT))
    assert len(set(first.values())) == len(first)
    for name in ("FOVEA_KEY", "METRICS_KEY", "LOAD_KEY"):
        assert new_key("it", ["infer"], secret=first[name])[0].opens(first[name])
    assert secrets() == first
