"""The embedded backend: ONNX Runtime in this process, our batcher in front of each loaded version."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.backends.base import Outputs
from service.backends.catalogue import LoadFailed
from service.backends.graph import cut
from service.batcher import Batcher, Observer, Ticket
from service.golden import Drifted, golden_batch, golden_difference, misshapen
from service.preprocess import Limits, Preprocessor
from service.spec import ModelSpec

log = logging.getLogger(__name__)

# Below this, a batch is over before a second thread would have woken up; and the maps, which most requests do not ask
# for, take a good part of its time, so that a second session without them is worth its memory.
SMALL_MACS = 5_000_000
MAPS = frozenset({"cam", "activations"})

START_SECONDS = 0.2  # for measuring batch times, about

onnxruntime.disable_telemetry_events()
onnxruntime.set_default_logger_severity(4)  # what it raises we log ourselves, in our own form


@dataclass(frozen=True, slots=True)
class Embedding:
    """How the embedded backend runs its models.

    Attributes:
        threads: For one inference.
        max_queue: Images that may wait for one version.
    """

    threads: int
    max_queue: int


class OnnxModel:
    """One version, loaded and verified. Satisfies `ServedModel`.

    Args:
        spec: Its spec.
        session: On its model file.
        without_maps: On the rest of it, if that is a session of its own.
        max_batch: Images in a batch at most.
        max_queue: Images that may wait.
        limits: How large an image may be.
        observer: Told of every batch.
    """

    def __init__(
        self,
        spec: ModelSpec,
        session: onnxruntime.InferenceSession,
        without_maps: onnxruntime.InferenceSession | None,
        *,
        max_batch: int,
        max_queue: int,
        limits: Limits,
        observer: Observer,
    ) -> None:
        self.spec = spec
        self.preprocess = Preprocessor(spec.image, limits)
        self.golden_difference = 0.0
        self._session = session
        self._without_maps = without_maps or session
        self._max_batch = max_batch
        self._batcher = Batcher(
            f"{spec.name}:{spec.version}", self.run, max_batch=max_batch, max_queue=max_queue, observer=observer
        )

    def verify(self) -> None:
        """Replay the golden images and measure batch times. Blocking; before `start`.

        Raises:
            LoadFailed: ONNX Runtime cannot run the graph, or its outputs are not those of the spec.
        """
        try:
            batch = golden_batch(self.spec, self.preprocess)
            everything = self._replay(batch, frozenset(self.spec.output_shapes))
            if problem := misshapen(self.spec, everything, len(batch)):
                raise LoadFailed("graph", f"model.onnx: {problem}")
            both = (everything, self._replay(batch, self.spec.judged_by))  # which may be two sessions'
            self.golden_difference = max(golden_difference(self.spec, np.asarray(each["logits"])) for each in both)
        except Drifted as error:
            raise LoadFailed("drift", str(error)) from error
        shape = (self.spec.image.height, self.spec.image.width, self.spec.image.channels)
        one = self._seconds(np.zeros((1, *shape), np.uint8))
        # Where a single image takes long, batching gains little: not worth delaying the start for a measurement.
        size = self._max_batch if one * self._max_batch < START_SECONDS else 1
        many = self._seconds(np.zeros((size, *shape), np.uint8)) if size > 1 else one
        self._batcher.times.calibrate(one, many, size)

    def start(self) -> None:
        self._batcher.start()

    def admit(self, deadline: float, images: int = 1) -> list[Ticket]:
        return self._batcher.admit(deadline, images)

    def problem(self) -> str | None:
        return self._batcher.problem()

    async def close(self) -> None:
        await self._batcher.close()

    @property
    def max_batch(self) -> int:
        return self._max_batch

    def run(self, batch: NDArray[np.uint8], outputs: frozenset[str]) -> Outputs:
        """One batch, past the batcher: blocking, on any thread.

        Args:
            batch: uint8 `[N, H, W, C]` of at most `max_batch` images.
            outputs: Names of those that are wanted.

        Raises:
            Exception: Whatever ONNX Runtime raised; it is in the log.
        """
        names = list(outputs)
        session = self._without_maps if MAPS.isdisjoint(outputs) else self._session
        try:
            return dict(zip(names, session.run(names, {"image": batch}), strict=True))
        except Exception:
            log.exception("ONNX Runtime failed", extra={"model": self.spec.name, "version": self.spec.version})
            raise

    def _replay(self, batch: NDArray[np.uint8], wanted: frozenset[str]) -> Outputs:
        """Outputs for the golden images."""
        try:
            return self.run(batch, wanted)
        except Exception as error:
            raise LoadFailed("graph", "model.onnx: it fails on the golden images; the log says more") from error

    def _seconds(self, batch: NDArray[np.uint8]) -> float:
        """Best of at most five runs after one that allocates; for slow ones fewer."""
        wanted = frozenset({"logits"})
        self.run(batch, wanted)
        times: list[float] = []
        while len(times) < 5 and sum(times) < START_SECONDS / 4:
            started = time.monotonic()
            self.run(batch, wanted)
            times.append(time.monotonic() - started)
        return min(times)


def load(
    directory: Path, spec: ModelSpec, *, max_batch: int, embedding: Embedding, limits: Limits, observer: Observer
) -> OnnxModel:
    """Load a version and let it prove itself. Blocking.

    Args:
        directory: Of the version.
        spec: Of the version.
        max_batch: From the model's config.
        embedding: Threads and queue.
        limits: How large an image may be.
        observer: Told of every batch.

    Raises:
        LoadFailed: A file is missing or differs from its hash, the graph breaks the contract, or its outputs drifted.
    """
    if spec.tensorrt is not None:
        raise LoadFailed("graph", "a TensorRT plan needs Triton and a GPU; publish it again with --format onnx")
    beside = _check_files(directory, spec.files)
    small = spec.macs < SMALL_MACS
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if small else embedding.threads
    options.inter_op_num_threads = 1
    # A plan of the memory for each batch size, none of which fits another's: dear where activations are large, and
    # where they are small it saves a tenth of a single image's time.
    options.enable_mem_pattern = small
    # Idle threads that spin would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # It would map weights that lie beside the graph: written over they would change answers, cut short they would end
    # this process. What is handed over is copied; and if anything is, no other file is looked for.
    beside = beside or {"none": b"\0"}
    names, contents = list(beside), list(beside.values())
    options.add_external_initializers_from_files_in_memory(names, contents, [len(each) for each in contents])
    file = directory / "model.onnx"
    try:
        session = _session(file, options)
        _check_contract(session, spec)
        rest = _session(cut(file.read_bytes(), set(spec.output_shapes) - MAPS), options) if small else None
    except LoadFailed:
        raise
    except Exception as error:
        log.debug("ONNX Runtime refused the graph", exc_info=True)
        raise LoadFailed("graph", "model.onnx: ONNX Runtime cannot load it; run the publish command again") from error
    _give_back_freed()
    model = OnnxModel(
        spec, session, rest, max_batch=max_batch, max_queue=embedding.max_queue, limits=limits, observer=observer
    )
    model.verify()
    return model


def _session(model: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _give_back_freed() -> None:
    """Have the C library return to the system what it keeps: a graph is read and rewritten in several copies."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # it is glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _check_files(directory: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """Hold files against their hashes; gives the contents of those beside the graph."""
    beside = {}
    for name, expected in files.items():
        try:
            with (directory / name).open("rb") as file:
                if name == "model.onnx":
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    beside[name] = file.read()
                    digest = hashlib.sha256(beside[name]).hexdigest()
        except OSError as error:
            raise LoadFailed("files", f"{name}: {error.strerror}") from error
        except ValueError as error:  # a zero byte, for one
            raise LoadFailed("files", f"{name!r} cannot be the name of a file") from error
        if digest != expected:
            raise LoadFailed(
                "files", f"{name}: SHA-256 {digest[:12]}… is not the {expected[:12]}… it was published with"
            )
    return beside


def _check_contract(session: onnxruntime.InferenceSession, spec: ModelSpec) -> None:
    inputs = {node.name: (node.type, list(node.shape[1:])) for node in session.get_inputs()}
    expected = ("tensor(uint8)", [spec.image.height, spec.image.width, spec.image.channels])
    if inputs != {"image": expected}:
        raise LoadFailed("graph", f"model.onnx: its inputs are {inputs}, the spec wants image {expected}")
    missing = set(spec.output_shapes) - {node.name for node in session.get_outputs()}
    if missing:
        raise LoadFailed("graph", f"model.onnx: it lacks the outputs {', '.join(sorted(missing))}")
