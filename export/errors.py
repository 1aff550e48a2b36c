"""What can go wrong while making an artefact, each with its remedy in the message.

ExportError
 ├── UnknownName         no such architecture or data set
 ├── DataError           a data set that cannot be had, or holds too little
 ├── RunError            a run folder that cannot be read or written
 ├── StrategyError       a network that a way to fine-tune does not suit
 ├── GraphError          PyTorch's exporter or ONNX's checker refused the network
 ├── ParityError         the exported graph does not compute what PyTorch computes
 ├── QuantizationError   int8 costs more accuracy than it may, or lacks images to learn its ranges from
 ├── TensorRTError       TensorRT is missing, refuses the network, or is not the one that a plan was built with
 ├── RepositoryError     the repository cannot take the artefact
 └── DriftError          a staged artefact does not give its own golden outputs

The command line prints the message on one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExportError(Exception):
    """Root of the tree; the message is written for whoever typed the command."""


class UnknownName(ExportError):
    """A name that nothing here answers to."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownName:
        """The error for `name`, with the known names that look most like it.

        Args:
            kind: What was asked for, e.g. "architecture".
            name: What was typed.
            known: All names of that kind.
        """
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        return cls(f"no {kind} is called {name!r}: {hint}")


class DataError(ExportError):
    """A data set cannot be fetched or read, or holds too little to learn from."""


class RunError(ExportError):
    """A run folder without a finished run in it, or with another one."""


class StrategyError(ExportError):
    """This way to fine-tune does not suit the network."""


class GraphError(ExportError):
    """The network could not be turned into a valid ONNX graph."""


class ParityError(ExportError):
    """The exported graph and PyTorch disagree beyond the tolerance."""


class QuantizationError(ExportError):
    """The network does not stand eight bits, by more than it may lose; or there is nothing to tell by."""


class TensorRTError(ExportError):
    """No plan: TensorRT or a GPU is missing, is another one, or refuses the network."""


class RepositoryError(ExportError):
    """The model repository cannot take the artefact; it serves what it served."""


class DriftError(RepositoryError):
    """The staged artefact does not give the outputs that its own spec promises."""
