"""The Open Inference Protocol (KServe v2) with the extensions of Triton that work here, whatever carries it.

Every model appears twice: `NAME` takes pixels as the network wants them, `NAME.encoded` takes files. A taught head
takes files only. A route is used like a model, both ways.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service import __version__
from service.backends.base import ModelStatus, ServedModel
from service.classifier import Classifier
from service.errors import FoveaError, InvalidRequest, TooLarge, UnknownModel
from service.oip import description
from service.oip.description import FILES, PIXELS, PROBABILITIES, ModelMetadata, network_of
from service.oip.tensors import MAX_STRINGS, Tensor
from service.routes.control import Control
from service.spec import Contract
from service.statistics import Counts

ENCODED = ".encoded"  # ends the name of a model that takes files

# Clients choose by it what they may ask for.
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")

_CLASSIFIED = ("logits", PROBABILITIES)
_STATES = {"ready": "READY", "loading": "LOADING", "failed": "UNAVAILABLE", "unloaded": "UNAVAILABLE"}


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that is asked for; with a `classification` of n, as each row's n best classes."""

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request.

    Attributes:
        version: Empty for the pinned one, else the newest.
        outputs: None for what the model is mostly asked for: logits or probabilities.
    """

    model: str
    version: str
    id: str
    inputs: Sequence[Tensor]
    outputs: Sequence[WantedOutput] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """An answer, under the name of the model that gave it: of a route, its primary or canary."""

    model: str
    version: str
    id: str
    outputs: Sequence[Tensor]
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    name: str
    version: str
    extensions: Sequence[str]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version of a model, as the repository index lists it.

    Attributes:
        version: Empty of a route, and of a model that has none.
        state: "READY", "LOADING" or "UNAVAILABLE".
        reason: Why it is not ready, or what else is wrong with it.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a version of a model has done since the server started."""

    name: str
    version: str
    counts: Counts


class OpenInference:
    """Answers the protocol's calls.

    Args:
        classifier: Answers inference requests.
        control: Loads and unloads, and knows the routes.
        problems: Why the server is not ready.
        max_images: In one request.
        others: Asks the server's other workers for their statistics; None if there are none.
    """

    def __init__(
        self,
        classifier: Classifier,
        control: Control,
        *,
        problems: Callable[[], Sequence[str]],
        max_images: int,
        others: Callable[[], Awaitable[list[bytes]]] | None = None,
    ) -> None:
        self._classifier = classifier
        self._control = control
        self._problems = problems
        self._max_images = max_images
        self._others = others

    # Inference.

    async def infer(self, request: InferRequest, *, request_id: str, deadline: float) -> InferAnswer:
        """Answer a request.

        Args:
            request: As it was sent.
            request_id: Decides between a route's primary and its canary, always alike.
            deadline: On the clock of `time.monotonic`, seconds; see `deadline_of`.

        Raises:
            FoveaError: It cannot be answered. One bad image fails them all, and the message says which it is.
        """
        name, encoded, served = self._target(request.model, request.version, request_id)
        wanted = _wanted(request, served.spec, encoded)
        found = await self._classifier.infer(
            _files(request) if encoded else _pixels(request),
            frozenset(output.name for output in wanted),
            model=name,
            version=request.version or None,
            request_id=request_id,
            deadline=deadline,
        )
        outputs = [_tensor(output, found.outputs[output.name], found.spec) for output in wanted]
        return InferAnswer(found.spec.name + ENCODED * encoded, found.spec.version, request.id, outputs)

    def resolve(self, model: str, version: str = "", request_id: str = "") -> Contract:
        """The contract of the version that would answer.

        Raises:
            UnknownModel: No such model or version; or a taught head was asked for without `ENCODED`.
            BackendUnavailable: It is not ready.
            InvalidRequest: A version of a route was asked for.
        """
        return self._target(model, version, request_id)[2].spec

    # What there is.

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("fovea", __version__, EXTENSIONS)

    def live(self) -> bool:
        """Whether the process answers; it does."""
        return True

    def ready(self) -> bool:
        """Whether requests will be answered."""
        return not self._problems()

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether requests to a model will be answered; of one that nobody knows they will not."""
        try:
            return not self._target(model, version)[2].problem()
        except FoveaError:
            return False

    def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        """A model's inputs and outputs; errors as `resolve`."""
        name, encoded, served = self._target(model, version)
        return description.metadata(model, served.spec, self._versions(name), encoded=encoded)

    def model_config(self, model: str, version: str = "") -> ModelConfig:
        """A model as Triton would configure it; errors as `resolve`."""
        spec = self._target(model, version)[2].spec
        return description.config(self.model_metadata(model, version), spec, self._max_images)

    def index(self, ready_only: bool = False) -> list[IndexEntry]:
        """Every version of every model, and the routes."""
        found = [
            IndexEntry(status.name + suffix, status.version, _STATES[status.state], status.problem or "")
            for status in self._classifier.models()
            for suffix in _suffixes(status)
        ]
        for route in self._control.routes():
            problems = "; ".join(route.problems())
            state = "UNAVAILABLE" if problems else "READY"
            found += [IndexEntry(route.name + suffix, "", state, problems) for suffix in ("", ENCODED)]
        return [entry for entry in found if entry.state == "READY" or not ready_only]

    async def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """What the versions that serve have done, in all workers: of all models, of one, or one version of it.

        A request to a route counts for the version that answered it; a route is shown with all that its targets did.

        Raises:
            UnknownModel: No such model or version.
        """
        name = model.removesuffix(ENCODED)
        route = next((route for route in self._control.routes() if route.name == name), None)
        if route is not None:
            targets = [route.ready(target) for part, target in route.route.targets().items() if part != "shadow"]
            shown = [(model, each.spec, model != name) for each in targets if each]
        else:
            shown = [
                (status.name + suffix, status.spec, suffix == ENCODED)
                for status in self._classifier.models()
                for suffix in _suffixes(status)
                if status.state == "ready" and status.spec and model in ("", status.name + suffix)
            ]
        known = self._classifier.statistics
        if self._others is not None:
            known = known.with_others(await self._others())
        found = [
            ModelStatistics(shown_as, spec.version, known.of(spec.name, spec.version, encoded))
            for shown_as, spec, encoded in shown
            if version in ("", spec.version)
        ]
        if model and not found:
            asked = f"version {version[:40]!r} of a model {model[:80]!r}" if version else f"model {model[:80]!r}"
            raise UnknownModel(f"no {asked} is served; POST /v2/repository/index lists what there is")
        return found

    # What changes the server.

    async def load(self, model: str, parameters: Mapping[str, object]) -> None:
        """Load a model anew.

        Args:
            model: Under its own name.
            parameters: Of the call; a config or files of the client's own are not taken.

        Raises:
            InvalidRequest: The name is that of a head or a route, or the model brings its own config.
            UnknownModel, BackendUnavailable, BackendFailed: As `ManagedBackend.load`.
        """
        if given := [name for name in parameters if name == "config" or name.startswith("file:")]:
            raise InvalidRequest(f"models are loaded as they were published; {', '.join(given)[:80]} cannot be given")
        await self._control.load(self._managed(model))

    async def unload(self, model: str) -> None:
        """Take a model out of memory until it is loaded; errors as `load`."""
        await self._control.unload(self._managed(model))

    # Names.

    def _target(self, model: str, version: str, request_id: str = "") -> tuple[str, bool, ServedModel]:
        """The model that is meant, whether as one that takes files, and the version of it that would answer."""
        name = model.removesuffix(ENCODED)
        try:
            served = self._classifier.resolve(name, version or None, request_id)
        except UnknownModel:
            if name == model:
                raise
            # The suffix may be part of a model's own name.
            name, served = model, self._classifier.resolve(model, version or None, request_id)
        encoded = name != model
        if not encoded:
            network_of(served.spec)
        return name, encoded, served

    def _versions(self, name: str) -> list[str]:
        """The versions of a model that serve; none of a route."""
        if any(route.name == name for route in self._control.routes()):
            return []
        return [each.version for each in self._classifier.models() if each.name == name and each.state == "ready"]

    def _managed(self, model: str) -> str:
        """A name that may be that of a model which can be loaded and unloaded."""
        name = model.removesuffix(ENCODED)
        if any(route.name == name for route in self._control.routes()):
            raise InvalidRequest(f"{name} is a route; its models are loaded and unloaded under their own names")
        kinds = {status.kind for status in self._classifier.models() if status.name == name}
        if "head" in kinds:
            raise InvalidRequest(f"{name} is a taught head, which is served with its backbone: load or unload that")
        if name != model and kinds:
            raise InvalidRequest(f"{model} comes and goes with {name}: load or unload that")
        return model


def deadline_of(
    parameters: Mapping[str, object], asked: float | None, *, arrived: float, default: float, longest: float
) -> float:
    """When an answer is of no use any more, on the clock of `time.monotonic`.

    Args:
        parameters: Of the request. `timeout` is in microseconds; 0 is none.
        asked: Seconds that the transport's own deadline leaves, if it has one.
        arrived: When the request did, on that clock.
        default: Seconds, if neither is given.
        longest: Seconds, at most.

    Raises:
        InvalidRequest: `timeout` is no number of microseconds.
    """
    timeout = parameters.get("timeout") or None
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise InvalidRequest("the parameter timeout must be a whole number of microseconds")
    given = [seconds for seconds in (asked, timeout and timeout / 1e6) if seconds is not None]
    return arrived + min([longest, *(given or [default])])


def _suffixes(status: ModelStatus) -> tuple[str, ...]:
    """What follows a model's name in the names that it is asked for by."""
    return (ENCODED,) if status.kind == "head" else ("", ENCODED)


def _only_input(request: InferRequest, name: str, datatype: str) -> Tensor:
    (first, *others) = request.inputs or (None,)
    if first is None or others or first.name != name:
        names = ", ".join(repr(each.name[:40]) for each in request.inputs[:5]) or "none"
        raise InvalidRequest(f"{request.model} takes one input, {name!r}; the request has {names}")
    if first.datatype != datatype:
        raise InvalidRequest(f"the input {name!r} of {request.model} is {datatype}, not {first.datatype[:40]}")
    return first


def _files(request: InferRequest) -> list[bytes]:
    tensor = _only_input(request, FILES, "BYTES")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise InvalidRequest(f"the shape of {FILES!r} must be [N, 1], an image in each row; it is {list(tensor.shape)}")
    return list(tensor.data)


def _pixels(request: InferRequest) -> NDArray[np.uint8]:
    data: NDArray[np.uint8] = np.asarray(_only_input(request, PIXELS, "UINT8").data)
    return data


def _wanted(request: InferRequest, spec: Contract, encoded: bool) -> Sequence[WantedOutput]:
    known = {PROBABILITIES: (len(spec.labels),)} if encoded else network_of(spec).output_shapes
    if not request.outputs:
        return [WantedOutput(next(iter(known)))]
    names = [output.name for output in request.outputs]
    if len(set(names)) < len(names):
        raise InvalidRequest("an output is asked for twice")
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(f"{request.model} has no output {output.name[:80]!r}; there are {', '.join(known)}")
        if output.classification < 0 or (output.classification and output.name not in _CLASSIFIED):
            raise InvalidRequest(f"the output {output.name!r} cannot be given as {output.classification} classes")
    return request.outputs


def _tensor(output: WantedOutput, values: NDArray[np.float32], spec: Contract) -> Tensor:
    if not output.classification:
        return Tensor(output.name, "FP32", values.shape, values)
    best = np.argsort(-values, axis=1, kind="stable")[:, : output.classification]
    if best.size > MAX_STRINGS:
        raise TooLarge(f"{best.shape[1]} classes of {len(best)} images; at most {MAX_STRINGS} in all are named at once")
    found = [
        f"{values[row, index]:f}:{index}:{spec.labels[index]}".encode()
        for row in range(len(best))
        for index in best[row]
    ]
    return Tensor(output.name, "BYTES", best.shape, found)
