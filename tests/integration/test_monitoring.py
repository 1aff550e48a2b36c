"""Rules and dashboards, checked by Prometheus' own programs and against what real servers expose."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.keys import bearer, made
from tests.models import png, publish_tiny
from tests.prometheus import Prometheus, exposed, names, needs_prometheus, needs_promtool, promtool
from tests.server import ROOT, Server, picture
from tests.triton import Triton, needs_triton

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))

# Triton exposes these on machines with a GPU; names and meanings from its documentation, "GPU Metrics" in
# https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md#gpu-metrics
GPU = frozenset(
    (
        "nv_gpu_power_usage",
        "nv_gpu_power_limit",
        "nv_energy_consumption",
        "nv_gpu_utilization",
        "nv_gpu_memory_total_bytes",
        "nv_gpu_memory_used_bytes",
    )
)
OF_PROMETHEUS = frozenset(("up", "ALERTS"))
GRAFANA = {"$__rate_interval": "1m", "$__range": "1h", "$model": ".*"}  # Grafana's variables, filled in


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def expressions() -> dict[str, str]:
    """Every expression of every dashboard, by panel."""
    found = {}
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = _filled(target["expr"])
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked, variable
                found[f"{path.stem}: ${variable['name']}"] = f"count by ({asked[2]}) ({asked[1]})"
    return found


def _filled(expression: str) -> str:
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"an unknown variable in {expression}"
    return expression


# Rules.


@needs_promtool
def test_promtool_takes_configuration_and_rules_and_their_own_tests_pass() -> None:
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", *RULES)
    promtool("test", "rules", *UNIT_TESTS)


def test_every_alert_is_tested_firing_and_silent() -> None:
    fires, silent = set(), set()
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for query in test.get("promql_expr_test", ()):
                if asked := re.match(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}', query["expr"]):
                    (fires if query["exp_samples"] else silent).add(asked[1])
    assert fires == set(alerts())
    assert silent == set(alerts())


def test_every_alert_says_what_to_do_and_where_that_is_written() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    anchors = re.findall(r'<a id="(\w+)"></a>', page)
    assert len(anchors) == len(set(anchors))
    used = set()
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("page", "ticket"), name
        assert {"summary", "description", "runbook"} == set(alert["annotations"]), name
        path, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (path, anchor in anchors) == ("docs/monitoring.md", True), name
        used.add(anchor)
    assert used == set(anchors), "the page explains alerts that are no more"


# Dashboards.


@needs_promtool
def test_dashboards_parse(tmp_path: Path) -> None:
    records = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions().values())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", file)
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)


def test_names_are_read_out_of_expressions() -> None:
    expression = """
        sum by (job, model) (rate(a_total{code!="b{c", x="d"}[5m])) / on (job) group_left () job:e:rate5m  # not f
        or (histogram_quantile(0.9, g_bucket offset 30m) > 2 * h{i="j"} and k unless topk(3, l)) > 1e3
    """
    assert names(expression) == {"a_total", "job:e:rate5m", "g_bucket", "h", "k", "l"}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server, Triton, str]]:
    """A gateway, one in front of a real Triton, and that; with the gateways' key. Both have a route, a refused
    version, abstentions: whatever can be counted is."""
    folder = tmp_path_factory.mktemp("observed")
    models = folder / "models"
    for name, seed in (("tiny", 0), ("tiny", 1), ("spare", 2)):
        publish_tiny(models, name, seed=seed)
    broken = folder / "with-broken"
    shutil.copytree(models, broken)
    (broken / "broken").mkdir()
    (broken / "broken" / "config.pbtxt").write_text("no config")
    url = f"sqlite:///{folder}/fovea.db"
    key = made(url, "infer", "admin")
    with Triton(models, folder).start() as triton:
        servers = []
        for name, repository, more in (
            ("embedded", broken, {}),
            ("triton", models, {"backend": "triton", "triton_url": triton.grpc_url}),
        ):
            (folder / name).mkdir()
            server = Server(repository, folder / name, database_url=url, **more).start()
            server.client.headers.update(bearer(key))
            servers.append(server)
        try:
            yield servers[0], servers[1], triton, key
        finally:
            for server in servers:
                server.stop()


def _traffic(server: Server, seconds: float) -> None:
    route = {"primary": "tiny:1", "canary": {"model": "spare:1", "weight": 0.5}, "shadow": "tiny:2"}
    assert server.client.put("/v1/routes/digits", json=route).status_code == 200
    give_up = time.monotonic() + seconds
    for number in range(1_000_000):
        for model in ("digits", "tiny"):
            assert server.classify(picture(number), model).status_code == 200
        assert server.client.post("/v1/models/tiny/classify", content=b"no image").status_code == 415
        if number == 3:  # from here on the primary stands in for the canary
            assert server.client.post("/v1/models/spare/unload").status_code == 200
            many = [("image", png(picture(each))) for each in range(64)]  # more than a shadow takes at once
            assert server.client.post("/v1/models/digits/classify", files=many).status_code == 200
        if time.monotonic() > give_up:
            break
        time.sleep(0.03)


@needs_triton
def test_rules_and_dashboards_name_metrics_that_exist(observed: tuple[Server, Server, Triton, str]) -> None:
    embedded, _, triton, _ = observed
    for number in range(4):
        assert embedded.classify(picture(number)).status_code == 200
    there = exposed(embedded.client.get("/metrics").text) | exposed(httpx.get(triton.metrics_url).text)
    assert not GPU & there or there >= GPU, "Triton's GPU metrics are not those of its documentation"
    there |= GPU | OF_PROMETHEUS | {rule["record"] for rule in rules() if "record" in rule}
    asked = expressions() | {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    assert {where: names(each) - there for where, each in asked.items() if names(each) - there} == {}
    for expression in asked.values():
        assert names(expression), f"no metric was found in {expression}"


@needs_prometheus
@needs_triton
@pytest.mark.slow
def test_every_panel_shows_something(observed: tuple[Server, Server, Triton, str], tmp_path: Path) -> None:
    embedded, remote, triton, key = observed
    (tmp_path / "key").write_text(key)
    (tmp_path / "rules").mkdir()
    for path in RULES:  # nobody waits five minutes
        (tmp_path / "rules" / path.name).write_text(re.sub(r"interval: \w+", "interval: 1s", path.read_text()))
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(tmp_path / "rules" / "*.yml")]
    fovea, of_triton = config["scrape_configs"]
    fovea["authorization"]["credentials_file"] = str(tmp_path / "key")
    fovea["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}" for server in (embedded, remote)]}]
    of_triton["static_configs"] = [{"targets": [f"127.0.0.1:{triton.metrics_port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with Prometheus(tmp_path / "prometheus.yml", tmp_path) as prometheus:
        _traffic(embedded, 4)
        _traffic(remote, 4)
        time.sleep(3)
        assert {each["value"][1] for each in prometheus.query("up")} == {"1"}
        dark = {where for where, each in expressions().items() if not prometheus.query(each)}
        # What compares with the week before has nothing to compare with yet.
        young = {where for where, each in expressions().items() if re.search(r":avg7d|:ratio_avg7d|:shift1h", each)}
        on_a_gpu = {where for where, each in expressions().items() if names(each) & GPU}
        assert dark == young | (on_a_gpu if not prometheus.query("nv_gpu_utilization") else set())
        firing = {each["metric"]["alertname"] for each in prometheus.query('ALERTS{alertstate="firing"}')}
        assert "FoveaVersionRefused" in firing
