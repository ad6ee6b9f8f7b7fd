"""A working folder goes on with its own job, and with no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ml_backend.volumes.partial import PartialFolder, Place
from ml_backend.volumes.volume import VolumeError

JOB = {"volume": "/scans/a.tif", "shape": (3, 4, 5), "model": "abc"}


def test_a_job_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = PartialFolder(tmp_path / "out.partial", JOB)
    assert folder.place() is None
    with folder.held():
        assert folder.place() is None
        folder.commit(Place("segment", 7))

    assert PartialFolder(tmp_path / "out.partial", JOB).place() == Place("segment", 7)
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_says_how_far_it_has_come_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PartialFolder(tmp_path / "p", JOB)
    gone: list[str] = []
    unlink = os.unlink
    with folder.held():
        folder.commit(Place("done", 0))
        for name in ("a.raw", "z.raw"):
            (folder.path / name).touch()
        (folder.path / "notes").mkdir()
        monkeypatch.setattr(
            os, "unlink", lambda p, **k: gone.append(Path(p).name) or unlink(p, **k)
        )
        folder.remove()

    assert gone.index("progress.json") > max(gone.index("a.raw"), gone.index("z.raw"))
    assert gone.index("job.json") > gone.index("progress.json")
    assert not folder.path.exists()


def test_another_job_is_refused_by_what_differs(tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "p", JOB).held():
        pass

    with pytest.raises(VolumeError, match=r"model was 'abc', is 'def'.*Delete that folder"):
        PartialFolder(tmp_path / "p", {**JOB, "model": "def"}).place()


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")

    with pytest.raises(VolumeError, match=r"is in the way.*photo\.jpg"):
        PartialFolder(tmp_path, JOB).place()
    with pytest.raises(VolumeError, match="is in the way"):
        PartialFolder(tmp_path / "photo.jpg", JOB).place()


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    with (
        PartialFolder(tmp_path / "p", JOB).held(),
        pytest.raises(VolumeError, match="another process"),
        PartialFolder(tmp_path / "p", JOB).held(),
    ):
        pass


def test_a_kill_while_it_was_made_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".job.json.part").write_text('{"vol')

    folder = PartialFolder(tmp_path, JOB)

    assert folder.place() is None
    with folder.held():
        assert json.loads((tmp_path / "job.json").read_text())["model"] == "abc"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")

    with pytest.raises(VolumeError, match=r"job.json is damaged"):
        PartialFolder(tmp_path, JOB).place()
