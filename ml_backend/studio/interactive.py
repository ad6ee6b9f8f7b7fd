"""A drag on Label Studio's page: what the page asks, what stands there, and what it is answered.

The page sends the prompt and nothing of what it shows: drafts are saved some 5 s after a change. So
what stands there is put together from what is known (`standing`), and an answer says as little as
possible (`answer`): what a class gains comes as a region of its own on top of the others, so that a
stroke which nobody has seen yet stays; only where the background takes over, which nobody can
paint, regions come back smaller, under their own ids. No prompt becomes a label.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.studio.annotations import (
    AnnotationError,
    Layer,
    Region,
    label_hash,
    mask_region,
    painted_layer,
)
from ml_backend.studio.label_config import LabelConfig

__all__ = [
    "DRAG_HELP",
    "DRAG_PREFIX",
    "Canvas",
    "Layers",
    "Prompt",
    "Result",
    "Standing",
    "answer",
    "dragged",
    "emptied",
    "label_of",
    "nothing",
    "prompt_of",
    "standing",
    "taken",
]

Result = dict[str, Any]
"""One region, as Label Studio's JSON has it."""

DRAG_HELP = """<h4>Repair a mask with a drag</h4>
<ol>
<li>Once: switch on <b>Auto-Annotation</b> below the image, then <b>Auto-Accept Suggestions</b>.
</li>
<li>Press <b>M</b> and drag a small box over what is wrong; on a mask, hold <b>Ctrl</b> while you
drag.</li>
<li>Wrong guess? Drag there again for the next one; <b>Ctrl+Z</b> takes it back.</li>
</ol>
"""
"""For annotators, on the labelling page of a new project."""

DRAG_PREFIX = "drag-"
"""Of the ids of regions that are answered to a drag: Label Studio keeps them."""

_BOXES = frozenset({"rectangle", "rectanglelabels", "ellipse", "ellipselabels"})
_POINTS = frozenset({"keypoint", "keypointlabels"})


class Prompt(NamedTuple):
    """What was dragged: ``id`` of the region on the page, and its sides in percent of the image.
    ``label``: the label that was picked then; the page gives it to every region of the answer."""

    id: str
    top: float
    left: float
    bottom: float
    right: float
    label: str | None = None


def prompt_of(context: object, config: LabelConfig) -> Prompt | None:
    """The last box or point of the request's ``context``; None where there is none that can be
    read. A turned box is the one around it."""
    results = context.get("result") if isinstance(context, Mapping) else None
    found = [
        prompt
        for result in (results if isinstance(results, list) else ())
        if isinstance(result, Mapping)
        and result.get("to_name", config.to_name) == config.to_name
        and (prompt := _prompt(result)) is not None
    ]
    return found[-1]._replace(label=_picked(results, config)) if found else None


def _picked(results: object, config: LabelConfig) -> str | None:
    """The label of the control that paints masks which the prompts carry besides."""
    for result in _rows(results):
        value, kind = result.get("value"), str(result.get("type"))
        if result.get("from_name") == config.from_name and isinstance(value, Mapping):
            labels = value.get(kind)
            if isinstance(labels, list) and labels:
                return str(labels[-1])
    return None


def label_of(result: Mapping[str, Any]) -> str | None:
    """The label of a region that is painted."""
    value = result.get("value")
    labels = value.get(str(result.get("type"))) if isinstance(value, Mapping) else None
    return str(labels[0]) if isinstance(labels, list) and len(labels) == 1 else None


def nothing(config: LabelConfig, label: str, shape: tuple[int, int], name: str) -> Result:
    """A region of ``label`` without a painted pixel on a slice of ``shape``, called ``name``."""
    return mask_region(np.zeros(shape, np.bool_), config, config.class_index(label) or 0, name)


def _prompt(result: Mapping[str, Any]) -> Prompt | None:
    kind, value = str(result.get("type") or "").lower(), result.get("value")
    if not isinstance(value, Mapping) or kind not in _BOXES | _POINTS:
        return None
    names = {"ellipse": ("x", "y", "radiusX", "radiusY")}.get(
        kind.removesuffix("labels"), ("x", "y", "width", "height")
    )
    try:
        x, y, width, height = (float(value.get(name) or 0) for name in names)
        angle = math.radians(float(value.get("rotation") or 0))
    except (TypeError, ValueError):
        return None
    if not all(map(math.isfinite, (x, y, width, height, angle))):
        return None
    if kind in _POINTS:
        corners = [(x, y)]
    else:
        first = (-width, -height) if kind.startswith("ellipse") else (0.0, 0.0)
        offsets = [(a, b) for a in (first[0], width) for b in (first[1], height)]
        cos, sin = math.cos(angle), math.sin(angle)
        # Percent of width and of height are of different length; turned boxes are rare here.
        corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in offsets]
    across, down = zip(*corners, strict=True)
    return Prompt(str(result.get("id") or ""), min(down), min(across), max(down), max(across))


# -- what stands on the page


@dataclass(frozen=True)
class Standing:
    """What the page is believed to show: ``results`` in painting order. ``draft``: the id of the
    draft that they are of, which was last ``saved`` then; None where they are of an annotation or a
    prediction. ``certain``: False where it may be another's annotation or the prediction that is
    shown."""

    results: tuple[Result, ...] = ()
    draft: int | None = None
    saved: datetime | None = None
    certain: bool = True

    @property
    def ids(self) -> set[str]:
        """Those of its regions, prompts that were not accepted included."""
        return {str(result.get("id")) for result in self.results}


def standing(task: Mapping[str, Any], model_version: str) -> Standing:
    """What the page shows of ``task``, as far as Label Studio knows.

    The newest draft: it sends those of the one who asks alone. Else the annotation that is changed,
    where one annotation a task is all there can be; else the prediction of ``model_version`` (or
    the newest one), which the page opens a slice with.
    """
    draft = _newest(task.get("drafts"))
    annotations = [a for a in _rows(task.get("annotations")) if not a.get("was_cancelled")]
    annotation = _newest(annotations)
    alone = task.get("overlap") in (None, 1)
    if draft is not None and not (
        alone and annotation is not None and _moment(annotation) > _moment(draft)
    ):
        return Standing(_results(draft), _number(draft), _moment(draft))
    if annotation is not None and alone:
        return Standing(_results(annotation))
    predictions = _rows(task.get("predictions"))
    ours = [p for p in predictions if p.get("model_version") == model_version]
    prediction = _newest(ours or predictions)
    shown = () if prediction is None else _results(prediction)
    return Standing(shown, certain=annotation is None)


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _newest(value: object) -> Mapping[str, Any] | None:
    return max(_rows(value), key=lambda row: (_moment(row), _number(row) or 0), default=None)


def _moment(row: Mapping[str, Any]) -> datetime:
    for name in ("updated_at", "created_at"):
        try:
            found = datetime.fromisoformat(str(row.get(name)))
        except ValueError:
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)


def _number(row: Mapping[str, Any]) -> int | None:
    found = row.get("id")
    return found if isinstance(found, int) else None


def _results(row: Mapping[str, Any]) -> tuple[Result, ...]:
    return tuple(dict(result) for result in _rows(row.get("result")))


# -- what is answered


class _Painted(NamedTuple):
    """``place``: of the region among the page's."""

    place: int
    class_index: int
    painted: npt.NDArray[np.bool_]


class Layers:
    """What regions paint, read once: the same ones come with every drag on a slice.

    ``limit_bytes`` of them at most, an eighth of a byte a pixel. Safe to use from many threads.
    """

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._kept: OrderedDict[object, tuple[int, npt.NDArray[np.uint8]] | None] = OrderedDict()
        self._lock = threading.Lock()

    def layer(self, result: Result, config: LabelConfig, shape: tuple[int, int]) -> Layer | None:
        """`painted_layer`. Raises AnnotationError for a region that cannot be read."""
        name = (label_hash([result]), str(result.get("from_name")), config, shape)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                found = self._kept[name]
                if found is None:
                    return None
                painted = np.unpackbits(found[1], count=shape[0] * shape[1])
                return Layer(found[0], painted.view(np.bool_).reshape(shape))
        layer = painted_layer(result, config, *shape)
        kept = None if layer is None else (layer.class_index, np.packbits(layer.painted))
        with self._lock:
            if name not in self._kept:
                self._kept[name] = kept
                self._bytes += 0 if kept is None else kept[1].nbytes
            while self._bytes > self._limit or len(self._kept) > _LAYERS:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= 0 if dropped is None else dropped[1].nbytes
        return layer


_LAYERS = 4096


class Canvas:
    """The regions of a page on a slice (H, W): which class is on top where, and of which regions.

    A region that cannot be read is not looked at, and stays. ``layers``: what reads them.
    """

    def __init__(
        self,
        results: Sequence[Result],
        config: LabelConfig,
        shape: tuple[int, int],
        layers: Layers | None = None,
    ) -> None:
        self.results, self.config, self.shape = tuple(results), config, shape
        self._known = layers or Layers()
        self.layers = tuple(self._layers())
        self.map = np.zeros(shape, np.uint8)
        for layer in self.layers:
            np.copyto(self.map, np.uint8(layer.class_index), where=layer.painted)

    def _layers(self) -> Iterator[_Painted]:
        for place, result in enumerate(self.results):
            try:
                layer = self._known.layer(result, self.config, self.shape)
            except AnnotationError:
                continue
            if layer is not None and layer.class_index < len(self.config.classes):
                yield _Painted(place, *layer)

    def showing(self, results: Sequence[Result]) -> Canvas:
        """The same slice with other regions."""
        return Canvas(results, self.config, self.shape, self._known)


def taken(results: Sequence[Result], changed: Mapping[str, Result]) -> tuple[Result, ...]:
    """The regions of a page after it has taken ``changed`` (id → region): replaced where they are
    there, else on top."""
    known = {str(result.get("id")) for result in results}
    kept = [changed.get(str(result.get("id")), result) for result in results]
    return (*kept, *(result for i, result in changed.items() if i not in known))


def answer(
    canvas: Canvas, wanted: npt.NDArray[np.uint8], patch: str, *, in_place: bool = True
) -> dict[str, Result] | None:
    """The regions, by id, that make ``canvas`` show ``wanted`` (H, W), and no more of them than
    that takes; empty where it does already.

    ``patch``: the id of a new region, where there is to be one. None where a region would have to
    come back smaller and may not (``in_place``).
    """
    config = canvas.config
    changed = wanted != canvas.map
    found: dict[str, Result] = {}
    for index in np.unique(wanted[changed]):
        there = changed & (wanted == index)
        if index or config.has_background_label:
            name = patch if patch not in found else f"{patch}-{index}"
            found[name] = mask_region(there, config, int(index), name)
            continue
        for layer in canvas.layers:
            if (layer.painted & there).any():
                result = canvas.results[layer.place]
                name = str(result.get("id") or "")
                if not in_place or not name:
                    return None
                found[name] = _repainted(result, layer.painted & ~there, config, layer.class_index)
    return found


def dragged(
    results: Iterable[Region], config: LabelConfig, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Where what a drag painted is on top, of the regions of a page on a slice of ``shape``.
    Raises AnnotationError for one that cannot be read."""
    found = np.zeros(shape, np.bool_)
    regions = list(results)
    if not any(region.id.startswith(DRAG_PREFIX) for region in regions):
        return found  # as most are: nothing is to be rendered
    for region in regions:
        layer = painted_layer(region, config, *shape)
        if layer is not None:
            found[layer.painted] = region.id.startswith(DRAG_PREFIX)
    return found


def emptied(result: Result, config: LabelConfig) -> Result:
    """The region of `answer` without a painted pixel: nothing deletes one."""
    height, width = int(result["original_height"]), int(result["original_width"])
    (label,) = result["value"][result["type"]]
    index = config.class_index(str(label)) or 0
    return _repainted(result, np.zeros((height, width), np.bool_), config, index)


def _repainted(
    result: Result, painted: npt.NDArray[np.bool_], config: LabelConfig, index: int
) -> Result:
    """``result`` with another mask; all else that it says stays."""
    return {**result, **mask_region(painted, config, index, str(result["id"]))}
