"""The committed code of classifier.proto is what its compiler makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.server import ROOT

PROTO = ROOT / "service" / "transports" / "grpc" / "proto"
FILE = "fovea/v1/classifier.proto"


def test_compiling_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """If not: python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fovea/v1/classifier.proto, in that folder."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", FILE], check=True, timeout=60)
    made = {path.name: path.read_bytes() for path in (tmp_path / FILE).parent.iterdir()}
    assert sorted(made) == ["classifier_pb2.py", "classifier_pb2.pyi"]
    assert made == {name: (PROTO / FILE).with_name(name).read_bytes() for name in made}
