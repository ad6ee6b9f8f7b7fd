"""Which kind of database Label Studio stands on, told by how it answers: its API names none.

(`/version/` shows it to the server's superusers alone, beside every secret of the server.) The Data
Manager hands a search by pattern to the database. PostgreSQL and MySQL know POSIX classes as
``[[:digit:]]``; SQLite has no patterns, so there Python looks, which does not.
"""

from __future__ import annotations

from itertools import islice
from typing import Literal

from ml_backend.studio.client import Filter, Studio, ids_in

__all__ = ["DatabaseKind", "database_kind"]

DatabaseKind = Literal["sqlite", "server"]
"""SQLite · PostgreSQL, or whatever else looks for patterns by itself."""

_PROJECTS = 50
"""So many projects are asked for a task."""
_A_DIGIT: Filter = {
    "filter": "filter:tasks:id",
    "operator": "regex",
    "type": "String",
    "value": "[[:digit:]]",
}


def database_kind(studio: Studio) -> DatabaseKind | None:
    """The kind of database behind ``studio``; None where no task is there to look for.

    One request a project until one has a task, then one more, both for a single task. Raises
    StudioError.
    """
    for project in islice(studio.projects(), _PROJECTS):
        task = studio.newest_task(project.id)
        if task:
            found = studio.count_tasks(project.id, [ids_in([task]), _A_DIGIT])
            return "server" if found else "sqlite"
    return None
