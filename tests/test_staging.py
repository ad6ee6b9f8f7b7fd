"""One process writes an output at a time, and what a killed one has left is removed."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_backend.volumes.staging import clear, staging
from ml_backend.volumes.volume import VolumeError


def test_a_folder_is_there_while_it_is_needed(tmp_path: Path) -> None:
    target = tmp_path / "new" / "labels.tif"

    with staging(target) as folder:
        (folder / "labels.tif").write_text("half")
        assert folder.parent == target.parent

    assert list(target.parent.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    with staging(tmp_path / "a.tif") as folder:
        pass
    (folder / "inside").mkdir(parents=True)

    with staging(tmp_path / "a.tif") as again:
        assert again == folder
        assert list(again.iterdir()) == []
    folder.mkdir()
    clear(tmp_path / "a.tif")

    assert list(tmp_path.iterdir()) == []


def test_clearing_makes_nothing(tmp_path: Path) -> None:
    clear(tmp_path / "new" / "a.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", [clear, lambda target: staging(target).__enter__()])
def test_two_processes_do_not_share_one(tmp_path: Path, second: Callable[[Path], Any]) -> None:
    with staging(tmp_path / "a.tif") as folder:
        (folder / "a.tif").write_text("half")
        with pytest.raises(VolumeError, match=r"another process is writing .*a\.tif: wait"):
            second(tmp_path / "a.tif")
        with staging(tmp_path / "b.tif"):
            assert (folder / "a.tif").read_text() == "half"


def test_a_lock_that_was_removed_since_it_was_opened_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has ended just now, and a third one may have begun."""

    def late(file: int, how: int) -> None:
        Path(f"/proc/self/fd/{file}").readlink().unlink(missing_ok=True)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(VolumeError, match="another process"):
        staging(tmp_path / "a.tif").__enter__()
    assert list(tmp_path.iterdir()) == []
