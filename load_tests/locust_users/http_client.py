"""One connection over HTTP, and what its answers mean."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from load_tests.locust_users.outcomes import Late, Refused, Wrong, judge

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # a fit may take a while
IDLE_SECONDS = 2.0  # after which a connection is not used again: the server closes idle ones after five


@dataclass(frozen=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]  # names in lower case
    data: bytes

    def json(self) -> Any:
        """Raises Wrong if it is none."""
        try:
            return json.loads(self.data)
        except ValueError:
            raise Wrong(f"{self.status} with {self.data[:60]!r}, which is not JSON") from None

    def code(self) -> str:
        """The code of the problem that it reports. Raises Wrong if it does not report one as documented."""
        problem = self.json()
        kind = self.headers.get("content-type", "")
        if kind != "application/problem+json" or problem.get("status") != self.status:
            raise Wrong(f"{self.status} is not reported as a problem: {kind}, {self.data[:60]!r}")
        return str(problem.get("code"))

    def good(self) -> Any:
        """The JSON of an answer that went well.

        Raises:
            Refused: 429 `overloaded`, with the seconds to wait.
            Late: 504 `deadline_exceeded`.
            Wrong: Any other error.
        """
        if self.status in {200, 201}:
            return self.json()
        self.excused()
        raise Wrong(f"{self.status} {self.code()}: {self.json().get('detail')}")

    def excused(self) -> None:
        """Raise Refused or Late if the server had too much to do and said so as documented."""
        if self.status == 429 and self.code() == "overloaded":
            if not self.headers.get("retry-after", "").isdecimal():
                raise Wrong("429 without Retry-After")
            raise Refused("429 overloaded")
        if self.status == 504 and self.code() == "deadline_exceeded":
            raise Late("504 deadline_exceeded")


class Http:
    """A connection, which is opened when it is needed.

    Args:
        host: `http://…` or `https://…`.
        key: Of the server; None where there is none.
    """

    def __init__(self, host: str, key: str | None) -> None:
        self._host = host
        self._key = key
        self._client: HTTPClient | None = None
        self._used = 0.0

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        media: str = "application/json",
        *,
        key: str | None = None,
        claim: int | None = None,
        seconds: float | None = None,
    ) -> Reply:
        """Send a request.

        Args:
            method, path, body: Of the request.
            media: Type of the body.
            key: Sent instead of the server's.
            claim: Length that the body is said to have instead of its own.
            seconds: After which to hang up, because the answer is of no use.

        Raises:
            Late: The seconds passed.
            Wrong: No answer came.
        """
        headers = {"content-type": media}
        if key := key or self._key:
            headers["authorization"] = f"Bearer {key}"
        if claim is not None:
            headers |= {"content-length": str(claim), "connection": "close"}
        try:
            with gevent.Timeout(ANSWER_SECONDS if seconds is None else seconds):
                response = self._connected().request(method, path, body, headers)
                names = {name.lower(): value for name, value in response.headers}
                return Reply(response.status_code, names, bytes(response.read()))
        except gevent.Timeout:
            self.close()
            if seconds is None:
                raise Wrong(f"no answer within {ANSWER_SECONDS:g} s") from None
            raise Late("no answer in time") from None
        except (OSError, HTTPConnectionClosed, HTTPParseError) as error:
            self.close()
            raise Wrong(f"no answer: {type(error).__name__}") from None
        finally:
            self._used = time.monotonic()

    def _connected(self) -> HTTPClient:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
        if self._client is None:
            self._client = HTTPClient.from_url(
                self._host, concurrency=1, connection_timeout=CONNECT_SECONDS, network_timeout=ANSWER_SECONDS
            )
        return self._client

    def close(self) -> None:
        """Until it is used again."""
        if self._client:
            self._client.close()
            self._client = None


def right(answer: dict[str, Any], labels: Iterable[str]) -> None:
    """Check the predictions of an answer of classify; raises Refused, Late or Wrong."""
    predictions = answer.get("predictions", [])
    judge([_read(each) for each in predictions], list(labels))


def _read(prediction: dict[str, Any]) -> tuple[str | None, str]:
    if error := prediction.get("error"):
        return error["code"], error["detail"]
    return None, prediction["classes"][0]["label"]


def multipart(files: Iterable[bytes]) -> tuple[bytes, str]:
    """A body of that many parts named `image`, and its media type."""
    boundary = "a-boundary-that-no-image-holds"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    parts = [head + file + b"\r\n" for file in files]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"
