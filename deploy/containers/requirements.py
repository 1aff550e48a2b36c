"""Print what pip is to install: the dependencies of pyproject.toml, and those of the extras that are named.

`requirements.py EXTRA…`. The images hold the source itself, so that a change of it does not install anew what
it depends on.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what pip is to install.")
    parser.add_argument("extras", nargs="+", metavar="EXTRA", help="of pyproject.toml")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in arguments.extras:
        if extra not in project["optional-dependencies"]:
            sys.exit(f"error: pyproject.toml has no extra {extra!r}")
        wanted += project["optional-dependencies"][extra]
    sys.stdout.write("".join(f"{line}\n" for line in wanted))


if __name__ == "__main__":
    main()
