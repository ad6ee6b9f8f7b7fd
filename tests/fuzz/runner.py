"""Runs a target in a process of its own, which may hang, end or grow, and reports of it."""

from __future__ import annotations

import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from ml_backend.embedded.processes import kill_tree
from tests.fuzz.targets import FAULTY, TARGETS
from tests.fuzz.worker import GREW, PLACE, Plan, busy_s

__all__ = ["Report", "run"]

_LOOK_EVERY_S = 0.2
_WAITS_S = 300.0
"""However busy the machine is."""
_MOST_FAULTS = 200
"""Enough is known then."""


@dataclass
class Report:
    """What came of the first ``inputs`` of a target, within ``seconds``.

    ``counts``: how many were read, and raised each error; without the last ones before a process
    ended. ``worst_s``: the longest that
    one took, and its number; ``growth``: of the process in bytes. ``faults``: what must not be →
    the numbers of the first inputs that do it.
    """

    target: str
    inputs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    worst: int = 0
    growth: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)

    def fault(self, said: str, number: int) -> None:
        """Note one."""
        self.faults.setdefault(said, []).append(number)

    def take(self, line: dict[str, Any]) -> None:
        """Note what the process has said."""
        if "fault" in line:
            self.fault(line["fault"], line["number"])
            return
        self.inputs = line["done"]
        self.counts.update(line["counts"])
        self.seconds += line["seconds"]
        self.growth = max(self.growth, line["growth"])
        self.worst_s, self.worst = max((self.worst_s, self.worst), (line["worst"], line["at"]))


def run(
    shares: Mapping[str, int], seed: int, said: Callable[[Report], None] = lambda _: None
) -> list[Report]:
    """Read so many inputs of each target, one target after the other; ``said`` is told of each.

    An input that ends the process, or hangs it, is a fault; the next are read in another one.
    """
    reports = {name: Report(name) for name in shares}
    plan: Plan = [(name, 0, inputs) for name, inputs in shares.items()]
    while plan:
        with _Process(plan, seed, reports, said) as process:
            plan = process.watch()
    return list(reports.values())


class _Process:
    def __init__(
        self, plan: Plan, seed: int, reports: Mapping[str, Report], said: Callable[[Report], None]
    ) -> None:
        self._plan, self._reports, self._said = plan, reports, said
        self._descriptor = os.memfd_create("fuzz")
        os.truncate(self._descriptor, PLACE.size)
        self._place = mmap.mmap(self._descriptor, PLACE.size)
        PLACE.pack_into(self._place, 0, 0, plan[0][1], 0.0)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # until __exit__
        arguments = (json.dumps(plan), str(seed), str(self._descriptor))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", *arguments],
            pass_fds=(self._descriptor,),
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._rest = b""

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        kill_tree(self._process)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
        os.close(self._descriptor)

    def watch(self) -> Plan:
        """Until it ends; what of the plan is left then."""
        at, busy = (-1, -1, 0.0), 0.0
        while self._hear():
            part, number, since = PLACE.unpack_from(self._place)
            longest_s = (TARGETS | FAULTY)[self._plan[part][0]].longest_s
            if at != (part, number, since):
                at, busy = (part, number, since), busy_s(self._process.pid)
            elif since and busy_s(self._process.pid) - busy > longest_s:
                return self._ended(f"hangs: it is busy for {longest_s:g} s")
            elif since and time.monotonic() - since > _WAITS_S:
                return self._ended(f"hangs: it waits for {_WAITS_S:g} s")
            report = self._reports[self._plan[part][0]]
            if sum(map(len, report.faults.values())) > _MOST_FAULTS:
                self._said(report)
                return self._plan[part + 1 :]
        status = self._process.wait()
        if status == 0:
            return []
        words = "" if status == GREW else f"ends the process ({status}): {self._last_words()}"
        return self._ended(words)

    def _ended(self, why: str) -> Plan:
        """What is left behind the input that it is at."""
        part, number, _ = PLACE.unpack_from(self._place)
        name, _, stop = self._plan[part]
        self._reports[name].inputs = number + 1
        if why:
            self._reports[name].fault(why, number)
        rest = self._plan[part + 1 :]
        if number + 1 < stop:
            return [(name, number + 1, stop), *rest]
        self._said(self._reports[name])
        return rest

    def _hear(self) -> bool:
        """Take what it says for a moment; False when it has no more to say."""
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], _LOOK_EVERY_S)[0]:
            return True
        part = os.read(out.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            said = json.loads(line)
            report = self._reports[said["target"]]
            if "over" in said:
                self._said(report)
            else:
                report.take(said)
        return bool(part)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return " | ".join(line.strip() for line in lines[:400] if "ml_backend" in line)[:300]
