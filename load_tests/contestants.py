"""Who is measured: the gateway in several guises, and its peers, each as it is started, asked and stopped.

Each has all cores, as a process for each, whose inferences take one thread, unless told otherwise: in one process whose
inferences take all cores these idle while a batch is decoded.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from load_tests.gateway import ROOT, family, free_ports
from load_tests.peers.install import ENVIRONMENTS, PEERS, READY
from load_tests.subjects import Subject, graph

TRITON_HTTP, TRITON_GRPC, TRITON_METRICS = 8310, 8311, 8312
START_SECONDS = 60.0
CORES = len(os.sched_getaffinity(0))
BENTO = "load_tests.peers.with_bentoml"
QUIET = {  # no line for each request, no statistics sent home, no token in the user's home
    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Contestant:
    """A server to load.

    Attributes:
        name: As it is printed.
        command: That starts it.
        path: That it answers at.
        environment: Beside ours.
        headers: To send it.
        port: That it listens on.
        grpc_port: Likewise, of gRPC; 0 where that is not asked.
        form: It takes the image in a form, not as the body.
        client: That loads it: "wrk", "h2load" (gRPC) or "tensors" (which sends Triton pixels).
        int8: It runs the quantized network.
        behind: What it needs running.
    """

    name: str
    command: list[str]
    path: str
    environment: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0
    grpc_port: int = 0
    form: bool = False
    client: str = "wrk"
    int8: bool = False
    behind: Contestant | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def ask(self, body: bytes | None) -> bytes:
        """One answer; GET if there is nothing to send. Raises OSError or HTTPException."""
        request = urllib.request.Request(self.url, body, self.headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            data: bytes = answer.read()
        return data


def contestants(subject: Subject, workers: int | None = None) -> list[Contestant]:
    """The gateway first: every other is compared with it.

    Args:
        subject: What is classified.
        workers: Processes of each; None: as many as there are cores.
    """
    return [*gateways(subject, workers), *tritons(subject), *peers(subject, workers)]


def gateways(subject: Subject, workers: int | None) -> list[Contestant]:
    """The gateway with ONNX Runtime inside: over HTTP and over gRPC, and with the quantized network."""
    port, grpc_port = free_ports(2)
    serve = [*_gateway(port), "--workers", str(workers or CORES), "--model-repository"]
    whole = [*serve, str(subject.repository), "--grpc-port"]
    found = [Contestant("fovea", [*whole, "off"], subject.path, {}, port=port)]
    if subject.int8:
        quantized = [*serve, str(subject.int8), "--grpc-port", "off"]
        found.append(Contestant("fovea, int8", quantized, subject.path, {}, port=port, int8=True))
    else:
        silent = [*whole, "off", "--no-access-log"]
        found.append(Contestant("fovea, no access log", silent, subject.path, {}, port=port))
    if shutil.which("h2load"):
        called = [*whole, str(grpc_port)]
        found.append(
            Contestant("fovea, gRPC", called, subject.path, {}, port=port, grpc_port=grpc_port, client="h2load")
        )
    return found


def triton(repository: Path, model: str, *options: str) -> Contestant:
    """Triton itself, driven with pixels."""
    command = [sys.executable, str(ROOT / "deploy/triton/serve.py"), "--repository", str(repository)]
    for name, port in (("http", TRITON_HTTP), ("grpc", TRITON_GRPC), ("metrics", TRITON_METRICS)):
        command += [f"--{name}-port", str(port)]
    ready = f"/v2/models/{model}/ready"
    return Contestant("Triton driven directly", [*command, *options], ready, {}, port=TRITON_HTTP, client="tensors")


def tritons(subject: Subject) -> list[Contestant]:
    """Triton behind the gateway and on its own, if `make triton-setup` has installed one."""
    check = [sys.executable, str(ROOT / "deploy/triton/install.py"), "--check"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        return []
    behind = triton(subject.repository, subject.name)
    (port,) = free_ports(1)
    front = [*_gateway(port), "--backend", "triton", "--triton-url", f"127.0.0.1:{TRITON_GRPC}", "--grpc-port", "off"]
    return [Contestant("fovea with Triton", front, subject.path, {}, port=port, behind=behind), behind]


def peers(subject: Subject, workers: int | None) -> list[Contestant]:
    """The servers that others have written, if `make peers` has installed them, and two that one writes oneself."""
    python, processes, (port,) = sys.executable, workers or CORES, free_ports(1)
    uvicorn = [python, "-m", "uvicorn", "--port", str(port), "--log-level", "warning", "--no-access-log", "--workers"]
    shape = {"RESIZE_TO": str(subject.resize_to or ""), "MODEL": str(graph(subject.repository, subject.name))}
    share = {"WORKERS": str(processes), "THREADS": str(max(1, CORES // processes))}
    given = {**shape, **share, "PORT": str(port), "PYTHONPATH": str(ROOT), **QUIET}
    found = []
    for name, module in (("plain ASGI + ONNX Runtime", "plain_asgi"), ("FastAPI as written first", "naive_fastapi")):
        command = [*uvicorn, str(processes), f"load_tests.peers.{module}:app"]
        found.append(Contestant(name, command, "/", given, port=port))
    for name, folder, command, path, form in (
        ("mosec", "mosec", ["python", "-m", "load_tests.peers.with_mosec"], "/inference", False),
        ("LitServe", "litserve", ["python", "-m", "load_tests.peers.with_litserve"], "/", True),
        ("BentoML", "bentoml", ["bentoml", "serve", f"{BENTO}:Gateway", "--port", str(port)], "/", False),
        ("Ray Serve", "ray", ["python", "-m", "load_tests.peers.with_ray_serve"], "/", False),
    ):
        if (ENVIRONMENTS / folder / READY).exists():
            whole = [str(ENVIRONMENTS / folder / "bin" / command[0]), *command[1:]]
            found.append(Contestant(name, whole, path, given, port=port, form=form))
    return found


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    folders = {name: list((ENVIRONMENTS / name).glob("lib/python*/site-packages")) for name in PEERS}
    return {
        each.name: each.version
        for name, folder in folders.items()
        for each in metadata.distributions(name=name, path=list(map(str, folder)))
    }


def _gateway(port: int) -> list[str]:
    return [sys.executable, "-m", "service", "serve", "--port", str(port)]


@contextlib.contextmanager
def running(contestant: Contestant, body: bytes | None) -> Iterator[int]:
    """Start the server, wait for its first answer, and stop it at the end; yields its process id.

    Args:
        contestant: That is started.
        body: To ask it with; None: GET.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        database = {"FOVEA_DATABASE_URL": f"sqlite:///{folder}/bench.db"}
        environment = {**os.environ, **database, **contestant.environment}
        process = subprocess.Popen(contestant.command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            give_up = time.monotonic() + START_SECONDS
            while not _answers(contestant, body):
                if process.poll() is not None or time.monotonic() > give_up:
                    log.seek(0)
                    raise SystemExit(f"error: {contestant.name} did not start:\n{log.read().decode()}")
                time.sleep(0.1)
            yield process.pid
        finally:
            children = list(family(process.pid))
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for pid in children:  # what it has left behind
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _answers(contestant: Contestant, body: bytes | None) -> bool:
    try:
        contestant.ask(body)
    except (OSError, http.client.HTTPException):
        return False
    return True
