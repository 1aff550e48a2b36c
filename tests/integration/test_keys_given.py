"""Keys whose secrets come from elsewhere, and the first key of a server that was started without any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from service.access.keys import new_key
from service.store.store import Store
from tests.keys import bearer, revoke
from tests.server import Server, environment


def give(folder: Path, url: str, secret: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m service keys create --secret-stdin`."""
    return subprocess.run(
        [sys.executable, "-m", "service", "keys", "create", "--name", "given", "--secret-stdin", *arguments],
        input=secret + "\n",
        cwd=folder,
        env=environment(database_url=url),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_secret_that_was_given_opens_and_giving_it_again_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    secret = new_key("elsewhere", ["admin"])[1]
    for _ in range(2):
        done = give(tmp_path, url, secret, "--scope", "admin")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert secret not in done.stderr
    store = Store(url)
    (key,) = store.keys.all()
    store.close()
    assert key.opens(secret)
    assert (key.name, key.scopes) == ("given", {"admin"})


def test_a_given_secret_is_refused_if_it_is_none_or_revoked_or_has_anothers_id(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    secret = new_key("elsewhere", ["infer"])[1]
    assert give(tmp_path, url, secret).returncode == 0
    for wrong, line in (
        ("password", "a secret is fovea_"),
        (secret[:-1] + ("a" if secret[-1] != "a" else "b"), "give a secret with another id"),
    ):
        done = give(tmp_path, url, wrong)
        assert done.returncode == 2
        assert line in done.stderr
    revoke(url, secret)
    done = give(tmp_path, url, secret)
    assert done.returncode == 2
    assert "was revoked" in done.stderr


def test_the_first_key_is_made_once_and_opens_a_server_that_others_can_reach(repository: Path, tmp_path: Path) -> None:
    settings = {"host": "0.0.0.0", "first_key": "true", "database_url": f"sqlite:///{tmp_path}/keys.db"}
    with Server(repository, tmp_path, **settings).start() as server:
        (secret,) = re.findall(r"the first one, .*: (fovea_\S+)", server.log_text())
        assert server.client.get("/v1/models").status_code == 401
        assert server.client.get("/v1/models", headers=bearer(secret)).status_code == 200
    with Server(repository, tmp_path, **settings).start() as server:
        assert "the first one" not in server.log_text()
        assert server.client.get("/v1/models", headers=bearer(secret)).status_code == 200


def test_whoever_wants_no_keys_gets_no_first_one(repository: Path, tmp_path: Path) -> None:
    settings = {"host": "0.0.0.0", "first_key": "true", "insecure": "true"}
    with Server(repository, tmp_path, **settings, database_url=f"sqlite:///{tmp_path}/keys.db").start() as server:
        assert server.client.get("/v1/models").status_code == 200
        assert "the first one" not in server.log_text()
