"""All targets by name."""

from __future__ import annotations

from tests.fuzz.faulty import FAULTY
from tests.fuzz.parsers import PARSERS
from tests.fuzz.target import Target
from tests.fuzz.volumes import VOLUMES
from tests.fuzz.wire import WIRE

__all__ = ["FAULTY", "TARGETS"]

TARGETS: dict[str, Target] = {one.name: one for one in (*PARSERS, *VOLUMES, *WIRE)}
