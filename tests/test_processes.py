"""Everything that is started is stopped, and one that does not start shows its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ml_backend.embedded.processes import ProcessGroup, StartError, kill_tree, wait_until

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import os, time; os.setpgrp(); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
"""A process whose child leads a group of its own, as RQ's work horses do."""


def start_family(group: ProcessGroup) -> tuple[int, int]:
    process = group.start("family", [sys.executable, "-c", FAMILY])
    log = group.logs / "family.log"
    wait_until(lambda: log.read_text().strip() != "", "the child to start", 120)
    return process.pid, int(log.read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_children_of_children_are_stopped_too(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        pids = start_family(group)
    wait_until(lambda: all(gone(pid) for pid in pids), "both to end", 120)


def test_a_killed_tree_is_gone_at_once(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        process = group.start("family", [sys.executable, "-c", FAMILY])
        log = tmp_path / "family.log"
        wait_until(lambda: log.read_text().strip() != "", "the child to start", 120)
        kill_tree(process)
        assert group.ended() is not None
        # Whoever inherits the killed child still has to collect it.
        wait_until(lambda: gone(int(log.read_text())), "the child to be collected", 120)


def test_children_of_one_that_was_killed_are_stopped_too(tmp_path: Path) -> None:
    """As the work horse of a worker for which there was no memory."""
    with ProcessGroup(tmp_path) as group:
        pid, child = start_family(group)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: group.ended() is not None, "the end to be noticed", 120)
        assert not gone(child)
    wait_until(lambda: gone(child), "its child to end", 120)


STOPPED = """
import sys, time
from pathlib import Path
from ml_backend.cli.signals import stop_on_signals
from ml_backend.embedded.processes import ProcessGroup
stop_on_signals()
try:
    with ProcessGroup(Path(sys.argv[1])) as group:
        print(group.start("child", [sys.executable, "-c", "import time; time.sleep(600)"]).pid)
        sys.stdout.flush()
        time.sleep(600)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_stops_what_was_started(tmp_path: Path, first: int) -> None:
    """Its shell and the system send SIGHUP one after the other."""
    argv = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        for number in (first, signal.SIGHUP):
            process.send_signal(number)
            time.sleep(0.05)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0
    assert gone(child)


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
print("there", flush=True)
time.sleep(600)
"""
"""As a worker that a single SIGTERM has end its job first."""
STOPPED_TWICE = f"""
import sys, time
from pathlib import Path
from ml_backend.cli.signals import stop_on_signals
from ml_backend.embedded.processes import ProcessGroup, wait_until
stop_on_signals()
logs = Path(sys.argv[1])
with ProcessGroup(logs) as group:
    pids = [group.start(f"{{n}}", [sys.executable, "-c", {STUBBORN!r}]).pid for n in range(3)]
    begun = lambda: all("there" in log.read_text() for log in logs.iterdir())
    wait_until(begun, "all to begin", 60)
    print(*pids, flush=True)
    time.sleep(600)
"""


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_nothing_running(tmp_path: Path, first: int) -> None:
    """Who stops it has come to the last of three; the others were not asked to end yet."""
    argv = [sys.executable, "-c", STOPPED_TWICE, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        children = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(first)
        last = tmp_path / "2.log"
        wait_until(lambda: "asked to end" in last.read_text(), "the first to be heard", 60, 0.02)
        assert not any(map(gone, children))
        process.send_signal(signal.SIGINT)
        process.wait(12)  # seconds; it had 8 for each of three
    try:
        wait_until(lambda: all(map(gone, children)), "all to end", 60)
    finally:
        for pid in filter(lambda pid: not gone(pid), children):
            os.kill(pid, signal.SIGKILL)


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path: Path) -> None:
    argv = ["nohup", sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        assert not gone(child)
        process.terminate()
        assert process.stdout.read() == "stopped\n"


def test_a_process_that_ends_shows_its_log(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        group.start("broken", [sys.executable, "-c", "raise SystemExit('no such port')"])
        with pytest.raises(StartError, match=r"broken ended with code 1(.|\n)*no such port"):
            group.wait("broken", lambda: False, timeout_s=20)


def test_a_process_that_does_not_answer_shows_its_log(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        group.start("slow", [sys.executable, "-c", "import time; time.sleep(600)"])
        begin = time.monotonic()
        with pytest.raises(StartError, match="did not happen within 1 s"):
            group.wait("slow", lambda: False, timeout_s=1)
        assert time.monotonic() - begin < 10
