"""Bring the stack of docker-compose.yml up, with Docker or podman: `python3 deploy/compose/stack.py up`, or `make up`.

Needs nothing but Python. It makes what is missing (secrets in `.env`, the images), starts everything, waits until the
gateway is ready and says how to ask it. Docker Compose alone does the same with `up --build --detach`, given a `.env`.

Environment: BASE_IMAGE, TRITON_IMAGE and every other variable of docker-compose.yml; CONTAINER_ENGINE (docker or
podman; unless given, the one that is there); BUILD_FLAGS, further flags of `build`; WITHOUT_REGISTRY=1, to build
PostgreSQL and Prometheus from Debian's packages instead of pulling them, and do without Grafana.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0
STOP_SECONDS = 65  # as docker-compose.yml says; podman-compose does not read it
# What Debian's packages and the base image have to stand in for, where no registry is reached. Grafana is not there.
OWN_IMAGES = {"postgresql": "localhost/fovea-postgresql", "prometheus": "localhost/fovea-prometheus"}
SERVICES = ("setup", "gateway", "triton", "postgres", "prometheus")  # named: some podman-compose know no profiles


class StackError(Exception):
    """The stack cannot be had; the message says what would help."""


@dataclass(frozen=True)
class Engine:
    """Who runs containers.

    Attributes:
        name: docker or podman.
        compose: The command that reads docker-compose.yml.
    """

    name: str
    compose: tuple[str, ...]


def find_engine() -> Engine:
    """Docker with its compose plugin, else podman with podman-compose.

    Raises:
        StackError: Neither is there.
    """
    wanted = os.environ.get("CONTAINER_ENGINE")
    if wanted not in (None, "", "docker", "podman"):
        raise StackError(f"CONTAINER_ENGINE={wanted} is neither docker nor podman")
    if wanted != "podman" and _works("docker", "compose", "version") and _works("docker", "info"):
        return Engine("docker", ("docker", "compose"))
    if wanted != "docker" and shutil.which("podman-compose") and shutil.which("podman"):
        return Engine("podman", ("podman-compose",))
    raise StackError("install Docker with its compose plugin, or podman with podman-compose")


def make_secrets(file: Path) -> bool:
    """Write what docker-compose.yml wants from the environment, drawn anew, unless the file is there.

    Returns:
        Whether it was written. Only its owner can read it.
    """
    lines = [
        "# Made by deploy/compose/stack.py. Whoever has these has the stack: keep the file to yourself.",
        f"POSTGRES_PASSWORD={secrets.token_hex(24)}",
        f"GRAFANA_PASSWORD={secrets.token_hex(16)}",
        *(f"{name}={new_key()}" for name in ("FOVEA_KEY", "METRICS_KEY", "LOAD_KEY")),
    ]
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        stream.write("\n".join(lines) + "\n")
    return True


def image_of(target: str) -> str:
    """The name of the image of a target of the Dockerfile, as docker-compose.yml has it."""
    if target == "gateway":
        return os.environ.get("FOVEA_IMAGE", "localhost/fovea")
    return os.environ.get(f"{target.upper()}_IMAGE", f"localhost/fovea-{target}")


def new_key() -> str:
    """A secret as `python -m service keys create` makes them."""
    return f"fovea_{secrets.token_hex(6)}_{base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip('=')}"


class Stack:
    """The containers of one project.

    Args:
        engine: That runs them.
        project: Their common name.
    """

    def __init__(self, engine: Engine, project: str) -> None:
        self.engine = engine
        self.project = project
        self._without_registry = os.environ.get("WITHOUT_REGISTRY", "") not in ("", "0")

    def build(self, *targets: str) -> None:
        """Build the project's images, by targets of the Dockerfile."""
        for target in targets:
            self._build(image_of(target), "--target", target)

    def build_others(self) -> None:
        """Build what the stack needs besides and would be pulled otherwise."""
        if self._without_registry:
            for name, tag in OWN_IMAGES.items():
                self._build(tag, "--file", f"deploy/containers/{name}.Containerfile")

    def _build(self, tag: str, *options: str) -> None:
        command = [self.engine.name, "build", "--tag", tag, *options]
        if self.engine.name == "podman":
            command += ["--format", "docker"]  # the other one knows no health checks
        if base := os.environ.get("BASE_IMAGE"):
            command += ["--build-arg", f"BASE_IMAGE={base}"]
        command += ["--build-arg", f"VERSION={_version()}", "--build-arg", f"REVISION={_revision()}"]
        _run([*command, *shlex.split(os.environ.get("BUILD_FLAGS", "")), "."])

    def compose(self, *arguments: str) -> None:
        """Run a command of compose on the project."""
        files = ["docker-compose.yml", *(["deploy/compose/without-registry.yml"] if self._without_registry else [])]
        chosen = [part for file in files for part in ("-f", file)]
        _run([*self.engine.compose, *chosen, "-p", self.project, *arguments])

    def up(self) -> None:
        """Start all services in the background."""
        self.compose("up", "-d", *SERVICES, *(() if self._without_registry else ("grafana",)))

    def load(self) -> None:
        """Run the load test against the gateway."""
        self.compose("run", "--rm", "--no-deps", "load")

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove all containers and networks, and with `volumes` what they kept."""
        self.compose("down", "-t", str(STOP_SECONDS), *(["-v"] if volumes else []))
        # Older versions of podman-compose leave the networks behind.
        label = f"label=com.docker.compose.project={self.project}"
        if left := _output(self.engine.name, "network", "ls", "-q", "--filter", label).split():
            _run([self.engine.name, "network", "rm", *left])

    def wait(self, url: str, key: str, seconds: float = START_SECONDS) -> None:
        """Wait until the gateway says that it is ready, and takes a key: `setup` may come to that later.

        Raises:
            StackError: It does not, in this time.
        """
        give_up = time.monotonic() + seconds
        for path in ("/readyz", "/v1/models"):
            while problem := _problem(url + path, key):
                if time.monotonic() > give_up:
                    raise StackError(f"{url}{path} after {seconds:.0f} s: {problem}; see the containers' logs")
                time.sleep(0.5)


def _problem(url: str, key: str) -> str | None:
    """Why a URL does not answer well; None if it does."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - it is ours
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode(errors="replace")
    except OSError as error:
        return str(error)


def _variable(name: str) -> str:
    """A variable of docker-compose.yml, from the environment or `.env`."""
    lines = (ROOT / ".env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return os.environ.get(name) or given.get(name, "")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise StackError(f"{shlex.join(command)} ended with {done.returncode}")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def _version() -> str:
    found = re.search(r'__version__ = "(.+)"', (ROOT / "service" / "__init__.py").read_text())
    return found[1] if found else "unknown"


def _revision() -> str:
    """The commit, where this is a checkout."""
    return (_output("git", "rev-parse", "HEAD") if shutil.which("git") else "") or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole stack in containers.")
    parser.add_argument("action", choices=("up", "down", "load", "build", "secrets"))
    parser.add_argument("--project", default="fovea", help="name of the containers' project (default: fovea)")
    parser.add_argument("--volumes", action="store_true", help="with down: remove what was kept, too")
    options = parser.parse_args()
    try:
        if options.action == "secrets":
            written = make_secrets(ROOT / ".env")
            sys.stdout.write(".env was written\n" if written else ".env is there already\n")
            return
        stack = Stack(find_engine(), options.project)
        if options.action == "down":
            stack.down(volumes=options.volumes)
        elif options.action == "build":
            stack.build("gateway", "export", "load")
        elif options.action == "load":
            stack.build("load")
            stack.load()
        else:
            _up(stack)
    except StackError as error:
        sys.exit(f"error: {error}")


def _up(stack: Stack) -> None:
    make_secrets(ROOT / ".env")
    stack.build("gateway")
    stack.build_others()
    stack.up()
    url = f"http://127.0.0.1:{os.environ.get('GATEWAY_PORT', '8080')}"
    stack.wait(url, _variable("FOVEA_KEY"))
    sys.stdout.write(
        f"Fovea answers at {url}; its keys and passwords are in .env:\n"
        '  curl -s -H "Authorization: Bearer $(sed -n s/^FOVEA_KEY=//p .env)" '
        f"--data-binary @docs/images/seven.png {url}/v1/models/lenet5-digits/classify\n"
    )


if __name__ == "__main__":
    main()
