"""Tasks without an image in the field that the labelling config reads: said once, for people.

Where no task has one, the config and the data speak of different fields, and only a person can tell
which of them is meant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from ml_backend.errors import NextsliceError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.studio.client import TaskRow
from ml_backend.studio.label_config import LabelConfig, data_fields

__all__ = ["Imageless", "look_for_images", "note", "unreadable"]

logger = logging.getLogger(__name__)

_FIELDS = 20
"""Named in a sentence."""
_TRIED = 3
_ONE_S = 10.0
"""For an image that is only looked at."""
_LOOKED_AT = 1000
_LOOK_S = 10.0
"""A project may have a hundred thousand tasks, and others wait for theirs."""


class Imageless:
    """How many of the tasks that were looked at have no image, and which fields those have."""

    def __init__(self, config: LabelConfig) -> None:
        self._config = config
        self._tasks = self._lacking = 0
        self._fields: set[str] = set()

    @classmethod
    def counted(
        cls, config: LabelConfig, tasks: int, lacking: int, rows: Iterable[TaskRow]
    ) -> Imageless:
        """Of ``tasks`` tasks ``lacking`` have none, of which ``rows`` are some."""
        found = cls(config)
        for row in rows:
            found.look(row)
        found._tasks, found._lacking = tasks, lacking
        return found

    def look(self, row: TaskRow) -> bool:
        """Whether the task has an image; it is counted."""
        self._tasks += 1
        found = self._config.image_of(row.data)
        if isinstance(found, str) and found:
            return True
        self._lacking += 1
        if len(self._fields) <= _FIELDS:
            self._fields.update(data_fields(row.data))
        return False

    def sentence(self, of: int = 0) -> str:
        """What a person should know; empty where every task has an image. ``of``: how many tasks
        the project has, where not all were looked at."""
        if not self._lacking:
            return ""
        names = sorted(self._fields)
        named = ", ".join(names[:_FIELDS]) + (", …" if len(names) > _FIELDS else "")
        field = self._config.value_field
        has = (
            f'has an image where the labelling config reads it (value="${field}" of '
            f'Image "{self._config.image_name}")'
        )
        found = f"their data has {named or 'nothing'}"
        if self._lacking < self._tasks:
            return (
                f"{self._lacking} of the project's {self._tasks} tasks have no image in {field}, "
                f"which the labelling config reads ({found}): they are left out."
            )
        which = f"of the project's {self._tasks} tasks"
        if of > self._tasks:
            which = f"of the first {self._tasks} of the project's {of} tasks"
        return (
            f"None {which} {has}: {found}. Name the field that holds "
            "the image's address under Settings → Labeling Interface, or import tasks that have "
            f"{field}."
        )


def unreadable(project: ConnectedProject, config: LabelConfig) -> str:
    """What a person should know where none of a few images can be read; empty where one can, or
    where no task has one. Each is asked for, through the cache."""
    errors: list[str] = []
    for row in _first_tasks(project):
        image = config.image_of(row.data)
        if not isinstance(image, str) or not image:
            continue
        try:
            project.images.image(row.id, image, _ONE_S)
        except (NextsliceError, OSError) as error:
            errors.append(str(error))
        else:
            return ""
        if len(errors) == _TRIED:
            break
    if not errors:
        return ""
    return f"None of the {len(errors)} images that were asked for can be read: {errors[0]}"


def note(project: ConnectedProject, sentence: str) -> None:
    """Keep ``sentence`` (`Imageless.sentence`) with the project, and log it where it is new."""
    if project.record.imageless == sentence:
        return
    project.update(lambda record: record.lacks_images(sentence))
    if sentence:
        logger.warning("project %s: %s", project.key, sentence)


def look_for_images(project: ConnectedProject, config: LabelConfig) -> None:
    """Note where no task has an image; one that has ends the look (`_first_tasks`)."""
    seen = Imageless(config)
    if not any(map(seen.look, _first_tasks(project))):
        note(project, seen.sentence(of=project.studio.count_tasks(project.number)))
    elif project.record.imageless.startswith("None "):
        note(project, "")


def _first_tasks(project: ConnectedProject) -> Iterator[TaskRow]:
    """The first `_LOOKED_AT` tasks of the project, or as many as come within `_LOOK_S`."""
    until = time.monotonic() + _LOOK_S
    for row in islice(project.studio.tasks(project.number), _LOOKED_AT):
        yield row
        if time.monotonic() >= until:
            return
