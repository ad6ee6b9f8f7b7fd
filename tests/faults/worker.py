"""Real workers as child processes, which can be stopped at a line of a round to be killed there.

They are forked off a server that has imported torch: a cell of the matrix takes seconds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.faults.cells import wait_until

__all__ = ["MEMORY", "Stop", "WorkerProcess", "flushing", "step", "writing"]

MEMORY = "memory"
"""A file in a rig's folder: as many pixels the memory of a gpu worker's device holds; without it
any number."""


@dataclass(frozen=True)
class Stop:
    """Where a worker stands still: at progress ``done`` of a step, before a file is written, or
    after that while it has not got its name."""

    kind: str
    name: str
    done: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.kind}"


def step(name: str, done: int = 0) -> Stop:
    """When ``done`` of the step is done."""
    return Stop("step", name, done)


def writing(name: str) -> Stop:
    """Before the file called ``name`` is written."""
    return Stop("write", name)


def flushing(name: str) -> Stop:
    """When the file is on the disk, not under its name yet."""
    return Stop("flush", name)


class WorkerProcess:
    """``nextslice worker <kind>`` in a process of its own. ``stop``: where it stands still.

    ``clock``: a file with the seconds by which its clock is ahead. ``inside``: a process whose
    disks it sees. ``silenced``: whether it, or its job, was killed or frozen, so that what it held
    in Redis runs out.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        env: Mapping[str, str],
        stop: Stop | None = None,
        clock: Path | None = None,
        inside: int | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.worker_main"])
        number = len(list(folder.glob("worker-*.log")))
        self.log = folder / f"worker-{number}-{kind}.log"
        self.log.touch()
        self.silenced = False
        self._reached = folder / f"worker-{number}.reached"
        asked = (kind, dict(env), self.log, stop, self._reached, clock, inside, folder / MEMORY)
        self._process = context.Process(target=_work, args=asked, daemon=True)
        self._process.start()

    def wait_for_stop(self) -> None:
        """Until it stands still where it was to stop."""
        wait_until(self._reached.exists, f"the stop of {self.log}", 120, 0.02)

    def go_on(self) -> None:
        """Let it work on from there."""
        self._reached.with_suffix(".on").touch()

    def wait_for_line(self, text: str, within_s: float = 120.0) -> None:
        """Until its log says so."""
        wait_until(lambda: text in self.log.read_text(), f"{text!r} in {self.log}", within_s, 0.05)

    def freeze(self) -> None:
        """Stop it and its job where they are, as a machine that sleeps."""
        self.silenced = True
        for process in self._all():
            process.suspend()

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._all():
            process.resume()

    def _all(self) -> list[psutil.Process]:
        """Its job first."""
        assert self._process.pid is not None
        worker = psutil.Process(self._process.pid)
        return [*worker.children(recursive=True), worker]

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL to it and to the job it is at, at once, as a lost machine would."""
        self.silenced = True
        with suppress(psutil.NoSuchProcess):
            for process in self._all():
                process.kill()
        self._process.join()

    def kill_job(self) -> None:
        """SIGKILL to the process of its job alone, as the kernel does for want of memory."""
        self.silenced = True
        for process in self._all()[:-1]:
            process.kill()


def _work(*asked: Any) -> None:
    """In the child, which has imported it already."""
    from tests.faults.worker_main import work

    work(*asked)
