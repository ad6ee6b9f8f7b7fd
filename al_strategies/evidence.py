"""What one pass of the model leaves of each slice: numbers and vectors, never probability maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from al_strategies.errors import EvidenceError
from al_strategies.positions import Position, SliceId

__all__ = [
    "CLASS_FRACTIONS",
    "CLASS_SCORES",
    "CONFIDENCE",
    "EMBEDDING",
    "ENTROPY",
    "FEATURES",
    "FOREGROUND",
    "GRADIENT",
    "IOU",
    "MARGIN",
    "MC_ENTROPY",
    "SCORES",
    "STANDARD",
    "Evidence",
    "EvidenceError",
    "Position",
    "SliceId",
    "declare_evidence",
    "declared_evidence",
]

ENTROPY = "entropy"
"""Score: mean over valid pixels of -sum_c p log p, in nats, in [0, log C]."""
CONFIDENCE = "confidence"
"""Score: mean over valid pixels of max_c p, in [1/C, 1]."""
MARGIN = "margin"
"""Score: mean over valid pixels of the largest minus the second largest p, in [0, 1]."""
MC_ENTROPY = "mc_entropy"
"""Score: mean over valid pixels of the entropy of the mean p over T dropout passes."""
FOREGROUND = "foreground"
"""Score: mean over valid pixels of 1 - p of class 0 (background), in [0, 1]."""
IOU = "iou"
"""Score: IoU of the prediction with the true mask, the mean over the mask's classes, in [0, 1]."""
EMBEDDING = "embedding"
"""Feature (N, D): average over valid pixels of the network's concatenated branches."""
CLASS_FRACTIONS = "class_fractions"
"""Feature (N, C): fraction of valid pixels predicted as each class; a row sums to 1."""
CLASS_SCORES = "class_scores"
"""Feature (N, C): mean over valid pixels of p_c times the entropy, nats; rows sum to `ENTROPY`."""
GRADIENT = "gradient"
"""Feature (N, C * D): mean over pixels of the last layer's loss gradient at its own prediction."""

SCORES = frozenset({ENTROPY, CONFIDENCE, MARGIN, MC_ENTROPY, FOREGROUND, IOU})
"""The standard names that stand in `Evidence.scores`."""
FEATURES = frozenset({EMBEDDING, CLASS_FRACTIONS, CLASS_SCORES, GRADIENT})
"""The standard names that stand in `Evidence.features`."""
STANDARD = SCORES | FEATURES
"""All standard names: what the network of ``ml_backend`` leaves, no more and no less."""

Kind = Literal["score", "feature"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(sorted(SCORES), "score"),
    **dict.fromkeys(sorted(FEATURES), "feature"),
}


def declare_evidence(name: str, kind: Kind) -> None:
    """Say that a learner leaves the evidence ``name`` of slices, so that strategies may ask for it:
    `register` refuses one whose evidence nobody has declared.

    The standard names are declared already. Whoever computes another one declares it where that
    learner is defined; again is no harm. Raises `EvidenceError` when it is declared as another kind
    or ``kind`` is none.
    """
    if kind not in ("score", "feature"):
        raise EvidenceError(f"evidence {name!r} has the kind {kind!r}, expected score or feature")
    if _KINDS.setdefault(name, kind) != kind:
        raise EvidenceError(f"evidence {name!r} is declared as a {_KINDS[name]}, not as a {kind}")


def declared_evidence() -> Mapping[str, Kind]:
    """Every name that a strategy may ask for: the standard ones and those declared besides."""
    return dict(_KINDS)


@dataclass(frozen=True)
class Evidence:
    """Named numbers and named vectors for N slices. N may be 0.

    ``ids``: N slice ids, unique, all ``int`` or all ``str``. ``positions``: N positions.
    ``scores``: name → (N,) real numbers. ``features``: name → (N, D) float32, D at least 1.

    Raises `EvidenceError` when lengths, ids, shapes or dtypes are otherwise. Values are not looked
    at here: a strategy checks those that it declares.
    """

    ids: tuple[SliceId, ...]
    positions: tuple[Position, ...]
    scores: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    features: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ids(self.ids)
        if len(self.positions) != len(self.ids):
            raise EvidenceError(
                f"{len(self.ids)} ids but {len(self.positions)} positions: give one per slice"
            )
        stray = next((p for p in self.positions if not isinstance(p, Position)), None)
        if stray is not None:
            raise EvidenceError(f"a position is {stray!r}, expected Position(volume, z)")
        for name, values in self.scores.items():
            _check_score(name, values, len(self.ids))
        for name, values in self.features.items():
            _check_feature(name, values, len(self.ids))
        for kind in ("scores", "features"):
            arrays = {name: np.asarray(values) for name, values in getattr(self, kind).items()}
            object.__setattr__(self, kind, arrays)

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def empty() -> Evidence:
        """Evidence of no slice: what is labelled before the first round."""
        return Evidence(ids=(), positions=())

    @staticmethod
    def concat(parts: Iterable[Evidence]) -> Evidence:
        """The slices of ``parts`` one after the other: how shards of a pool come together.

        Parts without a slice are left out. Raises `EvidenceError` when the others differ in the
        names they hold or share an id.
        """
        full = [part for part in parts if len(part)]
        if not full:
            return Evidence.empty()
        names = [(sorted(part.scores), sorted(part.features)) for part in full]
        if any(other != names[0] for other in names):
            raise EvidenceError(f"the parts hold different evidence: {names}")
        return Evidence(
            ids=tuple(i for part in full for i in part.ids),
            positions=tuple(p for part in full for p in part.positions),
            scores={n: np.concatenate([p.scores[n] for p in full]) for n in full[0].scores},
            features={n: np.concatenate([p.features[n] for p in full]) for n in full[0].features},
        )

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Evidence:
        """The rows ``indices``, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        return Evidence(
            ids=tuple(self.ids[i] for i in rows),
            positions=tuple(self.positions[i] for i in rows),
            scores={name: v[rows] for name, v in self.scores.items()},
            features={name: v[rows] for name, v in self.features.items()},
        )


def _check_ids(ids: tuple[SliceId, ...]) -> None:
    kinds = {type(i) for i in ids}
    if len(kinds) > 1 or not kinds <= {int, str}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise EvidenceError(f"slice ids must be all int or all str, found {found}")
    if len(set(ids)) != len(ids):
        seen: set[SliceId] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise EvidenceError(f"slice id {twice!r} is there more than once: ids must be unique")


def _check_score(name: str, values: npt.NDArray[Any], n: int) -> None:
    if np.shape(values) != (n,):
        raise EvidenceError(f"score {name!r} has shape {np.shape(values)}, expected ({n},)")
    dtype = np.asarray(values).dtype
    if dtype.kind not in "fiu":
        raise EvidenceError(f"score {name!r} has dtype {dtype}, expected real numbers")


def _check_feature(name: str, values: npt.NDArray[Any], n: int) -> None:
    shape = np.shape(values)
    if len(shape) != 2 or shape[0] != n or shape[1] < 1:
        raise EvidenceError(f"feature {name!r} has shape {shape}, expected ({n}, D) with D >= 1")
    dtype = np.asarray(values).dtype
    if dtype != np.float32:
        raise EvidenceError(
            f"feature {name!r} has dtype {dtype}, expected float32: convert it with .astype"
        )
