"""Write artefacts into a Triton model repository: config.pbtxt through protobuf, atomic and immutable versions.

A publisher killed at any moment leaves the repository serving what it served:

1. one publisher at a time, by a lock on `.publish.lock` that dies with its process;
2. everything is written to `.staging-<name>-<pid>/` on the same file system, flushed to the disk and verified there;
3. a new model appears by one rename of its whole directory. A new version of a known model appears by two: first
   the config, which now carries a spec for a version that is not there yet (that harms nobody), then the version's
   directory.

What a dead publisher left behind goes away with the next publish.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export import replay
from export.errors import DriftError, RepositoryError
from export.triton_config import Deployment, build_config, deployment_of
from service.files import flush
from service.spec import CONFIG_NAME, InvalidSpec, ModelSpec, read_config, specs_from_config

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ENCODED_SUFFIX = ".encoded"  # the gateway's second face of every model
LOCK_NAME = ".publish.lock"
STAGING = ".staging-"
LOCK_WAIT = 600.0  # seconds


def published(repository: Path, name: str) -> dict[str, ModelSpec]:
    """Specs of the versions of a model that are really there, by version; empty if there is no such model.

    Raises:
        RepositoryError: The directory is there, but Fovea did not publish it, or its config is broken.
    """
    folder = repository / name
    if not folder.exists():
        return {}
    try:
        specs = read_config(folder / CONFIG_NAME).specs
    except (OSError, InvalidSpec) as error:
        raise RepositoryError(f"{folder} is in the way: {error}; move it or take another name") from error
    if not specs:
        raise RepositoryError(f"{folder} was not published by Fovea; take another name")
    return {version: spec for version, spec in specs.items() if (folder / version).is_dir()}


def newest_versions(repository: Path) -> tuple[list[ModelSpec], dict[str, str]]:
    """The spec of the newest version of every model, and what is wrong with the rest."""
    specs, failed = [], {}
    for path in sorted(repository.glob(f"[!.]*/{CONFIG_NAME}")):
        name = path.parent.name
        try:
            found = [
                spec
                for version, spec in read_config(path, lenient=True).specs.items()
                if (path.parent / version / replay.model_file(spec)).is_file()
            ]
        except (InvalidSpec, OSError) as error:
            failed[name] = str(error)
            continue
        if found:
            specs.append(max(found, key=lambda spec: int(spec.version)))
        else:
            failed[name] = "no version that Fovea published"
    return specs, failed


def deployment(repository: Path, name: str, wanted: Deployment) -> Deployment:
    """What is wanted of Triton, with what it leaves open as earlier publishers of that model wanted it.

    Raises:
        RepositoryError: As `published` does, or the model's config wants what cannot be.
    """
    if wanted.fresh or not (repository / name).exists():
        return wanted
    published(repository, name)
    text = (repository / name / CONFIG_NAME).read_text(encoding="utf-8")
    return wanted.over(deployment_of(text_format.Parse(text, triton.ModelConfig())))


def publish(repository: Path, spec: ModelSpec, source: Path, wanted: Deployment | None = None) -> ModelSpec:
    """Publish files as the next version of a model.

    Args:
        repository: The model repository; made if it is not there.
        spec: Of the artefact. Its `version` is replaced by the next free one; its `files` say what to take from
            `source`, and the copies are held against those hashes.
        source: Directory of the files.
        wanted: Of Triton, for all versions of the model. What it leaves open stays as earlier publishers wanted it,
            unless it is `fresh`; what else somebody changed in the config by hand is overwritten.

    Returns:
        The spec as published.

    Raises:
        RepositoryError: A bad name, shapes other than the model's earlier versions, a deployment that contradicts
            itself, a full disk, or files that the system refuses to write. The repository serves what it served.
        DriftError: The staged artefact does not give its golden outputs.
    """
    if not NAME.fullmatch(spec.name) or spec.name.endswith(ENCODED_SUFFIX):
        raise RepositoryError(
            f"{spec.name!r} cannot name a model: use at most 64 of a-z 0-9 . _ -, begin with a letter or a digit, "
            f"and do not end in {ENCODED_SUFFIX}"
        )
    for name in spec.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise RepositoryError(f"{name!r} would lie outside of the version's directory")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _lock(repository), _staging(repository, spec.name) as staging:
            earlier = published(repository, spec.name)
            spec = spec.model_copy(update={"version": _next_version(repository / spec.name)})
            _check_shapes(spec, earlier)
            _stage(staging, spec, earlier, source, deployment(repository, spec.name, wanted or Deployment()))
            _install(staging / spec.name, repository / spec.name, spec.version)
    except InvalidSpec as error:
        raise RepositoryError(f"{spec.name} was not published: its spec breaks the contract: {error}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space and publish again" if full else str(error)
        raise RepositoryError(f"{spec.name} was not published to {repository}: {reason}") from error
    return spec


@contextmanager
def _lock(repository: Path) -> Iterator[None]:
    """Hold the repository's lock; the system releases it when the process ends, however it ends."""
    give_up = time.monotonic() + LOCK_WAIT
    with (repository / LOCK_NAME).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise RepositoryError(f"another publisher holds {repository / LOCK_NAME}; try again") from None
                time.sleep(0.05)
        yield


@contextmanager
def _staging(repository: Path, name: str) -> Iterator[Path]:
    """An empty staging directory; with the lock held, any other one belongs to the dead."""
    for leftover in repository.glob(STAGING + "*"):
        shutil.rmtree(leftover)
    staging = repository / f"{STAGING}{name}-{os.getpid()}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _next_version(folder: Path) -> str:
    """One more than any version that there is or was, so that a number never means two things."""
    if not folder.exists():
        return "1"
    numbers = {int(version) for version in read_config(folder / CONFIG_NAME).specs}
    numbers |= {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    return str(max(numbers, default=0) + 1)


def _check_shapes(spec: ModelSpec, earlier: Mapping[str, ModelSpec]) -> None:
    def contract(each: ModelSpec) -> dict[str, tuple[int, ...]]:
        return {"image": (each.image.height, each.image.width, each.image.channels), **each.output_shapes}

    ours = contract(spec)
    for version, other in earlier.items():
        if replay.model_file(other) != replay.model_file(spec):
            raise RepositoryError(
                f"version {version} of {spec.name} is {replay.model_file(other)}, and a model is either ONNX or plans: "
                "take another name"
            )
        theirs = contract(other)
        changed = [
            f"{name} is {ours.get(name, 'missing')}, was {theirs.get(name, 'missing')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if changed:
            raise RepositoryError(
                f"version {version} of {spec.name} has other shapes ({'; '.join(changed)}): take another name"
            )


def _stage(
    staging: Path,
    spec: ModelSpec,
    earlier: Mapping[str, ModelSpec],
    source: Path,
    deployed: Deployment,
) -> None:
    """Write `<name>/config.pbtxt` and `<name>/<version>/` under `staging`, and verify them where they lie."""
    folder = staging / spec.name / spec.version
    folder.mkdir(parents=True)
    for name in spec.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    specs = {**earlier, spec.version: spec}
    config = build_config(specs, deployed)
    path = staging / spec.name / CONFIG_NAME
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    parsed = text_format.Parse(path.read_text(encoding="utf-8"), triton.ModelConfig())
    if parsed != config or specs_from_config(parsed) != specs:
        raise DriftError(f"{spec.name}: config.pbtxt does not read back as it was written")
    replay.check(spec, folder)
    for each in sorted((staging / spec.name).rglob("*"), reverse=True):  # what is in a directory before the directory
        flush(each)
    flush(staging / spec.name)


def _install(staged: Path, folder: Path, version: str) -> None:
    """Move the staged model, or its config and then its version's directory, to where the gateway looks."""
    if folder.exists():
        (staged / CONFIG_NAME).replace(folder / CONFIG_NAME)
        flush(folder)
        (staged / version).rename(folder / version)
        flush(folder)
    else:
        staged.rename(folder)
    flush(folder.parent)
