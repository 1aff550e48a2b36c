"""What fuzzing has found, and a few thousand mutations that are the same each time: for machines without a fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.preprocess import Preprocessor
from service.spec import ImageSpec
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import images
from tests.fuzz.targets import TARGETS, Target, TooSlow

MUTATIONS = {"decoder": 1500, "bodies": 1500, "tensors": 1500, "config": 200, "archive": 1000, "http2": 3000}
FOUND = sorted(file for file in Path(__file__).with_name("findings").glob("*/*") if file.is_file())


@pytest.mark.parametrize("name", images())
def test_images_to_start_from_are_sound(name: str) -> None:
    assert Preprocessor(ImageSpec(height=8, width=8, resize_to=8))(images()[name]).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # in a config; protobuf lets it pass
@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds().values())
    for seed in range(MUTATIONS[name]):
        target(mutated(seeds[seed % len(seeds)], seed, target.dictionary))


@pytest.mark.parametrize("file", FOUND, ids=[f"{file.parent.name}-{file.name}" for file in FOUND])
def test_what_was_found_stays_mended(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


def test_a_finding_is_one() -> None:
    def fails(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        Target(fails, dict, ())(b"x")
    with pytest.raises(TooSlow, match=r"1 bytes took"):
        Target(lambda data: None, dict, (), seconds=-1)(b"x")
