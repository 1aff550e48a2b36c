"""Settings: the environment, flags over it, and one clear line for each mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.settings import InvalidSettings, Settings, load


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No `FOVEA_*` and no `.env` but the test's own; `model_repository` is there."""
    for name in [name for name in os.environ if name.upper().startswith("FOVEA_")]:
        monkeypatch.delenv(name)
    (tmp_path / "model_repository").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_are_enough() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.model_repository) == ("127.0.0.1", 8080, Path("model_repository"))
    assert settings.threads >= 1


def test_flags_win_over_the_environment_which_wins_over_the_file(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".env").write_text("FOVEA_PORT=1\nFOVEA_MAX_IMAGES=3\nFOVEA_HOST=file\nSOMEBODY_ELSE=7\n")
    monkeypatch.setenv("FOVEA_PORT", "2")
    monkeypatch.setenv("FOVEA_HOST", "environment")
    settings = load(port=3, host=None)  # None: a flag that was not given
    assert (settings.port, settings.host, settings.max_images) == (3, "environment", 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("GRPC_PORT", "on"),
        ("GRPC_PORT", "65536"),
        ("MAX_IMAGES", "0"),
        ("MAX_QUEUE", "-5"),
        ("THREADS", "0"),
        ("POLL_SECONDS", "0"),
        ("DRAIN_DELAY", "-1"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("ACCESS_LOG", "perhaps"),
        ("DEFAULT_TIMEOUT_MS", "soon"),
        ("MODEL_REPOSITORY", "/no/such/place"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FOVEA_{name}", value)
    with pytest.raises(InvalidSettings) as error:
        load()
    assert str(error.value).startswith(f"FOVEA_{name}: ")
    assert "\n" not in str(error.value)
    assert "Value error" not in str(error.value)  # pydantic's own words say nothing to an operator


def test_a_wrong_flag_is_named_as_a_flag_and_all_mistakes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_THREADS", "none")
    with pytest.raises(InvalidSettings) as error:
        load(port=-1, model_repository=Path("nowhere"))
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in sorted(lines)] == ["--model-repository", "--port", "FOVEA_THREADS"]


@pytest.mark.parametrize(("value", "port"), [("off", None), ("0", 0), ("9000", 9000)])
def test_grpc_has_a_port_or_is_off(value: str, port: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_GRPC_PORT", value)
    assert load().grpc_port == port
    assert load(grpc_port="off").grpc_port is None


@pytest.mark.parametrize("given", [["certificate"], ["key"], ["certificate", "key"]])
def test_a_certificate_and_its_key_belong_together(
    bare: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in given:
        (bare / name).write_text("nothing of use")
        monkeypatch.setenv(f"FOVEA_TLS_{name.upper()}", name)
    with pytest.raises(InvalidSettings, match="tls_certificate and tls_key"):
        load()


def test_a_missing_default_repository_is_found_out_at_start(bare: Path) -> None:
    (bare / "model_repository").rmdir()
    with pytest.raises(InvalidSettings, match="model_repository is not a directory"):
        load()


def test_settings_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_MAX_TIMEOUT_MS", "10")
    with pytest.raises(InvalidSettings, match="max_timeout_ms must not be less than default_timeout_ms"):
        load()


def test_a_queue_that_cannot_hold_one_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests would be told to retry, for ever."""
    monkeypatch.setenv("FOVEA_MAX_QUEUE", "63")
    with pytest.raises(InvalidSettings, match="max_queue"):
        load()


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
