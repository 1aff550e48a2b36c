"""Traces by OpenTelemetry's SDK, sent over OTLP/HTTP; the one module that knows OpenTelemetry.

Where to, under which name and how many is said by OpenTelemetry's own variables, which the SDK reads:
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the like. Spans are sent in the
background from a queue of bounded size; what does not fit in is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.tracing import trace
from service.tracing.trace import Attributes, Metadata

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # for what is left when the server stops; a collector that is away may not hold it up
QUIET_SECONDS = 60.0  # between two lines of the log about what OpenTelemetry complains of

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_propagator = TraceContextTextMapPropagator()


class TracingUnavailable(Exception):
    """Traces cannot be sent as asked for; the message says why."""


class OtlpTracer:
    """Sends traces to a collector. Satisfies `Tracer`.

    Raises:
        TracingUnavailable: OpenTelemetry's variables ask for what is not here.
    """

    def __init__(self) -> None:
        for name in _PROTOCOLS:
            if (protocol := os.environ.get(name, "http/protobuf")) != "http/protobuf":
                raise TracingUnavailable(
                    f"{name} is {protocol}, and spans are sent as http/protobuf: unset it, and name the collector's"
                    " port for that, 4318 as a rule, in OTEL_EXPORTER_OTLP_ENDPOINT"
                )
        self._provider: TracerProvider | None = None
        self._tracer: api.Tracer | None = None

    def start(self) -> None:
        complaints = logging.getLogger("opentelemetry")
        complaints.handlers[:] = [_Complaints()]
        complaints.propagate = False
        ours = Resource.create({"service.name": "fovea", "service.version": __version__})
        # What the environment says goes before what is said here.
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("fovea", __version__)

    def begin(self, name: str, carrier: Mapping[str, str], began: float, attributes: Attributes) -> _Trace | None:
        if self._tracer is None:
            return None
        clock = _Clock()
        span = self._tracer.start_span(
            name,
            _propagator.extract(carrier),
            SpanKind.SERVER,
            dict(attributes),
            start_time=clock.at(began),
        )
        return _Trace(self._tracer, span, clock) if span.is_recording() else None

    async def close(self) -> None:
        if self._provider is None:
            return
        sending = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_SECONDS)
        if sending.is_alive():
            log.warning("the last spans could not be sent within %g s", FLUSH_SECONDS)


class _Clock:
    """From `time.monotonic` to nanoseconds since 1970, alike for all spans of a trace."""

    __slots__ = ("_epoch", "_monotonic")

    def __init__(self) -> None:
        self._epoch = time.time_ns()
        self._monotonic = time.monotonic()

    def at(self, seconds: float) -> int:
        return self._epoch + round((seconds - self._monotonic) * 1e9)


class _Trace:
    """A request's span, and what belongs to it. Satisfies `Trace`."""

    __slots__ = ("_attributes", "_clock", "_context", "_span", "_tracer")

    def __init__(self, tracer: api.Tracer, span: api.Span, clock: _Clock) -> None:
        self._attributes: dict[str, str | int | float] = {}  # all set in the end: each setting takes a lock
        self._tracer = tracer
        self._span = span
        self._clock = clock
        self._context = api.set_span_in_context(span)

    @property
    def id(self) -> str:
        return api.format_trace_id(self._span.get_span_context().trace_id)

    def note(self, attributes: Attributes) -> None:
        self._attributes.update(attributes)

    def span(
        self,
        name: str,
        began: float,
        ended: float,
        attributes: Attributes,
        error: str | None = None,
        link: trace.Call | None = None,
    ) -> None:
        links = [Link(link.context)] if isinstance(link, _Call) else None
        span = self._tracer.start_span(
            name, self._context, attributes=dict(attributes), links=links, start_time=self._clock.at(began)
        )
        _fail(span, error)
        span.end(self._clock.at(ended))

    def call(self, name: str, attributes: Attributes) -> _Call:
        began = self._clock.at(time.monotonic())
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, dict(attributes), start_time=began)
        return _Call(span, self._clock)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: str | None, *, failed: bool) -> None:
        if failed:
            _fail(self._span, error)
        elif error is not None:
            self._attributes["error.type"] = error
        self._span.set_attributes(self._attributes)
        self._span.end(self._clock.at(time.monotonic()))


class _Call:
    """A client's span. Satisfies `Call`."""

    __slots__ = ("_clock", "_span")

    def __init__(self, span: api.Span, clock: _Clock) -> None:
        self._span = span
        self._clock = clock

    @property
    def context(self) -> api.SpanContext:
        return self._span.get_span_context()

    @property
    def metadata(self) -> Metadata:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, api.set_span_in_context(self._span))
        return tuple(carrier.items())

    def end(self, error: str | None) -> None:
        _fail(self._span, error)
        self._span.end(self._clock.at(time.monotonic()))


class _Complaints(logging.Handler):
    """Passes on a line of OpenTelemetry's log now and then: a collector that is away is worth one, not one a second."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0
        self._kept = 0

    def emit(self, record: logging.LogRecord) -> None:
        if (now := time.monotonic()) < self._next:
            self._kept += 1
            return
        more = f" (and {self._kept} lines before)" if self._kept else ""
        self._next, self._kept = now + QUIET_SECONDS, 0
        log.warning("sending traces: %s%s", record.getMessage(), more)


def _fail(span: api.Span, error: str | None) -> None:
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, error))
