"""Routes and pinned versions in one small file, so that a restart does not lose them."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.routes.table import Route

log = logging.getLogger(__name__)

FILE_NAME = "routes.json"


class State(BaseModel):
    """What an operator has decided.

    Attributes:
        routes: By name.
        pins: Version by model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    routes: dict[str, Route] = {}
    pins: dict[str, str] = {}


def read(folder: Path) -> State:
    """What was written last; nothing if that cannot be read, which the log then says."""
    path = folder / FILE_NAME
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("%s cannot be read: %s; no routes, no pinned versions", FILE_NAME, error.strerror)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
        log.error("%s is damaged (%s); no routes, no pinned versions until it is written anew", FILE_NAME, where)
    return State()


def write(folder: Path, state: State) -> None:
    """Write the file as a whole or not at all. Blocking.

    Raises:
        OSError: It could not be written; the one before is untouched.
    """
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{FILE_NAME}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(state.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(folder / FILE_NAME)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the rename might not outlive a power cut
    finally:
        os.close(directory)
