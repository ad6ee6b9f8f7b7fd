"""Real parts for tests: a Redis server, and settings that point into a test's own folders."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from ml_backend.embedded.processes import ProcessGroup
from ml_backend.embedded.redis_server import start_redis
from ml_backend.embedded.stack import settings_from
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of the test session; `redis_url` is the same, empty."""
    folder = tmp_path_factory.mktemp("redis")
    with ProcessGroup(folder / "logs") as group:
        yield start_redis(group, folder)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """Emptied: a project of another test may have had the port of this one, and with it its key."""
    Redis.from_url(redis_server).flushall()
    return redis_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, for modules that import `tests.chromium`, which skips without one."""
    from tests.chromium import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell that starts something in the background has it ignore Ctrl-C; then we would too, and
    what we start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings from environment variables, with store and cache in the test's folder."""

    def make(**variables: Any) -> Settings:
        env = {
            "NEXTSLICE_STORE": str(tmp_path / "store"),
            "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
            "LABEL_STUDIO_API_KEY": "token",
            "NEXTSLICE_EARLY_ROUNDS": "off",
            "NEXTSLICE_OPEN_MINUTES": "0",
        }
        return settings_from({**env, **{name: str(value) for name, value in variables.items()}})

    return make


@pytest.fixture(autouse=True)
def _settled_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody opens tasks of a studio in memory beside a switch: it need not wait a third of a
    second before it looks again, in hundreds of tests."""
    if request.node.get_closest_marker("integration") is None:
        monkeypatch.setattr("ml_backend.studio.task_order._SETTLED_AFTER_S", 0.0)


@pytest.fixture(autouse=True)
def _quiet_libraries() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
