"""The artefact contract: specs travel through config.pbtxt and back, and a spec that contradicts itself is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.spec import (
    GOLDEN_BYTES,
    Golden,
    ImageSpec,
    InvalidSpec,
    ModelSpec,
    read_config,
    spec_parameters,
    specs_from_config,
)
from tests.models import publish_tiny, tiny_spec


def config_of(*specs: ModelSpec, name: str = "tiny") -> ModelConfig:
    config = ModelConfig(name=name, backend="onnxruntime", max_batch_size=8)
    for key, text in spec_parameters({spec.version: spec for spec in specs}).items():
        config.parameters[key].string_value = text
    return config


def written(folder: Path, config: ModelConfig | str, name: str = "tiny") -> Path:
    path = folder / name / "config.pbtxt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config if isinstance(config, str) else text_format.MessageToString(config))
    return path


def changed(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """A spec with some fields replaced, validated again."""
    return ModelSpec.model_validate_json(json.dumps(json.loads(spec.model_dump_json()) | changes))


# Round trips.


def test_specs_come_back_from_the_config_as_they_went_in(tmp_path: Path) -> None:
    one = tiny_spec()
    two = changed(one, version="2", labels=["nö", 'qu"ote', "new\nline"], paper="https://example.org/a?b=c&d")
    model = read_config(written(tmp_path, config_of(one, two)))
    assert model.specs == {"1": one, "2": two}
    assert (model.name, model.max_batch_size, model.keep_versions) == ("tiny", 8, 1)


PLAIN = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=20)


@given(
    labels=st.lists(TEXT, min_size=2, max_size=6),
    golden=st.lists(st.tuples(TEXT, st.binary(max_size=50)), min_size=1, max_size=3),
    calibration=st.fixed_dictionaries({"temperature": st.floats(1e-9, 1e9), "measured_coverage": st.none() | PLAIN}),
    mean=st.lists(PLAIN, min_size=3, max_size=3),
    files=st.dictionaries(TEXT, TEXT, min_size=1, max_size=3),
    words=st.tuples(TEXT, TEXT),
    logit=PLAIN,
)
def test_any_spec_comes_back_from_the_config_to_the_bit(
    labels: list[str],
    golden: list[tuple[str, bytes]],
    calibration: dict[str, Any],
    mean: list[float],
    files: dict[str, str],
    words: tuple[str, str],
    logit: float,
) -> None:
    given_ = tiny_spec().model_dump() | {
        "labels": labels,
        "golden": [{"name": name, "data": data, "logits": [logit] * len(labels)} for name, data in golden],
        "calibration": calibration,
        "image": tiny_spec().image.model_dump() | {"mean": mean},
        "files": files,
        "architecture": words[0],
        "paper": words[1],
    }
    spec = ModelSpec.model_validate(given_)
    text = text_format.MessageToString(config_of(spec))
    assert specs_from_config(text_format.Parse(text.encode(), ModelConfig())) == {"1": spec}


def test_golden_bytes_and_logits_survive_to_the_bit(tmp_path: Path) -> None:
    spec = tiny_spec().model_copy(
        update={"golden": (Golden(name="all bytes", data=bytes(range(256)), logits=(0.1, -1e-30, 3.4e38)),)}
    )
    (golden,) = read_config(written(tmp_path, config_of(spec))).specs["1"].golden
    assert golden.data == bytes(range(256))
    assert golden.logits == (0.1, -1e-30, 3.4e38)


def test_what_the_exporter_publishes_is_what_the_gateway_reads(tmp_path: Path) -> None:
    first, second = publish_tiny(tmp_path), publish_tiny(tmp_path, seed=1)
    model = read_config(tmp_path / "tiny" / "config.pbtxt")
    assert model.specs == {"1": first, "2": second}
    assert model.keep_versions == 2


def test_parameters_of_others_are_let_alone(tmp_path: Path) -> None:
    config = config_of(tiny_spec())
    config.parameters["EXECUTION_ENV_PATH"].string_value = "/somewhere"
    assert list(read_config(written(tmp_path, config)).specs) == ["1"]
    assert specs_from_config(ModelConfig(name="foreign")) == {}


@pytest.mark.parametrize(("batch", "expected"), [(0, 1), (1, 1), (64, 64)])
def test_a_model_without_batching_takes_one_image(tmp_path: Path, batch: int, expected: int) -> None:
    config = config_of(tiny_spec())
    config.max_batch_size = batch
    assert read_config(written(tmp_path, config)).max_batch_size == expected


# Refusals: the message says where and what.


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "v1", "", " 1", "１", "٣"])
def test_versions_are_positive_whole_numbers(version: str) -> None:
    with pytest.raises(ValidationError, match="positive whole number"):
        changed(tiny_spec(), version=version)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["only"]}, "at least two"),
        ({"labels": ["a", "b", "c", "d"]}, "one logit per label"),
        ({"golden": []}, "at least 1"),
        ({"golden": [{"name": "big", "data": "AAAA" * (GOLDEN_BYTES // 3 + 1), "logits": [0, 0, 0]}]}, "100000 bytes"),
        ({"golden": [{"name": "x", "data": "not base64!", "logits": [0, 0, 0]}]}, "golden"),
        ({"files": {}}, "model file"),
        ({"calibration": {"temperature": 0}}, "greater than 0"),
        ({"calibration": {"coverage": 1}}, "less than 1"),
        ({"golden_tolerance": 0}, "greater than 0"),
        ({"precision": "fp64"}, "fp32"),
        ({"format": 2}, "Input should be 1"),
        ({"colour_of_the_moon": "grey"}, "not permitted"),  # from a newer exporter: refused, not half understood
    ],
)
def test_a_contradictory_spec_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(tiny_spec(), **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "shorter_side"}, "resize_to"),
        ({"resize": "stretch", "resize_to": 40}, "resize_to"),
        ({"resize": "shorter_side", "resize_to": 31}, "at least the larger side"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0.5), "channels": 1}, "std"),
        ({"background": (0, 0, 256)}, "8-bit"),
        ({"channels": 4}, "channels"),
        ({"height": 0}, "height"),
        ({"interpolation": "magic"}, "interpolation"),
    ],
)
def test_a_contradictory_image_contract_is_refused(fields: dict[str, Any], message: str) -> None:
    whole = {"height": 32, "width": 32, "resize": "stretch"} | fields
    with pytest.raises(ValidationError, match=message):
        ImageSpec.model_validate(whole)


def test_a_refused_spec_names_model_version_and_field(tmp_path: Path) -> None:
    config = config_of(tiny_spec())
    text = json.loads(config.parameters["fovea.1"].string_value)
    text["image"]["width"] = "wide"
    config.parameters["fovea.1"].string_value = json.dumps(text)
    with pytest.raises(InvalidSpec, match=r"tiny version 1: image\.width: .*integer"):
        specs_from_config(config)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"fovea"', "\x00"])
def test_a_spec_that_is_no_json_object_is_refused(text: str) -> None:
    config = ModelConfig(name="tiny")
    config.parameters["fovea.1"].string_value = text
    with pytest.raises(InvalidSpec, match="tiny version 1"):
        specs_from_config(config)


def test_a_spec_under_another_key_or_name_is_refused() -> None:
    config = config_of(tiny_spec())
    config.parameters["fovea.2"].string_value = config.parameters["fovea.1"].string_value
    with pytest.raises(InvalidSpec, match="version 2: the spec says tiny version 1"):
        specs_from_config(config)
    with pytest.raises(InvalidSpec, match="the spec says tiny"):
        specs_from_config(config_of(tiny_spec(), name="other"))


def test_a_config_must_lie_in_the_directory_of_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"'tiny'.*'elsewhere'"):
        read_config(written(tmp_path, config_of(tiny_spec()), name="elsewhere"))


@pytest.mark.parametrize("text", ["name: ", "nonsense {", 'name: "tiny" no_such_field: 1', "\x00\x01"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSpec, match="not a Triton model config"):
        read_config(written(tmp_path, text))


def test_a_config_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.write_bytes(b'name: "\xff\xfe"')
    with pytest.raises(InvalidSpec):
        read_config(path)


def test_a_missing_config_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "tiny" / "config.pbtxt")
