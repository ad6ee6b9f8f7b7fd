"""What other distributions bring: entry points, each loaded by itself, the broken ones left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["load_plugins"]

logger = logging.getLogger(__name__)


def load_plugins(group: str, load: Callable[[EntryPoint], None]) -> None:
    """Call ``load`` with every entry point of ``group``, in the order of distribution and name.

    Whatever it raises is logged as a warning that names the entry point and its distribution: a
    broken plugin costs nothing but itself.
    """
    # not at import: it reads the metadata of all that is installed, which takes some milliseconds
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=group), key=lambda point: (_owner(point), point.name)):
        try:
            load(point)
        except Exception as error:  # foreign code raises anything
            reason = " ".join(str(error).split()) or "no message"
            logger.warning(
                "the plugin %s = %s (%s) of %s is left out: %s: %s. Mend or uninstall it.",
                point.name, point.value, group, _owner(point), type(error).__name__, reason,
            )  # fmt: skip


def _owner(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else point.dist.name
