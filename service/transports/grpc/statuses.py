"""The one table from errors to gRPC statuses, and what stands beside a status."""

from __future__ import annotations

import math

import grpc

from service.errors import FoveaError

STATUSES: dict[str, grpc.StatusCode] = {
    "ok": grpc.StatusCode.OK,
    "client_gone": grpc.StatusCode.CANCELLED,
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "unknown_service": grpc.StatusCode.NOT_FOUND,  # whose health is asked
    "unknown_method": grpc.StatusCode.UNIMPLEMENTED,
    "unknown_encoding": grpc.StatusCode.UNIMPLEMENTED,  # of messages
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unsupported_format": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_image": grpc.StatusCode.INVALID_ARGUMENT,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "backend_failed": grpc.StatusCode.INTERNAL,
    "backend_unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}


def retry_after_ms(error: FoveaError) -> int | None:
    """Whole milliseconds after which a retry makes sense, where that is known."""
    return None if error.retry_after is None else max(1, math.ceil(error.retry_after * 1000))


def trailers(error: FoveaError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata beside the status: the stable code, and when to retry where that is known."""
    wait = retry_after_ms(error)
    return (("fovea-code", error.code), *([("retry-after-ms", str(wait))] if wait else []))
