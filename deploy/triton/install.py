"""Install a Triton Inference Server without a container: `python deploy/triton/install.py`.

The wheel nvidia-pytriton carries the server; it goes to a virtual environment of its own under `build/triton/`,
because its Python backend needs numpy 1. Half an installation never counts: it is made aside, tried, and renamed
into place. No root is needed. The installation serves the Python that made it (its version is in the folder's name).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1] / "build" / "triton"
REQUIREMENTS = HERE / "requirements.txt"
BACKENDS = HERE / "backends"
SERVICE = HERE.parents[1] / "service"
COMMAND = "make triton-setup"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.11", "3.12")  # both a stub in the wheel and a build of numpy 1.26 exist for them
PART = ".part-"


class SetupError(Exception):
    """This machine cannot have this Triton; the message says what to do."""


class Installation:
    """Where the parts of an installation lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python3"
        self.packages = folder / "lib" / f"python{VERSION}" / "site-packages"
        self.libraries = self.packages / "nvidia_pytriton.libs"
        self.triton = self.packages / "pytriton" / "tritonserver"
        self.server = self.triton / "bin" / "tritonserver"
        self.backends = folder / "backends"

    def environment(self) -> dict[str, str]:
        """This process's environment, with what the server and the Python inside its backend need.

        That Python is isolated: it ignores `PYTHONPATH`, and takes the environment of the first `python3` on the path.
        """
        libraries = [str(self.libraries), str(libpython().parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join([str(self.python.parent), os.environ.get("PATH", os.defpath)]),
        }


def current() -> Installation:
    """The installation that belongs to this Python and to these requirements, whether it is there or not.

    Raises:
        SetupError: There can be none.
    """
    if VERSION not in PYTHONS:
        raise SetupError(f"this Triton cannot use Python {VERSION}: use {' or '.join(PYTHONS)} (PYTHON=…)")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError("this Triton runs on Linux on x86-64 only: use Triton's container image elsewhere")
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return Installation(HOME / f"python{VERSION}-{digest}")


def ready() -> Installation:
    """The installation, if it is there.

    Raises:
        SetupError: It is not.
    """
    installation = current()
    if not installation.folder.is_dir():
        raise SetupError(f"Triton is not installed: run `{COMMAND}`")
    return installation


def libpython() -> Path:
    """The shared library of the Python that runs this; the backend's stub loads it.

    Raises:
        SetupError: This Python has none.
    """
    name = f"libpython{VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"]
    folders += [f"{folder}/{sysconfig.get_config_var('MULTIARCH')}" for folder in tuple(folders)]
    for folder in folders:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    raise SetupError(
        f"{sys.executable} has no {name}: install your system's package of it, or use a Python that has it"
    )


def install() -> Installation:
    """Install, unless it is installed.

    Raises:
        SetupError: It cannot be; nothing is left behind.
    """
    installation = current()
    libpython()
    with _lock():
        if installation.folder.is_dir():
            return installation
        for leftover in HOME.glob(PART + "*"):  # whoever made it is dead, for we have the lock
            shutil.rmtree(leftover)
        part = HOME / f"{PART}{os.getpid()}"
        try:
            _build(Installation(part))
            part.rename(installation.folder)
            for outdated in HOME.glob(f"python{VERSION}-*"):
                if outdated != installation.folder:
                    shutil.rmtree(outdated)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return installation


@contextmanager
def _lock() -> Iterator[None]:
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system gives it back however this process ends
        yield


def _build(part: Installation) -> None:
    venv.create(part.folder, symlinks=True)  # nothing in it that we use holds its own path, so it can be moved
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--only-binary=:all:", "--target", str(part.packages), "--requirement", str(REQUIREMENTS)]
    if subprocess.run(pip, check=False).returncode:
        raise SetupError("pip could not install Triton; it says why above")
    python = part.backends / "python"
    shutil.copytree(part.triton / "backends" / "python", python)
    shutil.copy(part.triton / "python_backend_stubs" / VERSION / "triton_python_backend_stub", python)
    for backend in BACKENDS.iterdir():  # linked, so that the backend that runs is the one in the repository
        (part.backends / backend.name).symlink_to(os.path.relpath(backend, part.backends))
    (part.packages / SERVICE.name).symlink_to(os.path.relpath(SERVICE, part.packages))  # for the decode model
    _try(part, [str(part.server), "--help"], "--model-repository")
    _try(part, [str(part.python), "-I", "-c", "import numpy, onnxruntime; print(onnxruntime.__version__)"], "1.")
    _try(part, [str(part.python), "-I", "-c", "from service import preprocess; print(preprocess.MAX_SIDE)"], "65535")


def _try(part: Installation, command: list[str], expected: str) -> None:
    """Run a command that must print something; its exit status says nothing (tritonserver's help gives 1)."""
    answer = subprocess.run(command, env=part.environment(), capture_output=True, text=True, check=False)
    printed = answer.stdout + answer.stderr
    if expected not in printed:
        last = (printed.strip().splitlines() or ["it prints nothing"])[-1]
        raise SetupError(f"what was installed does not run on this machine: {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install a Triton Inference Server under build/triton.")
    parser.add_argument("--check", action="store_true", help="only say whether it is installed, by the exit status")
    try:
        installation = ready() if parser.parse_args().check else install()
    except SetupError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"Triton is installed in {installation.folder}\n")


if __name__ == "__main__":
    main()
