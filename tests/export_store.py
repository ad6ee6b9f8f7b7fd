"""A project in a store, with rounds, as the loop leaves it: what there is to export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.rounds.artefacts import DATASET, MASKS, METRICS, QUEUE, ROUND, SELECTION
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import (
    DatasetRecord,
    EffortRecord,
    LabelRecord,
    MetricsRecord,
    ProjectRecord,
    Published,
    QueueEntry,
    QueueRecord,
    RoundRecord,
    SelectionRecord,
    TaskRecord,
)
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config, parse_label_config

KEY = "7.1763865028"
CLASSES = ("background", "bone", "implant")
CONFIG = bitmask_config(CLASSES[1:])
SHAPE = (6, 20, 30)
"""(Z, Y, X) of the volumes."""

Mask = npt.NDArray[np.uint8]


def a_mask(seed: int, shape: tuple[int, int]) -> Mask:
    """Blocks of the three classes and of unlabelled pixels, another map for each seed."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 255], size=(-(-shape[0] // 4), -(-shape[1] // 4)))
    return np.kron(blocks, np.ones((4, 4))).astype(np.uint8)[: shape[0], : shape[1]]


class ExportStore(ConnectedProject):
    """Builds rounds of one project; ``masks`` holds every label map that was written, ``tasks``
    those of the last round."""

    def __init__(self, service: Service, key: str = KEY) -> None:
        super().__init__(service, key)
        self.tasks: list[TaskRecord] = []
        self.masks: dict[int, Mask] = {}

    @classmethod
    def of(cls, settings: Settings) -> ExportStore:
        """A store with an adopted project and no round."""
        made = cls(Service(settings))
        made.folder.record = ProjectRecord(project=7, key=KEY, adopted_at="2026-11-01T08:00:00")
        return made

    def add_round(
        self,
        number: int,
        tasks: list[TaskRecord],
        masks: Mapping[int, Mask],
        *,
        miou: float | None = None,
        config: str = CONFIG,
        users: tuple[int, ...] = (1, 2),
        cost: Mapping[int, int] | None = None,
        **changes: Any,
    ) -> None:
        """Commit and publish round ``number`` with the labels ``masks``: task → label map.
        ``users`` made them. ``cost``: task → corrected pixels of the labels that are new in it."""
        parsed = parse_label_config(config)
        shared: dict[str, Any] = {
            "classes": list(parsed.classes),
            "fingerprint": parsed.fingerprint,
        }
        version = f"nextslice-r{number:03d}-abcdef"
        folder = self.folder.round(number)
        labels = []
        effort = {
            task: EffortRecord(
                task=task, annotation=1000 + task, completed_by=users[task % len(users)],
                model_version=f"nextslice-r{number - 1:03d}-abcdef", pixels=masks[task].size,
                corrected=corrected, by_class={"bone": corrected}, boundary=corrected // 2,
                seconds=float(task),
            )
            for task, corrected in (cost or {}).items()
        }  # fmt: skip
        for task, mask in masks.items():
            folder.save(MASKS[task], mask)
            label = LabelRecord(
                task=task,
                annotation=1000 + task,
                updated_at=f"2026-11-0{number + 1}T09:00:00+00:00",
                completed_by=users[task % len(users)],
                hash=f"{task:032x}",
                mask=folder.relative(MASKS[task]),
                effort=effort.get(task),
            )
            labels.append(label)
        self.masks |= masks
        self.tasks = tasks
        dataset = DatasetRecord(
            round=number, label_config=config, synced_at="2026-11-09T09:00:00+00:00",
            tasks=tasks, labels=labels, **shared,
        )  # fmt: skip
        folder.save(DATASET, dataset)
        if number:
            ious: dict[str, float | None] = {} if miou is None else dict.fromkeys(CLASSES, miou)
            metrics = MetricsRecord(
                miou=miou,
                iou=ious,
                validation=[1, 2, 3] if ious else [],
                effort=list(effort.values()),
            )
            folder.save(METRICS, metrics)
        folder.save(
            SELECTION,
            SelectionRecord(strategy="coreset", seed=40 + number, chosen=[4, 5], reserve=[6],
                            scores={4: 0.5, 5: 0.25}),
        )  # fmt: skip
        entries = [QueueEntry(task=4, score=0.0001, kind="chosen")]
        folder.save(QUEUE, QueueRecord(model_version=version, entries=entries))
        record: dict[str, Any] = {
            "round": number, "model_version": version, "annotated": len(labels),
            "strategy": "coreset", "committed_at": f"2026-11-0{number + 1}T10:00:00+00:00",
            "seconds": {"train": 60.5, "score": 2.0}, "settings": {"seed": 40, "k": 2}, **shared,
        }  # fmt: skip
        folder.save(ROUND, RoundRecord(**{**record, **changes}))
        self.folder.published = Published(round=number, model_version=version, **shared)


def tasks_of(volume: str, axis: str, length: int, first: int) -> list[TaskRecord]:
    """A task for each slice of a volume, ids from ``first`` on."""
    return [
        TaskRecord(id=first + i, image=f"/{volume}/{i}.png", volume=volume, axis=axis, z=float(i))
        for i in range(length)
    ]
