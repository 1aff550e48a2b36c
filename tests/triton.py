"""A real Triton Inference Server in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from tests.server import ROOT, RUNNING

SCRIPTS = ROOT / "deploy" / "triton"
START_SECONDS = 60.0
_check = subprocess.run(
    [sys.executable, SCRIPTS / "install.py", "--check"], capture_output=True, text=True, check=False
)
needs_triton = pytest.mark.skipif(_check.returncode != 0, reason=_check.stderr.strip())


class Triton:
    """`deploy/triton/serve.py` on ports of its own, which it keeps when it is started again.

    Args:
        repository: The models.
        folder: Where its log goes.
        explicit: Load and unload models by calls; otherwise Triton looks for changes itself.
        decode: Serve the decode model too.
        options: Further options of tritonserver.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        explicit: bool = True,
        decode: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        self.repository = repository
        self._log = folder / "triton.log"
        self._mode = "explicit" if explicit else "poll"
        self.decode = decode
        self._options = options
        self.http_port, self.grpc_port, self.metrics_port = _free_ports(3)
        self.process: subprocess.Popen[bytes]
        self.client: httpx.Client

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    url = http_url  # what a failing test's report calls it

    @property
    def grpc_url(self) -> str:
        """Without a scheme, as gRPC clients want it."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def start(self) -> Triton:
        """Start it and wait until it has loaded every model that loads.

        It answers nothing before. One broken model keeps `/v2/health/ready` from ever being true, so that is not
        what is waited for; see `ready`.
        """
        command = [sys.executable, SCRIPTS / "serve.py", "--repository", self.repository]
        command += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        command += ["--metrics-port", str(self.metrics_port), "--model-control-mode", self._mode]
        command += [*(["--decode"] if self.decode else []), "--", *self._options]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = httpx.Client(base_url=self.http_url, timeout=20)
        RUNNING.append(self)  # type: ignore[arg-type]  # of which only `url` and `log_text` are read
        self.wait_until(self.live, START_SECONDS)
        return self

    def live(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/v2/health/live").status_code == 200
        return False

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether a model, a version of it or, without a name, every model serves."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") if model else "/v2/health"
        return self.client.get(f"{path}/ready").status_code == 200

    def load(self, model: str) -> httpx.Response:
        """Have it read a model's config and versions again."""
        return self.client.post(f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> httpx.Response:
        return self.client.post(f"/v2/repository/models/{model}/unload")

    # Ending and starting again.

    def terminate(self) -> int:
        """Shut it down as an orchestrator does, and give its exit status."""
        self.client.close()  # Triton waits for idle connections
        self.resume()  # a stopped process takes no SIGTERM
        self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """End it at once, as the system does when memory runs out."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        stubs = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        self.process.kill()
        self._ended()
        for pid in stubs:  # some of them wait for a lock that died with Triton
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Freeze it: it keeps its connections, and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> Triton:
        """Start it on the same ports, after ending it if it runs."""
        if self.process.poll() is None:
            self.terminate()
        return self.start()

    def _ended(self) -> int:
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.client.close()
        if self in RUNNING:
            RUNNING.remove(self)  # type: ignore[arg-type]
        return self.process.returncode

    def __enter__(self) -> Triton:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    def log_text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"Triton ended: {self.log_text()}"
            assert time.monotonic() < give_up, f"it never came true: {self.log_text()}"
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now; all are held until the last is known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
