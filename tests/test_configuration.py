"""Settings from files: which place wins, what is refused, and what `nextslice config` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.settings import (
    Settings,
    SettingsError,
    asked_log_level,
    default_home,
    load_settings,
    misspelt_settings,
    read_settings,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and settings that nobody has read."""
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()
    yield tmp_path
    load_settings.cache_clear()


@pytest.mark.parametrize(
    "text", ["k = 4", "K = 4", 'k = "4"', "NEXTSLICE_K = 4", "nextslice_k = 4 # comment"]
)
def test_toml_names_a_setting_with_or_without_the_prefix(folder: Path, text: str) -> None:
    (folder / "nextslice.toml").write_text(text)
    assert read_settings().k == 4


def test_the_environment_wins_over_dotenv_and_dotenv_over_toml(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "nextslice.toml").write_text('k = 4\nstrategy = "badge"\nseed = 7\nspacing = false')
    (folder / ".env").write_text("NEXTSLICE_K=5\nexport NEXTSLICE_STRATEGY='margin'\n")
    monkeypatch.setenv("NEXTSLICE_K", "6")
    settings = read_settings()
    assert (settings.k, settings.strategy, settings.seed) == (6, "margin", 7)
    assert settings.spacing is False


def test_either_name_in_the_environment_wins_over_both_in_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "nextslice.toml").write_text('redis_url = "redis://file:1/0"')
    assert read_settings().redis_address == "redis://file:1/0"
    monkeypatch.setenv("REDIS_URL", "redis://environment:1/0")
    assert read_settings().redis_url == "redis://environment:1/0"


def test_an_empty_variable_leaves_the_word_to_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("NEXTSLICE_K=5")
    monkeypatch.setenv("NEXTSLICE_K", "")
    assert read_settings().k == 5


def test_the_named_file_is_read_instead_of_those_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "nextslice.toml").write_text("k = 4\nseed = 7")
    named = folder / "lab" / "settings.env"
    named.parent.mkdir()
    named.write_text("NEXTSLICE_K=3\nPUBLIC_URL=https://nextslice.example\n")
    monkeypatch.setenv("NEXTSLICE_CONFIG", str(named))
    settings = read_settings()
    assert (settings.k, settings.seed) == (3, 0)
    assert settings.public_url == "https://nextslice.example"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("nextslice.toml", "k = 0", r"NEXTSLICE_K in nextslice\.toml: found 0: .*equal to 1"),
        (".env", "REDIS_URL=localhost", r"REDIS_URL in \.env: found 'localhost': .*redis://"),
        ("nextslice.toml", "k = ", r"nextslice\.toml is no TOML: Invalid value"),
        ("nextslice.toml", "[loop]\nk = 1", r"nextslice\.toml: loop: found dict, expected a text"),
        ("nextslice.toml", "volumes = ['a']", r"volumes: found list, expected a text"),
        (".env", b"\xff", r"\.env cannot be read as settings"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file(
    folder: Path, name: str, text: str | bytes, complaint: str
) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=complaint):
        read_settings()


def test_a_named_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSLICE_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"NEXTSLICE_CONFIG is 'nowhere.toml': found no file"):
        read_settings()


def test_a_misspelt_variable_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NEXTSLICE_STRATEGEY", "badge")
    load_settings()
    expected = "NEXTSLICE_STRATEGEY is no setting: is NEXTSLICE_STRATEGY meant?"
    assert expected in caplog.messages


def test_what_is_near_to_nothing_is_named_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("NEXTSLICE_QQQ=1\nOTHER_PROGRAM=1\n")
    monkeypatch.setenv("NEXTSLICE_HOME", str(folder))
    assert misspelt_settings() == ["NEXTSLICE_QQQ in .env is no setting."]


def test_a_misspelt_name_in_our_own_file_is_an_error(folder: Path) -> None:
    (folder / "nextslice.toml").write_text("nieghbours = 1")
    expected = r"in nextslice\.toml is no setting: is NEXTSLICE_NEIGHBOURS meant\?"
    with pytest.raises(SettingsError, match=expected):
        load_settings()


def test_the_log_is_asked_for_in_a_file_too(folder: Path) -> None:
    (folder / "nextslice.toml").write_text('log_level = "debug"')
    assert asked_log_level() == "DEBUG"
    (folder / "nextslice.toml").write_text("log_level")
    assert asked_log_level() is None


@pytest.mark.parametrize(
    ("name", "text"), [(".env", "NEXTSLICE_HOME={}"), ("nextslice.toml", "home = '{}'")]
)
def test_the_home_is_asked_for_in_a_file_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.delenv("NEXTSLICE_HOME", raising=False)
    (folder / name).write_text(text.format(folder / "kept"))
    assert default_home() == folder / "kept"
    monkeypatch.setenv("NEXTSLICE_HOME", str(folder / "other"))
    assert default_home() == folder / "other"


def test_config_prints_every_setting_and_where_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "nextslice.toml").write_text('redis_url = "redis://:hidden@r:1/0"\nspacing = false')
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "hidden")
    monkeypatch.setenv("NEXTSLICE_KK", "1")
    cli.load_commands()
    printed = CliRunner().invoke(cli.app, ["config"])
    rows = {line.split()[0]: line.split()[1:] for line in printed.stdout.splitlines()}
    assert len(rows) == len(Settings.model_fields)
    assert rows["NEXTSLICE_REDIS_URL"] == ["redis://:***@r:1/0", "nextslice.toml"]
    assert rows["LABEL_STUDIO_API_KEY"] == ["***", "the", "environment"]
    assert rows["NEXTSLICE_SPACING"] == ["false", "nextslice.toml"]
    assert rows["NEXTSLICE_K"] == ["8", "default"]
    assert "NEXTSLICE_KK is no setting" in printed.stderr
    answer = CliRunner().invoke(cli.app, ["config", "--json"])
    found = json.loads(answer.stdout)
    assert found["misspelt"] == ["NEXTSLICE_KK is no setting: is NEXTSLICE_K meant?"]
    assert {"variable": "NEXTSLICE_K", "value": 8, "from": "default"} in found["settings"]
    assert "hidden" not in printed.stdout + answer.stdout
