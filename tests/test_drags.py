"""Drags through /predict: what two people's pages show after each answer. No network is needed:
what is believed of the slice is put where it would be kept."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flask import Flask

from al_strategies.learner import Beliefs
from ml_backend.api import drags
from ml_backend.api.opened import SliceName, StillComputing
from ml_backend.api.serving import Serving
from ml_backend.app import create_app
from ml_backend.rounds.artefacts import PROJECT
from ml_backend.rounds.records import ProjectRecord, Published
from ml_backend.settings import Settings
from ml_backend.studio.annotations import label_map, regions
from ml_backend.studio.label_config import bitmask_config, parse_label_config

KEY = "7.1763865028"
VERSION = "nextslice-r001-abcdef"
XML = bitmask_config(["bone", "implant"])
CONFIG = parse_label_config(XML)
SIDE = 64
IMAGE = "/data/upload/7/1.png"
Y, X = np.mgrid[:SIDE, :SIDE]
BONE = (Y >= 8) & (Y < 56) & (X >= 8) & (X < 56)
MISSED = np.hypot(Y - 30, X - 30) < 8
"""Within the bone: nearly implant, and a little less likely background."""


def beliefs() -> Beliefs:
    scores = np.stack(
        [
            np.where(BONE, np.where(MISSED, 1.0, -4.0), 6.0),
            np.where(BONE, 3.0, -4.0),
            np.where(MISSED, 2.0, -6.0),
        ]
    )
    believed = (scores - np.log(np.exp(scores).sum(0))).astype(np.float16)
    return Beliefs(believed.argmax(0).astype(np.uint8), believed)


@pytest.fixture
def app(make_settings: Callable[..., Settings], redis_url: str) -> Flask:
    app = create_app(make_settings(REDIS_URL=redis_url, NEXTSLICE_PUBLISHED_TTL_S="600"))
    serving: Serving = app.extensions["nextslice"]
    published = Published(
        round=1,
        model_version=VERSION,
        classes=list(CONFIG.classes),
        fingerprint=CONFIG.fingerprint,
        weights="round-001/weights.safetensors",
    )
    serving.project(KEY).folder.published = published
    serving._warmed.add((KEY, "round-001/weights.safetensors"))  # there are none
    for task in (1, 2):
        serving.opened.keep(SliceName(KEY, str(published.weights), task, IMAGE), beliefs())
    return app


class Page:
    """Label Studio's page of one person: regions, strokes, and drafts that come late."""

    def __init__(self, app: Flask, task: int = 1, draft: int = 100) -> None:
        self._client, self._task, self._draft = app.test_client(), task, draft
        self.regions = {r["id"]: r for r in regions(beliefs().mask, CONFIG)}
        self._prediction = list(self.regions.values())
        self._saved: list[dict[str, Any]] | None = None
        self._moment = datetime(2026, 11, 1, tzinfo=UTC)
        self.others: dict[str, Any] = {}
        self.picked: str | None = None

    def save(self) -> None:
        """The draft, as it is saved some seconds after a change."""
        self._saved = [dict(r) for r in self.regions.values()]
        self._moment += timedelta(seconds=5)

    def stroke(self, painted: npt.NDArray[np.bool_], label: str = "bone") -> str:
        (found,) = regions(painted.astype(np.uint8) * CONFIG.classes.index(label), CONFIG)
        self.regions[found["id"]] = found
        return str(found["id"])

    def ask(self, top: int, left: int, bottom: int, right: int, **changed: Any) -> dict[str, Any]:
        value = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        box = {name: length * 100 / SIDE for name, length in value.items()} | {"rotation": 0}
        prompt = {"id": f"p{top}{left}", "type": "rectangle", "from_name": "fix",
                  "to_name": "image", "value": box}  # fmt: skip
        prompts = [prompt]
        if self.picked is not None:
            value = {**box, "bitmasklabels": [self.picked]}
            prompts.append({**prompt, "type": "bitmasklabels", "from_name": "label",
                            "value": value})  # fmt: skip
        drafts = [] if self._saved is None else [
            {"id": self._draft, "result": self._saved, "updated_at": self._moment.isoformat()}
        ]  # fmt: skip
        task = {
            "id": self._task,
            "data": {"image": IMAGE},
            "annotations": [],
            "predictions": [{"id": 1, "model_version": VERSION, "result": self._prediction}],
            "drafts": drafts,
            **self.others,
        }
        body = {"tasks": [task], "project": KEY, "label_config": XML,
                "params": {"login": "", "context": {"result": prompts}}, **changed}  # fmt: skip
        answered = self._client.post("/predict", json=body)
        assert answered.status_code == 200
        (found,) = answered.get_json()["results"]
        return dict(found)

    def drag(self, *box: int) -> list[str]:
        """Take what is answered, as with auto-accept; the ids of what it was. Label Studio gives
        each region the label that is picked."""
        found = self.ask(*box)["result"]
        if self.picked is not None:
            found = [{**r, "value": {**r["value"], "bitmasklabels": [self.picked]}} for r in found]
        self.regions |= {r["id"]: r for r in found}
        return [r["id"] for r in found]

    @property
    def shown(self) -> npt.NDArray[np.uint8]:
        return label_map(list(self.regions.values()), CONFIG, SIDE, SIDE).mask


OVER = (21, 21, 40, 40)
"""Around what was missed."""
NEAR = (Y >= 10) & (Y < 52) & (X >= 10) & (X < 52)
"""The box, and all around it that a drag may change."""


def wrong(page: Page, wanted: npt.NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(page.shown != wanted))


@pytest.mark.parametrize("seen", [True, False], ids=["it was read before", "never"])
def test_a_drag_while_the_store_does_not_answer_is_no_error(
    app: Flask, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """What is published is read every two seconds; all that a drag needs is in memory by then."""
    page, serving = Page(app), app.extensions["nextslice"]
    if seen:
        serving.published(KEY)
        serving._seen[KEY] = replace(serving._seen[KEY], at=-math.inf)

    def away(*_: object, **__: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(serving.service.store.fs, "cat_file", away)
    before = page.shown
    page.drag(*OVER)

    assert (page.shown != before).any() == seen


def test_a_drag_repairs_what_was_missed_in_a_region_of_its_own(app: Flask) -> None:
    page = Page(app)
    wanted = np.where(MISSED, 2, BONE).astype(np.uint8)
    before = wrong(page, wanted)
    (patch,) = page.drag(*OVER)
    assert patch not in {r["id"] for r in page._prediction}
    assert wrong(page, wanted) < 0.2 * before
    answered = page.regions[patch]
    assert answered["value"]["bitmasklabels"] == ["implant"]
    assert answered["original_width"] == SIDE


def test_an_answer_names_the_version_that_is_served(app: Flask) -> None:
    assert Page(app).ask(*OVER)["model_version"] == VERSION


def test_drags_on_one_spot_go_through_the_alternatives_and_back(app: Flask) -> None:
    page = Page(app)
    first = page.shown
    seen = []
    for _ in range(4):
        page.drag(*OVER)
        seen.append(page.shown)
    middle = [int(shown[30, 30]) for shown in seen]
    assert middle == [2, 0, 1, 2]
    assert (seen[2] == first).all()
    assert (seen[3] == seen[0]).all()


DARK, BRIGHT = np.hypot(Y - 22, X - 22) < 6, np.hypot(Y - 42, X - 42) < 6
"""Within the bone: nearly implant both, and a little less likely background."""
OVER_DARK, OVER_BRIGHT = (16, 16, 28, 28), (36, 36, 48, 48)


@pytest.fixture
def two_places(app: Flask) -> Page:
    there = DARK | BRIGHT
    scores = np.stack(
        [
            np.where(BONE, np.where(there, 1.6, -4.0), 6.0),
            np.where(BONE, 3.0, -4.0),
            np.where(there, 2.0, -6.0),
        ]
    )
    believed = (scores - np.log(np.exp(scores).sum(0))).astype(np.float16)
    served = SliceName(KEY, "round-001/weights.safetensors", 1, IMAGE)
    app.extensions["nextslice"].opened.keep(served, Beliefs(beliefs().mask, believed))
    return Page(app)


def test_what_was_not_meant_in_one_place_is_not_guessed_first_in_another(two_places: Page) -> None:
    two_places.drag(*OVER_DARK)
    assert two_places.shown[22, 22] == 2
    two_places.drag(*OVER_DARK)
    assert two_places.shown[22, 22] == 0
    two_places.drag(*OVER_BRIGHT)
    assert two_places.shown[42, 42] == 0
    two_places.drag(*OVER_BRIGHT)
    assert two_places.shown[42, 42] == 2, "all alternatives of a place come in turn"


def test_what_was_taken_is_guessed_again(two_places: Page) -> None:
    two_places.drag(*OVER_DARK)
    two_places.drag(*OVER_BRIGHT)
    assert two_places.shown[42, 42] == 2


def test_what_was_undone_is_not_guessed_first_in_another_place(two_places: Page) -> None:
    two_places.save()  # a draft tells the person who comes back from another
    undone = dict(two_places.regions)
    two_places.drag(*OVER_DARK)
    assert two_places.shown[22, 22] == 2
    two_places.regions = undone
    two_places.save()
    two_places.drag(*OVER_BRIGHT)
    assert two_places.shown[42, 42] == 0


def test_a_label_that_was_picked_says_nothing_of_what_is_meant_without(two_places: Page) -> None:
    two_places.picked = "implant"
    two_places.drag(*OVER_DARK)
    two_places.drag(*OVER_DARK)
    two_places.picked = None
    two_places.drag(*OVER_BRIGHT)
    assert two_places.shown[42, 42] == 2


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_drag_on_the_spot_knows_the_first_whether_its_draft_was_saved_or_not(
    app: Flask, saved: bool
) -> None:
    page = Page(app)
    page.drag(*OVER)
    if saved:
        page.save()
    page.drag(*OVER)
    assert page.shown[30, 30] == 0


def test_a_stroke_of_the_last_seconds_stays(app: Flask) -> None:
    """Nobody has seen it: it was drawn after the last draft."""
    page = Page(app)
    page.save()
    stroke = (Y > 57) & (X < 20)
    page.stroke(stroke, "implant")
    page.drag(*OVER)  # to implant
    page.drag(*OVER)  # to background
    assert (page.shown[stroke] == 2).all()
    assert page.shown[30, 30] == 0


def test_a_stroke_into_the_very_region_stays_where_a_class_takes_over(app: Flask) -> None:
    page = Page(app)
    page.save()
    bone = next(r for r in page.regions.values() if r["value"]["bitmasklabels"] == ["bone"])
    wider = BONE | (X < 3)
    (extended,) = regions(wider.astype(np.uint8), CONFIG)
    page.regions[bone["id"]] = {**extended, "id": bone["id"]}
    page.drag(*OVER)
    assert page.shown[30, 30] == 2
    assert (page.shown[:, :3] == 1).all()


def test_what_was_undone_on_the_page_is_not_brought_back(app: Flask) -> None:
    page = Page(app)
    (patch,) = page.drag(*OVER)
    del page.regions[patch]  # Ctrl+Z
    page.save()
    found = page.drag(44, 44, 60, 60)  # elsewhere
    assert patch not in found
    assert page.shown[30, 30] == 1


def test_what_no_draft_held_in_time_is_not_on_the_page(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, clock = Page(app), [100.0]
    monkeypatch.setattr(drags, "_seconds", lambda: clock[0])
    page.save()
    (patch,) = page.drag(*OVER)
    del page.regions[patch]  # Ctrl+Z, and nothing was saved
    clock[0] += 9
    page.drag(*OVER)
    assert page.shown[30, 30] == 2, "the first alternative, as for the first time"


def test_two_people_on_one_task_do_not_see_each_others_corrections(app: Flask) -> None:
    one, other = Page(app, draft=100), Page(app, draft=200)
    other.stroke((Y > 60) & (X > 60))
    other.save()
    one.stroke((Y > 60) & (X < 3))
    one.save()
    one.drag(*OVER)
    one.drag(*OVER)
    assert one.shown[30, 30] == 0
    other.drag(44, 50, 60, 63)
    assert other.shown[30, 30] == 1
    other.drag(*OVER)
    assert other.shown[30, 30] == 2  # their first drag there


def test_where_another_may_have_annotated_no_region_comes_back(app: Flask) -> None:
    """The page may show their annotation, or the prediction: nobody says."""
    page = Page(app)
    submitted = {"id": 3, "result": [], "updated_at": "2026-11-01T00:00:00Z"}
    page.others = {"annotations": [submitted]}
    known = {r["id"] for r in page._prediction}
    assert not known & set(page.drag(*OVER))


def test_a_drag_that_changes_nothing_is_answered_with_a_region_as_it_stands(app: Flask) -> None:
    page = Page(app)
    for changed in ({"label_config": bitmask_config(["bone", "other"])},
                    {"params": {"context": {"result": [{"type": "brush"}]}}}):  # fmt: skip
        (found,) = page.ask(*OVER, **changed)["result"]
        assert found in page._prediction


# -- what somebody's work is when nobody says what the page shows


@pytest.fixture
def of_bone(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """A project of bone and background, of which no drag can paint anything new."""
    here = __name__
    monkeypatch.setattr(f"{here}.XML", bitmask_config(["bone"]))
    monkeypatch.setattr(f"{here}.CONFIG", config := parse_label_config(XML))
    scores = np.stack([np.where(BONE, np.where(MISSED, 2.0, -4.0), 6.0), np.where(BONE, 3.0, -4.0)])
    believed = (scores - np.log(np.exp(scores).sum(0))).astype(np.float16)
    found = Beliefs(believed.argmax(0).astype(np.uint8), believed)
    monkeypatch.setattr(f"{here}.beliefs", lambda: found)
    serving: Serving = app.extensions["nextslice"]
    weights = "round-001/weights.safetensors"
    serving.project(KEY).folder.published = Published(
        round=1, model_version=VERSION, classes=list(config.classes),
        fingerprint=config.fingerprint, weights=weights,
    )  # fmt: skip
    serving.opened.keep(SliceName(KEY, weights, 1, IMAGE), found)
    return app


def reopened(app: Flask, **fields: Any) -> Page:
    """Of somebody who opens their own annotation again, maybe one of two that are wanted: the
    region of the prediction, with half of it taken away and a rim added, under its id."""
    page = Page(app)
    (bone,) = page.regions
    (mine,) = regions(((BONE & (X < 45)) | (Y < 4)).astype(np.uint8), CONFIG)
    page.regions = {bone: {**mine, "id": bone}}
    submitted = {"id": 3, "result": list(page.regions.values()),
                 "updated_at": "2026-11-01T00:00:00Z", **fields}  # fmt: skip
    page.others = {"annotations": [submitted]}
    return page


def test_an_annotation_that_was_opened_again_is_not_made_the_prediction(of_bone: Flask) -> None:
    page = reopened(of_bone)
    before = page.shown
    (empty,) = page.drag(*OVER)
    assert (page.shown == before).all()
    assert empty not in {r["id"] for r in page._prediction}


def test_what_was_painted_before_a_slice_was_skipped_stays(of_bone: Flask) -> None:
    page = reopened(of_bone, was_cancelled=True)
    before = page.shown
    page.drag(*OVER)
    assert (page.shown == before).all()


@pytest.mark.parametrize("picked", [None, "bone"])
def test_nor_by_a_drag_that_fails(of_bone: Flask, picked: str | None) -> None:
    while of_bone.extensions["nextslice drags"]._places.acquire(blocking=False):
        pass
    page = reopened(of_bone)
    page.picked = picked
    before = page.shown
    (empty,) = page.drag(*OVER)
    assert (page.shown == before).all()
    assert page.regions[empty]["value"]["bitmasklabels"] == ["bone"]
    assert page.regions[empty]["original_width"] == SIDE


def test_where_a_slice_gets_one_annotation_it_is_that_which_a_drag_repairs(of_bone: Flask) -> None:
    folder = of_bone.extensions["nextslice"].project(KEY).folder
    folder.record = ProjectRecord(project=7, key=KEY, wanted_annotations=1)
    page = reopened(of_bone)
    before = page.shown
    (bone,) = page.drag(*OVER)
    assert bone in {r["id"] for r in page._prediction}
    assert page.shown[30, 30] == 0
    assert (page.shown == before)[~NEAR].all()


def test_where_the_store_does_not_say_how_many_it_gets_no_region_comes_back(
    of_bone: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    folder = of_bone.extensions["nextslice"].project(KEY).folder
    folder.record = ProjectRecord(project=7, key=KEY, wanted_annotations=1)
    folder.write(PROJECT, b"{")
    page = reopened(of_bone)
    before = page.shown
    page.drag(*OVER)
    assert (page.shown == before).all()
    assert "how many annotations it wants" in caplog.text


@pytest.mark.parametrize("stroke", [None, X < 5], ids=["untouched", "painted"])
def test_a_mask_that_somebody_else_submits_does_not_come_onto_the_page(
    of_bone: Flask, stroke: npt.NDArray[np.bool_] | None
) -> None:
    page = Page(of_bone)
    (bone,) = page.regions
    if stroke is not None:
        extended(page, bone, stroke)
    before = page.shown
    (theirs,) = regions((BONE & (X < 45)).astype(np.uint8), CONFIG)
    page.others = {"annotations": [{"id": 3, "result": [{**theirs, "id": bone}],
                   "updated_at": "2026-11-01T01:00:00Z"}]}  # fmt: skip
    for _ in range(2):
        page.drag(*OVER)
        assert (page.shown == before)[~NEAR].all()


def of_two_rounds(app: Flask) -> tuple[Page, list[dict[str, Any]], list[dict[str, Any]]]:
    """A page of a slice that has masks of two rounds; those of the earlier and of the later one."""
    page = Page(app)
    new = page._prediction
    shown = (Y >= 20) & (Y < 56) & (X >= 8) & (X < 40)
    old = regions(shown.astype(np.uint8), CONFIG)
    page.others = {"predictions": [
        {"id": 1, "model_version": "nextslice-r000-000000", "result": old},
        {"id": 2, "model_version": VERSION, "result": new},
    ]}  # fmt: skip
    return page, old, new


def test_a_drag_that_fails_brings_no_mask_of_a_round_that_came_after_the_slice_was_opened(
    of_bone: Flask,
) -> None:
    page, old, _ = of_two_rounds(of_bone)
    page.regions = {str(r["id"]): r for r in old}
    while of_bone.extensions["nextslice drags"]._places.acquire(blocking=False):
        pass
    before = page.shown
    page.drag(*OVER)
    assert (page.shown == before).all()


FIRST, LATER = "2026-11-01T00:00:00Z", "2026-11-01T00:00:30Z"


@pytest.mark.parametrize(
    ("before", "made"),
    [([], FIRST), ([{"id": 0, "model_version": "nextslice-r000-000000", "result": []}], LATER)],
    ids=["drawn into its place", "of the next round"],
)
def test_a_drag_that_fails_brings_no_mask_onto_a_slice_that_was_opened_without_one(
    of_bone: Flask, before: list[dict[str, Any]], made: str
) -> None:
    page = Page(of_bone)
    drawn = {"id": 1, "model_version": VERSION, "result": page._prediction,
             "created_at": made, "updated_at": LATER}  # fmt: skip
    page.others = {"predictions": [*before, drawn]}
    page.regions = {}
    while of_bone.extensions["nextslice drags"]._places.acquire(blocking=False):
        pass
    assert page.drag(*OVER), "or the box stays on the page"
    assert not page.shown.any()


@pytest.mark.parametrize("drawn", [None, BONE & (X < 30)])
def test_a_first_drag_takes_away_on_a_slice_that_has_masks_of_two_rounds(
    of_bone: Flask, drawn: npt.NDArray[np.bool_] | None
) -> None:
    """As most of a queue have for half an hour."""
    page, _, new = of_two_rounds(of_bone)
    page.regions = {str(r["id"]): r for r in new}
    if drawn is not None:
        page.stroke(drawn)
        page.save()
    assert page.shown[30, 30]
    page.drag(*OVER)
    assert page.shown[30, 30] == 0


def test_a_drag_that_fails_does_not_undo_the_one_before_it(of_bone: Flask) -> None:
    """No draft holds that yet."""
    page = Page(of_bone)
    page.drag(*OVER)
    before = page.shown
    assert before[30, 30] == 0
    while of_bone.extensions["nextslice drags"]._places.acquire(blocking=False):
        pass
    page.drag(*OVER)
    assert (page.shown == before).all()


# -- what was painted and saved since the last drag on a spot


def bone_of(page: Page) -> str:
    return next(i for i, r in page.regions.items() if r["value"]["bitmasklabels"] == ["bone"])


def extended(page: Page, name: str, painted: npt.NDArray[np.bool_]) -> None:
    """A stroke into a region, which a draft holds."""
    kept = label_map([page.regions[name]], CONFIG, SIDE, SIDE).mask
    (found,) = regions(np.where(painted, kept.max(), kept), CONFIG)
    page.regions[name] = {**found, "id": name}
    page.save()


FAR = X < 5


def test_another_drag_on_the_spot_keeps_what_was_painted_into_the_region_elsewhere(
    app: Flask,
) -> None:
    page = Page(app)
    page.drag(*OVER)
    page.drag(*OVER)  # takes background out of the bone
    page.save()
    extended(page, bone_of(page), FAR)
    for middle in (1, 2, 0, 1):
        page.drag(*OVER)
        assert page.shown[30, 30] == middle, "the next guess"
        assert (page.shown[FAR] == 1).all()


def test_nor_is_what_was_painted_into_the_answer_lost(app: Flask) -> None:
    page = Page(app)
    (patch,) = page.drag(*OVER)
    extended(page, patch, FAR)
    for middle in (0, 1, 2, 0):
        page.drag(*OVER)
        assert page.shown[30, 30] == middle
        assert (page.shown[FAR] == 2).all()


def test_back_at_the_beginning_a_region_is_what_it_was_to_the_letter(app: Flask) -> None:
    page = Page(app)
    first = dict(page.regions)
    for _ in range(3):
        page.drag(*OVER)
    assert {i: page.regions[i] for i in first} == first


# -- what a drag may take


def test_a_page_of_too_many_regions_is_left_as_it_is_and_the_log_says_why(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    page = Page(app)
    value = {"points": [[1, 1], [9, 1], [9, 9]], "polygonlabels": ["bone"]}
    outline = {"type": "polygonlabels", "from_name": "label", "to_name": "image", "value": value}
    page.regions |= {f"{i}": {**outline, "id": f"{i}"} for i in range(600)}
    page.save()
    before = dict(page.regions)
    assert page.drag(*OVER) == ["599"]
    assert page.regions == before
    assert "expected at most 500 regions on a page that is dragged on, found 601" in caplog.text


def test_regions_that_take_too_long_to_be_read_end_a_drag(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("ml_backend.api.drags._seconds", lambda: next(clock))
    page = Page(app)
    for i in range(3):
        page.stroke(i == X)
    page.save()
    before = page.shown
    page.drag(*OVER)
    assert (page.shown == before).all()
    assert "its 4 regions are still being read after 60 s" in caplog.text


def test_a_slice_that_is_slow_to_come_holds_up_no_drag_on_another(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving: Serving = app.extensions["nextslice"]
    asked, go = threading.Event(), threading.Event()
    left: list[float] = []

    class Slices:
        def around(self, task: int, url: str, neighbours: int, within_s: float) -> Any:
            left.append(within_s)
            if task == 11:
                asked.set()
                assert go.wait(300)
            return np.zeros((SIDE, SIDE), np.uint8)

    class Network:
        neighbours = 0

        def believe_image(self, image: Any) -> Beliefs:
            return beliefs()

    monkeypatch.setattr(serving, "_load", lambda *_: Network())
    monkeypatch.setattr(serving, "project", lambda _: SimpleNamespace(images=Slices()))
    with ThreadPoolExecutor(2) as people:
        names = [SliceName(KEY, "w", 11, "/slow.png"), SliceName("8.1", "w", 12, "/quick.png")]
        slow = people.submit(serving.opened.get, names[0], 20.0)
        assert asked.wait(120)
        quick = people.submit(serving.opened.get, names[1], 20.0)
        try:
            assert quick.result(120)
        finally:
            go.set()
        assert slow.result(120)
    assert all(0 < within_s <= 20 for within_s in left)


def test_a_network_that_is_at_others_for_long_is_not_waited_for(app: Flask) -> None:
    serving: Serving = app.extensions["nextslice"]
    with serving._watching[False], pytest.raises(StillComputing, match="task 11 waits"):
        serving.opened.get(SliceName(KEY, "w", 11, IMAGE), 0.05)


@pytest.mark.parametrize("task", [{"id": 1}, {"id": "x", "data": {}}, {"id": 1, "data": 7}, {}])
def test_a_drag_on_what_cannot_be_read_is_no_error(app: Flask, task: dict[str, Any]) -> None:
    page = Page(app)
    drawn = {"predictions": [{"id": 1, "result": page._prediction}]}
    (found,) = page.ask(*OVER, tasks=[{**drawn, **task}])["result"]
    assert found == page._prediction[-1]


def test_an_answer_that_is_overtaken_is_in_the_next_one(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio drops the first of two answers that are under way at once."""
    page = Page(app)
    clock = [100.0]
    monkeypatch.setattr("ml_backend.api.drags._seconds", lambda: clock[0])
    lost = page.ask(*OVER)["result"]
    clock[0] = 99.0  # the next was sent before that was answered
    found = page.drag(44, 48, 60, 60)
    assert {r["id"] for r in lost} <= set(found)
    assert page.shown[30, 30] == 2


def test_more_drags_than_there_are_places_wait_for_nothing(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    drags = app.extensions["nextslice drags"]
    while drags._places.acquire(blocking=False):
        pass
    (found,) = Page(app).ask(*OVER)["result"]
    assert found in Page(app)._prediction


# -- with a label picked, which the page gives to every region that it is answered


def test_the_label_that_is_picked_is_what_the_box_becomes(app: Flask) -> None:
    page = Page(app)
    page.picked = "bone"
    before = page.shown
    page.regions = {}
    page.save()
    page.drag(*OVER)
    assert set(np.unique(page.shown)) == {0, 1}
    assert (page.shown[MISSED] == 1).mean() > 0.6
    assert (before == 1).any()


@pytest.mark.parametrize("picked", ["bone", "implant"])
def test_no_other_class_takes_the_label_that_is_picked(app: Flask, picked: str) -> None:
    page = Page(app)
    page.picked = picked
    index = CONFIG.classes.index(picked)
    for _ in range(6):
        before = page.shown
        page.drag(*OVER)
        others = (page.shown != before) & (page.shown != index) & (before != index)
        assert not others.any(), "what is not of the picked class changed its class"
        far = np.ones((SIDE, SIDE), np.bool_)
        far[10:50, 10:50] = False
        assert (page.shown == before)[far].all()


def test_where_nothing_of_the_picked_class_is_there_nothing_is_painted(app: Flask) -> None:
    page = Page(app)
    page.picked = "implant"
    before = page.shown
    for results in (page.ask(0, 0, 4, 4)["result"], page.ask(60, 60, 64, 64)["result"]):
        assert results, "without a region, the page would keep the box"
        assert all(r["value"]["bitmasklabels"] == ["implant"] for r in results)
    assert (page.shown == before).all()
