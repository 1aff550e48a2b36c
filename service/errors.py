"""What can go wrong, in words that no transport owns.

FoveaError
 ├── InvalidRequest        the request cannot be understood
 ├── Unauthorized          no valid key
 ├── Forbidden             a valid key without the scope, or a call that this server does not take
 ├── UnknownModel          no such model, version, head or route
 ├── TooLarge              bytes, pixels or images beyond a limit
 ├── UnsupportedFormat     not an image format (or pixel type) that is decoded here
 ├── InvalidImage          an image of a known format that is truncated or broken
 ├── Overloaded            the deadline cannot be met, or a queue is full
 │    └── RateExceeded     a key has asked as often as it may
 ├── DeadlineExceeded      the deadline passed while the request waited
 ├── BackendUnavailable    the backend is not there (yet)
 └── BackendFailed         the backend was there and failed

Each class carries its public `code`; each transport maps codes to its own statuses in one table.
A message is written for the client: it names the remedy and never quotes a backend's own text.
"""

from __future__ import annotations


class FoveaError(Exception):
    """Root of the tree.

    Attributes:
        code: The stable, public name of the error.
        retry_after: Seconds after which a retry makes sense, where that is known.
    """

    code = "internal"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class InvalidRequest(FoveaError):
    code = "invalid_request"


class Unauthorized(FoveaError):
    code = "unauthorized"


class Forbidden(FoveaError):
    code = "forbidden"


class UnknownModel(FoveaError):
    code = "unknown_model"


class TooLarge(FoveaError):
    code = "too_large"


class UnsupportedFormat(FoveaError):
    code = "unsupported_format"


class InvalidImage(FoveaError):
    code = "invalid_image"


class Overloaded(FoveaError):
    code = "overloaded"


class RateExceeded(Overloaded):
    """Told like any other; counted apart: not the server is busy."""


class DeadlineExceeded(FoveaError):
    code = "deadline_exceeded"


class BackendUnavailable(FoveaError):
    code = "backend_unavailable"


class BackendFailed(FoveaError):
    code = "backend_failed"
