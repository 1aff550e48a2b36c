"""The one table from errors to HTTP statuses, and RFC 9457 problem details."""

from __future__ import annotations

import math

import orjson

from service.errors import FoveaError, Unauthorized

CONTENT_TYPE = b"application/problem+json"

# code: (status, title)
PROBLEMS = {
    "invalid_request": (400, "The request cannot be understood"),
    "unauthorized": (401, "A valid key is needed"),
    "forbidden": (403, "Not allowed"),
    "unknown_model": (404, "No such model"),
    "not_found": (404, "No such path"),
    "method_not_allowed": (405, "The path does not take this method"),
    "too_large": (413, "Too large"),
    "unsupported_format": (415, "Not an image format that is decoded here"),
    "invalid_image": (422, "The image is truncated or broken"),
    "overloaded": (429, "Too busy to answer in time"),
    "internal": (500, "The server failed"),
    "backend_failed": (502, "The backend failed"),
    "backend_unavailable": (503, "The backend is not there"),
    "deadline_exceeded": (504, "The deadline passed"),
}


def problem(code: str, detail: str, **more: object) -> dict[str, object]:
    """Problem details as a JSON object: `type`, `title`, `status`, `detail`, `code` and whatever else helps."""
    status, title = PROBLEMS[code]
    return {"type": f"urn:fovea:error:{code}", "title": title, "status": status, "detail": detail, "code": code, **more}


def problem_response(code: str, detail: str, **more: object) -> tuple[int, bytes]:
    """Status and body."""
    return PROBLEMS[code][0], orjson.dumps(problem(code, detail, **more))


def error_headers(error: FoveaError) -> list[tuple[bytes, bytes]]:
    """Headers beside the problem: `Retry-After` in whole seconds, where a time is known; how to say who one is."""
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    if error.retry_after is None:
        return []
    return [(b"retry-after", str(max(1, math.ceil(error.retry_after))).encode())]
