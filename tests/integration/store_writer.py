"""Teaches a head through a store of its own: `python -m tests.integration.store_writer URL CALLS PREFIX`.

It says that it is ready and waits for a line. Each call adds a few examples; once they are acknowledged, the ids of
those that were new are printed as a line of JSON. Writers with the same prefix send the same images.
"""

from __future__ import annotations

import json
import sys

from service.store.store import Store
from tests.stores import DIGEST, HEAD, batch


def say(line: str) -> None:
    """So that whoever listens has it at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(url: str, calls: int, prefix: str) -> None:
    store = Store(url)
    store.open()
    say("ready")
    sys.stdin.readline()
    for call in range(calls):
        stored = store.add(HEAD, DIGEST, batch(prefix, call), max_examples=10**6, max_labels=100)
        say(json.dumps([each.id for each in stored if each.outcome == "added"]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
