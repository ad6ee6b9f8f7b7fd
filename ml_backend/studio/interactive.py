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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from ml_backend.pictures import MOST_PIXELS
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
    "MOST_REGIONS",
    "Canvas",
    "Layers",
    "PackedLayer",
    "Prompt",
    "Result",
    "Standing",
    "answer",
    "dragged",
    "drawn_at",
    "label_of",
    "moment_of",
    "new_id",
    "nothing",
    "prompt_of",
    "put_back",
    "size_of",
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


def nothing(config: LabelConfig, label: str | None, shape: tuple[int, int]) -> Result:
    """A region of ``label``, or the first one, without a painted pixel on a slice of ``shape``. It
    is a new one: it replaces nothing on the page."""
    index = None if label is None else config.class_index(label)
    if index is None:
        index = config.classes.index(config.labels[0])
    return mask_region(np.zeros(shape, np.bool_), config, index, new_id())


def new_id() -> str:
    """Of a region that is answered to a drag, and that is not on the page."""
    return f"{DRAG_PREFIX}{uuid4().hex[:10]}"


def size_of(context: object, results: Iterable[Result]) -> tuple[int, int] | None:
    """(H, W) of the slice as the request's prompts say, or else its regions; None where none
    does."""
    prompts = context.get("result") if isinstance(context, Mapping) else None
    for result in (*_rows(prompts), *results):
        height, width = (_count(result, f"original_{side}") for side in ("height", "width"))
        if 0 < height * width <= MOST_PIXELS:
            return height, width
    return None


def _count(result: Mapping[str, Any], name: str) -> int:
    """A number of ``result``, 0 where it has none that counts something."""
    found = result.get(name)
    return max(0, found) if isinstance(found, int) else 0


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
    prediction. ``certain``: False where it may be an annotation that is shown. ``newer``: there are
    predictions of several versions, or this one got its regions after it was stored, and a slice
    that was opened before shows others or none; nobody has worked on that yet, or there would be a
    draft."""

    results: tuple[Result, ...] = ()
    draft: int | None = None
    saved: datetime | None = None
    certain: bool = True
    newer: bool = False

    @property
    def known(self) -> bool:
        """Whether a region may be answered as it stands, without another mask coming onto the
        page."""
        return self.certain and not self.newer

    @property
    def ids(self) -> set[str]:
        """Those of its regions, prompts that were not accepted included."""
        return {str(result.get("id")) for result in self.results}


def standing(
    task: Mapping[str, Any], model_version: str, wants_one: Callable[[], bool] = lambda: False
) -> Standing:
    """What the page shows of ``task``, as far as Label Studio knows. It sends the drafts of the one
    who asks alone, but everybody's annotations, and does not say who asks.

    The newest draft, for certain until an annotation is saved. Without one the annotation that is
    changed, where there is one and ``wants_one`` says that there can be no more; else the
    prediction of ``model_version`` (or the newest one), which the page opens a slice with. One that
    is skipped is an annotation: it keeps its regions and is opened again, but others may annotate.
    """
    draft = _newest(task.get("drafts"))
    annotations = _rows(task.get("annotations"))
    if draft is not None:
        saved = _moment(draft)
        certain = all(_moment(annotation) <= saved for annotation in annotations)
        return Standing(_results(draft), _number(draft), saved, certain)
    skipped = any(annotation.get("was_cancelled") for annotation in annotations)
    if len(annotations) == 1 and not skipped and wants_one():
        return Standing(_results(annotations[0]))
    predictions = _rows(task.get("predictions"))
    ours = [p for p in predictions if p.get("model_version") == model_version]
    prediction = _newest(ours or predictions)
    if prediction is None:
        return Standing(certain=not annotations)
    versions = {str(p.get("model_version")) for p in predictions}
    newer = len(versions) > 1 or drawn_at(prediction) is not None
    return Standing(_results(prediction), certain=not annotations, newer=newer)


_AT_ONCE = timedelta(seconds=1)
"""A prediction that was touched no later than this after it was made was not drawn into."""


def drawn_at(prediction: Mapping[str, Any]) -> datetime | None:
    """When ``prediction`` got its regions, where that was after it was stored: early rounds store
    their queue bare and draw into it (`task_order.draw`). None else, or where nobody says."""
    made, touched = moment_of(prediction.get("created_at")), moment_of(prediction.get("updated_at"))
    if made is None or touched is None or touched - made <= _AT_ONCE:
        return None
    return touched


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _newest(value: object) -> Mapping[str, Any] | None:
    return max(_rows(value), key=lambda row: (_moment(row), _number(row) or 0), default=None)


def _moment(row: Mapping[str, Any]) -> datetime:
    found = moment_of(row.get("updated_at")) or moment_of(row.get("created_at"))
    return found or datetime.min.replace(tzinfo=UTC)


def moment_of(said: object) -> datetime | None:
    """The moment that Label Studio says, of UTC where it names no zone; None where it says none."""
    try:
        found = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def _number(row: Mapping[str, Any]) -> int | None:
    found = row.get("id")
    return found if isinstance(found, int) else None


def _results(row: Mapping[str, Any]) -> tuple[Result, ...]:
    return tuple(dict(result) for result in _rows(row.get("result")))


# -- what is answered


Window = tuple[slice, slice]
"""Rows and columns of a slice, with their beginnings and ends."""

MOST_REGIONS = 500
"""Of a page that is dragged on: each takes time to be read, and the first drag reads them all."""
_MOST_BYTES = 128 << 20
"""Of what a page's regions paint, an eighth of a byte a pixel of the boxes around them."""


class PackedLayer(NamedTuple):
    """A `Layer` in an eighth of a byte a pixel. ``bits``: of the rows from ``top`` on, of the
    ``width`` columns from ``left`` on; outside of them it paints nothing."""

    class_index: int
    top: int
    left: int
    width: int
    bits: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, layer: Layer) -> PackedLayer:
        """``layer``, packed."""
        down, across = _around(layer.painted)
        bits = np.packbits(layer.painted[down, across], axis=1)
        return cls(layer.class_index, down.start, across.start, across.stop - across.start, bits)

    @property
    def window(self) -> Window:
        """The box around all that it paints."""
        bottom, right = self.top + len(self.bits), self.left + self.width
        return slice(self.top, bottom), slice(self.left, right)

    def within(self, window: Window) -> npt.NDArray[np.bool_]:
        """Where it paints in ``window``."""
        found = np.zeros([side.stop - side.start for side in window], np.bool_)
        down, across = map(_shared, window, self.window)
        if down.start < down.stop and across.start < across.stop:
            rows = np.unpackbits(self.bits[_from(down, self.top)], axis=1, count=self.width)
            part = rows.view(np.bool_)[:, _from(across, self.left)]
            found[_from(down, window[0].start), _from(across, window[1].start)] = part
        return found

    def paint(self, mask: npt.NDArray[np.uint8]) -> None:
        """Write its class into ``mask`` (H, W), where it paints."""
        painted = np.unpackbits(self.bits, axis=1, count=self.width).view(np.bool_)
        np.copyto(mask[self.window], np.uint8(self.class_index), where=painted)


def _around(painted: npt.NDArray[np.bool_]) -> Window:
    """The smallest window with all that is painted; an empty one where nothing is."""
    rows = np.flatnonzero(painted.any(axis=1))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    down = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(painted[down].any(axis=0))
    return down, slice(int(columns[0]), int(columns[-1]) + 1)


def _shared(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _from(side: slice, first: int) -> slice:
    """``side``, counted from ``first`` on."""
    return slice(side.start - first, side.stop - first)


class Layers:
    """What regions paint, read once: the same ones come with every drag on a slice.

    ``limit_bytes`` of them at most. Safe to use from many threads.
    """

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._kept: OrderedDict[object, PackedLayer | None] = OrderedDict()
        self._lock = threading.Lock()

    def layer(
        self, result: Result, config: LabelConfig, shape: tuple[int, int]
    ) -> PackedLayer | None:
        """`painted_layer`. Raises AnnotationError for a region that cannot be read."""
        name = (label_hash([result]), str(result.get("from_name")), config, shape)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        layer = painted_layer(result, config, *shape)
        packed = None if layer is None else PackedLayer.of(layer)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = packed
                self._bytes += _bytes(packed)
            while self._bytes > self._limit or len(self._kept) > _LAYERS:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _bytes(dropped)
        return packed


_LAYERS = 4096


def _bytes(layer: PackedLayer | None) -> int:
    return 0 if layer is None else layer.bits.nbytes


class Canvas:
    """The regions of a page on a slice (H, W): which class is on top where, and of which regions.

    A region that cannot be read is not looked at, and stays. ``reader``: what reads them; ``look``
    is called before each that is read, and may raise. ``layers``: of each of ``results``, None for
    one that paints nothing that we know. Raises AnnotationError for more than `MOST_REGIONS`, and
    where they paint too much to be kept.
    """

    def __init__(
        self,
        results: Sequence[Result],
        config: LabelConfig,
        shape: tuple[int, int],
        reader: Layers | None = None,
        look: Callable[[], None] = lambda: None,
        known: Mapping[int, PackedLayer | None] = MappingProxyType({}),
    ) -> None:
        if len(results) > MOST_REGIONS:
            raise AnnotationError(
                f"expected at most {MOST_REGIONS} regions on a page that is dragged on, found "
                f"{len(results)}: correct it with the brush"
            )
        self.results, self.config, self.shape = tuple(results), config, shape
        self._reader, self._look = reader or Layers(), look
        self.layers = tuple(self._read(known))
        self.map = np.zeros(shape, np.uint8)
        for layer in filter(None, self.layers):
            layer.paint(self.map)

    def _read(self, known: Mapping[int, PackedLayer | None]) -> Iterator[PackedLayer | None]:
        """Those of ``known`` (by the identity of the result) are not read again."""
        left = _MOST_BYTES
        for result in self.results:
            layer = known[id(result)] if id(result) in known else self.layer(result)
            left -= _bytes(layer)
            if left < 0:
                raise AnnotationError(
                    f"expected regions that take {_MOST_BYTES >> 20} MiB at most on a page that is "
                    f"dragged on, found {len(self.results)} that take more: correct it with the "
                    "brush"
                )
            yield layer

    def layer(self, result: Result) -> PackedLayer | None:
        """What a region would paint here; None where that is nothing that we know."""
        self._look()
        try:
            layer = self._reader.layer(result, self.config, self.shape)
        except AnnotationError:
            return None
        return layer if layer and layer.class_index < len(self.config.classes) else None

    def taking(self, changed: Mapping[str, Result]) -> Canvas:
        """The page after it has taken ``changed``, as `taken` says."""
        known = {id(r): layer for r, layer in zip(self.results, self.layers, strict=True)}
        results = taken(self.results, changed)
        return Canvas(results, self.config, self.shape, self._reader, self._look, known)


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
    window = _around(changed)
    found: dict[str, Result] = {}
    for index in np.unique(wanted[changed]):
        there = changed[window] & (wanted[window] == index)
        if index or config.has_background_label:
            name = patch if patch not in found else f"{patch}-{index}"
            painted = np.zeros(canvas.shape, np.bool_)
            painted[window] = there
            found[name] = mask_region(painted, config, int(index), name)
            continue
        for result, layer in zip(canvas.results, canvas.layers, strict=True):
            if layer is not None and (layer.within(window) & there).any():
                name = str(result.get("id") or "")
                if not in_place or not name:
                    return None
                rest = layer.within(_whole(canvas.shape))
                rest[window] &= ~there
                found[name] = _repainted(result, rest, config, layer.class_index)
    return found


def put_back(
    canvas: Canvas, before: Mapping[str, Result | None], window: Window
) -> dict[str, Result]:
    """The regions, by id, that make ``window`` hold again what those of ``before`` painted there
    (None: nothing). Outside of it they paint what they paint now, whoever painted that. Left out:
    those that hold it already, and those that are not on ``canvas`` any more."""
    found: dict[str, Result] = {}
    for result, layer in zip(canvas.results, canvas.layers, strict=True):
        name = str(result.get("id"))
        if layer is None or name not in before:
            continue
        former = before[name]
        was = None if former is None else canvas.layer(former)
        now = layer.within(window)
        then = np.zeros_like(now) if was is None else was.within(window)
        if (now == then).all():
            continue
        painted = layer.within(_whole(canvas.shape))
        painted[window] = then
        if former is not None and _paints(was, layer.class_index, painted):
            found[name] = {**result, **former}  # nothing else was done to it: as it was
        else:
            found[name] = _repainted(result, painted, canvas.config, layer.class_index)
    return found


def _paints(layer: PackedLayer | None, index: int, painted: npt.NDArray[np.bool_]) -> bool:
    """Whether it paints class ``index``, there and nowhere else."""
    if layer is None or layer.class_index != index:
        return False
    return bool((layer.within(_whole(painted.shape)) == painted).all())


def _whole(shape: tuple[int, ...]) -> Window:
    return slice(0, shape[0]), slice(0, shape[1])


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


def _repainted(
    result: Result, painted: npt.NDArray[np.bool_], config: LabelConfig, index: int
) -> Result:
    """``result`` with another mask; all else that it says stays."""
    return {**result, **mask_region(painted, config, index, str(result["id"]))}
