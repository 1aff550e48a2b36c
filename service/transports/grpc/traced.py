"""The span of each gRPC call, and of each message of a stream, where traces are sent.

A stream has no span of its own, which would end when the stream does, perhaps in days: its messages are requests, and
belong to the trace of whoever opened it.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.tracing.trace import HEADERS, Tracer, current
from service.transports.exchange import Exchange

Carrier = dict[str, str]


def carrier_of(metadata: Mapping[bytes, bytes]) -> Carrier:
    """What a call's metadata says of the trace that it belongs to."""
    return {key: metadata[key.encode()].decode("latin-1") for key in HEADERS if key.encode() in metadata}


def begin(tracer: Tracer, exchange: Exchange, method: str, carrier: Carrier) -> None:
    """A call, or a message of a stream, has arrived.

    Args:
        tracer: Traces it.
        exchange: It.
        method: `/package.Service/Method`.
        carrier: Of the call.
    """
    service, _, name = method.removeprefix("/").rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    exchange.trace = tracer.begin(f"{service}/{name}", carrier, exchange.arrived, attributes)
    current.set(exchange.trace)


def finish(exchange: Exchange, status: int) -> None:
    """It has been answered; the rest is told where every request is counted."""
    if exchange.trace is not None:
        current.set(None)
        exchange.trace.note({"rpc.grpc.status_code": status})
