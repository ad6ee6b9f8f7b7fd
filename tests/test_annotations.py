"""From Label Studio's JSON to class maps and back."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import tracemalloc
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk import RoleBasedTask
from label_studio_sdk.converter.brush import encode_rle
from label_studio_sdk.core.unchecked_base_model import construct_type
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from al_strategies.learner import IGNORE
from ml_backend.studio.annotations import (
    Annotation,
    AnnotationError,
    Region,
    choose_annotation,
    label_hash,
    label_map,
    parse_annotation,
    parse_task,
    regions,
)
from ml_backend.studio.label_config import (
    LabelConfig,
    bitmask_config,
    brush_config,
    parse_label_config,
)
from ml_backend.studio.masks import encode_bitmask, encode_brush

BITMASK = parse_label_config(bitmask_config(["bone", "implant", "layer"]))
BRUSH = parse_label_config(brush_config(["bone", "implant", "layer"]))
WITH_BACKGROUND = parse_label_config(bitmask_config(["bone", "Background", "implant", "layer"]))
BRUSH_WITH_BACKGROUND = parse_label_config(brush_config(["bg", "bone", "implant", "layer"]))
CONFIGS = [BITMASK, BRUSH, WITH_BACKGROUND, BRUSH_WITH_BACKGROUND]

BONE, IMPLANT, LAYER = 1, 2, 3


def region(kind: str, value: dict[str, Any], label: str | None = "bone", **more: Any) -> dict:
    labels = {} if label is None else {kind: [label]}
    return {"id": "r1", "type": kind, "to_name": "image", "value": {**value, **labels}, **more}


def brush(mask: np.ndarray, label: str | None = "bone", **more: Any) -> dict:
    height, width = mask.shape
    value = {"format": "rle", "rle": encode_brush(mask)}
    more = {"original_width": width, "original_height": height, "image_rotation": 0, **more}
    return region("brushlabels", value, label, **more)


def bitmask(mask: np.ndarray, label: str | None = "bone", **more: Any) -> dict:
    height, width = mask.shape
    value = {"imageDataURL": encode_bitmask(mask)}
    more = {"original_width": width, "original_height": height, "image_rotation": 0, **more}
    return region("bitmasklabels", value, label, **more)


def rectangle(x: float, y: float, width: float, height: float, rotation: float = 0) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return region("rectanglelabels", value)


def ellipse(x: float, y: float, rx: float, ry: float, rotation: float = 0) -> dict:
    value = {"x": x, "y": y, "radiusX": rx, "radiusY": ry, "rotation": rotation}
    return region("ellipselabels", value)


def polygon(*points: tuple[float, float], **more: Any) -> dict:
    return region("polygonlabels", {"points": [list(p) for p in points], "closed": True, **more})


def mask_of(results: list[dict], height: int, width: int, config=BITMASK, **options: Any):
    mask, warnings = label_map(results, config, height, width, **options)
    assert warnings == []
    assert mask.dtype == np.uint8
    assert mask.shape == (height, width)
    return mask


def centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5


def square(height: int, width: int, top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + size, left : left + size] = True
    return mask


# Class map → regions → class map


def class_maps(classes: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.integers(0, classes - 1),
    )


@pytest.mark.parametrize("config", CONFIGS)
@given(mask=class_maps(4))
def test_round_trip_of_any_map(config, mask):
    assert np.array_equal(mask_of(regions(mask, config), *mask.shape, config), mask)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (33, 31), (64, 127), (129, 65)])
def test_round_trip_of_every_shape(config, shape):
    for seed in range(3):
        mask = np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint8)
        through_json = json.loads(json.dumps(regions(mask, config)))
        assert np.array_equal(mask_of(through_json, *shape, config), mask)


@pytest.mark.parametrize("config", [WITH_BACKGROUND, BRUSH_WITH_BACKGROUND])
def test_ignored_pixels_survive_where_background_can_be_painted(config):
    mask = np.array([[0, 1, IGNORE], [IGNORE, 3, 0]], np.uint8)
    assert np.array_equal(mask_of(regions(mask, config), 2, 3, config), mask)


def test_regions_of_a_bitmask_prediction():
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2], mask[3, 5] = IMPLANT, BONE
    bone, implant = regions(mask, BITMASK, score=0.25)
    assert bone == {
        "id": bone["id"],
        "from_name": "label",
        "to_name": "image",
        "type": "bitmasklabels",
        "original_width": 6,
        "original_height": 4,
        "image_rotation": 0,
        "value": {"bitmasklabels": ["bone"], "imageDataURL": encode_bitmask(mask == BONE)},
        "score": 0.25,
    }
    assert implant["value"]["bitmasklabels"] == ["implant"]
    assert bone["id"] != implant["id"]
    assert len(bone["id"]) == 10
    assert regions(mask, BITMASK, score=0.25) == [bone, implant]  # ids are stable


def test_regions_of_a_brush_prediction():
    mask = np.array([[0, LAYER]], np.uint8)
    (layer,) = regions(mask, BRUSH)
    assert layer["type"] == "brushlabels"
    assert layer["value"] == {
        "brushlabels": ["layer"],
        "format": "rle",
        "rle": encode_brush(mask == LAYER),
    }
    assert "score" not in layer


def test_background_is_drawn_only_where_it_has_a_label():
    empty = np.zeros((3, 3), np.uint8)
    assert regions(empty, BITMASK) == []
    (background,) = regions(empty, WITH_BACKGROUND)
    assert background["value"]["bitmasklabels"] == ["Background"]


def test_regions_use_the_alias_that_label_studio_writes():
    xml = brush_config(["bone", "implant"]).replace('value="bone"', 'value="bone" alias="B"')
    config = parse_label_config(xml)
    mask = np.array([[0, 1, 2]], np.uint8)
    results = regions(mask, config)
    assert [r["value"]["brushlabels"] for r in results] == [["B"], ["implant"]]
    assert np.array_equal(mask_of(results, 1, 3, config), mask)


@pytest.mark.parametrize("make", [bitmask_config, brush_config])
def test_the_sdk_accepts_our_predictions(make):
    xml = make(["bone", "implant"])
    results = regions(np.array([[0, 1, 2]], np.uint8), parse_label_config(xml))
    interface = LabelInterface(xml)
    assert interface.validate_prediction({"result": results, "score": 0.5}) is True


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.array([[0, 4, 9]], np.uint8), {}, r"indices \[4, 9\], .* classes 0 to 3 \(background,"),
        (np.zeros((2, 2)), {}, r"expected an \(H, W\) uint8 class map, found float64"),
        (np.zeros((2, 2, 2), np.uint8), {}, r"found uint8 \(2, 2, 2\)"),
        (np.zeros((0, 2), np.uint8), {}, r"found uint8 \(0, 2\)"),
        (np.zeros((2, 2), np.uint8), {"score": 1.5}, "score from 0 to 1, found 1.5"),
        (np.zeros((2, 2), np.uint8), {"score": math.nan}, "score from 0 to 1, found nan"),
    ],
)
def test_class_maps_that_are_refused(mask, options, message):
    with pytest.raises(AnnotationError, match=message):
        regions(mask, BITMASK, **options)


# What unlabelled pixels become


def test_an_empty_annotation_is_all_background_or_teaches_nothing():
    assert (mask_of([], 2, 3, BITMASK) == 0).all()
    assert (mask_of([], 2, 3, WITH_BACKGROUND) == IGNORE).all()
    assert (mask_of([], 2, 3, BITMASK, unlabelled="ignore") == IGNORE).all()
    assert (mask_of([], 2, 3, WITH_BACKGROUND, unlabelled="background") == 0).all()


def test_what_is_painted_as_background_is_class_0():
    mask = mask_of([bitmask(square(3, 3, 0, 0, 2), "Background")], 3, 3, WITH_BACKGROUND)
    assert mask.tolist() == [[0, 0, IGNORE], [0, 0, IGNORE], [IGNORE] * 3]


# How regions combine


def test_the_later_region_wins_and_regions_of_a_class_unite():
    first, second = square(4, 4, 0, 0, 3), square(4, 4, 1, 1, 3)
    over = mask_of([brush(first, "bone"), bitmask(second, "implant")], 4, 4)
    assert np.array_equal(over, np.where(second, IMPLANT, np.where(first, BONE, 0)))
    under = mask_of([bitmask(second, "implant"), brush(first, "bone")], 4, 4)
    assert np.array_equal(under, np.where(first, BONE, np.where(second, IMPLANT, 0)))
    united = mask_of([brush(first, "bone"), brush(second, "bone")], 4, 4)
    assert np.array_equal(united, np.where(first | second, BONE, 0))


def test_both_mask_forms_are_read_whatever_the_config_paints_with():
    mask = square(5, 4, 1, 1, 2)
    for config in CONFIGS:
        for form in (brush, bitmask):
            painted = mask_of([form(mask)], 5, 4, config)
            assert np.array_equal(painted == config.class_index("bone"), mask)


def test_antialiased_strokes_are_painted_from_half_on():
    alpha = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)
    bits = f"{24:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits += "".join(f"100{3:03b}{value:08b}" for value in alpha[0])  # runs of 4
    bits += "0" * (8 - len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    stroke = region("brushlabels", {"format": "rle", "rle": rle})
    assert mask_of([stroke], 1, 6).tolist() == [[0, 0, 0, 1, 1, 1]]


def faint(form: str, alpha: np.ndarray) -> dict:
    """A mask region whose alpha is ``alpha`` (H, W), as other programs write it."""
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = alpha
    if form == "brushlabels":
        return region(form, {"format": "rle", "rle": encode_rle(rgba.ravel().astype(int))})
    png = io.BytesIO()
    Image.fromarray(rgba).save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return region(form, {"imageDataURL": url})


@pytest.mark.parametrize("form", ["brushlabels", "bitmasklabels"])
@pytest.mark.parametrize("alpha", [1, 2, 100, 127])
def test_a_mask_that_reaches_half_nowhere_is_painted_from_half_of_its_maximum_on(form, alpha):
    drawn = square(6, 6, 1, 2, 3)
    assert np.array_equal(mask_of([faint(form, alpha * drawn)], 6, 6) == BONE, drawn)


def test_a_faint_stroke_is_painted_from_half_of_its_maximum_on():
    stroke = faint("brushlabels", np.array([[0, 1, 49, 50, 100]]))
    assert mask_of([stroke], 1, 5).tolist() == [[0, 0, 0, BONE, BONE]]


@pytest.mark.parametrize("form", ["brushlabels", "bitmasklabels"])
def test_an_empty_mask_has_a_warning(form):
    mask, warnings = label_map([faint(form, np.zeros((3, 3)))], BITMASK, 3, 3)
    assert not mask.any()
    assert warnings == [f"region 1 ({form}, id 'r1') paints nothing: its mask is empty"]


# Outlines: a pixel is painted when its centre is inside


def test_a_rectangle_in_percent():
    # 10 … 60 % of 20 columns are columns 2 … 11; 25 … 75 % of 8 rows are rows 2 … 5.
    expected = np.zeros((8, 20), np.uint8)
    expected[2:6, 2:12] = BONE
    assert np.array_equal(mask_of([rectangle(10, 25, 50, 50)], 8, 20), expected)


@pytest.mark.parametrize("rotation", [0, 17, 90, 135, 180, 270, 333.3, -20])
@pytest.mark.parametrize("shape", [(60, 60), (40, 90)])
def test_a_rotated_rectangle(rotation, shape):
    height, width = shape
    mask = mask_of([rectangle(45, 40, 30, 20, rotation)], height, width)
    x, y = centres(height, width)
    dx, dy = x - 0.45 * width, y - 0.40 * height  # from the corner it is turned around
    angle = math.radians(rotation)
    along = dx * math.cos(angle) + dy * math.sin(angle)  # clockwise, y points down
    down = dy * math.cos(angle) - dx * math.sin(angle)
    inside = (along > 0) & (along < 0.3 * width) & (down > 0) & (down < 0.2 * height)
    edge = np.min(np.abs([along, along - 0.3 * width, down, down - 0.2 * height]), axis=0) < 1e-9
    assert inside.any()
    assert np.array_equal((mask == BONE)[~edge], inside[~edge])


def test_a_quarter_turn_clockwise_takes_the_width_down():
    # From the middle of 8 × 8, 4 wide and 2 high: turned by 90° it hangs down, to the left.
    expected = np.zeros((8, 8), np.uint8)
    expected[4:8, 2:4] = BONE
    assert np.array_equal(mask_of([rectangle(50, 50, 50, 25, 90)], 8, 8), expected)


@pytest.mark.parametrize("rotation", [0, 30, 90, 200])
@pytest.mark.parametrize("shape", [(60, 60), (40, 90)])
def test_an_ellipse(rotation, shape):
    height, width = shape
    mask = mask_of([ellipse(50, 45, 30, 20, rotation)], height, width)
    x, y = centres(height, width)
    dx, dy = x - 0.5 * width, y - 0.45 * height
    angle = math.radians(rotation)
    along = (dx * math.cos(angle) + dy * math.sin(angle)) / (0.3 * width)
    across = (dy * math.cos(angle) - dx * math.sin(angle)) / (0.2 * height)
    assert np.array_equal(mask == BONE, along**2 + across**2 < 1)
    area = math.pi * 0.3 * width * 0.2 * height
    if rotation == 0:  # otherwise parts of it may lie outside of the image
        assert abs((mask == BONE).sum() - area) < 0.05 * area


def test_an_ellipse_without_a_radius_paints_nothing():
    assert not mask_of([ellipse(50, 50, 0, 10)], 9, 9).any()


@pytest.mark.filterwarnings("error")
def test_an_ellipse_of_next_to_no_radius_paints_nothing_and_says_nothing():
    assert not mask_of([ellipse(50, 50, 1e-320, 10)], 10, 10).any()


def test_a_triangle():
    mask = mask_of([polygon((0, 0), (100, 0), (0, 100))], 10, 20)
    x, y = centres(10, 20)
    assert np.array_equal(mask == BONE, x / 20 + y / 10 < 1)


def crossing_number(points: list[tuple[float, float]], x: float, y: float) -> int:
    """The winding number of a closed outline around a point, edge by edge."""
    winding = 0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            winding += 1 if y1 > y0 else -1
    return winding


percent = st.floats(-20, 120, allow_nan=False).map(lambda v: round(v, 2))


@given(
    st.lists(st.tuples(percent, percent), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 12),
)
@example([(0.0, 0.0), (66.0, 66.0)], 5, 1)
def test_any_polygon_also_outside_and_crossing_itself(points, height, width):
    mask = mask_of([polygon(*points)], height, width)
    # scaled as the product does it: rounded otherwise, an edge through a pixel's centre misses it
    pixels = [(px * (width / 100), py * (height / 100)) for px, py in points]
    for row in range(height):
        for column in range(width):
            inside = crossing_number(pixels, column + 0.5, row + 0.5) != 0
            assert (mask[row, column] == BONE) == inside


def test_a_polygon_that_winds_twice_is_filled_as_the_canvas_fills_it():
    ring = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
    assert (mask_of([polygon(*ring, *ring)], 6, 6) == BONE).all()


def test_outlines_need_no_original_size_and_may_stand_for_a_smaller_view():
    whole = rectangle(0, 0, 50, 50)
    shown = {**whole, "original_width": 10, "original_height": 5}
    assert np.array_equal(mask_of([whole], 20, 40), mask_of([shown], 20, 40))


FAR = 1.7e308
LONG = int("9" * 400)
"""An integer that is no float, as JSON may have it."""
NINES = pytest.param(LONG, id="400 nines")


@pytest.mark.parametrize("far", [FAR, -FAR, NINES, math.inf, math.nan, 1e7])
@pytest.mark.parametrize(
    ("shape", "field"),
    [
        (ellipse(50, 50, 10, 10), "x"),
        (ellipse(50, 50, 10, 10), "radiusY"),
        (ellipse(50, 50, 10, 10), "rotation"),
        (rectangle(0, 0, 50, 50), "width"),
    ],
)
def test_a_number_far_from_the_image_is_named(shape: dict, field: str, far: float) -> None:
    shape = {**shape, "value": {**shape["value"], field: far}}
    with pytest.raises(AnnotationError, match=rf"region 1 .*value\.{field}: expected a number"):
        label_map([shape], BITMASK, 64, 64)


@pytest.mark.parametrize("far", [FAR, NINES, math.inf, 1e7])
def test_a_point_far_from_the_image_is_named(far: float) -> None:
    with pytest.raises(AnnotationError, match=r"region 1 .*value\.points: expected"):
        label_map([polygon((0, 0), (far, 0), (50, 50))], BITMASK, 64, 64)


def test_an_outline_of_too_many_points_is_named() -> None:
    circle = [(50 + 40 * math.cos(i), 50 + 40 * math.sin(i)) for i in range(100_001)]
    with pytest.raises(AnnotationError, match="at most 100000 points, found 100001"):
        label_map([polygon(*circle)], BITMASK, 64, 64)


# Sizes and rotation


@pytest.mark.parametrize("form", [brush, bitmask])
def test_a_mask_painted_on_a_smaller_view_is_resampled_to_the_nearest_pixel(form):
    small = np.array([[True, False], [False, True]])
    mask = mask_of([form(small)], 6, 8)
    expected = np.zeros((6, 8), np.uint8)
    expected[:3, :4] = expected[3:, 4:] = BONE
    assert np.array_equal(mask, expected)
    large = np.kron(expected == BONE, np.ones((3, 3), bool))
    assert np.array_equal(mask_of([form(large)], 6, 8), expected)


@pytest.mark.parametrize("form", [brush, bitmask])
def test_an_odd_size_that_was_halved_still_fits(form):
    assert mask_of([form(np.ones((512, 1024), bool))], 1023, 2047).all()


@pytest.mark.parametrize("form", [brush, bitmask])
def test_a_mask_of_another_image_is_an_error_that_names_both_sizes(form):
    with pytest.raises(
        AnnotationError,
        match=r"region 1 \(.*\): .* image of 30 × 10 pixels, this slice has 20 × 20",
    ):
        label_map([form(np.ones((10, 30), bool))], BITMASK, 20, 20)


def one_bit_png(side: int) -> str:
    """A white picture of ``side`` × ``side`` pixels in a data URL: few bytes, many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress((b"\0" + b"\xff" * -(-side // 8)) * side)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def claimed_brush(side: int) -> dict:
    """A brush stroke over all of ``side`` × ``side`` pixels, written as runs of 65,536 values."""
    runs = 4 * side * side >> 16
    head = f"{4 * side * side:032b}" + f"{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits = head + ("1" + "11" + "1" * 16 + "1" * 8) * runs
    bits += "0" * (-len(bits) % 8)
    value = {"format": "rle", "rle": list(int(bits, 2).to_bytes(len(bits) // 8, "big"))}
    return region("brushlabels", value, original_width=side, original_height=side)


@pytest.mark.parametrize(
    "result",
    [
        claimed_brush(12288),
        region("bitmasklabels", {"imageDataURL": one_bit_png(12288)}),
        {**rectangle(0, 0, 50, 50), **{f"original_{side}": 10**30 for side in ("width", "height")}},
    ],
    ids=["brush", "bitmask", "rectangle"],
)
def test_a_mask_far_larger_than_its_slice_takes_no_memory(result: dict) -> None:
    """150 million pixels of the slice's proportions, from a few kilobytes."""
    tracemalloc.start()
    try:
        if result["type"] == "rectanglelabels":  # it has no pixels of its own
            label_map([result], BITMASK, 64, 64)
        else:
            with pytest.raises(AnnotationError, match=r"12288 × 12288 pixels.* at most 4194304"):
                label_map([result], BITMASK, 64, 64)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_mask_made_on_a_larger_view_fits() -> None:
    """Small slices are shown enlarged: sixteen times on each side, up to four million pixels."""
    large = np.zeros((1024, 1024), bool)
    large[:512] = True
    expected = np.zeros((64, 64), np.uint8)
    expected[:32] = BONE
    for form in (brush, bitmask):
        assert np.array_equal(mask_of([form(large)], 64, 64), expected)


@pytest.mark.parametrize("body", ["ä", "€uro", "\ud800"])
def test_base64_that_is_no_ascii_is_named(body: str) -> None:
    url = "data:image/png;base64," + body
    with pytest.raises(AnnotationError, match=r"region 1 .*base64 text cannot be read"):
        label_map([region("bitmasklabels", {"imageDataURL": url})], BITMASK, 4, 4)


def test_an_outline_of_another_image_is_an_error():
    other = {**rectangle(0, 0, 50, 50), "original_width": 300, "original_height": 100}
    with pytest.raises(AnnotationError, match="300 × 100 pixels, this slice has 20 × 20"):
        label_map([other], BITMASK, 20, 20)


def test_masks_without_an_original_size():
    mask = square(5, 7, 1, 2, 3)
    for form in (brush, bitmask):
        bare = form(mask, original_width=None, original_height=None)
        assert np.array_equal(mask_of([bare], 5, 7) == BONE, mask)


def test_a_size_that_is_no_number_is_one_that_nobody_said():
    mask = square(5, 7, 1, 2, 3)
    bare = brush(mask, original_width=float("nan"), original_height=float("nan"))
    assert np.array_equal(mask_of([bare], 5, 7) == BONE, mask)


def test_a_rotated_view_does_not_rotate_the_labels():
    mask = square(5, 9, 1, 2, 3)
    for results in ([brush(mask)], [bitmask(mask)], [rectangle(10, 20, 30, 40)]):
        turned = [{**result, "image_rotation": 90} for result in results]
        assert np.array_equal(mask_of(turned, 5, 9), mask_of(results, 5, 9))


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_an_image_without_pixels(size):
    with pytest.raises(AnnotationError, match="at least one pixel"):
        label_map([], BITMASK, *size)


# Labels that cannot be named are neither guessed nor lost


@pytest.mark.parametrize("policy", ["ignore", "background"])
def test_unknown_labels_are_ignored_pixels_and_a_warning(policy):
    mask, warnings = label_map([brush(np.eye(2, dtype=bool), "marrow")], BITMASK, 2, 2, policy)
    rest = IGNORE if policy == "ignore" else 0
    assert mask.tolist() == [[IGNORE, rest], [rest, IGNORE]]
    assert warnings == [
        "region 1 (brushlabels, id 'r1') has the label \"marrow\", which the labelling config does "
        "not have (bone, implant, layer): its pixels are ignored"
    ]


def test_a_region_painted_over_an_unknown_one_counts():
    unknown, known = brush(np.ones((1, 2), bool), "marrow"), brush(np.array([[True, False]]))
    mask, warnings = label_map([unknown, known], BITMASK, 1, 2)
    assert mask.tolist() == [[BONE, IGNORE]]
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "has no label"),
        ({"brushlabels": []}, "has no label"),
        ({"brushlabels": ["bone", "implant"]}, "has ['bone', 'implant'] instead of one label"),
        ({"brushlabels": {"bone": 1}}, "has {'bone': 1} instead of one label"),
        ({"brushlabels": ["background"]}, 'has the label "background"'),  # nobody can paint it
    ],
)
def test_regions_without_one_label_of_the_config(labels, message):
    stroke = brush(np.ones((1, 1), bool), None)
    stroke["value"].update(labels)
    mask, warnings = label_map([stroke], BITMASK, 1, 1)
    assert mask.tolist() == [[IGNORE]]
    assert message in warnings[0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (region("keypointlabels", {"x": 1, "y": 1}), "nextslice reads brush, bitmask, polygon,"),
        (region("brush", {"format": "rle", "rle": []}), "nextslice reads brush"),
        ({**rectangle(0, 0, 9, 9), "to_name": "second"}, 'to "second", not to the image "image"'),
        (polygon((0, 0), (9, 0), (0, 9), closed=False), "its outline is not closed"),
    ],
)
def test_regions_without_pixels_of_this_image_are_left_out_with_a_warning(result, message):
    mask, warnings = label_map([result], BITMASK, 4, 4)
    assert not mask.any()
    assert message in warnings[0]
    assert "was left out" in warnings[0]


def prompted(attributes: str, tag: str = "RectangleLabels") -> LabelConfig:
    """A config whose control "fix" has ``attributes``, beside a brush that could send prompts."""
    return parse_label_config(
        '<View><Image name="image" value="$image"/>'
        '<BrushLabels name="label" toName="image" smart="true"><Label value="bone"/></BrushLabels>'
        f'<{tag} name="fix" toName="image" {attributes}><Label value="bone"/></{tag}></View>'
    )


def beside_a_mask(config: LabelConfig, prompt: dict, *, first: bool) -> tuple[np.ndarray, list]:
    """The label map of ``prompt`` and of the mask that a model made of it, 2 × 2 of 8 × 8."""
    drawn = regions(square(8, 8, 3, 3, 2).astype(np.uint8), config)
    prompt = {**prompt, "from_name": "fix"}
    return label_map([prompt, *drawn] if first else [*drawn, prompt], config, 8, 8)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("attributes", ['smartOnly="true"', 'smart="true" smartonly="True"'])
@pytest.mark.parametrize(
    ("tag", "prompt"),
    [
        ("RectangleLabels", rectangle(25, 25, 50, 50)),
        ("EllipseLabels", ellipse(50, 50, 30, 30)),
        ("PolygonLabels", polygon((0, 0), (90, 0), (90, 90))),
        ("KeyPointLabels", region("keypointlabels", {"x": 50, "y": 50, "width": 1})),
        ("Rectangle", {**rectangle(25, 25, 50, 50), "type": "rectangle"}),
    ],
)
def test_prompts_are_no_labels(tag, prompt, attributes, first):
    mask, warnings = beside_a_mask(prompted(attributes, tag), prompt, first=first)
    assert np.array_equal(mask == BONE, square(8, 8, 3, 3, 2))
    assert (mask == 0).sum() == 60
    (warning,) = warnings
    assert 'was left out: it is a prompt, not a label: its control "fix"' in warning


@pytest.mark.parametrize("first", [True, False])
def test_what_may_be_a_prompt_or_a_label_teaches_nothing_and_hides_nothing(first):
    box = rectangle(25, 25, 50, 50)  # the 4 × 4 pixels around the mask
    mask, warnings = beside_a_mask(prompted('smart="true"'), box, first=first)
    assert np.array_equal(mask == BONE, square(8, 8, 3, 3, 2))
    assert np.array_equal(mask != 0, square(8, 8, 2, 2, 4))
    assert (mask == IGNORE).sum() == 12
    (warning,) = warnings
    assert 'its control "fix" has smart="true"' in warning
    assert warning.endswith("its pixels are ignored")


@pytest.mark.parametrize("attributes", ["", 'smart="false"', 'smart="false" smartOnly="false"'])
def test_shapes_of_other_controls_are_labels(attributes):
    drawn = {**rectangle(25, 25, 50, 50), "from_name": "fix"}
    mask = mask_of([drawn], 8, 8, prompted(attributes))
    assert np.array_equal(mask == BONE, square(8, 8, 2, 2, 4))


def test_the_second_result_of_an_accepted_suggestion_is_no_label_of_its_own():
    drawn = square(8, 8, 3, 3, 2)
    mask_region = bitmask(drawn)
    second = {**mask_region, "type": "rectanglelabels", "from_name": "fix"}
    second["value"] = {**mask_region["value"], "rectanglelabels": ["bone"]}
    del second["value"]["bitmasklabels"]
    mask, warnings = label_map([mask_region, second], prompted(""), 8, 8)
    assert np.array_equal(mask == BONE, drawn)
    (warning,) = warnings
    assert "it repeats a mask under the type of an outline" in warning


@pytest.mark.parametrize("result", [bitmask(square(4, 4, 1, 1, 2)), rectangle(25, 25, 50, 50)])
@pytest.mark.parametrize("config", CONFIGS)
def test_regions_of_a_control_that_the_config_does_not_have_are_ignored_pixels(config, result):
    mask, warnings = label_map([{**result, "from_name": "tag"}], config, 4, 4)
    assert np.array_equal(mask == IGNORE, square(4, 4, 1, 1, 2) | config.has_background_label)
    (warning,) = warnings
    assert warning.endswith(
        'belongs to the control "tag", which the labelling config does not have '
        f"({', '.join(config.controls)}): its pixels are ignored"
    )


@pytest.mark.parametrize("rotation", [None, "", "left", 90.5])
def test_how_the_view_was_turned_is_not_read(rotation):
    result = {**bitmask(square(4, 4, 1, 1, 2)), "image_rotation": rotation}
    (read,) = parse_annotation({"id": 1, "result": [result]}).result
    assert (mask_of([read], 4, 4) == BONE).sum() == 4


@pytest.mark.parametrize("size", [None, 0, 0.0, 20.0, 19.6, 20.4, "20"])
@pytest.mark.parametrize("form", [brush, bitmask, None])
def test_sizes_that_are_unknown_or_fractions(form, size):
    result = rectangle(25, 25, 50, 50) if form is None else form(square(20, 20, 5, 5, 10))
    result |= {"original_width": size, "original_height": size}
    (read,) = parse_annotation({"id": 1, "result": [result]}).result
    assert np.array_equal(mask_of([read], 20, 20) == BONE, square(20, 20, 5, 5, 10))


@pytest.mark.parametrize("rotation", [None, 0, 0.0, 360, 720.0])
def test_rotations_that_turn_nothing(rotation):
    assert (mask_of([rectangle(25, 25, 50, 50, rotation)], 20, 20) == BONE).sum() == 100


def test_a_region_without_a_value_says_nothing_about_pixels():
    annotation = parse_annotation({"id": 1, "result": [{"type": "choices", "value": None}]})
    assert not mask_of(list(annotation.result), 3, 3).any()


def test_results_that_say_nothing_about_pixels_are_passed_over():
    results = [
        {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}},
        {"type": "textarea", "to_name": "image", "value": {"text": ["nice"]}},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    ]
    assert not mask_of(results, 3, 3).any()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (region("brushlabels", {"format": "rle"}), "value.rle is missing"),
        (region("brushlabels", {"rle": [1, 2, 3]}), "the brush stream is 3 bytes"),
        (region("brushlabels", {"rle": "abc"}), "expected a brush stream"),
        (region("bitmasklabels", {}), "value.imageDataURL: expected a data URL, found None"),
        (region("bitmasklabels", {"imageDataURL": "x"}), "expected a bitmask that begins with"),
        (region("rectanglelabels", {"x": "a"}), "value.x: expected a number, found 'a'"),
        (region("rectanglelabels", {"x": 1, "width": math.nan}), "value.width: expected a number"),
        (rectangle(1, 1, 1, 1, "90°"), "value.rotation: expected a number"),
        (region("ellipselabels", {"x": 1}), "value.radiusX: expected a number, found None"),
        (region("polygonlabels", {"points": "abc"}), "value.points: expected a list of"),
        (region("polygonlabels", {"points": [[1], [2, 3]]}), "value.points: expected a list of"),
        (polygon((0, math.inf)), "value.points: expected numbers"),
    ],
)
def test_regions_that_cannot_be_read_name_region_and_field(result, message):
    with pytest.raises(
        AnnotationError, match=rf"region 2 \({result['type']}, id 'r1'\): {message}"
    ):
        label_map([rectangle(0, 0, 9, 9), result], BITMASK, 4, 4)


# Which annotation counts


def annotation(number: int, updated: str | None = None, **more: Any) -> Annotation:
    return parse_annotation({"id": number, "updated_at": updated, "result": [], **more})


def test_the_latest_annotation_counts():
    old = annotation(1, "2026-01-01T10:00:00Z")
    new = annotation(2, "2026-01-01T12:00:00+01:00")  # one hour later than the other
    newest = annotation(3, "2026-01-01T11:30:00")  # no zone: UTC
    assert choose_annotation([new, newest, old]) is newest
    assert choose_annotation([old, new]) is new


def test_ground_truth_comes_first():
    truth = annotation(1, "2026-01-01T10:00:00Z", ground_truth=True)
    later = annotation(2, "2026-01-02T10:00:00Z")
    latest_truth = annotation(3, "2026-01-01T11:00:00Z", ground_truth=True)
    assert choose_annotation([truth, later]) is truth
    assert choose_annotation([truth, later, latest_truth]) is latest_truth


def test_skipped_annotations_never_count():
    skipped = annotation(2, "2026-01-02T10:00:00Z", was_cancelled=True, ground_truth=True)
    assert choose_annotation([skipped]) is None
    assert choose_annotation([]) is None
    submitted = annotation(1, "2026-01-01T10:00:00Z")
    assert choose_annotation([submitted, skipped]) is submitted


def test_ties_go_to_the_higher_id_and_times_may_lack():
    a, b = annotation(1), annotation(2)
    assert choose_annotation([b, a]) is b
    assert choose_annotation([annotation(3, created_at="2020-01-01T00:00:00Z"), b]).id == 3


# Reading Label Studio's JSON

TASK = {  # as GET /api/tasks/17/ answers in 1.23, shortened
    "id": 17,
    "predictions": [{"id": 5, "model_version": "nextslice-r001-ab", "score": 0.1, "result": "?"}],
    "annotations": [
        {
            "id": 3,
            "created_username": " a@example.com, 1",
            "created_ago": "0 minutes",
            "completed_by": {"id": 1, "email": "a@example.com", "first_name": ""},
            "result": [{**rectangle(0, 0, 50, 50), "origin": "manual", "readonly": False}],
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2026-01-01T10:00:00.123456Z",
            "updated_at": "2026-01-01T10:00:00.223456Z",
            "draft_created_at": None,
            "lead_time": 7.3,
            "unique_id": "0a0a",
            "last_action": None,
        }
    ],
    "drafts": [{"id": 9, "result": None, "annotation": None, "user": "a@example.com"}],
    "data": {"image": "https://example.org/1.png", "z": 4},
    "meta": {},
    "created_at": "2026-01-01T09:00:00Z",
    "updated_at": "2026-01-01T10:00:01Z",
    "is_labeled": True,
    "project": 1,
    "file_upload": None,
    "comment_authors": [],
}


def test_a_task_as_label_studio_writes_it():
    task = parse_task(json.loads(json.dumps(TASK)))
    assert (task.id, task.project, task.is_labeled) == (17, 1, True)
    assert task.data["z"] == 4
    assert task.updated_at == datetime(2026, 1, 1, 10, 0, 1, tzinfo=UTC)
    (done,) = task.annotations
    assert (done.id, done.completed_by, done.lead_time) == (3, 1, 7.3)
    assert mask_of(list(done.result), 4, 4).sum() == 4 * BONE
    assert task.drafts[0].result == ()
    assert task.predictions[0].model_version == "nextslice-r001-ab"
    from_the_sdk = construct_type(type_=RoleBasedTask, object_=TASK)  # as its client does
    assert parse_task(from_the_sdk) == task


def test_lists_may_be_null_or_absent():
    assert parse_task({"id": 1, "data": {}}).annotations == ()
    nothing = {"annotations": None, "drafts": None, "predictions": None}
    assert parse_task({"id": 1, "data": {}, **nothing}).drafts == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "x"}, r"task x .*: id: .*valid integer.*, found 'x'"),
        ({"data": None}, r"task 17 .*: data: .*, found None"),
        ({"annotations": [{"id": 3, "result": [7]}]}, r"annotations\.0\.result\.0: .*found 7"),
        ({"annotations": [{"id": 3, "updated_at": "soon"}]}, r"annotations\.0\.updated_at: .*soon"),
        (
            {"annotations": [{"id": 3, "result": [{"original_width": 0}]}]},
            r"annotations\.0\.result\.0\.original_width: .*greater than 0, found 0",
        ),
    ],
)
def test_errors_name_the_field_and_what_was_found(change, message):
    with pytest.raises(AnnotationError, match=message):
        parse_task({**TASK, **change})


@pytest.mark.parametrize("payload", [None, 7, "task", [TASK]])
def test_what_is_no_task_at_all(payload):
    with pytest.raises(AnnotationError, match="task from Label Studio cannot be read: the whole"):
        parse_task(payload)


def test_a_region_from_json_is_checked_too():
    with pytest.raises(AnnotationError, match=r"region r1 .*: value: .*, found 5"):
        label_map([{"id": "r1", "type": "brushlabels", "value": 5}], BITMASK, 2, 2)


# The hash of a label


def test_the_hash_follows_the_content_and_nothing_else():
    results = [brush(np.eye(5, dtype=bool)), rectangle(1, 2, 3, 4)]
    known = label_hash(results)
    assert len(known) == 32
    others = [{**r, "id": "other", "score": 0.5, "origin": "prediction"} for r in results]
    comment = {"type": "textarea", "value": {"text": ["hm"]}}
    assert label_hash([*others, comment]) == known
    assert label_hash([Region.model_validate(r) for r in results]) == known


@pytest.mark.parametrize(
    "changed",
    [
        [],
        [rectangle(1, 2, 3, 4), brush(np.eye(5, dtype=bool))],  # the order decides overlaps
        [brush(np.eye(5, dtype=bool))],
        [brush(np.eye(5, dtype=bool)), rectangle(1, 2, 3, 4.0001)],
        [brush(np.eye(5, dtype=bool), "implant"), rectangle(1, 2, 3, 4)],
        [brush(~np.eye(5, dtype=bool)), rectangle(1, 2, 3, 4)],
        [bitmask(np.eye(5, dtype=bool)), rectangle(1, 2, 3, 4)],
    ],
)
def test_any_change_of_the_content_changes_the_hash(changed):
    assert label_hash(changed) != label_hash([brush(np.eye(5, dtype=bool)), rectangle(1, 2, 3, 4)])


def test_the_hash_of_damaged_regions():
    damaged = [region("brushlabels", {"rle": rle}) for rle in (None, "x", [1, 300], [1.5])]
    assert len({label_hash([one]) for one in damaged}) == 4


def test_the_hash_does_not_change_between_releases():
    # It is stored with every round: a new value here makes every label look changed.
    assert label_hash([rectangle(1, 2, 3, 4)]) == "622ee2ef2daa87d1a4738808d899538d"


def nested(depth: int) -> object:
    value: object = "bone"
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_nested_deeply_is_named_by_who_cannot_read_it():
    strange = {**polygon((0, 0), (100, 0), (0, 100)), "id": "p"}
    strange["value"] = {**strange["value"], "polygonlabels": nested(5000)}
    found = label_map([strange], BITMASK, 10, 20)
    assert (found.mask == IGNORE).sum() > 50
    assert "instead of one label" in found.warnings[0]
    with pytest.raises(AnnotationError, match="region 'p' is nested too deeply"):
        label_hash([strange])
    with pytest.raises(AnnotationError, match="rle is nested too deeply"):
        label_hash([{**strange, "value": {"rle": nested(5000)}}])
