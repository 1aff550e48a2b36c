"""Manifests, rendered by kubectl: schemas, what has to agree with the server, and their commands run for real."""

from __future__ import annotations

import base64
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deploy.kubernetes import rules
from service.settings import Settings
from tests.databases import PostgreSQL
from tests.kubernetes import MANIFESTS, SERVING, Rendered, check, combined, needs_kubectl, reaches, render
from tests.models import publish_tiny
from tests.prometheus import names
from tests.server import ROOT, Server, environment, picture
from tests.triton import Triton, needs_triton

pytestmark = needs_kubectl

COMPONENTS = sorted(each.name for each in (MANIFESTS / "components").iterdir())
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> Rendered:
    return render(MANIFESTS / "overlays" / request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The GPU overlay with all components."""
    return combined(tmp_path_factory.mktemp("whole"), "gpu", COMPONENTS)


# Schemas.


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "kserve", "training"])
def test_it_renders_and_keeps_to_its_schemas(folder: str) -> None:
    check(render(MANIFESTS / folder))


@pytest.mark.parametrize("components", [*([each] for each in COMPONENTS), COMPONENTS], ids=",".join)
def test_components_render_over_an_overlay(components: list[str], tmp_path: Path) -> None:
    check(combined(tmp_path, "cpu", components))


# What has to agree.


def test_pods_end_after_their_servers(overlay: Rendered) -> None:
    """Twice the drain timeout: for requests, and then for batches whose requests were given up."""
    for rendered, name in ((overlay, "Deployment gateway"), (render(MANIFESTS / "kserve"), f"{SERVING} fovea")):
        pod = rendered.pods()[name]
        container = pod["containers"][0]
        given = {each["name"]: each.get("value") for each in container.get("env", ())}
        for source in container.get("envFrom", ()):
            given |= rendered("ConfigMap", source["configMapRef"]["name"])["data"]
        fields = Settings.model_fields
        delay = float(given.get("FOVEA_DRAIN_DELAY", fields["drain_delay"].default))
        timeout = float(given.get("FOVEA_DRAIN_TIMEOUT", fields["drain_timeout"].default))
        assert delay + 2 * timeout < pod["terminationGracePeriodSeconds"] <= delay + 2 * timeout + 15
        assert "lifecycle" not in container, "the drain delay is the hook; /readyz would be 200 while a preStop sleeps"
        probe = container["readinessProbe"]
        noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        assert delay > noticed, "load balancers that ask /readyz notice too late"
        assert {name.removeprefix("FOVEA_").lower() for name in given if name.startswith("FOVEA_")} <= set(fields)
    pod = overlay.pods()["Deployment triton"]
    container = pod["containers"][0]
    slept = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    (patience,) = (arg.partition("=")[2] for arg in container["args"] if arg.startswith("--exit-timeout-secs="))
    assert slept + int(patience) < pod["terminationGracePeriodSeconds"]


def test_only_gateways_reach_triton(overlay: Rendered) -> None:
    gateway, stranger = {COMPONENT: "gateway"}, {COMPONENT: "setup"}
    assert reaches(overlay, gateway, "triton", "grpc")
    assert not reaches(overlay, stranger, "triton", "grpc")
    assert not reaches(overlay, gateway, "triton", "grpc", namespace="other")
    assert not reaches(overlay, gateway, "triton", "http")
    assert reaches(overlay, stranger, "triton", "metrics", namespace="monitoring")
    assert not reaches(overlay, stranger, "triton", "grpc", namespace="monitoring")
    assert not reaches(overlay, gateway, "setup", "http")
    assert reaches(overlay, stranger, "gateway", "http", namespace="other")
    triton = overlay.pods()["Deployment triton"]["containers"][0]
    assert "--http-address=127.0.0.1" in triton["args"]
    assert "--model-control-mode=none" in triton["args"]
    assert {port["name"] for port in overlay("Service", "triton")["spec"]["ports"]} == {"grpc", "metrics"}


def test_selectors_ports_and_references_find_something(whole: Rendered) -> None:
    for one in (*whole.of("Service"), *whole.of("PodDisruptionBudget")):
        selector = one["spec"]["selector"]
        labels = selector.get("matchLabels", selector)
        (made_by,) = (
            each
            for each in whole.of("Deployment")
            if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
        )
        containers = made_by["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for container in containers for port in container["ports"]}
        assert {port["targetPort"] for port in one["spec"].get("ports", ())} <= ports
    for monitor in whole.of("ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (each for each in whole.of("Service") if labels.items() <= each["metadata"]["labels"].items())
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
        prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
        job = monitor["spec"]["endpoints"][0]["relabelings"][0]["replacement"]
        assert job in {each["job_name"] for each in prometheus["scrape_configs"]}
    for scaled in whole.of("ScaledObject"):
        deployment = whole("Deployment", scaled["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in deployment["spec"], "applying it anew would undo the scaling"
    assert whole.of("HorizontalPodAutoscaler") == [], "two would scale the same gateways"
    for pod in whole.pods().values():
        mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}


def test_pods_are_confined_and_say_what_they_need(whole: Rendered) -> None:
    pods = whole.pods() | render(MANIFESTS / "kserve").pods() | render(MANIFESTS / "training").pods()
    assert len(pods) == 5
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
    assert pods["Deployment triton"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_operators_rules_are_prometheus_own(whole: Rendered) -> None:
    assert rules.COPY.read_text() == rules.text(), "run python deploy/kubernetes/rules.py"
    assert whole("PrometheusRule", "fovea")["spec"] == rules.resource()["spec"]


def test_scaling_asks_for_queue_seconds_and_inflight(whole: Rendered) -> None:
    asked = {
        one["metadata"]["name"]: set().union(
            *(names(trigger["metadata"].get("query", "")) for trigger in one["spec"]["triggers"])
        )
        for one in whole.of("ScaledObject")
    }
    assert asked == {
        "gateway": {"fovea_inflight"},
        "triton": {"fovea_queue_seconds_sum", "fovea_queue_seconds_count"},
    }


# Commands, run for real.


@pytest.mark.slow
def test_setup_makes_tables_and_keys_and_a_second_time_nothing(
    postgresql: PostgreSQL, launch: Callable[..., Server], repository: Path, tmp_path: Path
) -> None:
    pod = render(MANIFESTS / "overlays" / "cpu").pods()["Job setup"]
    url = postgresql.database()
    made = {}
    for item in pod["volumes"][0]["secret"]["items"]:
        key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        made[item["key"]] = f"fovea_{secrets.token_hex(6)}_{key}"
        (tmp_path / item["path"]).write_text(made[item["key"]])
    (migrate,), (keys,) = pod["initContainers"], pod["containers"]
    script = keys["command"][-1].replace("/keys/", f"{tmp_path}/").replace("python ", f"{sys.executable} ")
    for _ in range(2):
        for command in ([sys.executable, "-m", "service", *migrate["args"]], [*keys["command"][:-1], script]):
            done = subprocess.run(
                command, env=environment(database_url=url), cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
    server = launch(repository, database_url=url)
    for key, status in (("metrics-key", 403), ("admin-key", 200)):
        headers = {"authorization": f"Bearer {made[key]}"}
        assert server.client.get("/metrics", headers=headers).status_code == 200
        pinned = server.client.put("/v1/models/tiny/version", json={"version": None}, headers=headers)
        assert pinned.status_code == status, pinned.text
    assert server.client.get("/metrics").status_code == 401


@needs_triton
@pytest.mark.slow
def test_triton_takes_the_options_and_gateways_connect_anew(tmp_path: Path) -> None:
    """With a connection's age of a second instead of half an hour: no request is lost, at most refused for a moment."""
    container = render(MANIFESTS / "overlays" / "cpu").pods()["Deployment triton"]["containers"][0]
    elsewhere = ("--model-repository", "--http-address", "--grpc-address", "--metrics-address")
    options = [option for option in container["args"][1:] if not option.startswith(elsewhere)]
    (age,) = (number for number, option in enumerate(options) if option.startswith("--grpc-max-connection-age="))
    options[age] = "--grpc-max-connection-age=1000"
    publish_tiny(tmp_path / "models")
    (tmp_path / "server").mkdir()
    with (
        Triton(tmp_path / "models", tmp_path, explicit=False, options=tuple(options)).start() as triton,
        Server(
            tmp_path / "models", tmp_path / "server", backend="triton", triton_url=triton.grpc_url
        ).start() as server,
    ):
        statuses = []
        for number in range(400):
            statuses.append(server.classify(picture(number)).status_code)
            time.sleep(0.01)
        assert set(statuses) <= {200, 503}
        server.wait_until(lambda: "version ready again" in server.log_text())
        anew = server.log_text().count("version ready again")
        print(f"{statuses.count(503)} of {len(statuses)} refused in {anew} new connections, one request every 10 ms")  # noqa: T201 - shown by pytest -rA
        assert statuses.count(503) < 100 * anew, "a new connection costs less than a second"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_machines_train_together(tmp_path: Path) -> None:
    """The training job's own command, twice on this machine."""
    rendered = render(MANIFESTS / "training")
    job = rendered("Job", "training")["spec"]
    assert job["completionMode"] == "Indexed"
    (container,) = job["template"]["spec"]["containers"]
    service = job["template"]["spec"]["subdomain"]
    (endpoint,) = (each.partition("=")[2] for each in container["args"] if each.startswith("--rdzv-endpoint="))
    assert (
        endpoint
        == f"training-0.{service}:{render(MANIFESTS / 'training')('Service', service)['spec']['ports'][0]['port']}"
    )
    assert f"--nnodes={job['completions']}" in container["args"]
    assert job["completions"] == job["parallelism"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [
        each.replace(endpoint, f"127.0.0.1:{port}").replace("/runs/", f"{tmp_path}/") for each in container["args"]
    ]
    command = [str(Path(sys.executable).parent / container["command"][0]), *arguments, "--epochs=1", "--device=cpu"]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    machines = []
    for number in range(job["completions"]):
        with (tmp_path / f"{number}.log").open("wb") as log:
            machines.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    try:
        assert [machine.wait(380) for machine in machines] == [0, 0], (tmp_path / "0.log").read_text()
    finally:
        for machine in machines:
            machine.kill()
    assert (tmp_path / "digits" / "metrics.json").is_file()
