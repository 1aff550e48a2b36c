"""The page's files over HTTP: types, caching, and headers that let it load nothing foreign."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.transports.http.page import FOLDER
from tests.server import Server

FILES = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.*")}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def address(name: str) -> str:
    return "/" if name == "index.html" else f"/static/{name}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_is_served_as_it_is(server: Server, name: str) -> None:
    answer = server.client.get(address(name))
    assert (answer.status_code, answer.content) == (200, FILES[name].read_bytes())
    assert answer.headers["content-type"].startswith(TYPES[Path(name).suffix])
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/static/js/main.js"])
def test_who_has_a_file_is_sent_none(server: Server, path: str) -> None:
    first = server.client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = server.client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert server.client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    head = server.client.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])


def test_the_page_may_load_nothing_foreign_and_run_nothing_inline(server: Server) -> None:
    headers = server.client.get("/").headers
    parts = [part.split() for part in headers["content-security-policy"].split(";")]
    rules = {name: sources for name, *sources in parts}
    assert rules["default-src"] == ["'none'"]
    for kind in ("script-src", "style-src", "connect-src"):
        assert rules[kind] == ["'self'"]
    assert rules["img-src"] == ["'self'", "blob:", "data:"]
    assert rules["frame-ancestors"] == ["'none'"]
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]


@pytest.mark.parametrize("name", ["", "nothing.js", "index.html", "../page.py", "%2e%2e/page.py", "js"])
def test_what_is_no_file_of_the_page_is_not_found(server: Server, name: str) -> None:
    answer = server.client.get(f"/static/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_no_file_names_a_foreign_address() -> None:
    allowed = ("http://www.w3.org/2000/svg",)  # a name, never asked for
    for name, path in FILES.items():
        found = re.findall(r"""(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s"'`)]*""", path.read_text())
        assert [one for one in found if one not in allowed] == [], name


def test_every_import_is_there() -> None:
    for name, path in FILES.items():
        for wanted in re.findall(r'(?:from|import) "\./([^"]+)"', path.read_text()):
            assert f"js/{wanted}" in FILES, f"{name} imports {wanted}"
