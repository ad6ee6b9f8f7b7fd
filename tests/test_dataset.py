"""Crops come from labelled places, masks stay masks, and the seed decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from al_strategies.evidence import Position
from al_strategies.learner import IGNORE, InvalidMask
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import (
    Crops,
    LabelledSlices,
    NothingLabelled,
    prefetch,
)
from ml_backend.segmentation.networks import Lesson
from ml_backend.segmentation.preprocessing import Preprocessing

IDENTITY = Preprocessing(-1, 1)


class Source:
    """Slices in memory; counts how often each image is read."""

    def __init__(self, images: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> None:
        self.images, self.masks = images, masks
        self.reads: list[str] = []

    @property
    def ids(self) -> list[str]:
        return list(self.images)

    def image(self, slice_id: str) -> np.ndarray:
        self.reads.append(slice_id)
        return self.images[slice_id]

    def mask(self, slice_id: str) -> np.ndarray:
        return self.masks[slice_id]

    def position(self, slice_id: str) -> Position:
        return Position("v", float(self.ids.index(slice_id)))


def coordinates(height: int, width: int) -> np.ndarray:
    """An image that says of each pixel where it is: row / 1000."""
    return np.repeat(np.arange(height, dtype=np.float32)[:, None] / 1000, width, axis=1)


def labelled(source: Source, classes: int = 3, **options: object) -> LabelledSlices:
    return LabelledSlices(source, source.ids, IDENTITY, classes, **options)  # type: ignore[arg-type]


def crops(slices: LabelledSlices, **options: object) -> Iterator[Lesson]:
    settings = {"crop": 32, "batch": 8, "augmentation": Augmentation.none(), "seed": 0, **options}
    return iter(Crops(slices, **settings))  # type: ignore[arg-type]


def test_counts_are_the_labelled_pixels_of_each_class() -> None:
    mask = np.full((10, 10), IGNORE, np.uint8)
    mask[0], mask[1, :5] = 1, 2
    slices = labelled(Source({"a": np.zeros((10, 10))}, {"a": mask}))

    assert slices.counts.tolist() == [0, 10, 5]
    assert slices.present() == [1, 2]
    assert slices.largest == (10, 10)


def test_image_and_mask_are_cropped_at_the_same_place() -> None:
    image = coordinates(100, 80)
    mask = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 80, axis=1)
    slices = labelled(Source({"a": image}, {"a": mask}), classes=100)

    images, masks, *_ = next(crops(slices))

    rows = images[:, 0] * 1000
    assert images.shape == (8, 1, 32, 32)
    assert masks.dtype == torch.int64
    # Without warp a crop is exact pixels.
    assert (rows - masks).abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_flips_scale_and_warp_keep_image_and_mask_together(seed: int) -> None:
    image = coordinates(100, 100)
    mask = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 100, axis=1)
    slices = labelled(Source({"a": image}, {"a": mask}), classes=100)
    geometric = Augmentation(warped=1, gain=0, gamma=0, offset=0, noise=0, blur=0)

    images, masks, *_ = next(crops(slices, augmentation=geometric, seed=seed))

    inside = masks != IGNORE
    assert inside.float().mean() > 0.8
    assert ((images[:, 0] * 1000 - masks)[inside].abs() <= 0.51).all()


@pytest.mark.parametrize("side", [20, 90])
def test_each_pixel_of_a_crop_says_which_one_of_its_slice_it_is(side: int) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.random((side, side + 4), dtype=np.float32) for name in "ab"}
    slices = labelled(Source(images, {n: np.ones(i.shape, np.uint8) for n, i in images.items()}))

    lesson = next(crops(slices, augmentation=Augmentation.faint(), located=True))

    assert lesson.slices is not None
    assert lesson.places is not None
    assert set(lesson.slices) == {0, 1}
    for index, plain, mask, places in zip(
        lesson.slices, lesson.plain, lesson.masks, lesson.places, strict=True
    ):
        inside = mask != IGNORE
        there = torch.from_numpy(images["ab"[index]]).flatten()[places]
        torch.testing.assert_close(plain[0][inside], there[inside], rtol=0, atol=1e-4)


def test_masks_hold_no_class_that_was_not_there() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40] = 2
    mask[50:] = IGNORE
    slices = labelled(Source({"a": np.zeros((64, 64))}, {"a": mask}))

    _, masks, *_ = next(crops(slices, augmentation=Augmentation()))

    assert set(masks.unique().tolist()) <= {0, 2, IGNORE}


def test_what_lies_outside_a_small_slice_is_ignored_and_mirrored() -> None:
    slices = labelled(Source({"a": np.full((20, 24), 0.5)}, {"a": np.ones((20, 24), np.uint8)}))

    images, masks, *_ = next(crops(slices))

    assert (masks == 1).sum(dim=(1, 2)).tolist() == [20 * 24] * 8
    assert (masks == IGNORE).sum(dim=(1, 2)).tolist() == [32 * 32 - 20 * 24] * 8
    assert torch.allclose(images, torch.tensor(0.5))


def test_a_crop_stays_inside_a_large_slice() -> None:
    slices = labelled(Source({"a": np.zeros((70, 90))}, {"a": np.ones((70, 90), np.uint8)}))

    stream = crops(slices)

    assert all((next(stream)[1] == 1).all() for _ in range(5))


def test_rare_classes_are_found() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[200:202, 200:202] = 2  # 0.006 % of the pixels
    slices = labelled(Source({"a": np.zeros((256, 256))}, {"a": mask}))

    def share(balance: float) -> float:
        stream = crops(slices, balance=balance, batch=32)
        masks = torch.cat([next(stream)[1] for _ in range(4)])
        return float((masks == 2).flatten(1).any(1).float().mean())

    assert share(0.0) < 0.2
    assert share(1.0) > 0.4  # classes 0 and 2 have equal chances


def test_every_crop_shows_a_labelled_pixel() -> None:
    mask = np.full((256, 256), IGNORE, np.uint8)
    mask[10:14, 240:244] = 1
    slices = labelled(Source({"a": np.zeros((256, 256))}, {"a": mask}))

    _, masks, *_ = next(crops(slices, batch=32))

    assert (masks == 1).flatten(1).any(1).all()


@pytest.mark.parametrize(("side", "sparse"), [(4, True), (16, False), (32, False)])
def test_strokes_are_sparse_and_small_slices_are_not(side: int, sparse: bool) -> None:
    mask = np.full((32, 32), IGNORE, np.uint8)
    mask[:side, :side] = 1
    slices = labelled(Source({"a": np.zeros((32, 32), np.float32)}, {"a": mask}))
    assert slices.sparse is sparse
    assert next(crops(slices, crop=64)).sparse is sparse


def test_the_same_seed_gives_the_same_batches() -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(64, 64)) for name in "abc"}
    masks = {name: rng.integers(0, 3, (64, 64)).astype(np.uint8) for name in "abc"}

    def first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        slices = labelled(Source(images, masks), seed=seed)
        stream = crops(slices, augmentation=Augmentation(), seed=seed)
        next(stream)
        return next(stream)[:3]

    assert all(torch.equal(x, y) for x, y in zip(first(3), first(3), strict=True))
    assert not torch.equal(first(3)[0], first(4)[0])


def test_slices_are_read_once_while_they_fit_and_again_when_they_do_not() -> None:
    images = {name: np.zeros((64, 64)) for name in "abcd"}
    masks = {name: np.ones((64, 64), np.uint8) for name in "abcd"}
    roomy, tight = Source(images, masks), Source(images, masks)

    for source, room in ((roomy, 1 << 20), (tight, 2 * 5 * 64 * 64)):
        stream = crops(labelled(source, cache_bytes=room))
        for _ in range(4):
            next(stream)

    assert sorted(roomy.reads) == ["a", "b", "c", "d"]
    assert len(tight.reads) > 8


def test_pseudo_labels_are_used_like_labels() -> None:
    source = Source(
        {"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}, {"a": np.ones((8, 8), np.uint8)}
    )

    slices = LabelledSlices(source, ["a"], IDENTITY, 3, pseudo={"b": np.full((8, 8), 2, np.uint8)})

    assert slices.ids == ["a", "b"]
    assert slices.counts.tolist() == [0, 64, 64]


def test_a_persons_label_comes_before_a_pseudo_label() -> None:
    source = Source({"a": np.zeros((8, 8))}, {"a": np.ones((8, 8), np.uint8)})

    slices = labelled(source, pseudo={"a": np.zeros((8, 8), np.uint8)})

    assert len(slices) == 1
    assert (slices.pair(0)[1] == 1).all()


def test_the_cache_holds_as_much_after_many_slices_as_at_first() -> None:
    names = ["a", "b", "c"]
    mask = np.ones((8, 8), np.uint8)
    source = Source(dict.fromkeys(names, np.zeros((8, 8))), dict.fromkeys(names, mask))
    slices = labelled(source, cache_bytes=2 * (4 + 1) * mask.size)
    for place in [0, 1, 2] * 10:
        slices.pair(place)
    before = len(source.reads)

    for place in [1, 2] * 10:
        slices.pair(place)

    assert len(source.reads) == before


def test_a_slice_without_a_labelled_pixel_teaches_nothing() -> None:
    ignored = np.full((8, 8), IGNORE, np.uint8)
    images = {"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}

    assert labelled(Source(images, {"a": ignored, "b": np.ones((8, 8), np.uint8)})).ids == ["b"]
    with pytest.raises(NothingLabelled, match="2 slices"):
        labelled(Source(images, {"a": ignored, "b": ignored}))


def test_masks_that_do_not_fit_are_refused() -> None:
    images = {"a": np.zeros((8, 8))}

    with pytest.raises(InvalidMask, match=r"'a' has shape \(4, 4\), its image \(8, 8\)"):
        labelled(Source(images, {"a": np.zeros((4, 4), np.uint8)}))
    for wrong in (3, 7):
        with pytest.raises(InvalidMask, match=f"class {wrong}; there are 3 classes"):
            labelled(Source(images, {"a": np.full((8, 8), wrong, np.uint8)}))


def test_slices_that_cannot_be_used_are_left_out_where_somebody_is_told() -> None:
    class Torn(Source):
        def image(self, slice_id: str) -> np.ndarray:
            if slice_id in "ae":
                raise OSError("404")
            return super().image(slice_id)

    images = {name: np.zeros((8, 8)) for name in "abcde"}
    masks = {name: np.ones((8, 8), np.uint8) for name in "abd"} | {"c": np.ones((4, 4), np.uint8)}
    told: dict[object, str] = {}

    slices = LabelledSlices(
        Torn(images, masks), ["a", "b", "c", "d"], IDENTITY, 3, pseudo={"e": masks["a"]},
        unusable=lambda slice_id, error: told.update({slice_id: str(error)}),
    )  # fmt: skip

    assert slices.ids == ["b", "d"]
    assert slices.counts.tolist() == [0, 128, 0]
    assert list(told) == ["a", "c", "e"]
    assert told["a"] == "404"
    assert "shape (4, 4), its image (8, 8)" in told["c"]


def test_where_nothing_can_be_used_the_error_names_the_last_reason() -> None:
    images = {"a": np.zeros((8, 8)), "b": np.zeros((8, 8))}
    masks = {"a": np.full((8, 8), IGNORE, np.uint8), "b": np.ones((4, 4), np.uint8)}

    with pytest.raises(NothingLabelled, match=r"None of the 2 slices .* 1 are left out.*'b'"):
        labelled(Source(images, masks), unusable=lambda slice_id, error: None)


def test_grey_levels_change_but_stay_near() -> None:
    images = torch.linspace(-1, 1, 32).expand(64, 1, 32, 32).clone()
    generator = torch.Generator().manual_seed(0)

    lit = Augmentation().relight(images, generator)

    assert not torch.equal(lit, images)
    assert (lit - images).abs().mean() < 0.3
    assert torch.isfinite(Augmentation().relight(images * 3, generator)).all()


def test_prefetch_hands_out_the_same_items_in_order() -> None:
    assert list(prefetch(iter(range(20)))) == list(range(20))


def test_prefetch_raises_what_its_thread_met() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    stream = prefetch(broken())
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_closing_prefetch_ends_its_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    stream = prefetch(endless())
    next(stream)
    stream.close()

    assert not [t for t in threading.enumerate() if t.name == "crops"]
