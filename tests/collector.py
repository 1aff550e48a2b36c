"""An OTLP collector in the test's own process: takes spans over HTTP, as protobuf or JSON, and shows them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """A span as it came: ids in hexadecimal digits, times in nanoseconds since 1970."""

    name: str
    service: str  # whose it is
    trace: str
    id: str
    parent: str  # empty of a root
    kind: int
    began: int
    ended: int
    attributes: dict[str, object]
    links: tuple[str, ...]  # ids of spans
    failed: bool


class Collector:
    """Listens on a free port until it is closed."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        spans = self._spans

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-type"].startswith("application/json"):
                    request = ParseDict(json.loads(body, object_hook=_bytes), ExportTraceServiceRequest())
                else:
                    request = ExportTraceServiceRequest.FromString(body)
                spans.extend(_spans(request))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self, trace: str | None = None) -> list[Span]:
        """Those that came so far, the earliest first."""
        found = [span for span in tuple(self._spans) if trace in (None, span.trace)]
        return sorted(found, key=lambda span: (span.began, span.ended))

    def wait(self, trace: str, *names: str, seconds: float = 10.0) -> list[Span]:
        """A trace's spans, once there is one of each of these names, as often as it is named."""
        give_up = time.monotonic() + seconds
        while True:
            found = self.spans(trace)
            have = [span.name for span in found]
            if all(have.count(name) >= names.count(name) for name in names):
                return found
            assert time.monotonic() < give_up, f"of {names} only {have} came"
            time.sleep(0.02)


def _bytes(given: dict[str, Any]) -> dict[str, Any]:
    """Ids are hexadecimal in OTLP's JSON, and base64 in protobuf's."""
    ids = {name: given[name] for name in ("traceId", "spanId", "parentSpanId") if name in given}
    return given | {name: base64.b64encode(bytes.fromhex(value)).decode() for name, value in ids.items()}


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    *names,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
                    tuple(link.span_id.hex() for link in span.links),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )
