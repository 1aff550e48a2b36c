"""API keys for tests: made in a database, and sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from service.access.keys import Scope, new_key
from service.store.store import Store
from tests.server import Server, environment


def made(url: str, *scopes: Scope, rate: str | None = None, name: str = "test") -> str:
    """The secret of a new key in the database of that URL, which is brought to the newest schema."""
    store = Store(url)
    store.migrate()
    key, secret = new_key(name, scopes or ("infer",), rate)
    store.keys.add(key)
    store.close()
    return secret


def id_of(secret: str) -> str:
    return secret.split("_")[1]


def revoke(url: str, secret: str) -> None:
    store = Store(url)
    store.keys.revoke(id_of(secret))
    store.close()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def metadata(secret: str) -> tuple[tuple[str, str], ...]:
    return tuple(bearer(secret).items())


def status(server: Server, secret: str | None, path: str = "/v1/models") -> int:
    return server.client.get(path, headers=bearer(secret) if secret else {}).status_code


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def command(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """`python -m service` in a folder without models."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
