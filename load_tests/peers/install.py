"""Install the peers that the benchmark measures, each in an environment of its own under build/peers.

Run `python -m load_tests.peers.install`; what is there already is left as it is.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parents[2] / "build" / "peers"
READY = ".ready"
COMMON = ("numpy==2.4.6", "onnxruntime==1.31.1", "orjson", "pillow>=13.0")
PEERS = {
    "bentoml": "bentoml==1.4.39",
    "litserve": "litserve==0.2.19 python-multipart",
    "mosec": "mosec==0.9.8",
    "ray": "ray[serve]==2.60.0",
}


def main() -> None:
    """Install what is missing."""
    for name, requirement in PEERS.items():
        folder = ENVIRONMENTS / name
        if (folder / READY).exists():
            continue
        print(f"installing {requirement} …", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        if subprocess.run([*pip, *requirement.split(), *COMMON], check=False).returncode:
            print(f"{name} cannot be installed here: the benchmark leaves it out", file=sys.stderr)
        else:
            (folder / READY).touch()


if __name__ == "__main__":
    main()
