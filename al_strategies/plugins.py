"""What other distributions bring: entry points, each loaded by itself, the broken ones left out."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["load_plugins"]

logger = logging.getLogger(__name__)


def load_plugins(group: str, accept: Callable[[object], None]) -> None:
    """Load every entry point of ``group``, in the order of distribution and name, and hand what it
    leads to over to ``accept``.

    Whatever loading or ``accept`` raises is logged as a warning that names the entry point and its
    distribution: a broken plugin costs nothing but itself.
    """
    # not at import: it reads the metadata of all that is installed, which takes some milliseconds
    from importlib.metadata import EntryPoint, entry_points

    def whose(point: EntryPoint) -> str:
        return point.dist.name if point.dist is not None else "an unknown distribution"

    for point in sorted(entry_points(group=group), key=lambda point: (whose(point), point.name)):
        try:
            accept(point.load())
        except Exception as error:  # foreign code raises anything
            reason = " ".join(str(error).split()) or "no message"
            logger.warning(
                "the plugin %s = %s (%s) of %s is left out: %s: %s. Mend or uninstall it.",
                point.name, point.value, group, whose(point), type(error).__name__, reason,
            )  # fmt: skip
