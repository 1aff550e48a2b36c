"""Models and files that are wrong in one way each."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import repository as model_repository
from export.replay import MODEL_FILE, sha256
from service.spec import CONFIG_NAME, SPEC_KEY, ModelSpec
from tests.models import publish_tiny, tiny_model, tiny_spec


def publish_poisonable(repository: Path, name: str) -> ModelSpec:
    """Publish a tiny model that fails on every batch with a white image in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        tiny_model(path)
        _fail_when(path, "Equal")
        spec = tiny_spec(name).model_copy(update={"files": {MODEL_FILE: sha256(path)}})
        return model_repository.publish(repository, spec, Path(folder))


def _fail_when(path: Path, comparison: str) -> None:
    """Make a model look up what is not there if an image's darkest value compares so with 255."""
    model = onnx.load(path)
    graph = model.graph
    multiply = next(node for node in graph.node if "logits" in node.output)
    multiply.output[0] = "healthy_logits"
    where = list(graph.node).index(multiply) + 1
    nodes = [
        helper.make_node("ReduceMin", ["float", "pixels"], ["darkest"], keepdims=0),
        helper.make_node(comparison, ["darkest", "white"], ["poisoned"]),
        helper.make_node("Cast", ["poisoned"], ["index"], to=TensorProto.INT64),  # 1 where there is one entry only
        helper.make_node("Gather", ["nothing", "index"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["column"]),
        helper.make_node("Add", ["healthy_logits", "column"], ["logits"]),
    ]
    for offset, node in enumerate(nodes):
        graph.node.insert(where + offset, node)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "pixels"),
            numpy_helper.from_array(np.float32(255), "white"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
            numpy_helper.from_array(np.array([1], np.int64), "last"),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


# A second version, made beside the repository that is being served and then moved in as a publisher would.


def stage(live: Path, beside: Path, name: str, seed: int = 1) -> Path:
    """Version 1 of a tiny model in the live repository, and both its versions elsewhere: to be broken and installed.

    Args:
        live: The repository that is served.
        beside: A repository that is not.
        name: Of the model.
        seed: Of the second version; the first has 0.

    Returns:
        The directory of the model in the other repository.
    """
    publish_tiny(beside, name)
    shutil.copytree(beside / name, live / name)
    publish_tiny(beside, name, seed=seed)
    return beside / name


def overwrite(path: Path, text: str) -> None:
    """Change a file in one step: nobody sees half of it."""
    aside = path.with_name(".aside")
    aside.write_text(text)
    aside.replace(path)


def install(staged: Path, live: Path, version: str) -> None:
    """Move the staged config and version into the model's live directory, each by one rename."""
    shutil.copyfile(staged / CONFIG_NAME, live / ".config-new")
    (live / ".config-new").replace(live / CONFIG_NAME)
    if (staged / version).exists():
        (staged / version).rename(live / version)


def edit_spec(folder: Path, version: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a spec in a config.pbtxt, unchecked."""
    config = text_format.Parse((folder / CONFIG_NAME).read_text(), ModelConfig())
    parameter = config.parameters[SPEC_KEY + version]
    spec = json.loads(parameter.string_value)
    change(spec)
    parameter.string_value = json.dumps(spec)
    (folder / CONFIG_NAME).write_text(text_format.MessageToString(config))


def _model(folder: Path) -> Path:
    return folder / "2" / MODEL_FILE


def truncated(folder: Path) -> None:
    _model(folder).write_bytes(_model(folder).read_bytes()[:-100])


def altered(folder: Path) -> None:
    data = bytearray(_model(folder).read_bytes())
    data[len(data) // 2] ^= 1
    _model(folder).write_bytes(data)


def missing(folder: Path) -> None:
    _model(folder).unlink()


def no_graph(folder: Path) -> None:
    """Not a model at all, with the hash that the spec promises."""
    _model(folder).write_bytes(b"garbage")
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def other_size(folder: Path) -> None:
    """A sound model that takes another input than the spec says."""
    tiny_model(_model(folder), size=16)
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def other_labels(folder: Path) -> None:
    """A sound model with another number of labels than the spec says."""
    tiny_model(_model(folder), labels=4)
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def other_weights(folder: Path) -> None:
    """A sound model that is not the one whose golden outputs the spec carries."""
    tiny_model(_model(folder), seed=5)
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def not_a_number(folder: Path) -> None:
    model = onnx.load(_model(folder))
    weights = next(each for each in model.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weights), np.nan), "weights"))
    onnx.save(model, _model(folder))
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def drifted(folder: Path) -> None:
    """Golden logits that the model does not give."""
    edit_spec(
        folder, "2", lambda spec: spec["golden"][0]["logits"].__setitem__(0, spec["golden"][0]["logits"][0] + 0.1)
    )


def golden_broken(folder: Path) -> None:
    edit_spec(folder, "2", lambda spec: spec["golden"][0].update(data=spec["golden"][0]["data"][:40]))


def fails_on_golden(folder: Path) -> None:
    """A graph that loads and cannot run."""
    _fail_when(_model(folder), "Less")
    edit_spec(folder, "2", lambda spec: spec["files"].update({MODEL_FILE: sha256(_model(folder))}))


def no_spec(folder: Path) -> None:
    config = text_format.Parse((folder / CONFIG_NAME).read_text(), ModelConfig())
    del config.parameters[SPEC_KEY + "2"]
    (folder / CONFIG_NAME).write_text(text_format.MessageToString(config))


def wild_path(folder: Path) -> None:
    edit_spec(folder, "2", lambda spec: spec["files"].update({"a\0b": "0" * 64}))


def from_the_future(folder: Path) -> None:
    """A spec in a format that is not known yet."""
    edit_spec(folder, "2", lambda spec: spec.update(format=2))
