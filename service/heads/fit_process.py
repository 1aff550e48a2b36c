"""What the fitter runs in a process of its own: `python -m service.heads.fit_process`.

Fits come through standard input and answers leave through standard output, one at a time, each as a message: the length
of a JSON header, the header, and as many bytes as its `bytes` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from service.heads.fit import TooFewClasses, fit

LENGTH = struct.Struct("<Q")
NICENESS = 10

Message = tuple[dict[str, Any], bytearray]


def send(stream: IO[bytes], header: dict[str, Any], payload: memoryview | bytes = b"") -> None:
    """Write a message.

    Raises:
        OSError: Nobody reads.
    """
    head = json.dumps(header | {"bytes": len(payload)}).encode()
    stream.write(LENGTH.pack(len(head)) + head)
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Message:
    """Read a message.

    Raises:
        EOFError: The other side is gone.
    """
    header = json.loads(_exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0]))
    return header, _exactly(stream, header["bytes"])


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        rest = rest[got:]
    return data


def main() -> None:
    """Fit what comes, until whoever started this is gone."""
    os.nice(NICENESS)  # classification first
    with contextlib.suppress(OSError):  # and if memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    fits: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, fits), daemon=True).start()
    fit(np.eye(2, dtype=np.float32), ["0", "1"])  # so that all is imported by the time it is needed
    while True:
        send(answers, *_answer(*fits.get()))


def _listen(stream: IO[bytes], fits: SimpleQueue[Message]) -> None:
    """Queue what comes, and end the process, in the middle of a fit too, when nothing can come any more."""
    try:
        while True:
            fits.put(receive(stream))
    except EOFError:
        os._exit(0)


def _answer(header: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], bytes]:
    embeddings = np.frombuffer(payload, np.float32).reshape(header["shape"])
    try:
        fitted = fit(embeddings, header["labels"], coverage=header["coverage"])
    except TooFewClasses as error:
        return {"refused": str(error)}, b""
    except Exception:  # noqa: BLE001 - whatever it is, the server logs it
        return {"failed": traceback.format_exc()}, b""
    answer = {
        "labels": fitted.labels,
        "calibration": fitted.calibration.model_dump_json(),
        "report": fitted.report.model_dump_json(),
    }
    return answer, fitted.parameters.to_bytes()


if __name__ == "__main__":
    main()
