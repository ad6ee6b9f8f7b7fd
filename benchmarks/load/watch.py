"""What is seen from outside while the load lasts: memory, rounds, what Label Studio was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote_plus

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from ml_backend.rounds.project import ConnectedProject

__all__ = ["Watch", "listed", "wait_for", "webhook_times", "within"]

_EVERY_S = 2.0
_FIFTH = 5


class Watch:
    """Samples the memory of processes, and whether a round runs, until the block ends.

    ``pids``: name → process. Its children count with it, but for the jobs of workers, which come
    and go: those are a row of their own.
    """

    def __init__(self, project: ConnectedProject, pids: dict[str, int]) -> None:
        self.project, self.pids = project, pids
        self.mib: dict[str, list[float]] = {}
        self._began: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self.steps: list[str | None] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            for name, pid in self.pids.items():
                with suppress(psutil.Error):
                    self._sample(name, psutil.Process(pid))
            progress = self.project.schedule.round_progress()
            started = progress is not None and str(progress.status).endswith("STARTED")
            self.steps.append((progress.step or "begin") if started and progress else None)

    def _sample(self, name: str, process: psutil.Process) -> None:
        children = process.children(recursive=True)
        cpu = sum(_cpu_s(one) for one in (process, *children))
        # A child that ends within a block is counted by its parent then.
        self._began.setdefault(name, cpu)
        self._cpu[name] = max(cpu, self._cpu.get(name, 0.0))
        own = process.memory_info().rss
        theirs = sum(child.memory_info().rss for child in children)
        if name.startswith("worker"):
            self._keep(f"{name}'s job", theirs)
            theirs = 0
        self._keep(name, own + theirs)

    def _keep(self, name: str, size: int) -> None:
        self.mib.setdefault(name, []).append(size / 2**20)

    def memory(self) -> dict[str, dict[str, float]]:
        """Of each: the mean of the first and the last fifth, and the most, in MiB."""
        found = {}
        for name, values in self.mib.items():
            part = max(1, len(values) // _FIFTH)
            ends = (values[:part], values[-part:])
            first, last = (round(sum(end) / part, 1) for end in ends)
            found[name] = {"first": first, "last": last, "most": round(max(values), 1)}
        return found

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU of each, its children's included: what a busy machine does not change."""
        return {name: round(self._cpu[name] - self._began[name], 2) for name in self._cpu}

    def rounds(self) -> dict[str, float]:
        """The share of the time in each step of a round; "" is none."""
        seen = max(1, len(self.steps))
        names = {step or "" for step in self.steps}
        return {n: round(sum((s or "") == n for s in self.steps) / seen, 3) for n in sorted(names)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def listed(log: Path, since: int) -> dict[str, int]:
    """Pages of all tasks, and requests in all, that Label Studio's ``log`` has after byte
    ``since``. It has each line twice."""
    with log.open("rb") as file:
        file.seek(since)
        lines = set(file.read().decode(errors="replace").splitlines())
    asked = [line for line in lines if re.search(r'"[A-Z]+ /', line)]
    pages = [line for line in map(unquote_plus, asked) if _of_all_tasks(line)]
    return {"pages": len(pages), "requests": len(asked)}


def _of_all_tasks(line: str) -> bool:
    """Whether a page of all tasks was asked for: the first, or one from an id on."""
    if "GET /api/tasks/?" not in line or "page_size=500" not in line:
        return False
    filters = re.findall(r'"filter": "filter:tasks:(\w+)", "operator": "(\w+)"', line)
    return filters in ([], [("id", "greater")])


def webhook_times(url: str) -> dict[float, float]:
    """Upper bound in seconds → how many webhooks took no longer, as /metrics has it."""
    text = requests.get(f"{url}/metrics", timeout=30).text
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "nextslice_http_request_duration_seconds_bucket"
        and sample.labels["endpoint"] == "/webhook"
    }


def within(buckets: dict[float, float]) -> dict[str, Any]:
    """How many were answered, and the bounds below which 50 and 99 of a hundred were."""
    total = buckets.get(float("inf"), 0.0)
    bounds = sorted(buckets)
    p50, p99 = (
        next((le for le in bounds if total and buckets[le] >= share * total), 0.0)
        for share in (0.5, 0.99)
    )
    return {"n": int(total), "p50_below_ms": 1000 * p50, "p99_below_ms": 1000 * p99}


def wait_for(ready: Callable[[], object], timeout_s: float, pause_s: float = 1.0) -> bool:
    """Whether ``ready()`` became true in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if ready():
            return True
        time.sleep(pause_s)
    return False
