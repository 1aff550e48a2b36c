"""What the machine is, without saying whose: GPU, processor, versions. The parts about a GPU have not yet run."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from deploy.gpu.rows import Skipped

PACKAGES = ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tritonclient", "nvidia-ml-py")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on.

    Attributes:
        gpu: Its name, of the first one; None: there is none to use, and `missing` says why.
        capability: Compute capability, e.g. "9.0".
        memory_bytes: Of the GPU.
        driver: Version of NVIDIA's driver; None: NVML was not there to ask.
        cpu: Name of the processor.
        cores: That this process may use.
        threads: That CPU figures were measured with.
        versions: Of the packages that are installed.
        missing: Why no GPU is used.
    """

    gpu: str | None
    capability: str | None
    memory_bytes: int | None
    driver: str | None
    cpu: str
    cores: int
    threads: int
    versions: dict[str, str]
    missing: str | None

    def require_gpu(self) -> None:
        """Skip the check that calls this where no GPU is used."""
        if self.missing is not None:
            raise Skipped(self.missing)


def describe(device: str, threads: int) -> Machine:
    """Look at the machine.

    Args:
        device: "cuda" or "cpu"; with "cpu" no GPU is looked for.
        threads: For CPU figures.
    """
    missing = _missing(device)
    name, capability, memory = _gpu() if missing is None else (None, None, None)
    return Machine(
        gpu=name,
        capability=capability,
        memory_bytes=memory,
        driver=_driver() if missing is None else None,
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        threads=threads,
        versions=_versions(),
        missing=missing,
    )


def _missing(device: str) -> str | None:
    """Why no GPU can be used; None: one can."""
    if device == "cpu":
        return "needs a GPU, and this ran with --device cpu"
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return "PyTorch is not installed: make gpu-check"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA: install the CUDA build"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device: is there an NVIDIA GPU, and its driver?"
    return None


def _gpu() -> tuple[str, str, int]:
    torch = importlib.import_module("torch")
    properties = torch.cuda.get_device_properties(0)
    return properties.name, f"{properties.major}.{properties.minor}", properties.total_memory


def _driver() -> str | None:
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        version = nvml.nvmlSystemGetDriverVersion()
    finally:
        nvml.nvmlShutdown()
    return version.decode() if isinstance(version, bytes) else str(version)


def _cpu() -> str:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
