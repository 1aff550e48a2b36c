"""The web page at `/`: its files, read once, served from memory with headers that let it load nothing foreign."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("static")
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# What the page needs and no more: its own files and calls, and images that it was given (blob:) or drew (data:).
# Trusted types have the browser refuse to take text for HTML: labels are made by users.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for each time: a new version shows at once, an old one costs a 304
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    kind: str
    etag: str


def add(app: FastAPI) -> None:
    """Add the page to an application: `/` and the files that it loads, below `/static/`."""
    files = {path.relative_to(FOLDER).as_posix(): _read(path) for path in FOLDER.rglob("*") if path.suffix in _TYPES}

    async def index(request: Request) -> Response:
        return _answer(request, files[_INDEX])

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files or name == _INDEX:
            raise HTTPException(404, "the page has no such file")
        return _answer(request, files[name])

    app.add_route("/", index, methods=["GET"], include_in_schema=False)
    app.add_route("/static/{name:path}", static, methods=["GET"], include_in_schema=False)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _answer(request: Request, file: _File) -> Response:
    headers = _HEADERS | {"ETag": file.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.kind)
