"""A worker and the backend remove what killed ones have left, when they begin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.app import create_app
from ml_backend.rounds.leftovers import remove_leftovers
from ml_backend.settings import Settings
from tests.test_cli import nextslice


@pytest.fixture
def left(tmp_path: Path) -> list[Path]:
    """Half-written files of an hour ago, of a store and a cache, whose writer is gone."""
    rounds = tmp_path / "store" / "host_1" / "7.1" / "round-0001"
    parts = [
        rounds / ".weights.safetensors.0123abcd.part",
        rounds / "masks" / ".5.png.0123abcd.part",
        tmp_path / "cache" / "files" / "slices" / ".5.png.89abcdef.part",
    ]
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")
        os.utime(part, (time.time() - 3600,) * 2)
        part.with_name("whole.json").write_bytes(b"{}")
    return parts


def variables(tmp_path: Path) -> dict[str, str]:
    return {
        "NEXTSLICE_STORE": str(tmp_path / "store"),
        "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
    }


def test_a_worker_removes_them(left: list[Path], tmp_path: Path, redis_url: str) -> None:
    done = nextslice(
        "worker", "control", "--burst", **variables(tmp_path), REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="leftovers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [part for part in left if part.exists()] == []
    assert all(part.with_name("whole.json").exists() for part in left)
    assert "removed what 3 killed writers have left" in done.stderr


def test_the_backend_removes_them(
    left: list[Path], tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    create_app(make_settings(**variables(tmp_path)))
    until = time.monotonic() + 240
    while any(part.exists() for part in left) and time.monotonic() < until:
        time.sleep(0.01)
    assert [part for part in left if part.exists()] == []


def test_a_store_that_is_no_folder_stops_nothing(make_settings: Callable[..., Settings]) -> None:
    remove_leftovers(make_settings(NEXTSLICE_STORE="memory://leftovers"))
