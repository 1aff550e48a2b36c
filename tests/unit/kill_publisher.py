"""Publish again and again, each time killed a little later: `python -m tests.unit.kill_publisher BASE FOLDER`.

For k = 1, 2, ... the repository BASE is copied to FOLDER/k, and a forked child that publishes into it is killed with
SIGKILL just before the k-th thing it does to the file system; the last copy is the one whose publisher survived.
A fresh process does the forking because ONNX Runtime's threads would not survive a fork of the test's own.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from tests.models import publish_tiny

TOUCHING = {"open", "fcntl.flock", "shutil.copyfile"}


def die_before(count: int, repository: Path) -> None:
    """Install a hook that kills this process before its `count`-th event in the repository."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in TOUCHING and not event.startswith("os."):
            return
        paths = [str(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        if any(path.startswith("/") and not path.startswith(str(repository)) for path in paths):
            return  # somewhere else; names without a slash are inside of a directory being removed
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(base: Path, folder: Path) -> None:
    for count in itertools.count(1):
        repository = folder / str(count)
        shutil.copytree(base, repository)
        child = os.fork()
        if not child:
            die_before(count, repository)
            publish_tiny(repository, seed=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
