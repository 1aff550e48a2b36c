"""A network as an ONNX file under the artefact contract: pixels in, everything that the service needs out.

The same network gives the same bytes: names come from the modules' places, and whatever the exporter writes down about
this machine (file names, stack traces) is taken out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export import cam
from export.architectures.base import Network
from export.errors import GraphError
from service.spec import DISTANCE, OUTPUTS, ImageSpec

OPSET = 20  # ONNX Runtime since 1.17 and TensorRT since 10 read it
BATCH = "N"
EXAMPLES = 2  # images in the batch that is traced; with one, PyTorch would take the batch for a constant


class Served(nn.Module):
    """A network as it is served.

    Args:
        network: In evaluation mode.
        image: Its image contract.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, image: ImageSpec) -> None:
        super().__init__()
        self.network = network
        # One value per byte of a row: where channels come last, broadcasting three of them costs an int8 ResNet-18 ten
        # milliseconds in a batch of eight.
        mean, std = (torch.tensor(each).expand(image.channels).repeat(image.width) for each in (image.mean, image.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)  # (x/255 - mean) / std in two steps, not three
        self.register_buffer("shift", -mean / std, persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it gives."""
        return OUTPUTS if self.network.distance is None else (*OUTPUTS, DISTANCE)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run it.

        Args:
            image: uint8 `[N, H, W, C]`.

        Returns:
            Float logits `[N, K]`, features `[N, D]`, cam `[N, min(5, K), h, w]`, activations `[N, A, h, w]`, and for a
            network that has it distance `[N, 1]`.
        """
        rows = image.float().flatten(2) * self.scale + self.shift  # the cast comes first: TensorRT wants it there
        planes = torch.unflatten(rows, 2, image.shape[2:]).permute(0, 3, 1, 2)
        head = self.network.head
        values = cam.trace(head, self.network.trunk(planes))
        logits = values[-1]
        classes = logits.topk(min(5, logits.shape[1]), dim=1).indices
        features = values[self.network.features_at].flatten(1)
        found = (logits, features, cam.maps_of_trace(head, values, classes), values[0])
        return found if self.network.distance is None else (*found, self.network.distance(features))


def to_onnx(network: Network, image: ImageSpec, path: Path) -> None:
    """Write the network to an ONNX file.

    Args:
        network: Put into evaluation mode by this.
        image: Its image contract.
        path: Of the file.

    Raises:
        GraphError: The exporter or the checker refuses it; the message says which operator or layer.
    """
    served = Served(network, image).eval()
    example = torch.zeros(EXAMPLES, image.height, image.width, image.channels, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(served.outputs),
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
        except Exception as error:  # the exporter wraps whatever happens, layer by layer, in errors of its own
            raise GraphError(f"the network cannot be exported: {_reason(error)}") from error
    if program is None:
        raise GraphError("PyTorch's exporter gave no program")
    model = program.model_proto
    _strip(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the exported graph is not valid: {error}") from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    """Take out what depends on the machine or says nothing to a runtime."""
    model.producer_version = torch.__version__.split("+")[0]
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for each in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.doc_string = ""
        del each.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of errors, and where, without the advice on debugging PyTorch."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines() or [type(error).__name__]
    return " ".join([lines[0], *(line for line in lines[1:] if line.startswith("Caused by"))])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; what it has to say about a failure is in the exception too."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(previous)
