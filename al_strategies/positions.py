"""Where slices lie. Without NumPy: records name places, and who reads them need not wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from al_strategies.errors import EvidenceError

__all__ = ["Position", "SliceId", "ZBlock"]

SliceId = int | str
"""A Label Studio task id, or a file's name in a simulation. One kind in one Evidence."""


@dataclass(frozen=True, order=True)
class Position:
    """Where a slice lies: ``z`` in slices along the axis of ``volume``.

    Where z is not known, the order of the tasks stands for it and the project for the volume.
    Raises `EvidenceError` when z is not a finite number.
    """

    volume: str
    z: float

    def __post_init__(self) -> None:
        try:
            finite = math.isfinite(self.z)
        except TypeError:
            finite = False
        if not finite:
            raise EvidenceError(
                f"a slice of volume {self.volume!r} has z = {self.z!r}: give a number"
            )


@dataclass(frozen=True)
class ZBlock:
    """Slices of ``volume`` with ``low`` ≤ z ≤ ``high``; without an end where one is None, as in
    records of old (`closed`)."""

    volume: str
    low: float | None = None
    high: float | None = None

    @property
    def open(self) -> bool:
        """Whether it lacks an end."""
        return self.low is None or self.high is None

    def __contains__(self, position: object) -> bool:
        return (
            isinstance(position, Position)
            and position.volume == self.volume
            and (self.low is None or position.z >= self.low)
            and (self.high is None or position.z <= self.high)
        )
