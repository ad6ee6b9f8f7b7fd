"""Damaged volumes hang or end a child process, which is killed and replaced, and nothing else."""

from __future__ import annotations

import gc
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from flask.testing import FlaskClient

from ml_backend.app import create_app
from ml_backend.rounds.unreadable import may_come_back
from ml_backend.settings import Settings
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.apart import open_apart
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.readers import Readers
from ml_backend.volumes.volume import Bounds, ReadOptions, Volume, VolumeError
from ml_backend.volumes.window import Window
from tests.damaged_volumes import crashing, hanging
from tests.fuzz.target import CORPUS
from tests.test_formats import assert_holds, values, write

ROOT = Path(__file__).resolve().parents[1]
GREY = values("u2", (6, 20, 24))
SOON = ReadOptions(bounds=Bounds(timeout_s=2))
LATER = ReadOptions()
KEYS = SliceKeys(("a secret of the laboratory",))


@pytest.fixture
def readers() -> Iterator[Readers]:
    made = Readers(most=2)
    yield made
    made.close()


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    write(tmp_path / "healthy.h5", GREY)
    return tmp_path / "healthy.h5"


def ended(process: int, timeout_s: float = 30) -> bool:
    """Whether a process that may be nobody's child of ours has ended, or does so in time."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    found, _, _ = select.select([handle], [], [], timeout_s)
    os.close(handle)
    return bool(found)


class TestAFileThatHangs:
    def test_it_is_refused_while_others_are_read(
        self, tmp_path: Path, healthy: Path, readers: Readers
    ) -> None:
        known = open_apart(healthy, LATER, readers)
        in_a_while = ReadOptions(bounds=Bounds(timeout_s=6))  # another process has to start
        damaged, running = hanging(tmp_path / "a.h5"), threading.Event()

        def refused() -> str:
            running.set()
            with pytest.raises(VolumeError) as caught:
                open_apart(damaged, in_a_while, readers)
            return str(caught.value)

        with ThreadPoolExecutor(1) as pool:
            reason = pool.submit(refused)
            assert running.wait(120)
            assert_holds(known, GREY)
            assert not reason.done(), "the healthy volume was read in the meantime"
        assert f"{damaged} takes too long to be opened (it took longer than 6 s)" in reason.result()
        assert len(readers.processes()) == 1, "the one that hung is gone"
        assert_holds(open_apart(healthy, LATER, readers), GREY)

    def test_it_is_not_tried_again_before_it_changes(
        self, tmp_path: Path, healthy: Path, readers: Readers
    ) -> None:
        damaged = hanging(tmp_path / "a.h5")
        with pytest.raises(VolumeError, match="takes too long") as slow:
            open_apart(damaged, SOON, readers)
        assert may_come_back(slow.value), "rounds ask again: the disk may be slow"
        open_apart(healthy, LATER, readers)
        before = readers.processes()
        with pytest.raises(VolumeError, match=r"longer than 2 s a short while ago"):
            open_apart(damaged, SOON, readers)
        assert readers.processes() == before, "no process was lost to it"
        shutil.copy(healthy, damaged)
        assert_holds(open_apart(damaged, LATER, readers), GREY)

    @pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
    def test_what_is_said_holds(self, tmp_path: Path, readers: Readers, name: str) -> None:
        """Until when it is refused; and that what was changed meanwhile is tried at once."""
        path = tmp_path / name
        write(path, GREY)
        at_once = ReadOptions(bounds=Bounds(timeout_s=0.00001))
        before = time.time()
        with pytest.raises(VolumeError, match="takes too long"):
            open_apart(path, at_once, readers)
        with pytest.raises(VolumeError, match=r"ago; it is tried again at ") as refused:
            open_apart(path, LATER, readers)
        allowed = [
            time.strftime("%H:%M:%S", time.localtime(second + 300))
            for second in range(int(before), int(time.time()) + 1)
        ]
        (said,) = re.findall(r"again at (\d\d:\d\d:\d\d), and at once when", str(refused.value))
        assert said in allowed
        changed = path if path.is_file() else next(p for p in path.rglob("c/*/*/*") if p.is_file())
        times = changed.stat().st_atime_ns, changed.stat().st_mtime_ns
        shutil.copy(changed, tmp_path / "copy")
        shutil.move(tmp_path / "copy", changed)  # as long as before, and by its time as old
        os.utime(changed, ns=times)
        assert_holds(open_apart(path, LATER, readers), GREY)

    def test_it_ends_though_who_asked_was_killed(self, tmp_path: Path) -> None:
        code = """
import sys, threading
from pathlib import Path
from ml_backend.volumes.apart import open_apart
from ml_backend.volumes.readers import Readers
from ml_backend.volumes.volume import Bounds, ReadOptions
readers = Readers()
open_apart(Path(sys.argv[1]), ReadOptions(), readers)
print(*readers.processes(), flush=True)
open_apart(Path(sys.argv[2]), ReadOptions(bounds=Bounds(timeout_s=1)), readers)
"""
        write(tmp_path / "a.h5", GREY)
        argv = [sys.executable, "-c", code, tmp_path / "a.h5", hanging(tmp_path / "b.h5")]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as asking:
            assert asking.stdout is not None
            process = int(asking.stdout.readline())
            asking.kill()
        assert ended(process)


class TestAFileThatEndsWhatReadsIt:
    def test_it_is_refused_and_others_are_read(
        self, tmp_path: Path, healthy: Path, readers: Readers
    ) -> None:
        damaged = crashing(tmp_path / "a.h5")
        volume = open_apart(damaged, LATER, readers)
        other = open_apart(healthy, LATER, readers)
        for _ in range(2):
            with pytest.raises(VolumeError) as caught:
                volume[3]
            message = f"{damaged} ends the process that reads it for slice 3 along z (SIGSEGV)"
            assert message in str(caught.value)
            assert "expected a whole one" in str(caught.value)
            assert_holds(other, GREY)  # in a process that has to open it anew

    def test_a_process_that_was_killed_from_outside_is_replaced(
        self, healthy: Path, readers: Readers
    ) -> None:
        volume = open_apart(healthy, LATER, readers)
        (process,) = readers.processes()
        os.kill(process, signal.SIGKILL)
        assert_holds(volume, GREY)
        assert readers.processes() != [process]


def test_memory_has_a_limit(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        shape, chunks = (2, 16_000, 16_000), (1, 1000, 1000)
        file.create_dataset("data", shape, "u2", chunks=chunks, fillvalue=0)
    readers = Readers(memory=400 << 20)
    volume = open_apart(tmp_path / "a.h5", ReadOptions(), readers)
    with pytest.raises(VolumeError, match=r"a\.h5.*(Unable to allocate|more memory)"):
        volume[0]
    readers.close()


def test_opening_takes_less_memory_than_reading_may(tmp_path: Path, readers: Readers) -> None:
    """Some changed bytes, and HDF5 takes a gigabyte a second until its time is up."""
    damaged = tmp_path / "a.h5"
    shutil.copy(CORPUS / "hdf5" / "found-takes-memory", damaged)
    with pytest.raises(VolumeError, match="memory allocation failed"):
        open_apart(damaged, LATER, readers)
    (process,) = readers.processes()
    assert psutil.Process(process).memory_info().rss < 500 << 20


@pytest.fixture
def client(make_settings: Callable[..., Settings], tmp_path: Path) -> FlaskClient:
    settings = make_settings(
        NEXTSLICE_VOLUMES=f"scans={tmp_path}",
        NEXTSLICE_SLICE_SECRET=KEYS.secrets[0],
        NEXTSLICE_VOLUME_TIMEOUT_S=6,
    )
    return create_app(settings).test_client()


def test_the_slice_server_says_why_and_answers_others(
    client: FlaskClient, tmp_path: Path, healthy: Path
) -> None:
    hanging(tmp_path / "a.h5")
    crashing(tmp_path / "b.h5")

    def get(name: str, index: int = 3) -> tuple[int, str]:
        address = SliceAddress(f"scans/{name}", "z", index, Window(0, 2**16))
        answer = client.application.test_client().get(address.url("", KEYS))
        return answer.status_code, answer.get_data().decode("latin-1")

    assert get("healthy.h5")[0] == 200
    with ThreadPoolExecutor(8) as pool:
        hung = [pool.submit(get, "a.h5") for _ in range(6)]  # as many as a browser asks for
        assert get("healthy.h5", 4)[0] == 200
        assert client.get("/health").status_code == 200
        assert not all(one.done() for one in hung)
    for status, text in (one.result() for one in hung):
        assert status == 422
        assert "a.h5 takes too long to be opened (it took longer than 6 s" in text
    status, text = get("b.h5")
    assert status == 422
    assert "b.h5 ends the process that reads it for slice 3 along z (SIGSEGV)" in text


class TestProcesses:
    def test_many_threads_read_many_volumes(self, tmp_path: Path) -> None:
        arrays = {f"{seed}{e}": GREY + seed for seed in range(5) for e in (".h5", ".tif", ".zarr")}
        for name, array in arrays.items():
            write(tmp_path / name, array)
        volumes = {name: open_volume(tmp_path / name) for name in arrays}
        asked = [(name, axis, i) for name in arrays for axis in "zyx" for i in range(6)]

        def read(place: tuple[str, str, int]) -> bool:
            name, axis, index = place
            expected = arrays[name].take(index, "zyx".index(axis))
            return np.array_equal(volumes[name].along(axis)[index], expected)

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, asked))

    def test_they_are_few(self, healthy: Path, readers: Readers) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: open_apart(healthy, LATER, readers)[2], range(24)))
        assert all(np.array_equal(one, GREY[2]) for one in found)
        assert len(readers.processes()) <= 2

    def test_what_is_closed_may_be_written(self, healthy: Path) -> None:
        with open_volume(healthy) as volume:
            volume[0]
        with h5py.File(healthy, "r+") as file:  # HDF5 locks what others have open
            file.attrs["note"] = "written"

    def test_what_is_forgotten_is_closed_with_the_next_work(
        self, tmp_path: Path, healthy: Path, readers: Readers
    ) -> None:
        write(tmp_path / "a.h5", GREY)
        volume: Volume | None = open_apart(healthy, LATER, readers)
        other = open_apart(tmp_path / "a.h5", LATER, readers)
        (process,) = readers.processes()
        volume = None
        gc.collect()
        assert volume is None
        other[0]
        links = [str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()]
        assert str(tmp_path / "a.h5") in links
        assert str(healthy) not in links

    def test_a_forked_process_has_its_own(self, healthy: Path) -> None:
        volume = open_volume(healthy)
        forked = os.fork()
        if not forked:
            read = False
            try:
                read = all(np.array_equal(one, GREY[z]) for z, one in enumerate(volume))
            finally:
                os._exit(0 if read else 1)
        _, status = os.waitpid(forked, 0)
        assert status == 0
        assert_holds(volume, GREY)

    def test_a_path_may_be_relative(self, healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(healthy.parent)
        with open_volume(healthy.name) as volume:
            assert_holds(volume, GREY)

    def test_they_know_no_secrets(
        self, healthy: Path, readers: Readers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "the key")
        monkeypatch.setenv("NEXTSLICE_SLICE_SECRET", "the secret")
        open_apart(healthy, LATER, readers)
        (process,) = readers.processes()
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert b"PATH=" in environment
        assert b"the key" not in environment
        assert b"the secret" not in environment

    def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_opened(
        self, tmp_path: Path, healthy: Path, readers: Readers
    ) -> None:
        volume = open_apart(healthy, LATER, readers)
        (process,) = readers.processes()
        write(tmp_path / "new.h5", GREY[:4])
        shutil.move(tmp_path / "new.h5", healthy)
        assert np.array_equal(volume[5], GREY[5]), "it is open still"
        os.kill(process, signal.SIGKILL)
        with pytest.raises(VolumeError, match="has been replaced since it was opened"):
            volume[3]
