"""What becomes of requests when more come than can be answered: `python -m load_tests.overload`.

Starts a server of its own and measures, in each round, how many requests a second it answers to clients that ask one
after the other (its capacity); then has requests arrive as a Poisson process of 0.8, 1, 2 and 5 times that rate, in an
open loop, with a deadline each. Each round's figures are divided by its own capacity, so that a machine that slows down
between two rounds changes no ratio; printed are medians over the rounds, of times the worst.

Latencies and deadlines count from when a request was sent; how long it had to wait for this client, which shares the
machine with the server, is told apart. Exit status 1: an answer was wrong, or something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from load_tests import figures
from load_tests.arrivals import Level, arrivals
from load_tests.gateway import ROOT, Gateway, served

FACTORS = (0.8, 1.0, 2.0, 5.0)
CLIENTS = 48  # that ask without a pause, for the capacity
UNHURRIED_SECONDS = 30.0  # their deadline: a refused one would ask again at once
PATIENCE_SECONDS = 5.0  # beyond the deadline; then an answer is missing

BOUNDARY = "a-boundary-that-no-image-holds"

_INFER = re.compile(rb'"infer":([0-9.e+-]+)')


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in milliseconds.

    Attributes:
        kind: "right", "refused" (429, at once), "expired" (accepted, and the deadline passed, of one image at least) or
            "failed".
        taken: From sending to the whole answer.
        waited: From when it was due to when it was sent.
        infer: That its batch took, if it was answered.
    """

    kind: str
    taken: float
    waited: float = 0.0
    infer: float = 0.0


class Line(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # of TCP

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if found and self._answer and not self._answer.done():
            length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
            if len(rest) >= length:
                self._data.clear()
                self._answer.set_result((int(head[9:12]), bytes(rest)))

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self._answer, seconds)


@dataclass
class Client:
    """Sends one request again and again, on as many connections as are needed.

    Args:
        port: Of the server.
        request: Its head, with a place for its deadline.
        body: What follows.
        label: That the right answer has, for each of its images.
        images: How many.
        deadline: Of the request, seconds.
    """

    port: int
    request: str
    body: bytes
    label: bytes
    images: int
    deadline: float
    _idle: list[Line] = field(default_factory=list)

    async def ask(self, waited: float = 0.0, deadline: float | None = None) -> Outcome:
        """Send it when it should have been sent so many milliseconds ago."""
        loop = asyncio.get_running_loop()
        deadline = deadline or self.deadline
        request = self.request.format(f"{deadline * 1000:g}").encode() + self.body
        try:
            while self._idle and self._idle[-1].transport.is_closing():
                self._idle.pop()  # the server hangs up on who is silent for long
            if self._idle:
                line = self._idle.pop()
            else:
                _, line = await loop.create_connection(Line, "127.0.0.1", self.port)
            sent = time.perf_counter()
            status, body = await line.ask(request, deadline + PATIENCE_SECONDS)
        except (OSError, TimeoutError) as error:
            return Outcome(f"failed: {type(error).__name__}", 0.0, waited)
        taken = (time.perf_counter() - sent) * 1000
        self._idle.append(line)
        match status:
            case 200 if body.count(self.label) == self.images:
                infer = _INFER.search(body)
                return Outcome("right", taken, waited, float(infer[1]) if infer else 0.0)
            case 429:
                return Outcome("refused", taken, waited)
            case 504:
                return Outcome("expired", taken, waited)
            case 200 if body.count(self.label) + body.count(b"error:deadline_exceeded") == self.images:
                return Outcome("expired", taken, waited)  # of some of its images
        return Outcome(f"failed: {status} {body[:120]!r}", taken, waited)

    async def closed_loop(self, seconds: float) -> float:
        """Right answers a second to clients that ask without a pause."""
        over = time.perf_counter() + seconds
        kinds: list[str] = []

        async def one() -> None:
            while time.perf_counter() < over:
                kinds.append((await self.ask(deadline=UNHURRIED_SECONDS)).kind)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return kinds.count("right") / (time.perf_counter() - began)

    async def open_loop(self, times: Sequence[float]) -> list[Outcome]:
        """One request at each of these seconds, whatever becomes of those before it."""
        began = time.perf_counter()
        tasks = []
        for due in times:
            if (wait := began + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif len(tasks) % 16 == 0:
                await asyncio.sleep(0)  # behind: let answers be read
            waited = max(0.0, time.perf_counter() - began - due) * 1000
            tasks.append(asyncio.create_task(self.ask(waited)))
        return list(await asyncio.gather(*tasks))

    def close(self) -> None:
        for line in self._idle:
            line.transport.close()


@dataclass(frozen=True)
class Row:
    """What one level of one round came to; times in milliseconds, None where there was nothing to measure.

    Attributes:
        factor: Offered, of the capacity.
        offered: Requests a second.
        goodput: Right answers in time, a second.
        refused, expired, failed: Share of the requests.
        p50, p99: Of right answers.
        refusal_p50, refusal_p99: Of refusals.
        latest: By which the latest answer to an accepted request, right or expired, came after its deadline.
        batch: That the longest batch took.
        waited: By which requests were sent too late, p99.
        starved: Share of the time in which the server's event loop was ready to run and other processes, this client
            among them, had the cores.
        resident: Megabytes of the server's memory afterwards.
    """

    factor: float
    offered: float
    goodput: float
    refused: float
    expired: float
    failed: float
    p50: float | None
    p99: float | None
    refusal_p50: float | None
    refusal_p99: float | None
    latest: float | None
    batch: float
    waited: float
    starved: float
    resident: float


def multipart(image: bytes, count: int) -> bytes:
    """A form with the same image so many times."""
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    return (head + image + b"\r\n") * count + f"--{BOUNDARY}--\r\n".encode()


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def summarised(
    outcomes: Sequence[Outcome], factor: float, seconds: float, deadline: float, starved: float, resident: float
) -> Row:
    """Figures of one level of so many seconds, with a deadline in milliseconds."""
    by: dict[str, list[Outcome]] = collections.defaultdict(list)
    for each in outcomes:
        by[each.kind.partition(":")[0]].append(each)
    taken = {kind: [each.taken for each in some] for kind, some in by.items()}
    accepted = taken.get("right", []) + taken.get("expired", [])
    count = len(outcomes)
    return Row(
        factor=factor,
        offered=count / seconds,
        goodput=sum(each <= deadline for each in taken.get("right", [])) / seconds,
        refused=len(by["refused"]) / count,
        expired=len(by["expired"]) / count,
        failed=len(by["failed"]) / count,
        p50=_percentile(taken.get("right", []), 50),
        p99=_percentile(taken.get("right", []), 99),
        refusal_p50=_percentile(taken.get("refused", []), 50),
        refusal_p99=_percentile(taken.get("refused", []), 99),
        latest=max(accepted) - deadline if accepted else None,
        batch=max((each.infer for each in by["right"]), default=0.0),
        waited=_percentile([each.waited for each in outcomes], 99) or 0.0,
        starved=starved,
        resident=resident,
    )


async def measure(gateway: Gateway, client: Client, arguments: argparse.Namespace) -> tuple[list[list[Row]], set[str]]:
    """All rounds, each with a row for each factor; and what failed."""
    rounds: list[list[Row]] = []
    failures: set[str] = set()
    await client.closed_loop(2.0)  # to warm up
    for number in range(arguments.rounds):
        capacity = await client.closed_loop(arguments.seconds)
        print(f"round {number + 1}: capacity {capacity:.0f} requests/s", file=sys.stderr)
        rows = []
        for factor in FACTORS:
            draws = random.Random(f"{arguments.seed} {number} {factor}")
            times = list(arrivals([Level(factor * capacity, arguments.seconds)], draws))
            before, began = gateway.usage(), time.perf_counter()
            outcomes = await client.open_loop(times)
            after, took = gateway.usage(), time.perf_counter() - began
            failures |= {each.kind for each in outcomes if each.kind.startswith("failed")}
            starved = (after.starved - before.starved) / took
            deadline = client.deadline * 1000
            rows.append(summarised(outcomes, factor, arguments.seconds, deadline, starved, after.resident))
        rounds.append(rows)
    client.close()
    return rounds, failures


def _over(rounds: Sequence[Sequence[Row]], place: int, name: str) -> list[float]:
    values = [getattr(rows[place], name) for rows in rounds]
    return [value for value in values if value is not None]


def table(rounds: Sequence[Sequence[Row]]) -> str:
    """Markdown; medians over the rounds, but of `latest` the worst."""
    lines = [
        "| offered ÷ capacity | offered/s | right in time/s | ÷ peak | refused | expired | failed | p50 ms | p99 ms"
        " | refusals p50 ms | p99 ms | latest after deadline, ms | longest batch ms | waited to be sent, p99 ms"
        " | starved | MB |",
        "| --- " * 16 + "|",
    ]
    for place, factor in enumerate(FACTORS):

        def middle(name: str, pattern: str, place: int = place) -> str:
            values = _over(rounds, place, name)
            return pattern.format(statistics.median(values)) if values else "–"

        held = statistics.median(rows[place].goodput / max(each.goodput for each in rows) for rows in rounds)
        latest = _over(rounds, place, "latest")
        cells = [f"{factor:g}", middle("offered", "{:.0f}"), middle("goodput", "{:.0f}"), f"{held:.2f}"]
        cells += [middle(name, "{:.1%}") for name in ("refused", "expired", "failed")]
        cells += [middle(name, "{:.1f}") for name in ("p50", "p99", "refusal_p50", "refusal_p99")]
        cells += [f"{max(latest):.1f}" if latest else "–", middle("batch", "{:.1f}"), middle("waited", "{:.1f}")]
        lines.append(f"| {' | '.join([*cells, middle('starved', '{:.0%}'), middle('resident', '{:.0f}')])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="that is served")
    parser.add_argument("--image", type=Path, default=ROOT / "load_tests/images/letters/A/A.png", help="MODEL/LABEL/…")
    parser.add_argument("--images", type=int, default=8, help="in each request; 8 unless given")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="of each request; 200 unless given")
    parser.add_argument("--seconds", type=float, default=5.0, help="at each rate; 5 unless given")
    parser.add_argument("--rounds", type=int, default=5, help="5 unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/overload", help="folder; runs/overload unless given")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    image = arguments.image.resolve()
    model, label = image.parts[-3:-1]
    body = multipart(image.read_bytes(), arguments.images)
    path = f"/v1/models/{model}/classify?top_k=1&timeout_ms={{}}"
    request = f"POST {path} HTTP/1.1\r\nhost: overload\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n"
    request += f"content-length: {len(body)}\r\n\r\n"
    with served(arguments.repository.resolve(), arguments.out / "server.log") as gateway:
        client = Client(
            gateway.port, request, body, f'"label":"{label}"'.encode(), arguments.images, arguments.deadline_ms / 1000
        )
        before = gateway.usage().resident
        rounds, failures = uvloop.run(measure(gateway, client, arguments))
    text = table(rounds)
    found = {
        "command": " ".join(["python -m load_tests.overload", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        **figures.machine(),
        "resident_before": before,
        "rounds": [[asdict(row) for row in rows] for rows in rounds],
    }
    (arguments.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "table.md").write_text(text + "\n")
    print(text)
    if failures:
        print("error: answers were wrong or missing:", *sorted(failures)[:5], sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
