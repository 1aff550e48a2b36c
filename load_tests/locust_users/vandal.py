"""A user who sends what no server should choke on, and takes only the documented error for the right answer."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc

from load_tests.locust_users import rpc_client
from load_tests.locust_users.known import SMALL
from load_tests.locust_users.outcomes import Exchange, Wrong
from load_tests.locust_users.paced import Paced

NOBODY = "fovea_000000000000_nobody"  # a key that nobody has
JSON, OCTETS = "application/json", "application/octet-stream"
CLASSIFY = "/v1/classify"
TOO_MANY = 300  # images in one request
DEEP = 100_000  # brackets
NO_IMAGE = b"#!/bin/sh\nrm -rf /\n" * 20


class Vandal(Paced):
    """One piece of nonsense at a time, over HTTP and gRPC."""

    weight = 8

    def on_start(self) -> None:
        super().on_start()
        (model, *_) = self.target.album.models
        image = self.target.album.any(self.random, SMALL).data
        several = json.dumps({"images": [{"b64": base64.b64encode(image).decode()}] * TOO_MANY}).encode()
        self._tricks = [
            self._http("truncated image", image[: len(image) // 2], OCTETS, 422, "invalid_image"),
            self._http("empty body", b"", OCTETS, 422, "invalid_image"),
            self._http("not an image", NO_IMAGE, "image/png", 415, "unsupported_format"),
            self._http("too many pixels", _huge_png(), OCTETS, 413, "too_large"),
            self._http("too many images", several, JSON, 413, "too_large"),
            self._http("a terabyte, it says", b"", OCTETS, 413, "too_large", claim=2**40),
            self._http("half of a JSON document", b'{"images": [', JSON, 400, "invalid_request"),
            self._http("JSON of something else", b'{"images": 7}', JSON, 400, "invalid_request"),
            self._http("JSON without end of brackets", b"[" * DEEP, JSON, 413, "too_large"),
            self._http("not base64", b'{"images": [{"b64": "%%%"}]}', JSON, 400, "invalid_request"),
            self._http("unknown model", image, OCTETS, 404, "unknown_model", path="/v1/models/nobody/classify"),
            self._http("absurd query", image, OCTETS, 400, "invalid_request", path=f"{CLASSIFY}?top_k=banana"),
        ]
        if self.target.keyed:
            self._tricks.append(self._http("wrong key", image, OCTETS, 401, "unauthorized", key=NOBODY))
        if self.target.rpc:
            self._tricks += [
                self._grpc("truncated image", image[: len(image) // 2], model, "invalid_image"),
                self._grpc("not an image", NO_IMAGE, model, "unsupported_format"),
                self._grpc("unknown model", image, "nobody", "unknown_model"),
            ]
            if self.target.keyed:
                self._tricks.append(self._grpc("wrong key", image, model, "unauthorized", key=NOBODY))

    def exchange(self) -> Exchange:
        return self.random.choice(self._tricks)

    def _http(
        self, name: str, body: bytes, media: str, status: int, code: str, *, path: str = CLASSIFY, **options: Any
    ) -> Exchange:
        def send() -> int:
            reply = self.http.ask("POST", path, body, media, **options)
            if reply.status < 400:
                raise Wrong(f"{reply.status} instead of {status}")
            if (reply.status, told := reply.code()) != (status, code):
                reply.excused()
                raise Wrong(f"{reply.status} {told} instead of {status} {code}")
            return len(reply.data)

        return Exchange("HTTP", f"bad: {name}", 0, send)

    def _grpc(self, name: str, image: bytes, model: str, code: str, *, key: str = "") -> Exchange:
        return Exchange("gRPC", f"bad: {name}", 0, self._refusal(image, model, code, key))

    def _refusal(self, image: bytes, model: str, code: str, key: str) -> Callable[[], int]:
        def send() -> int:
            try:
                self.target.rpc.classify([image], model, self.target.patience, key or None)
            except grpc.RpcError as error:
                if (told := rpc_client.code_of(error)) != code:
                    rpc_client.excused(error)
                    raise Wrong(f"{told} instead of {code}") from None
                return 0
            raise Wrong(f"an answer instead of {code}")

        return send


def _huge_png() -> bytes:
    """A small file that claims to have 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
