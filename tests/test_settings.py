"""Settings: read from the environment, checked with the variable's name in the message."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ml_backend.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_the_shared_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "https://ls.example:8443/")
    monkeypatch.setenv("REDIS_URL", "redis://r:1/2")
    settings = load_settings()
    assert settings.label_studio_url == "https://ls.example:8443"
    assert settings.label_studio_host == "ls.example_8443"
    assert settings.redis_url == "redis://r:1/2"


def test_our_own_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://other:1/0")
    monkeypatch.setenv("NEXTSLICE_REDIS_URL", "redis://ours:1/0")
    assert load_settings().redis_url == "redis://ours:1/0"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("NEXTSLICE_K", "0", r"NEXTSLICE_K: found '0'.*greater than or equal to 1"),
        ("NEXTSLICE_CROP", "100", r"NEXTSLICE_CROP: found '100'.*multiple of 32"),
        ("NEXTSLICE_MAX_TILE", "1000", r"NEXTSLICE_MAX_TILE: found '1000'.*multiple of 32"),
        ("NEXTSLICE_K", "many", r"NEXTSLICE_K: found 'many'.*integer"),
        ("NEXTSLICE_LOG_LEVEL", "chatty", r"NEXTSLICE_LOG_LEVEL: found 'CHATTY'.*'DEBUG', 'INFO'"),
        ("BASIC_AUTH_USER", "ann", r"BASIC_AUTH_USER and BASIC_AUTH_PASS: found one of them"),
        ("LABEL_STUDIO_URL", "labelstudio:8080", r"\. LABEL_STUDIO_URL: found 'labelstudio:8080'"),
        ("NEXTSLICE_STRATEGY", "corset", r"NEXTSLICE_STRATEGY: found 'corset'.*there are badge, "),
        ("NEXTSLICE_STRATEGY", "worst_iou", r"'worst_iou'.*looks at true masks"),
        ("NEXTSLICE_COLD_START", "typiclust", r"needs embedding.*expected random, strided"),
        ("NEXTSLICE_UNLABELLED", "maybe", r"NEXTSLICE_UNLABELLED: found 'maybe'"),
    ],
)
def test_a_bad_value_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=complaint):
        load_settings()


@pytest.mark.parametrize(("k", "reserve"), [(2, 32), (8, 32), (16, 64)])
def test_the_reserve_follows_k(
    make_settings: Callable[..., Settings], k: int, reserve: int
) -> None:
    assert make_settings(NEXTSLICE_K=k).reserve_size == reserve
    assert make_settings(NEXTSLICE_K=k, NEXTSLICE_RESERVE=5).reserve_size == 5


def test_secrets_do_not_show(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(
        LABEL_STUDIO_API_KEY="hidden", BASIC_AUTH_USER="ann", BASIC_AUTH_PASS="hidden"
    )
    assert "hidden" not in repr(settings)


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEXTSLICE_RESERVE", "NEXTSLICE_TRAIN_STEPS", "BASIC_AUTH_USER", "NEXTSLICE_K"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert (settings.reserve, settings.train_steps, settings.k) == (None, None, 8)
    assert settings.basic_auth is None


def test_basic_auth_is_user_and_password(make_settings: Callable[..., Settings]) -> None:
    assert make_settings().basic_auth is None
    assert make_settings(BASIC_AUTH_USER="u", BASIC_AUTH_PASS="p").basic_auth == ("u", "p")
