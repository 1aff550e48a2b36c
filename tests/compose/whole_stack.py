"""The whole stack in containers, for real: `make compose-test`.

`make test` does not collect it: it takes minutes, and wants Docker or podman and images. It runs in a copy of the
sources as a clean clone has them, in a project of its own beside whatever else runs, and leaves the images behind.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
SEVEN = (ROOT / "docs" / "images" / "seven.png").read_bytes()
THREE = (ROOT / "docs" / "images" / "three.png").read_bytes()
CLASSIFY = "/v1/models/lenet5-digits/classify"
WITHOUT_REGISTRY = os.environ.get("WITHOUT_REGISTRY", "") not in ("", "0")

pytestmark = pytest.mark.timeout(1200)  # the first test builds the images


class Stack:
    """A copy of the sources, and the containers that were started from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = f"fovea-test-{uuid.uuid4().hex[:6]}"
        self._label = f"label=com.docker.compose.project={self.project}"
        self.ports = dict(zip(("GATEWAY_PORT", "GATEWAY_GRPC_PORT", "GRAFANA_PORT"), _free_ports(3), strict=True))
        self.engine = os.environ.get("CONTAINER_ENGINE") or ("docker" if _docker() else "podman")
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in files.stdout.split("\0"):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def command(self, *arguments: str, **variables: str) -> str:
        """Run deploy/compose/stack.py."""
        environment = os.environ | {name: str(port) for name, port in self.ports.items()} | variables
        command = [sys.executable, "deploy/compose/stack.py", *arguments, "--project", self.project]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout + done.stderr

    def secret(self, name: str) -> str:
        lines = (self.folder / ".env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))

    def engine_says(self, *arguments: str) -> str:
        command = [self.engine, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.strip()

    def container(self, service: str) -> str:
        wanted = f"label=com.docker.compose.service={service}"
        return self.engine_says("ps", "-aq", "--filter", self._label, "--filter", wanted).splitlines()[0]

    def inspect(self, service: str) -> Any:
        return json.loads(self.engine_says("inspect", self.container(service)))[0]

    def run_in(self, service: str, *command: str) -> str:
        return self.engine_says("exec", self.container(service), *command)

    def left(self) -> list[str]:
        """Everything of the project that there is."""
        kinds = (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"])
        return [name for kind in kinds for name in self.engine_says(*kind, "--filter", self._label).split()]

    def logs(self) -> str:
        """The ends of all logs, for whoever has to find out what failed."""
        ids = self.engine_says("ps", "-aq", "--filter", self._label).split()
        commands = [[self.engine, "logs", "--tail", "20", one] for one in ids]
        runs = [subprocess.run(command, capture_output=True, text=True) for command in commands]
        return "\n".join(run.stdout + run.stderr for run in runs)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("clone"))
    failed = True
    try:
        started = time.monotonic()
        said = stack.command("up")
        sys.stdout.write(f"up in {time.monotonic() - started:.0f} s\n{said[-500:]}\n")
        failed = False
        yield stack
    finally:
        sys.stdout.write(stack.logs())
        stack.command("down", "--volumes")
        if not failed:
            assert stack.left() == []


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {stack.secret('FOVEA_KEY')}"}
    url = f"http://127.0.0.1:{stack.ports['GATEWAY_PORT']}"
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield client


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.3)


def classify(client: httpx.Client, image: bytes = SEVEN, model: str = "lenet5-digits") -> httpx.Response:
    return client.post(f"/v1/models/{model}/classify", content=image)


def label(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["classes"][0]["label"])


def answers(client: httpx.Client) -> bool:
    try:
        return classify(client).status_code == 200
    except httpx.TransportError:
        return False


def test_it_classifies_through_triton_and_wants_a_key(stack: Stack, client: httpx.Client) -> None:
    assert label(classify(client)) == "7"
    assert "--backend triton" in " ".join(stack.inspect("gateway")["Config"]["Cmd"])
    assert httpx.post(f"{client.base_url}{CLASSIFY}", content=SEVEN).status_code == 401
    metrics = {"authorization": f"Bearer {stack.secret('METRICS_KEY')}"}
    assert client.get("/metrics", headers=metrics).status_code == 200
    assert client.put("/v1/heads/mine", headers=metrics, json={"backbone": "letters"}).status_code == 403


def test_only_the_gateway_and_grafana_are_published_and_on_loopback(stack: Stack) -> None:
    published = {}
    for service in ("gateway", "triton", "postgres", "prometheus", *(() if WITHOUT_REGISTRY else ("grafana",))):
        ports = stack.inspect(service)["NetworkSettings"]["Ports"] or {}
        published[service] = {each["HostIp"] for bound in ports.values() for each in bound or ()}
    assert {service for service, hosts in published.items() if hosts} <= {"gateway", "grafana"}
    assert published["gateway"] == {"127.0.0.1"}
    for network in stack.inspect("triton")["NetworkSettings"]["Networks"]:
        assert stack.engine_says("network", "inspect", network, "--format", "{{.Internal}}") == "true"


def test_the_gateway_is_nobody_in_particular_and_can_write_nothing(stack: Stack) -> None:
    tries = (
        "id -u; touch /srv/fovea/x 2>&1; touch /opt/fovea/x 2>&1; touch /x 2>&1;"
        " python -c 'import torch' 2>&1; command -v cc gcc ld || echo no compiler; grep CapEff /proc/self/status"
    )
    user, *refused, no_torch, compiler, capabilities = [
        line for line in stack.run_in("gateway", "sh", "-c", tries).splitlines() if not line.startswith((" ", "Trace"))
    ]
    assert user == "10001"
    assert len(refused) == 3
    assert all("Read-only file system" in line for line in refused)
    assert no_torch == "ModuleNotFoundError: No module named 'torch'"
    assert compiler == "no compiler"
    assert int(capabilities.split()[1], 16) == 0


def test_its_health_check_passes(stack: Stack) -> None:
    if stack.engine == "podman":  # which runs none by itself without systemd
        stack.engine_says("healthcheck", "run", stack.container("gateway"))
    else:
        wait_until(lambda: stack.inspect("gateway")["State"]["Health"]["Status"] == "healthy", 60)
    # The image's own check, for those who run it without compose.
    name = stack.inspect("gateway")["Config"]["Image"]
    check = json.loads(stack.engine_says("image", "inspect", name))[0]
    test = (check.get("Healthcheck") or check["Config"]["Healthcheck"])["Test"]
    assert test[0] == "CMD"
    stack.run_in("gateway", *test[1:])


def test_a_taught_head_survives_a_restart(stack: Stack, client: httpx.Client) -> None:
    assert client.put("/v1/heads/mine", json={"backbone": "letters"}).is_success
    for name, image in (("seven", SEVEN), ("three", THREE)):
        assert client.post("/v1/heads/mine/examples", params={"label": name}, content=image).is_success
    assert client.post("/v1/heads/mine/fit").is_success
    assert label(classify(client, THREE, "mine")) == "three"
    stack.engine_says("restart", "-t", "65", stack.container("gateway"))
    wait_until(lambda: answers(client), 60)
    assert label(classify(client, THREE, "mine")) == "three"


def test_triton_is_killed_and_comes_back(stack: Stack, client: httpx.Client) -> None:
    triton = stack.container("triton")
    stack.engine_says("kill", "--signal", "KILL", triton)
    wait_until(lambda: not answers(client), 10)
    refused = classify(client)
    assert (refused.status_code, refused.json()["code"]) == (503, "backend_unavailable")
    assert "retry-after" in refused.headers
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    stack.engine_says("start", triton)  # whoever kills by the engine has to start by it: it takes that for wanted
    wait_until(lambda: answers(client), 60)
    assert label(classify(client)) == "7"
    assert client.get("/readyz").status_code == 200


def test_prometheus_scrapes_the_gateway_and_triton(stack: Stack) -> None:
    def ask(path: str) -> Any:  # nobody outside reaches it
        program = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())"
        return json.loads(stack.run_in("gateway", "python", "-c", program, f"http://prometheus:9090/api/v1/{path}"))[
            "data"
        ]

    def up() -> dict[str, str]:
        return {one["metric"]["job"]: one["value"][1] for one in ask("query?query=up")["result"]}

    wait_until(lambda: up() == {"fovea": "1", "triton": "1"}, 90)
    asked = ask("query?query=sum(fovea_requests_total)")["result"]
    assert float(asked[0]["value"][1]) > 0
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def test_locust_finds_no_errors(stack: Stack) -> None:
    said = stack.command("load", LOAD_TIME="5s", LOAD_USERS="2")
    rows = [line.split() for line in said.splitlines() if line.strip().startswith("Aggregated")]
    assert int(rows[-2][1]) > 0, said[-3000:]  # of the two tables at the end, the first has the numbers
    assert rows[-2][2] == "0(0.00%)", said[-3000:]


@pytest.mark.skipif(WITHOUT_REGISTRY, reason="there is no Grafana without a registry")
def test_grafana_has_the_dashboard(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.ports['GRAFANA_PORT']}/api"
    login = ("admin", stack.secret("GRAFANA_PASSWORD"))

    def found() -> bool:
        try:
            return bool(httpx.get(f"{url}/search?type=dash-db", auth=login).json())
        except httpx.TransportError:
            return False

    wait_until(found, 90)
    assert httpx.get(f"{url}/search").status_code == 401


def test_a_request_under_way_is_answered_when_the_gateway_is_stopped(stack: Stack, client: httpx.Client) -> None:
    gateway = stack.container("gateway")
    head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: gateway\r\nauthorization: {client.headers['authorization']}\r\n"
    head += f"content-length: {len(SEVEN)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.ports["GATEWAY_PORT"]), timeout=30) as connection:
        connection.sendall(head.encode() + SEVEN[:50])
        time.sleep(0.2)
        stopping = threading.Thread(target=stack.engine_says, args=("stop", "-t", "65", gateway))
        started = time.monotonic()
        stopping.start()
        time.sleep(2.5)  # beyond FOVEA_DRAIN_DELAY: no new connections are taken any more
        connection.sendall(SEVEN[50:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    stopping.join()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"label":"7"' in answer
    assert time.monotonic() - started < 30
    assert stack.inspect("gateway")["State"]["ExitCode"] == 0
    stack.engine_says("start", gateway)
    wait_until(lambda: answers(client), 60)


def test_the_image_alone_answers(stack: Stack) -> None:
    """`docker run -p 127.0.0.1:8080:8080 fovea`: the bundled models without Triton, and a first key in the log."""
    image = stack.inspect("gateway")["Config"]["Image"]
    port = _free_ports(1)[0]
    options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "-p", f"127.0.0.1:{port}:8080"]
    one = stack.engine_says("run", *options, image)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def secret() -> str:
                done = subprocess.run([stack.engine, "logs", one], capture_output=True, text=True, check=True)
                lines = [line for line in (done.stdout + done.stderr).splitlines() if "the first one" in line]
                return lines[0].rpartition(" ")[2] if lines else ""

            wait_until(lambda: bool(secret()), 60)
            client.headers["authorization"] = f"Bearer {secret()}"
            wait_until(lambda: answers(client), 60)
            assert label(classify(client)) == "7"
    finally:
        stack.engine_says("rm", "--force", "--volumes", one)


def _docker() -> bool:
    return bool(shutil.which("docker")) and all(
        subprocess.run(["docker", *command], capture_output=True).returncode == 0
        for command in (["compose", "version"], ["info"])
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
