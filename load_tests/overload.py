"""What becomes of requests when more come than can be answered: `python -m load_tests.overload`.

Each server, the gateway and those of its peers that are installed, is started on its own and measured in rounds: how
many requests a second it answers to clients that ask one after the other (its capacity); then requests arrive as a
Poisson process of 0.8, 1, 2 and 5 times that rate, in an open loop, and whatever is not answered within the deadline is
of no use. Each round's figures are divided by its own capacity and peak, so that a machine that slows down between two
rounds changes no ratio; printed are medians over the rounds, of times the worst.

The gateway is told the deadline of each request. Its peers have no such thing. There are at most as many connections as
a server could answer requests in two deadlines: more than it can answer in time, and fewer than would choke it by their
number alone. A request that finds all of them taken is not sent, and counts as late.

Latencies and deadlines count from when a request was sent; how long it had to wait for this client, which shares the
machine with the server, is told apart. Exit status 1: an answer of the gateway was wrong, or something failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvloop

from load_tests import figures
from load_tests.arrivals import Level, arrivals
from load_tests.contestants import Contestant, gateways, peers, running
from load_tests.gateway import ROOT
from load_tests.overload_report import FACTORS, Row, draw, resident, starved, summarised, table
from load_tests.sender import Request, Sender
from load_tests.subjects import SUBJECTS, Subject

LEAST_CONNECTIONS = 256
CLIENTS = 48  # that ask without a pause, for the capacity
UNHURRIED_SECONDS = 30.0  # their deadline: a refused one would ask again at once
PATIENCE_SECONDS = 5.0  # beyond the deadline; then the gateway has failed to answer
PEERS_PATIENCE_SECONDS = 0.5  # their clients hang up: a queue that nobody waits for would grow without end
WARM_UP_SECONDS = 2.0

BOUNDARY = "a-boundary-that-no-image-holds"


def letters() -> Subject:
    """The other bundled model, whose batches take longer."""
    return Subject("letters", ROOT / "model_repository", ROOT / "load_tests/images/letters/A/A.png")


def multipart(image: bytes, kind: str, count: int) -> bytes:
    """A form with the same image so many times."""
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="image"\r\ncontent-type: {kind}'
    return (f"{head}\r\n\r\n".encode() + image + b"\r\n") * count + f"--{BOUNDARY}--\r\n".encode()


def request_to(contestant: Contestant, subject: Subject, images: int, deadline: float) -> Request:
    """What is sent to a server: images with `deadline` seconds."""
    ours = contestant.name.startswith("fovea")
    path = f"{contestant.path}?top_k=1&timeout_ms={{}}" if ours else contestant.path
    body, kind = subject.image.read_bytes(), subject.kind
    if contestant.form or images > 1:
        body, kind = multipart(body, kind, images), f"multipart/form-data; boundary={BOUNDARY}"
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return Request(head, body, images, deadline, PATIENCE_SECONDS if ours else PEERS_PATIENCE_SECONDS)


async def round_of(
    pid: int, sender: Sender, request: Request, arguments: argparse.Namespace, number: int
) -> tuple[float, list[Row]]:
    """The capacity, and a row for each factor."""
    seconds = arguments.seconds
    capacity = await sender.closed_loop(seconds, CLIENTS, UNHURRIED_SECONDS)
    if not arguments.connections:
        sender.connections = max(LEAST_CONNECTIONS, round(2 * capacity * request.deadline))
    rows = []
    for factor in FACTORS:
        times = list(
            arrivals([Level(factor * capacity, seconds)], random.Random(f"{arguments.seed} {number} {factor}"))
        )
        memory, waited, worked, began = resident(pid), starved(pid), time.process_time(), time.perf_counter()
        outcomes = await sender.open_loop(times)
        took = time.perf_counter() - began
        row = summarised(outcomes, factor, seconds, request.deadline * 1000)
        rows.append(
            replace(
                row,
                starved=(starved(pid) - waited) / took,
                sender=(time.process_time() - worked) / took,
                resident=resident(pid),
                growth=resident(pid) - memory,
            )
        )
    return capacity, rows


async def measure(
    contestant: Contestant, subject: Subject, arguments: argparse.Namespace
) -> tuple[list[float], list[list[Row]]]:
    """Start a server and load it: the capacity of each round, and its rows."""
    request = request_to(contestant, subject, arguments.images, arguments.deadline_ms / 1000)
    first, kind = subject.image.read_bytes(), subject.kind
    if contestant.form:
        first, kind = multipart(first, kind, 1), f"multipart/form-data; boundary={BOUNDARY}"
    capacities, rounds = [], []
    with running(replace(contestant, headers={**contestant.headers, "content-type": kind}), first) as pid:
        sender = Sender(contestant.port, request, arguments.connections or LEAST_CONNECTIONS)
        await sender.learn()
        await sender.closed_loop(WARM_UP_SECONDS, CLIENTS, UNHURRIED_SECONDS)
        for number in range(arguments.rounds):
            capacity, rows = await round_of(pid, sender, request, arguments, number)
            print(f"{contestant.name}, round {number + 1}: capacity {capacity:.0f} requests/s", file=sys.stderr)
            capacities.append(capacity)
            rounds.append(rows)
        sender.close()
    return capacities, rounds


def entered(subject: Subject, arguments: argparse.Namespace) -> list[Contestant]:
    """Who is measured; peers take one image in a request, so they are left out where there are several."""
    ours, *_ = (each for each in gateways(subject, arguments.workers) if each.client == "wrk" and not each.int8)
    ours = replace(ours, command=[*ours.command, "--no-access-log"])
    others = peers(subject, arguments.workers) if arguments.images == 1 and not arguments.alone else []
    wanted = arguments.only or [each.name for each in others]
    return [ours, *(each for each in others if each.name in wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subjects = {**SUBJECTS, "letters": letters}
    parser.add_argument("--subject", choices=sorted(subjects), default="lenet5", help="lenet5 unless given")
    parser.add_argument("--images", type=int, default=1, help="in each request; 1 unless given")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="of each request; 200 unless given")
    parser.add_argument("--seconds", type=float, default=3.0, help="at each rate; 3 unless given")
    parser.add_argument("--rounds", type=int, default=3, help="3 unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--workers", type=int, help="processes of each server; what suits each unless given")
    parser.add_argument("--connections", type=int, help="at most; see above unless given")
    parser.add_argument("--alone", action="store_true", help="the gateway without its peers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these peers beside the gateway")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/overload", help="folder; runs/overload unless given")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    subject = subjects[arguments.subject]()
    found: dict[str, dict[str, Any]] = {}
    rounds: dict[str, list[list[Row]]] = {}
    for contestant in entered(subject, arguments):
        capacities, rows = uvloop.run(measure(contestant, subject, arguments))
        rounds[contestant.name] = rows
        found[contestant.name] = {
            "capacities": capacities,
            "rounds": [[asdict(row) for row in each] for each in rows],
        }
    what = f"{subject.name}, {arguments.images} image{'s' * (arguments.images > 1)} in a request, "
    what += f"deadline {arguments.deadline_ms:g} ms"
    text = f"{what}\n\n" + "\n\n".join(f"{name}:\n\n{table(each)}" for name, each in rounds.items())
    command = " ".join(["python -m load_tests.overload", *sys.argv[1:]])
    run = {"command": command, "when": time.strftime("%Y-%m-%d", time.gmtime()), **figures.machine()}
    (arguments.out / "figures.json").write_text(json.dumps({**run, "servers": found}, indent=1) + "\n")
    (arguments.out / "table.md").write_text(text + "\n")
    draw(rounds, what, arguments.out / "overload.png")
    print(text)
    failures = {kind for rows in next(iter(rounds.values())) for row in rows for kind in row.failures}
    if failures:
        print("error: answers were wrong or missing:", *sorted(failures)[:5], sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
