"""A file is whole or as it was; a lock is held by one, and ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ml_backend.durable import (
    Scratch,
    create_whole,
    held,
    move_whole,
    sweep,
    sweep_scratch,
    write_whole,
)
from ml_backend.errors import TryAgainLater

TAKEN = TryAgainLater("another is on it")


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "round.json"
    write_whole(path, b"first")
    write_whole(path, b"second", flush=False)
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_whole(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_flushed_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    seen: list[tuple[bool, bool]] = []

    def note(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").resolve().is_dir(), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_whole(path, b"x")
    write_whole(path, b"y", flush=False)
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_who_create_a_file_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")  # as on exFAT

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new" / "claim"
    created: list[bytes] = []

    def create(name: bytes) -> None:
        if create_whole(path, name * 1000):
            created.append(name)

    threads = [threading.Thread(target=create, args=(bytes([65 + i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (name,) = created
    assert path.read_bytes() == name * 1000
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_ours_where_a_disk_made_it_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS, when an answer is lost and the request repeated."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert create_whole(tmp_path / "a", b"ours")
    assert not create_whole(tmp_path / "a", b"later")
    assert (tmp_path / "a").read_bytes() == b"ours"


def test_who_is_alone_replaces_what_a_killed_process_has_left(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes(b"half of a checkpoint")
    write_whole(tmp_path / "a", b"x", alone=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_makes_way_for_another(tmp_path: Path) -> None:
    for name in ("part", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    move_whole(tmp_path / "part", tmp_path / "target", tmp_path / "aside")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "aside",
        "aside/target",
        "target",
        "target/part",
    ]


def test_one_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with held(path):
        with pytest.raises(TryAgainLater, match="another is on it"), held(path, otherwise=TAKEN):
            pass
        refused: list[bool] = []

        def other() -> None:
            try:
                with held(path, otherwise=TAKEN):
                    refused.append(False)
            except TryAgainLater:
                refused.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused == [True]
    with held(path, otherwise=TAKEN):
        pass


def test_who_waits_gets_it_next(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def wait() -> None:
        with held(path):
            order.append("second")

    with held(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(120)
    assert order == ["first", "second"]


HOLD = """
import sys, time
from pathlib import Path
from ml_backend.durable import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    argv = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(TryAgainLater), held(path, otherwise=TAKEN):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with held(path, otherwise=TAKEN):
            pass


# -- what killed processes leave

_WRITER = """
import os, sys
from pathlib import Path
from ml_backend.durable import Scratch, create_whole, write_whole
def at_the_disk(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = at_the_disk
scratch = Scratch()
Path(scratch.name, "volume.nii").write_bytes(b"unpacked")
{"write": write_whole, "create": create_whole}[sys.argv[1]](Path(sys.argv[2]), b"half of it")
"""


def _writer(way: str, path: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of writing ``path``, and with a scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, way, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    return process


def _age(path: Path, seconds: float) -> None:
    moment = path.lstat().st_mtime - seconds
    os.utime(path, (moment, moment))


@pytest.mark.parametrize("way", ["write", "create"])
def test_what_a_killed_writer_left_goes_and_what_a_living_one_has_stays(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    store = tmp_path / "store" / "round-0001"
    writer = _writer(way, store / "weights")
    try:
        (part,) = store.iterdir()
        (scratch,) = (tmp_path / "tmp").iterdir()
        for path in (part, scratch):
            _age(path, 3600)
        assert sweep(tmp_path / "store") == sweep_scratch() == []
        writer.send_signal(signal.SIGKILL)
    finally:
        writer.kill()
        writer.communicate()

    assert sweep(tmp_path / "store") == [part]
    assert sweep_scratch() == [scratch]
    assert list(store.iterdir()) == list((tmp_path / "tmp").iterdir()) == []


def test_nothing_of_others_and_nothing_fresh_is_removed(tmp_path: Path) -> None:
    kept = [".a.0123abcd.part", ".a.part", "a.0123abcd.part", ".a.0123abcd.parts", "a.part", "a"]
    for name in kept:
        (tmp_path / name).write_bytes(b"x")
    for name in kept[1:]:
        _age(tmp_path / name, 10 * 86_400)
    assert sweep(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_part_that_is_a_day_old_goes_whoever_has_it(tmp_path: Path) -> None:
    """As on a disk without locks."""
    part = tmp_path / ".a.0123abcd.part"
    with held(part):
        _age(part, 86_000)
        assert sweep(tmp_path) == []
        _age(part, 1000)
        assert sweep(tmp_path) == [part]


def test_a_temporary_folder_of_something_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / "nextslice-redis"
    other.mkdir()
    _age(other, 10 * 86_400)
    with Scratch() as ours:
        _age(Path(ours), 86_000)
        assert sweep_scratch() == []
        assert Path(ours).is_dir()
    assert list(tmp_path.iterdir()) == [other]
