"""Load the gateway with locust in an open loop and make figures of it: `python -m load_tests.load`.

Starts a server of its own on free ports, with a database of its own, unless --host names one (its key is taken from
FOVEA_KEY). Requests arrive when they are due, whatever becomes of those before them, and latency counts from then.

shapes:
  steps    the rates one after the other, for --seconds each
  spikes   the first rate, with three spikes of the second that last a quarter of --seconds
  poisson  one rate
In all of them requests arrive as a Poisson process.

The folder --out gets
  report.html    locust's report, with charts over time
  locust_*.csv   locust's figures
  requests.csv   what became of each request
  figures.json   the figures of each level, with machine, commit, versions and command
  load.png       latency and right answers against offered load
  table.md       the same as a table
  locust.log     what locust printed
  server.log     of the server, if it was started here

Needs the extra `load`: `pip install '.[load]'`. Exit status: 1 if an answer was wrong or missing, 2 if nothing could be
measured.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from load_tests import figures
from load_tests.arrivals import SHAPES, Level, shaped
from load_tests.gateway import ROOT, served

RATES = {"steps": "25,50,100,150,200,250", "spikes": "50,300", "poisson": "100"}
USERS = ("HttpClassify", "GrpcClassify", "Teacher", "Vandal")
SHOWN = 5  # kinds of failure


def run_locust(arguments: argparse.Namespace, host: str, grpc: str | None) -> int:
    """Let locust load a server, and give its exit status."""
    out: Path = arguments.out
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "load_tests/locustfile.py"), *arguments.users]
    command += ["--headless", "--only-summary", "--loglevel", "WARNING", "--host", host]
    command += ["--html", str(out / "report.html"), "--csv", str(out / "locust")]
    command += ["--journal", str(out / "requests.csv"), "--images", str(arguments.images)]
    command += ["--shape", arguments.shape, "--rates", arguments.rates, "--seconds", str(arguments.seconds)]
    command += ["--patience", str(arguments.patience), "--seed", str(arguments.seed)]
    command += ["--grpc", grpc] if grpc else []
    with (out / "locust.log").open("wb") as log:
        return subprocess.run(command, stdout=sys.stderr, stderr=log, check=False).returncode


def failures(out: Path) -> str:
    """The most frequent ones, as locust counted them."""
    with (out / "locust_failures.csv").open(newline="") as file:
        found = sorted(csv.DictReader(file), key=lambda each: -int(each["Occurrences"]))
    lines = [f"  {each['Occurrences']} times {each['Method']} {each['Name']}: {each['Error']}" for each in found]
    return "\n".join([*lines[:SHOWN], *([f"  and {len(lines) - SHOWN} other kinds"] if len(lines) > SHOWN else [])])


def report(arguments: argparse.Namespace, levels: list[Level]) -> None:
    """Make figures of what locust's users wrote down."""
    out: Path = arguments.out
    records = figures.read(out / "requests.csv")
    rows = figures.summarised(records, levels, arguments.patience)
    run = {
        "command": f"python -m load_tests.load {shlex.join(sys.argv[1:])}".strip(),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "shape": arguments.shape,
        "users": arguments.users,
        "patience_seconds": arguments.patience,
        "seed": arguments.seed,
        "server": "elsewhere" if arguments.host else "on the same cores",
    }
    found = figures.document(rows, records, run)
    (out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "table.md").write_text(figures.table(rows) + "\n")
    caption = f"{arguments.shape}; an answer is in time within {arguments.patience:g} s of when the request was due; "
    figures.draw(rows, f"{caption}{found['cpu']}, {found['cores']} cores", out / "load.png")
    print(figures.table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="steps", help="steps unless given")
    parser.add_argument("--rates", metavar="R,R…", help="requests a second; unless given, ones for two cores")
    parser.add_argument("--seconds", type=float, default=10.0, help="at each rate; 10 unless given")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="seconds, 1 unless given: deadline of a classification"
    )
    parser.add_argument("--users", default=",".join(USERS), metavar="NAMES", help=f"of {', '.join(USERS)}; all")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and of what is sent")
    parser.add_argument("--images", type=Path, default=ROOT / "load_tests/images", help="MODEL/LABEL/FILE: known ones")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="that is served")
    parser.add_argument("--host", metavar="URL", help="load this server instead, http://…")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="its gRPC; port 8081 of it unless given; off: leave it out")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/load", help="folder; runs/load unless given")
    arguments = parser.parse_args()
    arguments.rates = arguments.rates or RATES[arguments.shape]
    arguments.users = arguments.users.split(",")
    try:
        levels = shaped(arguments.shape, [float(rate) for rate in arguments.rates.split(",")], arguments.seconds)
    except ValueError as error:
        parser.error(f"--rates {arguments.rates}: {error}")
    if unknown := set(arguments.users) - set(USERS):
        parser.error(f"there is no user {unknown.pop()!r}; there are {', '.join(USERS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "requests.csv").unlink(missing_ok=True)
    sys.exit(measure(arguments, levels))


def measure(arguments: argparse.Namespace, levels: list[Level]) -> int:
    """Load, report, and give the exit status."""
    with contextlib.ExitStack() as stack:
        host, grpc = arguments.host, arguments.grpc
        if not host:
            log = arguments.out / "server.log"
            gateway = stack.enter_context(served(arguments.repository.resolve(), log))
            host, grpc = gateway.url, gateway.grpc
        seconds = sum(level.seconds for level in levels)
        print(f"{arguments.shape} of {arguments.rates} requests/s, {seconds:.0f} s in all", file=sys.stderr)
        status = run_locust(arguments, host, grpc)
    if not (arguments.out / "requests.csv").exists():
        log = (arguments.out / "locust.log").read_text()
        told = [line for line in log.splitlines() if line.startswith("error: ")]
        print(told[-1] if told else f"error: nothing was measured; what locust said:\n{log}", file=sys.stderr)
        return 2
    report(arguments, levels)
    print(f"locust's report and the plot are in {arguments.out}", file=sys.stderr)
    if status:
        print(f"error: answers were wrong or missing:\n{failures(arguments.out)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
