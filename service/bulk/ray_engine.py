"""Shards on Ray Data: any number of processes, on this machine or a cluster; whoever dies is replaced."""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from numpy.typing import NDArray

from service.bulk.worker import Job, Tallies, Tally, Worker
from service.errors import BackendFailed, FoveaError
from service.settings import InvalidSettings

ATTEMPTS = 4  # at a shard: an image that ends whoever decodes it must not do so for ever
STORE_BYTES = 128 * 2**20  # of Ray's own memory: numbers of shards and tallies are all that passes through it

_ENVIRONMENT = {  # before Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report its use to its makers
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_LOCAL = {  # a Ray of its own is nobody else's: else its ports would be open to the network
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as it is there, so everywhere: it listens to this machine alone,
    "RAY_AUTH_MODE": "token",  # and on it to those alone who know a secret that is not kept
}


class _Attempts:
    """How often each shard was begun: outlives the workers, in a process of its own."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        self._begun[shard] += 1
        return self._begun[shard]


class _Classify:
    """The worker, as Ray Data calls it: a batch is one shard.

    What goes wrong is part of the answer: Ray would wrap it until nobody could read it.
    """

    def __init__(self, job: Job, threads: int, attempts: Any) -> None:
        self._job = job
        self._threads = threads
        self._attempts = attempts
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        (shard,) = batch["item"].tolist()
        try:
            total, problem = self._classified(shard), ""
        except (FoveaError, InvalidSettings, OSError) as error:
            total, problem = Tally(), str(error)
        counts = {name: [getattr(total, name)] for name in ("images", "abstained", "bad")}
        return {**counts, "problem": [problem]}

    def _classified(self, shard: int) -> Tally:
        import ray

        while True:
            begun = ray.get(self._attempts.begin.remote(shard))
            if begun > ATTEMPTS:
                raise BackendFailed(f"the worker of shard {shard} of the listing died {ATTEMPTS} times")
            try:
                if self._worker is None:
                    self._worker = Worker(self._job, self._threads)
                return sum(self._worker.run([shard]), Tally())
            except OSError:  # a store that stumbled, perhaps
                if begun == ATTEMPTS:
                    raise


def run(job: Job, shards: list[int], *, workers: int | None, threads: int, address: str) -> Tallies:
    """Classify shards; tallies come as shards are done, in any order.

    Ray Data gives a shard whose worker died to another one. It may be classified twice then, but a part is written
    whole or not at all, and always under the same name.

    Args:
        job: What is to be done.
        shards: That are still to be done.
        workers: Processes; None for as many as there are processors for.
        threads: Of each, which gets as many processors.
        address: `local` for a Ray of its own, which ends with it; or that of a cluster, where Fovea is installed and
            the model repository and the folders have the same paths.

    Raises:
        BackendFailed: A shard failed, or its worker died again and again. Whatever parts are there stay, and count.
        InvalidSettings: Ray Data is not installed, or no cluster answers.
    """
    if not shards:
        return
    os.environ |= _ENVIRONMENT
    if address == "local":
        os.environ |= _LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise InvalidSettings(f"--engine ray needs {error.name}: pip install 'fovea[bulk]'") from error
    with _ray(address, workers, threads):
        ray.data.DataContext.get_current().enable_progress_bars = False
        count = workers or max(1, int(ray.cluster_resources()["CPU"]) // threads)  # type: ignore[no-untyped-call]
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
        tallies = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            _Classify,
            batch_size=1,
            fn_constructor_args=(job, threads, attempts),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(shards))),
            num_cpus=threads,
        )
        try:
            for row in tallies.iter_rows():
                if problem := row.pop("problem"):
                    raise BackendFailed(problem)
                yield Tally(**row)
        except ray.exceptions.RayError as error:
            raise BackendFailed("a worker failed; the newest folder of /tmp/ray has the log") from error


@contextmanager
def _ray(address: str, workers: int | None, threads: int) -> Iterator[None]:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        quiet |= {
            "num_cpus": max(len(os.sched_getaffinity(0)), (workers or 0) * threads),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        }
    with redirect_stdout(sys.stderr):  # Ray tells there of workers that died
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise InvalidSettings(f"--ray-address: no Ray answers at {address}") from error
        try:
            yield
        finally:
            ray.shutdown()
