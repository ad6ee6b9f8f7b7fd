"""What a drag on Label Studio's page asks and is answered, in the page's own JSON."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ml_backend.studio.annotations import (
    AnnotationError,
    Layer,
    label_map,
    painted_layer,
    regions,
)
from ml_backend.studio.interactive import (
    Canvas,
    Layers,
    PackedLayer,
    Prompt,
    answer,
    nothing,
    prompt_of,
    put_back,
    size_of,
    standing,
    taken,
)
from ml_backend.studio.label_config import (
    LabelConfig,
    bitmask_config,
    brush_config,
    parse_label_config,
)

H, W = 40, 60
CONFIG = parse_label_config(bitmask_config(["bone", "implant"]))
BRUSH = parse_label_config(brush_config(["bone", "implant"]))
NAMED = parse_label_config(bitmask_config(["background", "bone", "implant"]))


def drawn(*boxes: tuple[int, int, int, int, int]) -> npt.NDArray[np.uint8]:
    found = np.zeros((H, W), np.uint8)
    for index, top, left, bottom, right in boxes:
        found[top:bottom, left:right] = index
    return found


def prompt(kind: str = "rectangle", **value: float) -> dict[str, Any]:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, **value}
    return {"id": "p", "type": kind, "from_name": "fix", "to_name": "image", "value": box}


# -- what is asked


def test_a_box_is_read_in_percent() -> None:
    assert prompt_of({"result": [prompt()]}, CONFIG) == Prompt("p", 20, 10, 60, 40)


def test_a_turned_box_is_the_one_around_it() -> None:
    found = prompt_of({"result": [prompt(x=50, y=50, width=20, height=10, rotation=90)]}, CONFIG)
    assert found is not None
    assert found[1:5] == pytest.approx((50, 40, 70, 50))


def test_an_ellipse_is_the_box_around_it_and_a_point_is_one() -> None:
    ellipse = prompt("ellipse", x=50, y=50, radiusX=5, radiusY=10)
    assert prompt_of({"result": [ellipse]}, CONFIG) == Prompt("p", 40, 45, 60, 55)
    assert prompt_of({"result": [prompt("keypoint")]}, CONFIG) == Prompt("p", 20, 10, 20, 10)


def test_the_prompt_drawn_last_counts() -> None:
    first = {**prompt(x=0), "id": "q"}
    found = prompt_of({"result": [first, prompt()]}, CONFIG)
    assert found is not None
    assert found.id == "p"


@pytest.mark.parametrize(
    "context",
    [
        None, "text", [], {}, {"result": None}, {"result": ["p"]}, {"result": [{"id": "p"}]},
        {"result": [prompt("brush")]}, {"result": [{**prompt(), "value": None}]},
        {"result": [prompt(x="far")]}, {"result": [prompt(x=float("nan"))]},  # type: ignore[arg-type]
        {"result": [prompt(width=[1])]},  # type: ignore[arg-type]
        {"result": [{**prompt(), "to_name": "other"}]},
    ],
)  # fmt: skip
def test_what_is_no_box_is_no_prompt(context: object) -> None:
    assert prompt_of(context, CONFIG) is None


# -- what stands there

BONE = {"id": "b", "type": "bitmasklabels"}
DRAFT = {"id": 5, "result": [BONE], "updated_at": "2026-11-01T10:00:00.5Z"}
PREDICTION = {"id": 1, "model_version": "v", "result": [{"id": "of the prediction"}]}
SUBMITTED = {"id": 9, "result": [{"id": "of the annotation"}], "updated_at": "2026-11-01T09:00:00Z"}


def test_the_prediction_that_the_page_opens_with_stands_first() -> None:
    other = {"id": 2, "model_version": "sam", "result": [{"id": "of another model"}]}
    found = standing({"predictions": [other, PREDICTION], "drafts": [], "annotations": []}, "v")
    assert (found.ids, found.draft, found.certain) == ({"of the prediction"}, None, True)


def test_a_draft_says_what_a_slice_shows_that_was_opened_before_the_last_round() -> None:
    older = {**PREDICTION, "id": 0, "model_version": "u", "result": [{"id": "of the last round"}]}
    task = {"predictions": [older, PREDICTION], "annotations": []}
    assert not standing({**task, "drafts": []}, "v").known
    assert standing({**task, "drafts": [DRAFT]}, "v").known
    bare = {**older, "result": []}
    assert not standing({"predictions": [bare, PREDICTION]}, "v").known, "or it shows nothing"


@pytest.mark.parametrize(
    ("made", "touched", "known"),
    [
        ("10:00:00.000001Z", "10:00:00.000090Z", True),
        ("10:00:00Z", "10:00:30Z", False),
        ("10:00:00+00:00", "12:00:30+02:00", False),
        ("10:00:00Z", None, True),
    ],
)
def test_a_slice_may_be_open_since_before_its_prediction_was_drawn(
    made: str, touched: str | None, known: bool
) -> None:
    """It shows nothing then: early rounds store their queue without masks."""
    moments = {
        "created_at": f"2026-11-01T{made}",
        "updated_at": touched and f"2026-11-01T{touched}",
    }
    task = {"predictions": [{**PREDICTION, **moments}]}
    assert standing(task, "v").known is known
    assert standing(task, "v").certain
    assert standing({**task, "drafts": [DRAFT]}, "v").known


def test_the_newest_draft_stands_before_all_else() -> None:
    older = {**DRAFT, "id": 4, "result": [], "updated_at": "2026-11-01T09:59:00Z"}
    task = {"predictions": [PREDICTION], "drafts": [DRAFT, older], "annotations": [SUBMITTED]}
    found = standing(task, "v")
    assert (found.ids, found.draft, found.certain) == ({"b"}, 5, True)


def test_a_draft_is_not_certain_once_an_annotation_is_saved_until_the_next_one_is() -> None:
    """That may be somebody else's, or what the page shows by now."""
    submitted = {**SUBMITTED, "updated_at": "2026-11-01T10:00:01Z"}
    task = {"predictions": [PREDICTION], "annotations": [SUBMITTED, submitted]}
    found = standing({**task, "drafts": [DRAFT]}, "v", lambda: True)
    assert (found.ids, found.draft, found.certain) == ({"b"}, 5, False)
    saved = {**DRAFT, "updated_at": "2026-11-01T10:00:06Z"}
    assert standing({**task, "drafts": [saved]}, "v").certain


def test_an_annotation_that_is_changed_stands_where_there_can_be_but_one() -> None:
    task = {"predictions": [PREDICTION], "annotations": [SUBMITTED]}
    found = standing(task, "v", lambda: True)
    assert (found.ids, found.certain) == ({"of the annotation"}, True)
    both = {**task, "annotations": [SUBMITTED, {**SUBMITTED, "id": 10}]}
    found = standing(both, "v", lambda: True)
    assert (found.ids, found.certain) == ({"of the prediction"}, False)


def test_a_skipped_annotation_may_be_what_is_shown_and_what_the_next_one_annotates() -> None:
    """Label Studio's page opens it for the one who skipped, with what was painted before."""
    skipped = {**SUBMITTED, "was_cancelled": True}
    task = {"predictions": [PREDICTION], "annotations": [skipped]}
    found = standing(task, "v", lambda: True)
    assert (found.ids, found.certain) == ({"of the prediction"}, False)
    both = {**task, "annotations": [skipped, {**SUBMITTED, "id": 10}]}
    assert not standing(both, "v", lambda: True).certain
    since = {**skipped, "updated_at": "2026-11-01T10:00:01Z"}
    assert not standing({**task, "annotations": [since], "drafts": [DRAFT]}, "v").certain


def test_anothers_annotation_is_not_what_a_second_annotator_sees() -> None:
    task = {"predictions": [PREDICTION], "annotations": [SUBMITTED]}
    found = standing(task, "v", lambda: False)
    assert (found.ids, found.certain) == ({"of the prediction"}, False)


@pytest.mark.parametrize("task", [{}, {"drafts": "none", "predictions": None}, {"drafts": [7]}])
def test_nothing_stands_where_nothing_is_said(task: dict[str, Any]) -> None:
    assert standing(task, "v").results == ()


# -- what is answered


def canvas(shown: npt.NDArray[np.uint8], config: LabelConfig = CONFIG) -> Canvas:
    return Canvas(regions(shown, config), config, (H, W))


def shown_after(page: Canvas, changed: dict[str, dict[str, Any]]) -> npt.NDArray[np.uint8]:
    """What a round would learn of the page."""
    return label_map(taken(page.results, changed), page.config, H, W, "background").mask


@pytest.mark.parametrize("config", [CONFIG, BRUSH, NAMED], ids=["bitmask", "brush", "background"])
def test_an_answer_makes_the_page_show_what_is_wanted(config: LabelConfig) -> None:
    page = canvas(drawn((1, 5, 5, 30, 30), (2, 10, 40, 20, 50)), config)
    for wanted in (
        drawn((1, 5, 5, 30, 30), (2, 10, 40, 20, 50), (2, 8, 8, 14, 14)),
        drawn((1, 5, 5, 30, 30), (2, 10, 40, 15, 50)),
        drawn((1, 5, 5, 30, 36), (2, 10, 40, 15, 50), (2, 0, 0, 3, 3)),
        drawn(),
    ):
        changed = answer(page, wanted, "new")
        assert changed
        assert (shown_after(page, changed) == wanted).all()


def test_what_a_class_gains_touches_no_region_that_is_there() -> None:
    """So a stroke on one of them that nobody has seen yet stays."""
    page = canvas(drawn((1, 5, 5, 30, 30)))
    changed = answer(page, drawn((1, 5, 5, 30, 30), (2, 8, 8, 14, 14)), "new")
    assert changed is not None
    assert set(changed) == {"new"}
    assert changed["new"]["value"]["bitmasklabels"] == ["implant"]


def test_what_becomes_background_comes_back_smaller_under_its_own_id() -> None:
    page = canvas(drawn((1, 5, 5, 30, 30), (2, 10, 40, 20, 50)))
    bone = page.results[0] | {"meta": {"text": ["a note"]}}
    page = Canvas([bone, *page.results[1:]], CONFIG, (H, W))
    changed = answer(page, drawn((1, 5, 5, 20, 30), (2, 10, 40, 20, 50)), "new")
    assert changed is not None
    assert set(changed) == {bone["id"]}
    assert changed[bone["id"]]["meta"] == {"text": ["a note"]}


def test_what_lies_beneath_goes_too_where_the_background_takes_over() -> None:
    page = canvas(drawn((1, 5, 5, 30, 30)))
    once = answer(page, drawn((1, 5, 5, 30, 30), (2, 8, 8, 14, 14)), "new")
    assert once is not None
    page = Canvas(taken(page.results, once), CONFIG, (H, W))
    wanted = drawn((1, 5, 5, 30, 30), (0, 8, 8, 14, 14))
    changed = answer(page, wanted, "newer")
    assert changed is not None
    assert set(changed) == {"new", page.results[0]["id"]}
    assert (shown_after(page, changed) == wanted).all()


def test_where_no_region_may_come_back_smaller_there_is_no_answer() -> None:
    page = canvas(drawn((1, 5, 5, 30, 30)))
    assert answer(page, drawn(), "new", in_place=False) is None
    assert answer(page, drawn((2, 5, 5, 30, 30)), "new", in_place=False)


def test_nothing_is_answered_where_the_page_shows_it() -> None:
    page = canvas(drawn((1, 5, 5, 30, 30)))
    assert answer(page, page.map.copy(), "new") == {}


def repainted(result: dict[str, Any], shown: npt.NDArray[np.uint8]) -> dict[str, Any]:
    (found,) = regions(shown, CONFIG)
    return {**found, "id": result["id"]}


HOLE = (slice(8, 14), slice(8, 14))
WINDOW = (slice(6, 16), slice(6, 16))


def test_what_is_put_back_is_what_was_there_and_outside_of_it_what_is_there_now() -> None:
    (bone,) = regions(drawn((1, 5, 5, 30, 30)), CONFIG)
    holed = drawn((1, 5, 5, 30, 30), (0, 8, 8, 14, 14), (1, 0, 50, 40, 60))
    added = {**repainted(bone, drawn((1, 9, 9, 12, 12), (1, 35, 0, 40, 5))), "id": "new"}
    page = Canvas([repainted(bone, holed), added], CONFIG, (H, W))
    changed = put_back(page, {bone["id"]: bone, "new": None, "gone": bone}, WINDOW)
    assert set(changed) == {bone["id"], "new"}
    now = page.taking(changed)
    assert (now.map == drawn((1, 5, 5, 30, 30), (1, 0, 50, 40, 60), (1, 35, 0, 40, 5))).all()
    assert put_back(now, {bone["id"]: bone, "new": None}, WINDOW) == {}


def test_what_nothing_else_was_done_to_is_put_back_to_the_letter() -> None:
    outline = triangle("o", 50)
    page = Canvas([outline], CONFIG, (H, W))
    wanted = page.map.copy()
    wanted[HOLE] = 0
    once = page.taking(answer(page, wanted, "new") or {})
    assert (once.map == wanted).all()
    assert put_back(once, {"o": outline}, WINDOW)["o"]["value"] == outline["value"]


def test_nothing_is_a_new_region_that_paints_nothing() -> None:
    for config, label in ((CONFIG, "bone"), (BRUSH, "implant"), (NAMED, "background")):
        one, other = nothing(config, label, (H, W)), nothing(config, label, (H, W))
        assert one["id"] != other["id"]
        assert one["value"][f"{config.kind}labels"] == [label]
        assert not label_map([one], config, H, W, "background").mask.any()
    for label in (None, "gone"):
        assert nothing(CONFIG, label, (H, W))["value"]["bitmasklabels"] == ["bone"]


def test_the_size_of_a_slice_is_that_of_its_prompts_or_else_its_regions() -> None:
    def of(height: object, width: object) -> dict[str, Any]:
        return {"original_height": height, "original_width": width}

    assert size_of({"result": [of(3, 4)]}, [of(5, 6)]) == (3, 4)
    assert size_of({"result": [prompt()]}, [{}, of(5, 6)]) == (5, 6)
    for no in ((0, 4), (-2, -2), ("3", 4), (None, None), (1 << 20, 1 << 20)):
        assert size_of(None, [of(*no)]) is None


def test_prompts_and_what_cannot_be_read_paint_nothing_and_stay() -> None:
    broken = {"id": "x", "type": "bitmasklabels", "from_name": "label", "to_name": "image",
              "value": {"imageDataURL": "data:,", "bitmasklabels": ["bone"]}}  # fmt: skip
    page = Canvas([broken, prompt(), {"id": "y", "type": "choices"}], CONFIG, (H, W))
    assert not page.map.any()
    assert [r["id"] for r in taken(page.results, {})] == ["x", "p", "y"]


def test_a_region_is_read_once_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(result: dict[str, Any], *arguments: Any) -> Any:
        read.append(result["id"])
        return painted_layer(result, *arguments)

    monkeypatch.setattr("ml_backend.studio.interactive.painted_layer", reading)
    drawings = [drawn((1, 0, 0, 5, width)) for width in (5, 6, 7)]
    pages = [regions(one, CONFIG) for one in drawings]
    layers = Layers(2 * 5)  # five rows of a byte each
    for page, wanted in [*zip(pages, drawings, strict=True)] * 2:
        assert (Canvas(page, CONFIG, (H, W), layers).map == wanted).all()
    assert len(read) == 6  # two are kept, and each comes when it is gone
    for _ in range(3):
        assert (Canvas(pages[2], CONFIG, (H, W), layers).map == drawings[2]).all()
    assert len(read) == 6


def test_the_same_mask_under_another_name_or_label_is_another() -> None:
    layers = Layers()
    (bone,) = regions(drawn((1, 0, 0, 5, 5)), CONFIG)
    implant = {**bone, "value": {**bone["value"], "bitmasklabels": ["implant"]}}
    prompt_ = {**bone, "from_name": "fix"}
    found = [Canvas([one], CONFIG, (H, W), layers).map.max() for one in (bone, implant, prompt_)]
    assert found == [1, 2, 0]


def triangle(name: str, right: int) -> dict[str, Any]:
    value = {"points": [[1, 1], [right, 1], [right, 60]], "polygonlabels": ["bone"]}
    named = {"id": name, "type": "polygonlabels", "from_name": "label", "to_name": "image"}
    return {**named, "value": value}


def test_regions_take_no_memory_of_a_slice_each() -> None:
    side = 1024
    tracemalloc.start()
    try:
        page = Canvas([triangle(f"{i}", 2 + i % 8) for i in range(200)], CONFIG, (side, side))
        page.taking({"0": triangle("0", 50)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * side**2, "before, 201 bytes a pixel"


@pytest.mark.parametrize(
    "window", [(0, 40, 0, 60), (3, 20, 5, 30), (8, 9, 11, 12), (30, 40, 50, 60)]
)
def test_a_packed_layer_is_the_layer_in_every_window(window: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = window
    rng = np.random.default_rng(3)
    for first, last in ((2, 30), (11, 12), (0, 60)):
        painted = np.zeros((H, W), np.bool_)
        painted[5:25, first:last] = rng.random((20, last - first)) < 0.4
        packed = PackedLayer.of(Layer(2, painted))
        found = packed.within((slice(top, bottom), slice(left, right)))
        assert (found == painted[top:bottom, left:right]).all()
        mask = np.ones((H, W), np.uint8)
        packed.paint(mask)
        assert (mask == np.where(painted, 2, 1)).all()


def test_more_regions_than_anybody_reads_are_no_canvas() -> None:
    with pytest.raises(AnnotationError, match="at most 500 regions on a page"):
        Canvas([triangle("x", 9)] * 501, CONFIG, (H, W))


def test_nor_are_regions_that_paint_too_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_backend.studio.interactive._MOST_BYTES", 3 * H * 8)
    wide = [{**r, "id": f"{i}"} for i, r in enumerate(regions(drawn((1, 0, 0, H, W)), CONFIG) * 4)]
    assert Canvas(wide[:3], CONFIG, (H, W)).map.all()
    with pytest.raises(AnnotationError, match="found 4 that take more"):
        Canvas(wide, CONFIG, (H, W))
