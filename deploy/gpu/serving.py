"""The Triton of `deploy/triton`, a process of its own, with an instance on the device. Not yet run on a GPU."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from deploy.gpu.rows import Failed, Skipped
from export.precision import Form
from export.publish import Candidate, publish
from export.triton_config import Deployment
from service.golden import golden_batch, golden_difference
from service.preprocess import Preprocessor
from service.spec import ModelSpec

SCRIPTS = Path(__file__).resolve().parents[1] / "triton"
NAME = "gpu-check"
START_SECONDS = 120.0  # CUDA's libraries are large
PROVIDERS = "import onnxruntime; print(*onnxruntime.get_available_providers())"


def check(candidate: Candidate, folder: Path, device: str) -> str:
    """Publish a network, serve it, and hold its golden images against PyTorch.

    Args:
        candidate: The network.
        folder: For the repository and Triton's log.
        device: "cuda" or "cpu": where its instance runs.

    Raises:
        Skipped: Triton is not installed, or cannot use GPUs.
        Failed: It does not serve the network, or not on that device.
        service.golden.Drifted: Its answers are not PyTorch's.
    """
    _require(device)
    kind = "gpu" if device == "cuda" else "cpu"
    spec = publish(candidate, NAME, folder / "models", Form(deployment=Deployment(instance_kind=kind)))
    with _serving(folder) as client:
        found = {triton.model_config_pb2.ModelInstanceGroup.Kind.Name(each.kind) for each in _groups(client)}
        if found != {f"KIND_{kind.upper()}"}:
            raise Failed(f"its instances are {', '.join(sorted(found))}")
        batch = golden_batch(spec, Preprocessor(spec.image))
        difference = golden_difference(spec, _logits(client, spec, batch))
        executions = client.get_inference_statistics(NAME).model_stats[0].execution_count
    return f"golden images differ by {difference:.1g} through a {kind.upper()} instance; {executions} executions"


def _require(device: str) -> None:
    command = [sys.executable, str(SCRIPTS / "install.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise Skipped(answer.stderr.strip().removeprefix("error: "))
    if device == "cuda":
        python = Path(answer.stdout.strip().rpartition(" ")[2]) / "bin" / "python3"
        found = subprocess.run([python, "-I", "-c", PROVIDERS], capture_output=True, text=True, check=False).stdout
        if "CUDAExecutionProvider" not in found:
            raise Skipped(
                "Triton's environment has the CPU's build of ONNX Runtime: put onnxruntime-gpu in its place in "
                "deploy/triton/requirements.txt and run make triton-setup"
            )


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[triton.InferenceServerClient]:
    """Triton on free ports, while it is entered."""
    http, grpc, metrics = _free_ports(3)
    command = [
        sys.executable,
        str(SCRIPTS / "serve.py"),
        "--repository",
        str(folder / "models"),
        "--http-port",
        str(http),
    ]
    command += ["--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    client = triton.InferenceServerClient(f"127.0.0.1:{grpc}")
    try:
        _wait(client, process, folder / "triton.log")
        yield client
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(client: triton.InferenceServerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(InferenceServerException):
            if client.is_server_live():  # which it says only when it has tried all models
                if client.is_model_ready(NAME):
                    return
                break
        time.sleep(0.1)
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("E") or "error" in line]
    raise Failed(f"Triton does not serve it: {said[-1].strip() if said else 'its log does not say why'}")


def _groups(client: triton.InferenceServerClient) -> list[triton.model_config_pb2.ModelInstanceGroup]:
    return list(client.get_model_config(NAME).config.instance_group)


def _logits(client: triton.InferenceServerClient, spec: ModelSpec, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    image = triton.InferInput("image", list(batch.shape), "UINT8")
    image.set_data_from_numpy(batch)
    answer = client.infer(spec.name, [image], outputs=[triton.InferRequestedOutput("logits")], model_version="1")
    return np.asarray(answer.as_numpy("logits"))


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now; all are held until the last is known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
