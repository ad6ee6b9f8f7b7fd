"""Drags: a box over a wrong place of an opened slice, answered with the regions that repair it.

Label Studio asks /predict with a ``context`` for each prompt that a person draws on the page. What
the page shows is not sent, and drafts are saved some 5 s late: so what we answered a moment ago is
remembered, by person, as far as drafts tell them apart. An answer is never an error and, where
there is any region, never empty: Label Studio would leave the box on the page without a word. Where
nothing changes it is a region as it stands; a new one without a pixel, where that is not certain.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.learner import Beliefs
from ml_backend.api.metrics import DragOutcome
from ml_backend.api.opened import SliceName, StillComputing
from ml_backend.api.places import a_place
from ml_backend.api.server import DRAGS
from ml_backend.api.serving import Serving, usable
from ml_backend.errors import NextsliceError
from ml_backend.segmentation.repair import Box, Change, LogProbabilities, alternatives, repair
from ml_backend.studio.interactive import (
    Canvas,
    Layers,
    Prompt,
    Result,
    Standing,
    answer,
    label_of,
    new_id,
    nothing,
    prompt_of,
    put_back,
    size_of,
    standing,
)
from ml_backend.studio.label_config import LabelConfig, parse_label_config
from ml_backend.studio.task_order import LIVE_SCORE, PENDING_VERSION

__all__ = ["Drags", "is_drag"]

logger = logging.getLogger(__name__)

_seconds = time.monotonic

_WITHIN_S = 60.0
"""Label Studio waits 100 s; a person has gone on long before, and an answer is applied even so."""
_LAG_S = 8.0
"""A draft is saved so long after a change at most: 5 s by Label Studio's clock, and the way."""
_PAGES = 64
"""Pages that are remembered, the last ones."""
_SAME_SPOT = 0.5
"""Boxes that overlap by more than that are drags on one spot."""
_MOST_TURNS = 64


@dataclass(frozen=True)
class _Spot:
    """The place dragged last. ``towards``: the class that was picked; ``turn``: how often it was
    dragged since the first drag there; ``before``: the regions that were answered, as they were
    before that, None for what was not there; ``stood``, ``shown``: what the page showed in
    ``around`` before that, and shows since the last answer. ``rejected``: what no drag before the
    first one there has meant; ``learned``: these, and what was rejected there."""

    box: Box
    towards: int | None
    around: Box
    turn: int
    patch: str
    before: Mapping[str, Result | None]
    stood: npt.NDArray[np.uint8]
    shown: npt.NDArray[np.uint8]
    rejected: frozenset[Change] = frozenset()
    learned: frozenset[Change] = frozenset()


@dataclass
class _Page:
    """What we told one person's page of one slice: ``given``, id → (when, region)."""

    draft: int | None
    at: float
    saved: object = None
    prompt: str = ""
    given: dict[str, tuple[float, Result]] = field(default_factory=dict)
    spot: _Spot | None = None


@dataclass
class _Pages:
    """Those of one slice, and their lock."""

    known: list[_Page] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def is_drag(context: object) -> bool:
    """Whether the ``context`` of a /predict is that of a prompt."""
    return isinstance(context, Mapping) and bool(context.get("result"))


class Drags:
    """The drags of all projects. Safe to use from many threads."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._layers = Layers()
        self._places = threading.BoundedSemaphore(DRAGS)
        self._pages: OrderedDict[tuple[str, int], _Pages] = OrderedDict()
        self._lock = threading.Lock()

    def predict(
        self, key: str, tasks: list[dict[str, Any]], label_config: str, context: object
    ) -> list[dict[str, Any]]:
        """One result per task, in order: the regions that change, or one that changes nothing."""
        return [self._answer(key, task, label_config, context) for task in tasks]

    def _answer(
        self, key: str, task: dict[str, Any], label_config: str, context: object
    ) -> dict[str, Any]:
        version = PENDING_VERSION
        stands = Standing()
        outcome: DragOutcome = "failed"
        found: dict[str, Result] = {}
        prompt: Prompt | None = None
        read: LabelConfig | None = None
        try:
            published = self._serving.published(key)
            version = version if published is None else published.model_version
            stands = standing(task, version, lambda: self._serving.wants_one(key))
            config, reason = usable(published, label_config)
            read = config or parse_label_config(label_config)
            prompt = prompt_of(context, read)
            if config is None or published is None or published.weights is None:
                logger.info("project %s: a drag changes nothing: %s", key, reason)
                outcome = "none"
            elif prompt is None:
                outcome = "none"
            else:
                name = SliceName(key, published.weights, int(task["id"]), _image(config, task))
                with a_place(self._places, _Busy()):
                    found, outcome = self._repaired(name, stands, prompt, config)
        except _Busy:
            logger.warning("project %s: %d drags are being answered already", key, DRAGS)
        except (ArithmeticError, KeyError, TypeError, ValueError, NextsliceError) as error:
            logger.warning("project %s: a drag on task %s: %s", key, task.get("id"), error)
        except Exception:  # the page would keep the box, without a word
            logger.exception("project %s: a drag on task %s", key, task.get("id"))
        self._serving.metrics.dragged(outcome)
        result = [*found.values()]
        if not result:
            certain = stands.known and not self._told_lately(key, task)
            label = None if prompt is None else prompt.label
            result = _unchanged(stands, certain, label, read, context)
        return {"result": result, "score": LIVE_SCORE, "model_version": version}

    def _repaired(
        self, name: SliceName, stands: Standing, prompt: Prompt, config: LabelConfig
    ) -> tuple[dict[str, Result], DragOutcome]:
        arrived = _seconds()
        beliefs = self._serving.opened.get(name, _WITHIN_S)
        shape = (beliefs.mask.shape[0], beliefs.mask.shape[1])

        def look() -> None:
            if _seconds() - arrived > _WITHIN_S:
                said = f"its {len(stands.results)} regions are still being read"
                raise StillComputing(f"{said} after {_WITHIN_S:.0f} s")

        known = Canvas(stands.results, config, shape, self._layers, look)
        with self._page(name, stands, arrived) as page:
            shown = known.taking({i: region for i, (_, region) in page.given.items()})
            towards = None if prompt.label is None else config.class_index(prompt.label)
            box = _box(prompt, shape)
            spot, changed = _drag(page.spot, shown, beliefs, box, towards, stands.certain)
            # The page drops an answer that a later request overtakes.
            overtaken = {i: r for i, (when, r) in page.given.items() if when >= arrived}
            page.spot, page.prompt, page.at = spot, prompt.id, _seconds()
            page.given |= {i: (page.at, region) for i, region in changed.items()}
            outcome: DragOutcome = "changed" if changed else "same"
            if not changed and stands.known:
                changed = _one_that_stands(shown, spot.box)
            found = overtaken | changed
            if prompt.label is not None:  # which the page gives to all of them
                found = {i: r for i, r in found.items() if label_of(r) == prompt.label}
            if not found and (prompt.label is not None or not stands.known):
                empty = nothing(config, prompt.label, shape)
                found = {str(empty["id"]): empty}
            return found, outcome

    def _told_lately(self, key: str, task: Mapping[str, Any]) -> bool:
        """Whether a page of the slice may show what we told it, and no draft holds yet."""
        try:
            slice_ = key, int(task["id"])
        except (KeyError, TypeError, ValueError):
            return False
        with self._lock:
            pages = self._pages.get(slice_)
        if pages is None:
            return False
        with pages.lock:
            told = [when for page in pages.known for when, _ in page.given.values()]
        return _seconds() - max(told, default=-math.inf) < _LAG_S

    @contextmanager
    def _page(self, name: SliceName, stands: Standing, now: float) -> Iterator[_Page]:
        """What is remembered of the page that asks, alone with it."""
        slice_ = (name.project, name.task)
        with self._lock:
            pages = self._pages.setdefault(slice_, _Pages())
            self._pages.move_to_end(slice_)
            while len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        with pages.lock:
            page = _of_the_same_person(pages.known, stands, now)
            if page is None:
                page = _Page(stands.draft, now)
                pages.known.append(page)
                del pages.known[:-_PAGES]
            _forget_what_is_saved(page, stands, now)
            yield page


class _Busy(Exception):
    """As many drags are being answered as may be."""


def _of_the_same_person(pages: list[_Page], stands: Standing, now: float) -> _Page | None:
    """The page that this draft is of. One without a draft is that of the last seconds, and of a
    first draft that one whose regions or prompt it holds."""
    if stands.draft is not None:
        for page in pages:
            if page.draft == stands.draft:
                return page
    for page in reversed(pages):
        if page.draft is not None:
            continue
        if stands.draft is None:
            if now - page.at < _LAG_S:
                return page
        elif stands.ids & {page.prompt, *page.given}:
            page.draft = stands.draft
            return page
    return None


def _forget_what_is_saved(page: _Page, stands: Standing, now: float) -> None:
    """What a draft was saved after is in it, if it still is on the page. One that holds the last
    prompt was saved before that was answered."""
    saved = stands.saved != page.saved and page.prompt not in stands.ids
    page.saved = stands.saved
    page.given = {
        i: (when, region)
        for i, (when, region) in page.given.items()
        if not saved and now - when < _LAG_S
    }


def _drag(
    before: _Spot | None,
    shown: Canvas,
    beliefs: Beliefs,
    box: Box,
    towards: int | None,
    in_place: bool,
) -> tuple[_Spot, dict[str, Result]]:
    """The spot as it is after a drag of ``box``, and the regions that change, by id."""
    believed = beliefs.log_probabilities
    if before is not None and _still_stands(before, shown, box, towards, in_place):
        back = put_back(shown, before.before, before.around.window)
        base = shown.taking(back)
        learned = before.learned | _guessed(before, base, believed)
        spot = replace(before, patch=_patch(before.patch, base), learned=learned)
        first = before.turn + 1
    else:
        back, base, first = {}, shown, 0
        learned = frozenset() if before is None else before.learned
        if before is not None and (_cut(shown, before.around) == before.stood).all():  # undone
            learned |= _guessed(before, shown, believed)
        box = box.on(shown.shape)
        around = box.around(shown.shape)
        stands = _cut(shown, around)
        spot = _Spot(box, towards, around, 0, new_id(), {}, stands, stands, learned, learned)
    kinds = len(believed)
    turns = 1 + (kinds * (kinds - 1) if towards is None else kinds)  # then they begin again
    for turn in range(first, first + min(turns, _MOST_TURNS)):
        wanted = repair(believed, base.map, spot.box, turn, towards, spot.rejected)
        changed = answer(base, wanted, spot.patch, in_place=in_place)
        if changed is None or (wanted[spot.around.window] == spot.shown).all():
            continue
        changed = back | changed
        known = {str(result.get("id")): result for result in base.results}
        were = {i: known.get(i) for i in changed} | dict(spot.before)
        shows = wanted[spot.around.window].copy()
        return replace(spot, turn=turn, before=were, shown=shows), changed
    return spot, {}


def _guessed(spot: _Spot, base: Canvas, believed: LogProbabilities) -> frozenset[Change]:
    """What the last answer took for meant, where ``base`` stood; nothing where the label that was
    picked said it, or nothing was changed."""
    if spot.towards is not None or (spot.shown == spot.stood).all():
        return frozenset()
    changes = alternatives(believed, base.map, spot.box, spot.rejected)
    place = spot.turn % (len(changes) + 1)  # as `repair` counts: after the last nothing changes
    return frozenset(changes[place : place + 1])


def _still_stands(
    spot: _Spot, shown: Canvas, box: Box, towards: int | None, in_place: bool
) -> bool:
    """Whether ``box`` is a drag on the same spot, where nothing was changed since, and what was
    answered there may be taken back."""
    same = box.overlap(spot.box) >= _SAME_SPOT and towards == spot.towards
    may = in_place or not any(spot.before.values())
    return same and may and bool((_cut(shown, spot.around) == spot.shown).all())


def _patch(last: str, base: Canvas) -> str:
    """The id of the next answer's region: the last one's, unless somebody has painted into that or
    above it since."""
    ids = [str(result.get("id")) for result in base.results]
    if last not in ids:
        return last
    layer = base.layers[-1]
    unused = ids.index(last) == len(ids) - 1 and layer is not None and not layer.bits.size
    return last if unused else new_id()


def _cut(canvas: Canvas, box: Box) -> npt.NDArray[np.uint8]:
    return canvas.map[box.window].copy()


def _box(prompt: Prompt, shape: tuple[int, int]) -> Box:
    """The pixels whose centres are in the prompt, in a slice of ``shape``."""
    height, width = shape
    limit = 10 * max(shape)

    def pixel(percent: float, length: int) -> int:
        return round(min(max(percent * length / 100, -limit), limit))

    return Box(
        pixel(prompt.top, height),
        pixel(prompt.left, width),
        pixel(prompt.bottom, height),
        pixel(prompt.right, width),
    )


def _one_that_stands(shown: Canvas, box: Box) -> dict[str, Result]:
    """A region as it stands, of those with the least in the box: people draw where they drag, and
    what they drew a moment ago is not known."""
    counts = {
        place: int(np.count_nonzero(layer.within(box.window)))
        for place, layer in enumerate(shown.layers)
        if layer is not None
    }
    if not counts:
        return {}
    place = min(counts, key=lambda p: (counts[p], -p))
    result = shown.results[place]
    return {str(result.get("id")): result}


def _unchanged(
    stands: Standing,
    certain: bool,
    label: str | None,
    config: LabelConfig | None,
    context: object,
) -> list[Result]:
    """What changes nothing on the page: the last region as it stands, where that is ``certain``,
    else a new one without a pixel. Of ``label``, where one is picked."""
    if certain:
        named = [r for r in stands.results if r.get("id") and label in (None, label_of(r))]
        if named or label is None:
            return named[-1:]
    size = size_of(context, stands.results)
    return [] if config is None or size is None else [nothing(config, label, size)]


def _image(config: LabelConfig, task: Mapping[str, Any]) -> str:
    url = config.image_of(task["data"])
    if not isinstance(url, str) or not url:
        raise KeyError(f"data.{config.value_field}")
    return url
