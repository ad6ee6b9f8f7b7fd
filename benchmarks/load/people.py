"""Those who press Submit, and Label Studio's webhooks without it: both at a pace."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests

from ml_backend.embedded.annotator import Annotator
from ml_backend.rounds.service import WEBHOOK_HEADER
from ml_backend.studio.client import StudioError

__all__ = ["Deeds", "Pace", "annotate", "call_webhooks"]

_POSTERS = 32
_LABEL_STUDIO_WAITS_S = 1.0
_IDLE_S = 0.5


@dataclass
class Deeds:
    """What was done, from many threads: how long each kind took, and what became of it."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    submitted: list[tuple[int, int]] = field(default_factory=list)
    """Task and annotation of each submission."""
    live: int = 0
    """Slices that were opened without a place in the queue."""
    wall_s: float = 0.0
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, kind: str, do: Callable[[], Any]) -> Any:
        """What ``do()`` returns; how long it took is kept under ``kind``."""
        began = time.perf_counter()
        found = do()
        with self._alone:
            self.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        return found

    def fail(self, why: str) -> None:
        with self._alone:
            self.failed[why] += 1

    def submit(self, task: int, annotation: int, *, live: bool) -> None:
        with self._alone:
            self.submitted.append((task, annotation))
            self.live += live

    @property
    def twice(self) -> int:
        """Submissions of a task that somebody else had submitted before."""
        return len(self.submitted) - len({task for task, _ in self.submitted})

    def figures(self) -> dict[str, Any]:
        """For people and programs: milliseconds, counts."""
        times = {
            kind: {
                "n": len(values),
                "p50_ms": round(1000 * float(np.percentile(values, 50)), 1),
                "p99_ms": round(1000 * float(np.percentile(values, 99)), 1),
                "max_ms": round(1000 * max(values), 1),
            }
            for kind, values in self.seconds.items()
        }
        done = len(self.submitted)
        rate = round(done / self.wall_s, 2) if self.wall_s else 0.0
        return {
            "seconds": round(self.wall_s, 1), "submitted": done, "per_second": rate,
            "twice": self.twice, "outside_the_queue": self.live,
            "failed": dict(self.failed.most_common(8)), "times": times,
        }  # fmt: skip


class Pace:
    """Moments ``1 / rate`` seconds apart, handed to whoever asks next; a None ends it.

    Who comes late gets a moment that is past: what was promised is caught up with.
    """

    def __init__(self, rate: float, seconds: float) -> None:
        self._step = 1 / rate
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._next = 0
        self._alone = threading.Lock()

    def wait(self) -> bool:
        """Whether there was another moment, which is now."""
        with self._alone:
            moment = self._began + self._next * self._step
            self._next += 1
        if moment >= self._until or time.monotonic() >= self._until:
            return False
        time.sleep(max(0.0, moment - time.monotonic()))
        return True


def annotate(annotators: Sequence[Annotator], rate: float, seconds: float) -> Deeds:
    """Let ``annotators`` take, open and submit slices, ``rate`` submissions a second in all."""
    deeds, pace, began = Deeds(), Pace(rate, seconds), time.monotonic()
    until = began + seconds

    def work(annotator: Annotator) -> None:
        while time.monotonic() < until:
            try:
                if not _label_one(annotator, deeds, pace, until):
                    return
            except (StudioError, requests.RequestException) as error:
                deeds.fail(_kind(error))
                time.sleep(_IDLE_S)

    with ThreadPoolExecutor(len(annotators)) as pool:
        list(pool.map(work, annotators))
    deeds.wall_s = time.monotonic() - began
    return deeds


def _label_one(annotator: Annotator, deeds: Deeds, pace: Pace, until: float) -> bool:
    """Take the next slice, look at it, wait for one's turn, submit; False at the end."""
    task = deeds.timed("next task", annotator.next_task)
    if task is None:
        deeds.fail("404: no task is left to hand out")
        time.sleep(_IDLE_S)
        return time.monotonic() < until
    opened = deeds.timed("open", lambda: annotator.open(task["id"]))
    if not pace.wait():
        return False
    annotation = deeds.timed("submit", lambda: annotator.submit(task))
    scores = [p.get("score") or 1.0 for p in opened.get("predictions") or ()]
    deeds.submit(task["id"], annotation, live=min(scores, default=1.0) > 0.99)
    return True


def _kind(error: Exception) -> str:
    """What an error says, without the numbers that make each its own."""
    text = str(error).partition(":")[2].strip() or str(error)
    return "".join("#" if c.isdigit() else c for c in text)[:100]


def call_webhooks(
    url: str, payload: dict[str, Any], secret: str, rate: float, seconds: float
) -> Deeds:
    """Post ``payload``, each time of another task, as Label Studio does: a connection each."""
    deeds, pace, began = Deeds(), Pace(rate, seconds), time.monotonic()

    def post(_: int) -> None:
        while pace.wait():
            said = {**payload, "task": {**payload.get("task", {}), "id": int(time.time() * 1e6)}}
            try:
                answer = deeds.timed(
                    "webhook",
                    lambda said=said: requests.post(
                        url, json=said, headers={WEBHOOK_HEADER: secret},
                        timeout=_LABEL_STUDIO_WAITS_S,
                    ),
                )  # fmt: skip
                if answer.status_code != 200:
                    deeds.fail(str(answer.status_code))
            except requests.RequestException as error:
                deeds.fail(type(error).__name__)

    with ThreadPoolExecutor(_POSTERS) as pool:
        list(pool.map(post, range(_POSTERS)))
    deeds.wall_s = time.monotonic() - began
    return deeds
