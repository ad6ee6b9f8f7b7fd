"""Files that can be had again: kept while there is room, and never in anybody's way."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from ml_backend.disk_cache import DiskCache

KIB = 1024 / 2**30


def total(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def age(root: Path, name: str, seconds: float) -> None:
    folder = root / "files"
    then = (folder / name).stat().st_mtime - seconds
    os.utime(folder / name, (then, then))


def test_what_is_kept_is_read_by_any_cache_of_the_folder(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1)
    assert cache.read("a/b.png") is None
    cache.keep("a/b.png", b"first")
    cache.keep("a/b.png", b"second")
    assert DiskCache(tmp_path, 1).read("a/b.png") == b"second"
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["b.png"]


def test_what_is_dropped_or_empty_is_not_there(tmp_path: Path) -> None:
    """Empty: as a crash may leave it."""
    cache = DiskCache(tmp_path, 1)
    cache.keep("a", b"x")
    cache.drop("a")
    cache.drop("a")
    cache.keep("b", b"")
    assert (cache.read("a"), cache.read("b")) == (None, None)


def test_what_was_read_lately_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * KIB)
    for number in range(9):
        cache.keep(f"{number}", bytes(1024))
        age(tmp_path, f"{number}", 100 - number)
    cache.read("0")
    cache.keep("9", bytes(1024))
    cache.keep("10", bytes(1024))
    assert cache.read("0") is not None
    assert cache.read("1") is None
    assert cache.read("2") is None
    assert cache.read("10") is not None
    assert total(tmp_path) <= 9 * 1024


def test_caches_that_share_a_folder_share_its_limit(tmp_path: Path) -> None:
    """As the backend and the workers of one machine do."""
    caches = [DiskCache(tmp_path, 100 * KIB) for _ in range(3)]
    for number in range(300):
        caches[number % 3].keep(f"{number % 3}/{number}", bytes(1024))
    assert 80 * 1024 <= total(tmp_path) <= 120 * 1024


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """As pretrained weights, or a folder that somebody works in."""
    foreign = tmp_path / "mine" / "scan.raw"
    foreign.parent.mkdir()
    foreign.write_bytes(bytes(4096))
    os.utime(foreign, (0, 0))
    cache = DiskCache(tmp_path, 2 * KIB)
    for number in range(9):
        cache.keep(f"{number}", bytes(1024))
    assert foreign.exists()
    assert cache.read("0") is None
    assert cache.read("8") is not None


def test_a_file_that_cannot_be_deleted_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, 2 * KIB)
    monkeypatch.setattr(Path, "unlink", refuse)
    for number in range(9):
        cache.keep(f"{number}", bytes(1024))
    assert cache.read("8") is not None


def refuse(*_: object, **__: object) -> None:
    raise PermissionError("another user's")


def test_it_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1)
    cache.keep("a", b"x")
    shutil.rmtree(tmp_path / "cache")
    assert cache.read("a") is None
    cache.keep("a", b"y")
    assert cache.read("a") == b"y"


def test_a_disk_that_takes_nothing_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file", 1)
    with caplog.at_level(logging.WARNING):
        cache.keep("a", b"x")
    assert "cannot keep" in caplog.text
    assert cache.read("a") is None
