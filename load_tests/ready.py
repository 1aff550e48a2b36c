"""Time from starting the gateway to its being ready, and its memory then: `python -m load_tests.ready`."""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = 8301


def start_once(repository: Path) -> tuple[float, float]:
    """Seconds until `/readyz` answers 200, and resident megabytes at that moment."""
    command = [sys.executable, "-m", "service", "serve", "--port", str(PORT), "--grpc-port", "0"]
    command += ["--model-repository", str(repository)]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() - began > 120:
                    raise SystemExit("error: the gateway did not become ready") from None
                time.sleep(0.005)
        seconds = time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        return seconds, int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    runs = [start_once(arguments.repository.resolve()) for _ in range(arguments.runs)]
    seconds, megabytes = (sorted(values) for values in zip(*runs, strict=True))
    print(f"ready after {seconds[0]:.2f} to {seconds[-1]:.2f} s, median {statistics.median(seconds):.2f};", end=" ")
    print(f"resident memory {statistics.median(megabytes):.0f} MB ({len(runs)} runs)")


if __name__ == "__main__":
    main()
