"""An object store: as much of S3's protocol as pyarrow speaks, over HTTP, in memory."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        key, query = self._asked()
        if "list-type" in query:
            return self._list(key.rstrip("/"), query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        data = self.server.objects.get(key)
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self.server.reads += 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, data)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        return self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        if "/" not in key.strip("/"):
            return self._answer(200)
        data = self.server.objects.get(key)
        return self._answer(404) if data is None else self._answer(200, data)

    def do_PUT(self) -> None:
        key, query = self._asked()
        data = self._body()
        if "partNumber" in query:
            self.server.uploads[key][int(query["partNumber"][0])] = data
        else:
            self.server.objects[key] = data
        self._answer(200, headers={"ETag": '"etag"'})

    def do_POST(self) -> None:
        key, query = self._asked()
        self._body()
        if "uploads" in query:
            self.server.uploads[key] = {}
            return self._xml("InitiateMultipartUploadResult", "<UploadId>upload</UploadId>")
        parts = self.server.uploads.pop(key)
        self.server.objects[key] = b"".join(parts[number] for number in sorted(parts))
        return self._xml("CompleteMultipartUploadResult", "<ETag>etag</ETag>")

    def log_message(self, *_: object) -> None:
        pass

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        found = b""
        while data:
            head, _, data = data.partition(b"\r\n")
            size = int(head.partition(b";")[0], 16)
            if not size:
                break
            found, data = found + data[:size], data[size + 2 :]
        return found

    def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
        keys, folders = [], set()
        for name in sorted(self.server.objects):
            key = name.removeprefix(f"{bucket}/")
            if key == name or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[f'{bucket}/{key}'])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders))
        count = len(keys) + len(folders)
        self._xml("ListBucketResult", f"<IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{found}")

    def _xml(self, name: str, inside: str) -> None:
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'.encode())

    def _answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}  # by bucket/key
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.reads = 0

    def address(self, path: str) -> str:
        """What pyarrow calls a bucket and prefix here."""
        return f"s3://name:secret@{path}?scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=us-east-1"


@contextmanager
def object_store() -> Iterator[_Server]:
    """An empty one, until the block ends."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
