"""The process in which targets read inputs: ``python -m tests.fuzz.worker PLAN SEED DESCRIPTOR``.

`runner` starts it, watches how long it is at an input, and goes on behind the one that ended it.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import mutated
from tests.fuzz.target import MOST_GROWTH, Sample, Target, samples
from tests.fuzz.targets import FAULTY, TARGETS

__all__ = ["GREW", "PLACE", "Plan", "busy_s", "outcome"]

Plan = list[tuple[str, int, int]]
"""Name of a target, the number of the first input, and that behind the last."""

PLACE = struct.Struct("<qqd")
"""What it is at: the part of the plan, the input's number, and since when (`time.monotonic`; 0: at
none)."""
GREW = 3
"""The status with which it ends when an input made it grow: the next needs a small one."""
_SAID_EVERY = 200
_MEMORY = 6 << 30
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = str(Path(__file__).resolve().parents[2])


def outcome(
    read: Callable[[Sample], None], errors: tuple[type[Exception], ...], sample: Sample
) -> tuple[str, str]:
    """What came of an input: "read" or the documented error, and where another one was raised."""
    try:
        read(sample)
    except errors as error:
        return type(error).__name__, ""
    except Exception as error:
        return type(error).__name__, f"{type(error).__name__} in {_where(error)}"
    return "read", ""


def _where(error: BaseException) -> str:
    """The innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(_ROOT) and ".venv" not in f.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} ({last.name})"


def busy_s(process: str | int = "self") -> float:
    """Seconds of processor time that a process and those below it have taken. Hangs are told by
    it: what waits for its turn on a busy machine does not hang."""
    taken = 0.0
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        taken += sum(map(int, fields[11:15])) / _TICKS  # with those that have ended
        for child in _children(process):
            taken += busy_s(child)
    return taken


def _children(process: str | int) -> list[str]:
    found: list[str] = []
    with suppress(OSError):
        for task in os.scandir(f"/proc/{process}/task"):
            found += Path(task.path, "children").read_text().split()
    return found


class _Memory:
    """The most that this process and those that it has started have taken, in bytes."""

    def __init__(self, children: bool) -> None:
        self._children = children
        self._own, self._others = _own(), max(_others(), default=0)

    def growth(self) -> int:
        """Since it was made."""
        grown = _own() - self._own
        if not self._children:
            return grown
        gone = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        return max(grown, max((*_others(), gone)) - self._others)


def _own() -> int:
    """Not ru_maxrss, which counts what the process that has started this one had taken."""
    return _highest(Path("/proc/self/status").read_text())


def _highest(status: str) -> int:
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _others(process: str | int = "self") -> Iterator[int]:
    """The most that each process below it has taken."""
    for child in _children(process):
        yield from _others(child)
        with suppress(OSError, IndexError):
            yield _highest(Path(f"/proc/{child}/status").read_text())


class _Course:
    """The inputs of one target, and what is said of them: a line of JSON each."""

    def __init__(self, target: Target, seed: int, place: Callable[[int, float], None]) -> None:
        self._target, self._seed, self._place = target, seed, place
        found = samples(target.name)
        self._corpus = list(found.values())
        self._whole = [one for name, one in found.items() if not name.startswith("found-")]
        self._counts: Counter[str] = Counter()
        self._worst = (0.0, 0)
        self._growth = 0
        self._began = time.monotonic()

    def run(self, numbers: range) -> bool:
        """Read the inputs; False where one made the process grow beyond reason."""
        with self._target.open() as read:
            for sample in self._whole:  # imports, processes, caches
                outcome(read, self._target.errors, sample)
            memory = _Memory(self._target.slow)
            for number in numbers:
                self._one(read, number)
                self._growth = memory.growth()
                if self._growth > MOST_GROWTH:
                    self._found(number, f"grows by {self._growth >> 20} MB")
                    self._say(number + 1)
                    return False
                if (number + 1) % _SAID_EVERY == 0:
                    self._say(number + 1)
        self._say(numbers.stop)
        self._print({"over": True})
        return True

    def _one(self, read: Callable[[Sample], None], number: int) -> None:
        self._place(number, 0.0)
        sample = mutated(self._target, self._corpus, self._seed, number)
        self._place(number, time.monotonic())
        began = self._clock()
        kind, fault = outcome(read, self._target.errors, sample)
        took = self._clock() - began
        self._place(number, 0.0)
        self._counts[kind] += 1
        self._worst = max(self._worst, (took, number))
        if fault:
            self._found(number, fault)
        if took > self._target.longest_s:
            self._found(number, f"takes longer than {self._target.longest_s:g} s")

    def _clock(self) -> float:
        return busy_s() if self._target.slow else time.process_time()

    def _found(self, number: int, fault: str) -> None:
        self._print({"number": number, "fault": fault})

    def _say(self, done: int) -> None:
        worst, number = self._worst
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        said = {"counts": self._counts, "worst": worst, "at": number, "growth": self._growth}
        self._print({"done": done, "seconds": seconds, **said})
        self._counts.clear()

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps({"target": self._target.name, **line}), flush=True)


def main(plan: Plan, seed: int, descriptor: int) -> int:
    """Read the inputs of ``plan``."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))  # for the machine's sake
    place = mmap.mmap(descriptor, PLACE.size)
    for part, (name, first, stop) in enumerate(plan):
        PLACE.pack_into(place, 0, part, first, 0.0)
        course = _Course((TARGETS | FAULTY)[name], seed, partial(PLACE.pack_into, place, 0, part))
        if not course.run(range(first, stop)):
            return GREW
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), *map(int, sys.argv[2:4])))
