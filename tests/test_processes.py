"""Everything that is started is stopped, and one that does not start shows its log."""

from __future__ import annotations

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
    wait_until(lambda: log.read_text().strip() != "", "the child to start", 20)
    return process.pid, int(log.read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_children_of_children_are_stopped_too(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        pids = start_family(group)
    wait_until(lambda: all(gone(pid) for pid in pids), "both to end", 10)


def test_a_killed_tree_is_gone_at_once(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        process = group.start("family", [sys.executable, "-c", FAMILY])
        log = tmp_path / "family.log"
        wait_until(lambda: log.read_text().strip() != "", "the child to start", 20)
        kill_tree(process)
        assert group.ended() is not None
        # Whoever inherits the killed child still has to collect it.
        wait_until(lambda: gone(int(log.read_text())), "the child to be collected", 5)


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
