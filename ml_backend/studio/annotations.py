"""Label Studio's tasks and annotations, typed at the edge, and their way to class maps and back.

`Task`, `Annotation`, `Draft`, `Prediction` and `Region` are the part of Label Studio's JSON that
nextslice reads; fields it does not know are left alone. `choose_annotation` says which annotation
of a task counts, `label_map` turns its regions into one class index per pixel, `regions` turns a
predicted class map into regions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from al_strategies.learner import IGNORE
from ml_backend.errors import NextsliceError
from ml_backend.studio.label_config import LabelConfig, Unlabelled
from ml_backend.studio.masks import (
    MaskError,
    decode_bitmask,
    decode_brush,
    encode_bitmask,
    encode_brush,
    painted_where,
)

__all__ = [
    "Annotation",
    "AnnotationError",
    "Draft",
    "LabelMap",
    "Layer",
    "Prediction",
    "Region",
    "Task",
    "choose_annotation",
    "label_hash",
    "label_map",
    "mask_region",
    "painted_layer",
    "parse_annotation",
    "parse_task",
    "regions",
]

_Painted = npt.NDArray[np.bool_]

# Results that say nothing about pixels: they teach a segmentation model nothing, rightly.
_NOT_PIXELS = frozenset(
    {"choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy"}
    | {"textarea"}
)


_MOST_POINTS = 100_000
"""Of an outline."""
_MOST_PERCENT = 1e6
"""Of the image's side: outlines may begin outside of it, but not ten thousand images away."""
_LARGER = 4
"""A mask has at most so many times the pixels of its slice (`_LEAST_LIMIT` in any case)."""
_LEAST_LIMIT = 1 << 22


class AnnotationError(NextsliceError, ValueError):
    """An annotation or task from Label Studio that cannot be read, and which field of it."""


def _none_as_empty(value: object) -> object:
    return () if value is None else value


def _none_as_text(value: object) -> object:
    return "" if value is None else value


def _none_as_mapping(value: object) -> object:
    return {} if value is None else value


def _size(value: object, info: ValidationInfo) -> object:
    """Whole pixels: scripts write 511.9997, and 0 or NaN for a size that they do not know.

    Halves are left, and so refused: they lie between two sizes. Label Studio itself writes no 0, so
    in a whole task it is refused (``info.context``).
    """
    if isinstance(value, float) and math.isfinite(value) and value % 1 != 0.5:
        value = round(value)
    unknown = value == 0 or (isinstance(value, float) and math.isnan(value))
    return None if unknown and info.context is not Task else value


def _as_utc(value: object) -> object:
    """Times without a zone are UTC, so that any two of them can be compared."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _user_id(value: object) -> object:
    """``completed_by`` is an id, or a whole user where the request asked to resolve it."""
    return value.get("id") if isinstance(value, Mapping) else value


def _number_or_none(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_Time = Annotated[datetime | None, BeforeValidator(_as_utc)]
_User = Annotated[int | None, BeforeValidator(_user_id)]
_Text = Annotated[str, BeforeValidator(_none_as_text)]
_Size = Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_size)]


class _Read(BaseModel):
    """Fields we do not read are ignored: Label Studio adds some with every release."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True
    )


class Region(_Read):
    """One entry of a ``result``. Coordinates in ``value`` are percent of the unrotated image.

    ``original_width``, ``original_height``: of the image as it was shown, None where nobody said.
    ``image_rotation`` is not read: it only says how the view was turned.
    """

    id: _Text = ""
    type: _Text = ""
    from_name: _Text = ""
    to_name: _Text = ""
    original_width: _Size = None
    original_height: _Size = None
    value: Annotated[dict[str, Any], BeforeValidator(_none_as_mapping)] = {}


_Result = Annotated[tuple[Region, ...], BeforeValidator(_none_as_empty)]


class Annotation(_Read):
    """What a person submitted, or skipped (``was_cancelled``)."""

    id: int
    result: _Result = ()
    was_cancelled: bool = False
    ground_truth: bool = False
    created_at: _Time = None
    updated_at: _Time = None
    completed_by: _User = None
    lead_time: float | None = None
    """Seconds that it was open, over all of its sessions."""
    parent_prediction: Annotated[int | None, BeforeValidator(_number_or_none)] = None
    """The stored prediction that it began as; None also once that is deleted."""


class Draft(_Read):
    """What a person began and has not submitted."""

    id: int
    result: _Result = ()
    annotation: int | None = None
    updated_at: _Time = None


class Prediction(_Read):
    """A stored prediction, of ours or of another model; its ``result`` is not read.

    ``score`` orders Label Studio's queue, lowest first.
    """

    id: int
    model_version: str | None = None
    score: float | None = None
    created_at: _Time = None


class Task(_Read):
    """A slice in Label Studio: its data and what people did with it."""

    id: int
    data: dict[str, Any]
    annotations: Annotated[tuple[Annotation, ...], BeforeValidator(_none_as_empty)] = ()
    drafts: Annotated[tuple[Draft, ...], BeforeValidator(_none_as_empty)] = ()
    predictions: Annotated[tuple[Prediction, ...], BeforeValidator(_none_as_empty)] = ()
    project: int | None = None
    is_labeled: bool = False
    created_at: _Time = None
    updated_at: _Time = None


_Model = TypeVar("_Model", bound=_Read)


def parse_task(payload: object) -> Task:
    """A task from its JSON (a mapping) or from an object of the SDK.

    Raises AnnotationError that names every field that is wrong, what was there and what belongs
    there.
    """
    return _parse(Task, payload)


def parse_annotation(payload: object) -> Annotation:
    """As `parse_task`, for one annotation."""
    return _parse(Annotation, payload)


class LabelMap(NamedTuple):
    """``mask`` (H, W) uint8: the class index of each pixel, `IGNORE` where nobody said.
    ``warnings``: a sentence for each region that could not be read as a class."""

    mask: npt.NDArray[np.uint8]
    warnings: list[str]


class Layer(NamedTuple):
    """What one region paints: ``class_index`` or `IGNORE`, where ``painted`` (H, W) says."""

    class_index: int
    painted: _Painted


def choose_annotation(annotations: Sequence[Annotation]) -> Annotation | None:
    """The annotation of a task that counts, None if there is none.

    Skipped ones (``was_cancelled``) teach nothing. Of the others, a ground truth comes first, then
    the one changed last, then the higher id. One without regions counts: somebody submitted that
    there is nothing to see (see `label_map` for what it teaches).
    """
    submitted = [annotation for annotation in annotations if not annotation.was_cancelled]
    return max(submitted, key=_precedence, default=None)


def label_map(
    results: Sequence[Region | Mapping[str, Any]],
    config: LabelConfig,
    height: int,
    width: int,
    unlabelled: Unlabelled = "auto",
) -> LabelMap:
    """One class index per pixel of an image of ``height`` × ``width`` pixels.

    Regions are painted in the order of ``results``, so where two overlap the **later** one wins, as
    it is drawn on top; regions of one class unite. Pixels of no region become class 0 or `IGNORE`
    (`LabelConfig.unlabelled`): an annotation without regions makes an image of pure background, or
    one that teaches nothing.

    - brush, bitmask: painted where alpha is at least half (`painted_where`), read whichever of the
      two the config has now.
    - An annotation made on the image in another size but the same aspect ratio (to a pixel) fits,
      since the slice may have been shown smaller: its masks are resampled to the nearest pixel.
      Any other size is an error, one of far more pixels before memory is taken for them.
    - polygon (non-zero winding, as the canvas fills), rectangle and ellipse (turned clockwise
      around corner and centre): a pixel is painted when its centre is inside.
    - ``image_rotation`` only says how the view was turned: Label Studio rotates the canvas, the
      coordinates and masks stay those of the unrotated image.

    A region with a label that the config does not have, with no label or with several, or of a
    control that the config does not have (Label Studio shows it without its label, or not at all)
    is somebody's label that we cannot name: its pixels become `IGNORE` and a warning says so.
    So do those of an outline that may be a prompt (`LabelConfig.smart`), where nothing else is
    painted. Prompts (`LabelConfig.prompts`), outlines that are not closed, kinds without an area
    (key points) and regions of another image are left out with a warning. A mask that paints
    nothing has a warning too.
    Raises AnnotationError, which names region and field, for a region that cannot be read.
    """
    if height < 1 or width < 1:
        raise AnnotationError(f"expected an image of at least one pixel, found {width} × {height}")
    empty = IGNORE if config.unlabelled(unlabelled) == "ignore" else 0
    mask = np.full((height, width), empty, dtype=np.uint8)
    warnings: list[str] = []
    for name, region in _in_painting_order(results, config):
        reason = _unreadable(region, config)
        if reason:
            warnings.append(f"{name} was left out: {reason}")
            continue
        index, doubt = _class_of(region, config)
        if doubt:
            warnings.append(f"{name} {doubt}: its pixels are ignored")
        try:
            painted = _raster(region, height, width)
        except (MaskError, AnnotationError) as error:
            raise AnnotationError(f"{name}: {error}") from error
        if region.type.lower() in _MASKS and not painted.any():
            warnings.append(f"{name} paints nothing: its mask is empty")
        np.copyto(mask, np.uint8(index), where=painted)
    return LabelMap(mask, warnings)


def painted_layer(
    result: Region | Mapping[str, Any], config: LabelConfig, height: int, width: int
) -> Layer | None:
    """What `label_map` would paint for one region; None for one that it leaves out or that is not
    about pixels. Raises AnnotationError for one that cannot be read."""
    region = _as_region(result)
    if region.type.lower() in _NOT_PIXELS or _unreadable(region, config):
        return None
    index, _ = _class_of(region, config)
    try:
        return Layer(index, _raster(region, height, width))
    except MaskError as error:
        raise AnnotationError(f"region {region.id!r}: {error}") from error


def _raster(region: Region, height: int, width: int) -> _Painted:
    if region.original_height and region.original_width:
        _check_aspect(region.original_height, region.original_width, height, width)
    return _RASTERS[region.type.lower()](region, height, width)


def regions(
    mask: npt.NDArray[np.uint8], config: LabelConfig, *, score: float | None = None
) -> list[dict[str, Any]]:
    """The ``result`` of a prediction: one region per class in the class map, in class order.

    ``mask``: (H, W) uint8 class indices; `IGNORE` pixels are in no region. Background without a
    label of its own is not drawn; one that has a label is, because submitting the prediction
    untouched must teach what it shows. So `label_map` gives the same map back, for maps without
    `IGNORE` pixels or for configs with a background label, under the policy ``auto``.
    ``score`` in [0, 1] is written into every region. Ids are short and follow from the content.
    Raises AnnotationError for another shape or dtype, or an index without a class.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        raise AnnotationError(
            f"expected an (H, W) uint8 class map, found {mask.dtype} {mask.shape}"
        )
    if score is not None and not 0 <= score <= 1:
        raise AnnotationError(f"expected a score from 0 to 1, found {score}")
    found: list[dict[str, Any]] = []
    counted = int(np.count_nonzero(mask == IGNORE))
    for index in range(len(config.classes)):
        painted = mask == index
        pixels = int(np.count_nonzero(painted))
        counted += pixels
        if pixels and (index or config.has_background_label):
            found.append(_region(painted, config, index, score))
    if counted != mask.size:
        stray = sorted(set(np.unique(mask).tolist()) - set(range(len(config.classes))) - {IGNORE})
        raise AnnotationError(
            f"the class map has the indices {stray}, the labelling config has classes 0 to "
            f"{len(config.classes) - 1} ({', '.join(config.classes)})"
        )
    return found


def mask_region(
    painted: npt.NDArray[np.bool_], config: LabelConfig, index: int, name: str = ""
) -> dict[str, Any]:
    """The region of class ``index`` where ``painted`` (H, W), in the form that the config has.
    ``name``: its id; without one, the id follows from the content."""
    found = _region(painted, config, index, None)
    return {**found, "id": name} if name else found


def label_hash(results: Sequence[Region | Mapping[str, Any]]) -> str:
    """32 hexadecimal digits of what ``results`` draw, in their order.

    Region ids, authors, scores and times do not count: submitting the same content again gives the
    same hash. Raises AnnotationError for what is nested too deeply.
    """
    digest = hashlib.sha256()
    for region in map(_as_region, results):
        if region.type.lower() in _NOT_PIXELS:
            continue
        value = dict(region.value)
        rle = _compact(value.pop("rle", None))
        size = (region.original_width, region.original_height)
        head = (region.type.lower(), region.to_name, size, value, len(rle))
        try:
            digest.update(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
        except RecursionError as error:
            raise AnnotationError(f"region {region.id!r} is nested too deeply") from error
        digest.update(rle)
    return digest.hexdigest()[:32]


def _parse(model: type[_Model], payload: object) -> _Model:
    raw = payload.model_dump(warnings=False) if isinstance(payload, BaseModel) else payload
    try:
        return model.model_validate(raw, context=model)
    except ValidationError as error:
        identity = raw.get("id") if isinstance(raw, Mapping) else None
        what = model.__name__.lower() + (f" {identity}" if identity is not None else "")
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg'].lower()}, "
            f"found {_shown(fault['input'])}"
            for fault in error.errors()
        )
        raise AnnotationError(f"{what} from Label Studio cannot be read: {faults}") from error


def _as_region(result: Region | Mapping[str, Any]) -> Region:
    return result if isinstance(result, Region) else _parse(Region, result)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; a number of thousands of digits
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "…"


def _precedence(annotation: Annotation) -> tuple[bool, datetime, int]:
    changed = annotation.updated_at or annotation.created_at or datetime.min.replace(tzinfo=UTC)
    return annotation.ground_truth, changed, annotation.id


def _in_painting_order(
    results: Sequence[Region | Mapping[str, Any]], config: LabelConfig
) -> list[tuple[str, Region]]:
    """The regions that are about pixels, each with how a sentence calls it.

    In the order of ``results``, after those that may be prompts: what was made of a prompt lies on
    top of it.
    """
    named = [
        (f"region {position} ({region.type or 'no type'}, id {region.id!r})", region)
        for position, region in enumerate(map(_as_region, results), 1)
        if region.type.lower() not in _NOT_PIXELS
    ]
    return sorted(named, key=lambda one: one[1].from_name not in config.smart)


def _unreadable(region: Region, config: LabelConfig) -> str | None:
    """Why a region that is about pixels has no pixels of this image, None if it has."""
    if region.from_name in config.prompts:
        return f'it is a prompt, not a label: its control "{region.from_name}" has smartOnly="true"'
    if region.type.lower() not in _RASTERS:
        return "nextslice reads brush, bitmask, polygon, rectangle and ellipse labels"
    if region.to_name and region.to_name != config.to_name:
        return f'it belongs to "{region.to_name}", not to the image "{config.to_name}"'
    if region.value.get("closed") is False:
        return "its outline is not closed"
    if region.type.lower() not in _MASKS and _MASK_VALUES & region.value.keys():
        # An accepted suggestion gets a second result of the prompt's type, under the same id.
        return "it repeats a mask under the type of an outline"
    return None


def _class_of(region: Region, config: LabelConfig) -> tuple[int, str | None]:
    """The class index to paint, and what is wrong if that is `IGNORE`."""
    if region.from_name and region.from_name not in config.controls:
        return IGNORE, (
            f'belongs to the control "{region.from_name[:60]}", which the labelling config does '
            f"not have ({', '.join(config.controls)})"
        )
    if region.from_name in config.smart:
        return IGNORE, (
            f'may be a prompt or a label, since its control "{region.from_name}" has smart="true" '
            '(say smartOnly="true" if it draws prompts alone, smart="false" if it draws labels)'
        )
    labels = region.value.get(region.type.lower())
    labels = [labels] if isinstance(labels, str) else labels or []
    one = isinstance(labels, list) and len(labels) == 1
    if not one or not isinstance(labels[0], str | int | float):
        return IGNORE, f"has {_shown(labels)} instead of one label" if labels else "has no label"
    index = config.class_index(str(labels[0]))
    if index is None:
        return IGNORE, (
            f'has the label "{str(labels[0])[:60]}", which the labelling config does not have '
            f"({', '.join(config.labels)})"
        )
    return index, None


def _brush(region: Region, height: int, width: int) -> _Painted:
    if "rle" not in region.value:
        raise AnnotationError("value.rle is missing: expected the run-length code of a brush mask")
    own = (region.original_height or height, region.original_width or width)
    _check_size(*own, height, width)
    return _fitted(painted_where(decode_brush(region.value["rle"], *own)), height, width)


def _bitmask(region: Region, height: int, width: int) -> _Painted:
    url = region.value.get("imageDataURL")
    if not isinstance(url, str):
        raise AnnotationError(f"value.imageDataURL: expected a data URL, found {_shown(url)}")
    alpha = decode_bitmask(url, _most_pixels(height, width))
    return _fitted(painted_where(alpha), height, width)


def _polygon(region: Region, height: int, width: int) -> _Painted:
    points = region.value.get("points")
    if isinstance(points, list) and len(points) > _MOST_POINTS:
        raise AnnotationError(
            f"value.points: expected at most {_MOST_POINTS} points, found {len(points)}"
        )
    try:
        corners = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (OverflowError, TypeError, ValueError) as error:
        raise AnnotationError(
            f"value.points: expected a list of [x, y], found {_shown(points)}"
        ) from error
    if not np.isfinite(corners).all():
        raise AnnotationError("value.points: expected numbers, found one that is not finite")
    if corners.size and np.abs(corners).max() > _MOST_PERCENT:
        raise AnnotationError(
            f"value.points: expected percent of the image, found {np.abs(corners).max():.3g}"
        )
    return _filled(corners * (width / 100, height / 100), height, width)


def _rectangle(region: Region, height: int, width: int) -> _Painted:
    left, across = (_number(region, key) * width / 100 for key in ("x", "width"))
    top, down = (_number(region, key) * height / 100 for key in ("y", "height"))
    cos, sin = _turn(region)
    sides = np.array([(0, 0), (across, 0), (across, down), (0, down)])
    corners = sides @ np.array([(cos, sin), (-sin, cos)]) + (left, top)
    return _filled(corners, height, width)


def _ellipse(region: Region, height: int, width: int) -> _Painted:
    centre_x, radius_x = (_number(region, key) * width / 100 for key in ("x", "radiusX"))
    centre_y, radius_y = (_number(region, key) * height / 100 for key in ("y", "radiusY"))
    if not radius_x or not radius_y:
        return np.zeros((height, width), np.bool_)
    cos, sin = _turn(region)
    reach = max(abs(radius_x), abs(radius_y))
    rows = _centres_between(centre_y - reach, centre_y + reach, height)
    columns = _centres_between(centre_x - reach, centre_x + reach, width)
    dx = columns + 0.5 - centre_x
    dy = (rows + 0.5 - centre_y)[:, None]
    painted = np.zeros((height, width), np.bool_)
    with np.errstate(over="ignore"):  # of a radius that is next to nothing
        along = (dx * cos + dy * sin) / radius_x
        across = (dy * cos - dx * sin) / radius_y
        painted[np.ix_(rows, columns)] = along**2 + across**2 < 1
    return painted


_RASTERS = {
    "brushlabels": _brush,
    "bitmasklabels": _bitmask,
    "polygonlabels": _polygon,
    "rectanglelabels": _rectangle,
    "ellipselabels": _ellipse,
}

_MASKS = frozenset({"brushlabels", "bitmasklabels"})
_MASK_VALUES = frozenset({"imageDataURL", "rle"})


def _number(region: Region, key: str) -> float:
    value = region.value.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AnnotationError(f"value.{key}: expected a number, found {_shown(value)}")
    if not -_MOST_PERCENT <= value <= _MOST_PERCENT:  # NaN is not either
        raise AnnotationError(
            f"value.{key}: expected a number up to {_MOST_PERCENT:.0f}, found {_shown(value)}"
        )
    return float(value)


def _turn(region: Region) -> tuple[float, float]:
    """Cosine and sine of the rotation; clockwise as seen, since y points down."""
    angle = math.radians(_number(region, "rotation")) if region.value.get("rotation") else 0.0
    return math.cos(angle), math.sin(angle)


def _filled(corners: npt.NDArray[np.float64], height: int, width: int) -> _Painted:
    """The pixels whose centre lies inside a closed outline of (x, y) in pixels, non-zero winding.

    Every edge that crosses a row's centre line adds its direction to the first pixel right of the
    crossing; the running sum along the row is the winding number.
    """
    painted = np.zeros((height, width), np.bool_)
    if not corners.size:
        return painted
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    rows = _centres_between(top, bottom, height)
    columns = _centres_between(left, right, width)
    winding = np.zeros((rows.size, columns.size + 1), np.int32)
    first_row, first_column = (int(window[0]) if window.size else 0 for window in (rows, columns))
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crossed = _centres_between(min(y0, y1), max(y0, y1), height)
        if crossed.size:
            crossing = x0 + (crossed + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            right_of = np.ceil(crossing - 0.5) - first_column
            place = np.clip(right_of, 0, columns.size).astype(np.int64)
            winding[crossed - first_row, place] += 1 if y1 > y0 else -1
    inside = np.cumsum(winding[:, :-1], axis=1, dtype=np.int32) != 0
    painted[np.ix_(rows, columns)] = inside
    return painted


def _centres_between(low: float, high: float, length: int) -> npt.NDArray[np.int64]:
    """The pixels of ``length`` whose centres lie in [low, high)."""
    first, last = (int(min(max(math.ceil(end - 0.5), 0), length)) for end in (low, high))
    return np.arange(first, last)


def _fitted(painted: _Painted, height: int, width: int) -> _Painted:
    """``painted`` at the image's size, nearest pixel, if its aspect ratio is the image's."""
    own_height, own_width = painted.shape
    if (own_height, own_width) == (height, width):
        return painted
    _check_aspect(own_height, own_width, height, width)
    rows = ((np.arange(height) + 0.5) * own_height / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * own_width / width).astype(np.int64)
    return painted[np.ix_(rows, columns)]


def _most_pixels(height: int, width: int) -> int:
    """Of a mask for a slice of this size: it may have been shown larger, but not by far."""
    return max(_LEAST_LIMIT, _LARGER * height * width)


def _check_size(own_height: int, own_width: int, height: int, width: int) -> None:
    if own_height * own_width > _most_pixels(height, width):
        raise AnnotationError(
            f"it claims {own_width} × {own_height} pixels, this slice has {width} × {height}: "
            f"expected at most {_most_pixels(height, width)} pixels"
        )


def _check_aspect(own_height: int, own_width: int, height: int, width: int) -> None:
    if abs(own_width * height - own_height * width) > max(own_width, own_height, width, height):
        raise AnnotationError(
            f"it was made on an image of {own_width} × {own_height} pixels, this slice has {width} "
            f"× {height}: the task shows another image than the volume holds"
        )


def _region(
    painted: _Painted, config: LabelConfig, index: int, score: float | None
) -> dict[str, Any]:
    height, width = painted.shape
    kind = f"{config.kind}labels"
    value: dict[str, Any] = {kind: [config.result_label(index)]}
    if config.kind == "brush":
        value |= {"format": "rle", "rle": encode_brush(painted)}
        content = bytes(value["rle"])
    else:
        value |= {"imageDataURL": encode_bitmask(painted)}
        content = value["imageDataURL"].encode("ascii")
    identity = f"{config.from_name}\0{config.classes[index]}\0".encode() + content
    region: dict[str, Any] = {
        "id": hashlib.sha256(identity).hexdigest()[:10],
        "from_name": config.from_name,
        "to_name": config.to_name,
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
    }
    return region if score is None else {**region, "score": score}


def _compact(rle: object) -> bytes:
    """A run-length code as bytes, since JSON of a million numbers is slow; the rest as JSON."""
    try:
        if isinstance(rle, (list, tuple)):
            with suppress(TypeError, ValueError):
                return bytes(rle)
        return json.dumps(rle).encode()
    except RecursionError as error:
        raise AnnotationError("value.rle is nested too deeply, expected a list of bytes") from error
