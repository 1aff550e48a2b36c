"""Locust's entry: `locust -f load_tests/locustfile.py --host http://127.0.0.1:8080`, from the project's folder.

Without a shape it is a closed loop, as locust's users are: each waits for its answer before it sends again, so a slow
server is asked less. With `--shape` requests arrive when they are due. `python -m load_tests.load` does all that and
makes figures of it. A key is taken from FOVEA_KEY.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
# Locust puts this folder first in the path, for the time of the import; `import grpc` would find the grpc.py in it.
sys.path[0] = str(_HERE.parent)

from locust import User, events  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.runners import LocalRunner  # noqa: E402

from load_tests.arrivals import SHAPES, shaped  # noqa: E402
from load_tests.locust_users.classify import GrpcClassify, HttpClassify  # noqa: E402
from load_tests.locust_users.known import FOLDER, Unusable  # noqa: E402
from load_tests.locust_users.open_loop import OpenLoop  # noqa: E402
from load_tests.locust_users.outcomes import Journal  # noqa: E402
from load_tests.locust_users.target import found  # noqa: E402
from load_tests.locust_users.teacher import Teacher  # noqa: E402
from load_tests.locust_users.vandal import Vandal  # noqa: E402

__all__ = ["GrpcClassify", "HttpClassify", "Teacher", "Vandal"]

STOP_SECONDS = 10.0  # for what is under way at the end, and for teachers to delete their heads


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    group = parser.add_argument_group("Fovea")
    group.add_argument("--grpc", metavar="HOST:PORT", help="native gRPC; port 8081 of the host unless given; off: none")
    group.add_argument("--images", default=str(FOLDER), metavar="FOLDER", help="MODEL/LABEL/FILE: known images")
    group.add_argument("--patience", type=float, default=1.0, help="seconds after which an answer is of no use")
    group.add_argument("--shape", choices=["", *SHAPES], default="", help="open loop: requests arrive when due")
    group.add_argument("--rates", default="50", help="of the shape, requests a second, with commas between them")
    group.add_argument("--seconds", type=float, default=10.0, help="of the shape, at each rate")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and of what is sent")
    group.add_argument("--journal", default="", metavar="FILE", help="write what became of each request, as CSV")


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    """Look at the server, make images for its models, and put a shape in the place of a number of users."""
    options = environment.parsed_options
    environment.stop_timeout = STOP_SECONDS
    try:
        if not environment.host:
            raise Unusable("name the server with --host http://…")
        environment.target = found(environment.host, options.grpc, Path(options.images), options.patience, options.seed)
        environment.user_classes = _able(environment)
        if options.shape:
            if not isinstance(environment.runner, LocalRunner):
                raise Unusable("a shape is for one process of locust; leave --shape or the workers out")
            levels = shaped(options.shape, [float(rate) for rate in options.rates.split(",")], options.seconds)
            environment.shape_class = OpenLoop(environment, levels, options.patience, options.seed)
    except (Unusable, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def _able(environment: Environment) -> list[type[User]]:
    """The users that are wanted, without those that this server has nothing for."""
    able = list(environment.user_classes)
    if not environment.target.rpc:
        able = [each for each in able if each is not GrpcClassify]
    if Teacher in able and not environment.target.teachable:
        print("warning: the server takes no teaching with this key; the Teacher stays away", flush=True)
        able.remove(Teacher)
    if not able:
        raise Unusable("no users are left; name others, or a server that takes what they do")
    return able


@events.test_start.add_listener
def _begin(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    environment.target.journal = Journal(Path(options.journal) if options.journal else None)
    if isinstance(environment.shape_class, OpenLoop):
        environment.shape_class.prepare(environment.target)


@events.test_stop.add_listener
def _save(environment: Environment, **_: object) -> None:
    environment.target.journal.save()
