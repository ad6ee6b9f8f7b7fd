"""The loop of `nextslice demo`: its slices, its rounds, and the person who is not there."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from al_strategies.evidence import SliceId
from al_strategies.holdout import held_out_block
from ml_backend.cli import console
from ml_backend.cli.progress import say
from ml_backend.cli.tables import whole
from ml_backend.embedded.annotator import Annotator
from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import ProcessGroup, StartError, wait_until
from ml_backend.embedded.stack import Stack
from ml_backend.embedded.uploads import UploadedSlice, create_project
from ml_backend.grey import grey_window
from ml_backend.rounds.artefacts import METRICS, ROUND, SELECTION
from ml_backend.rounds.effort import EffortTotals, totals_of
from ml_backend.rounds.project import find_project
from ml_backend.rounds.queue import pending
from ml_backend.rounds.records import Published
from ml_backend.rounds.service import Service
from ml_backend.studio.client import Studio
from ml_backend.studio.label_config import WHY, bitmask_config, parse_label_config
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.phantom import phantom
from ml_backend.volumes.window import Window, render

if TYPE_CHECKING:
    from ml_backend.cli.demo import Outcome

__all__ = ["Loop", "load_slices", "phantom_folder", "run_headless", "upload"]

_ROUND_TIMEOUT_S = 1800.0
_WATCHED_MINUTES = (0, 2, 5, 10)
_GAP = 3.0
"""Slices on each side of the held-out block that are in neither part, in z units."""


class _Shown:
    """A folder's slices as the demo uploads them: 8 bit, one window for all. What is trained on and
    what is measured on must be the same."""

    def __init__(self, source: FolderSource) -> None:
        self._source = source
        sample = [source.image(i) for i in source.ids[:: max(1, len(source.ids) // 16)]]
        self._window = None
        if any(image.dtype != np.uint8 for image in sample):
            values = np.concatenate([image.ravel()[::7] for image in sample])
            self._window = Window(*grey_window(values, (0.2, 99.8)))
        self.ids, self.mask, self.position = source.ids, source.mask, source.position

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        image = self._source.image(slice_id)
        return image if self._window is None else render(image, self._window)


@dataclass(frozen=True)
class _Data:
    """The demo's slices: what becomes tasks, and what the mIoU is measured on."""

    source: _Shown
    classes: tuple[str, ...]
    tasks: tuple[SliceId, ...]
    held_out: tuple[SliceId, ...]


def load_slices(folder: Path) -> _Data:
    source = FolderSource(folder)
    places = {i: source.position(i) for i in source.ids}
    tasks, held_out = held_out_block(places, gap=_GAP)
    return _Data(_Shown(source), source.classes, tasks, held_out)


def phantom_folder(home: Path, seed: int) -> Path:
    """The demo's phantom of ``seed``, generated once."""
    folder = home / (f"phantom-demo-{seed}" if seed else "phantom-demo")
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task("generating the phantom", total=None)
        phantom("demo", seed=seed).write(
            folder, progress=lambda _, done, total: bars.update(bar, completed=done, total=total)
        )
    return folder


def upload(studio: Studio, data: _Data, title: str) -> int:
    """A BitmaskLabels project with one 8-bit PNG a task; returns its number."""
    with Progress(console=console, transient=True) as bars:
        slices = (
            _uploaded(data.source, slice_id)
            for slice_id in bars.track(data.tasks, description="uploading slices")
        )
        return create_project(studio, title, bitmask_config(data.classes[1:], why=True), slices)


def _uploaded(source: _Shown, slice_id: SliceId) -> UploadedSlice:
    place = source.position(slice_id)
    why = f"Slice {slice_id} of {place.volume}."
    data = {"volume": place.volume, "z": place.z, "slice": str(slice_id), WHY: why}
    return UploadedSlice(str(slice_id), source.image(slice_id), data)


class Loop:
    """The demo's rounds: what Label Studio hands out, what is submitted, what comes back."""

    def __init__(self, stack: Stack, project: int, data: _Data, group: ProcessGroup) -> None:
        self.stack = stack
        self.project = find_project(Service(stack.settings()), project)
        self.folder = self.project.folder
        self.data = data
        self.group = group
        config = parse_label_config(self.project.in_studio().label_config)
        login = stack.label_studio
        session = Session(login.url, login.email, login.password)
        self.annotator = Annotator(
            session, project, config, lambda task: data.source.mask(task["slice"])
        )

    def wait_for(self, labels: int, report: Callable[[str], None]) -> Published:
        """Wait until a round on so many ``labels`` is published; 0: any round."""
        what = f"a round on {labels} labels"

        def arrived() -> bool:
            ended = self.group.ended()
            if ended is not None:
                raise StartError(ended)
            record = self.folder.record
            if record is not None and record.failures:
                raise StartError(f"{what} failed: {record.last_error}")
            progress = self.project.schedule.round_progress()
            if progress is not None and progress.step:
                report(f"{progress.step} {progress.done}/{progress.total or '?'}")
            found = self.folder.published
            if found is None:
                return False
            committed = self.folder.round(found.round).load(ROUND)
            return committed is not None and committed.annotated >= labels

        wait_until(arrived, f"{what} to be published", _ROUND_TIMEOUT_S, pause_s=0.5)
        found = self.folder.published
        assert found is not None
        return found

    def selected(self) -> list[int]:
        """The slices that the published round has chosen, first place first."""
        published = self.folder.published
        assert published is not None
        return self.folder.round(published.round).need(SELECTION).chosen

    def label(self, count: int, pace_s: float = 0.0) -> list[int]:
        """Label the next ``count`` tasks, fewer where Label Studio has none, with a pause before
        each; which they were."""
        handed: list[int] = []
        for _ in range(count):
            time.sleep(pace_s)
            task = self.annotator.label_next()
            if task is None:
                break
            handed.append(int(task["id"]))
        return handed

    def is_masked(self, task: dict[str, Any], published: Published) -> bool:
        """Whether ``task`` opens with the mask of ``published``, be it of background alone."""
        if task["id"] in pending(self.project, published):
            return False
        shown = self.annotator.open(task["id"])["predictions"]
        return any(found["model_version"] == published.model_version for found in shown)

    def wait_for_mask(self) -> None:
        """Wait until the slice that Label Studio hands out next has a trained network's mask."""

        def masked() -> bool:
            published = self.folder.published
            if published is None or published.weights is None:
                return False  # Label Studio is not asked: its CPU is that of the training
            task = self.annotator.next_task()
            return task is not None and self.is_masked(task, published)

        wait_until(masked, "the first mask", _ROUND_TIMEOUT_S, pause_s=0.5)

    def effort(self, after: int, published: Published) -> EffortTotals | None:
        """What the labels cost that the rounds after ``after`` were the first to have."""
        found = (self.folder.round(n).load(METRICS) for n in range(after + 1, published.round + 1))
        return totals_of([effort for metrics in found if metrics for effort in metrics.effort])

    def miou(self, published: Published) -> tuple[float, dict[str, float]]:
        """Mean and per-class IoU of the published model on the held-out block."""
        from ml_backend.rounds.learners import load_learner

        assert published.weights is not None
        settings = self.project.settings
        data = self.folder.read_at(published.weights)
        learner = load_learner(settings, data, settings.predict_device)
        metrics = learner.evaluate(self.data.source, self.data.held_out)
        return metrics.miou, metrics.iou


def _first_mask(loop: Loop) -> tuple[list[int], float | None]:
    """Label one slice and wait until the next one has a mask: which it was, and the seconds from
    its submission on. None, with nothing labelled, where no early round is asked for."""
    if 1 not in loop.project.settings.early_labels:
        return [], None
    handed = loop.label(1)
    begin = time.monotonic()
    loop.wait_for_mask()
    waited = time.monotonic() - begin
    say(f"the first mask is there {waited:.0f} s after the first submission")
    return handed, round(waited, 1)


def _without_new_labels(loop: Loop) -> list[dict[str, Any]]:
    """What is served 0, 2, 5 and 10 minutes after the last round, as long as training goes on."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    longest = loop.project.settings.further_minutes
    for minutes in (m for m in _WATCHED_MINUTES if longest and m <= longest):
        time.sleep(max(0.0, begin + 60 * minutes - time.monotonic()))
        published = loop.wait_for(0, lambda text: None)
        miou, _ = loop.miou(published)
        version = published.model_version
        rows.append({"minutes": minutes, "model_version": version, "miou": round(miou, 4)})
        say(f"after {minutes} minutes without new labels: {version}, mIoU {miou:.3f}")
    return rows


def _headless(
    loop: Loop, rounds: int, k: int, first: list[int], pace_s: float, rows: list[dict[str, Any]]
) -> None:
    """Label, wait, measure, ``rounds`` times; each adds a row to ``rows``. ``first``: slices that
    are labelled of the K of the first."""
    annotated = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    for number in range(1, rounds + 1):
        with Progress(*columns, console=console, transient=True) as bars:
            bar = bars.add_task(f"round {number}: labelling {k} slices as handed out")
            selected = [*first, *loop.selected()][:k]
            handed = [*first, *loop.label(k - len(first), pace_s)]
            first = []
            if len(handed) < k:
                raise StartError(
                    f"round {number}: Label Studio handed out {len(handed)} of {k} slices"
                )
            annotated += len(handed)
            begin = time.monotonic()

            def report(text: str, number: int = number, bar: Any = bar, bars: Any = bars) -> None:
                bars.update(bar, description=f"round {number}: {text}")

            published = loop.wait_for(annotated, report)
            waited = time.monotonic() - begin
            cost = loop.effort(rows[-1]["round"] if rows else 0, published)
            report("measuring on the held-out block")
            miou, iou = loop.miou(published)
        rows.append(
            {
                "round": published.round,
                "model_version": published.model_version,
                "annotated": annotated,
                "miou": round(miou, 4),
                "corrected_pixels": round(cost.per_slice) if cost else None,
                "corrected_share": round(cost.share, 4) if cost else None,
                "queue_matches_selection": handed == selected,
                "submit_to_publish_s": round(waited, 1),
                "iou": {name: round(value, 4) for name, value in iou.items() if value == value},
                "tasks": handed,
            }
        )
        say(f"round {published.round}: {published.model_version}, mIoU {miou:.3f}, {waited:.0f} s")


def _corrected(row: dict[str, Any]) -> str:
    """What the round's new labels cost: corrected pixels of a slice, on average."""
    pixels, share = row["corrected_pixels"], row["corrected_share"]
    return "–" if pixels is None else f"{pixels:,} ({share:.1%})"


def _table(rows: list[dict[str, Any]], held_out: int) -> Table:
    classes = list(dict.fromkeys(name for row in rows for name in row["iou"]))
    table = Table(title=f"IoU on {held_out} held-out slices, a z-block that is never a task")
    table.add_column("model version", no_wrap=True)
    for column in ("annotated", "corrected px", "mIoU", *classes, "queue", "wait, s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model_version"], str(row["annotated"]), _corrected(row), f"{row['miou']:.3f}",
            *(f"{row['iou'][n]:.3f}" if n in row["iou"] else "–" for n in classes),
            "as selected" if row["queue_matches_selection"] else "DIFFERS",
            f"{row['submit_to_publish_s']:.0f}",
        )  # fmt: skip
    return table


def run_headless(loop: Loop, rounds: int, k: int, pace_s: float, outcome: Outcome) -> None:
    """Label ``rounds`` times; ``outcome`` is told as far as it has come. Exits with 1 where slices
    were not handed out as they were selected."""
    first, outcome.first_mask_s = _first_mask(loop)
    _headless(loop, rounds, k, first, pace_s, outcome.rounds)
    outcome.ok = all(row["queue_matches_selection"] for row in outcome.rounds)
    print(whole(_table(outcome.rounds, len(loop.data.held_out))))
    waits = [row["submit_to_publish_s"] for row in outcome.rounds]
    say(f"from the last submit to the new queue: median {statistics.median(waits):.0f} s")
    outcome.without_labels = _without_new_labels(loop)
    if not outcome.ok:
        sys.exit(1)
