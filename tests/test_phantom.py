"""The phantom is a scan: 16-bit, correlated along z, seeded, and made one slice at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from al_strategies.evidence import Position
from al_strategies.learner import SliceSource
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.noise import LineNoise, SplineNoise
from ml_backend.volumes.phantom import (
    CLASSES,
    MATERIALS,
    Phantom,
    PhantomSample,
    phantom,
)
from ml_backend.volumes.window import render
from tests.conftest import REPOSITORY

BACKGROUND, BONE, IMPLANT, LAYER = range(4)
AXIS = np.linspace(-2.9, 2.9, 64, dtype=np.float32)


def sample(material: str = "Mg-10Gd", seed: int = 7, **options: int) -> PhantomSample:
    return PhantomSample(seed, (60, 96, 96), material, options.get("weeks", 8))


@cache
def volume(material: str = "Mg-10Gd", seed: int = 7) -> tuple[npt.NDArray[np.uint16], ...]:
    """Images and masks of the whole sample, (60, 96, 96) each."""
    images, masks = zip(*(sample(material, seed).slice(z) for z in range(60)), strict=True)
    return np.stack(images), np.stack(masks)


# -- noise fields


def test_noise_has_mean_0_and_variance_1() -> None:
    noise = SplineNoise((1, 2), (0.1, 0.1, 0.1))
    values = np.stack([noise.grid(0.13 * k, AXIS, AXIS) for k in range(23)])
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)


def test_noise_on_a_grid_is_the_noise_at_its_points() -> None:
    noise = SplineNoise((1, 2), (0.3, 0.3, 0.3))
    y, x = np.meshgrid(AXIS, AXIS, indexing="ij")
    grid, points = noise.grid(0.4, AXIS, AXIS), noise.at(0.4, y, x)
    # the same field; only the normalisation inside a lattice cell differs, by less than 10 %
    assert np.corrcoef(grid.ravel(), points.ravel())[0, 1] > 0.999
    assert points.std() == pytest.approx(grid.std(), rel=0.05)


def test_noise_is_alike_within_its_cell_and_not_beyond() -> None:
    noise = SplineNoise((3,), (0.2, 0.2, 0.2))
    here, near, far = (noise.grid(z, AXIS, AXIS).ravel() for z in (1.0, 1.02, 2.0))
    assert np.corrcoef(here, near)[0, 1] > 0.98
    assert abs(np.corrcoef(here, far)[0, 1]) < 0.15


def test_wrapped_line_closes() -> None:
    line = LineNoise((5,), (0.1, 0.3), 2 * np.pi, wrap=True)
    ends = line.line(0.7, np.array([0.0, 2 * np.pi - 1e-5], np.float32))
    assert ends[0] == pytest.approx(ends[1], abs=1e-2)
    assert line.line(0.7, np.array([3.0], np.float32))[0] != pytest.approx(ends[0], abs=1e-2)


# -- a slice


def test_slice_is_16_bit_with_a_class_for_every_pixel() -> None:
    image, mask = sample().slice(30)
    assert image.shape == mask.shape == (96, 96)
    assert image.dtype == np.uint16
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {BACKGROUND, BONE, IMPLANT, LAYER}
    assert len(np.unique(image)) > 256


def test_order_of_asking_does_not_matter() -> None:
    asked_alone = PhantomSample(7, (60, 96, 96)).slice(41)
    backwards = PhantomSample(7, (60, 96, 96))
    after_others = [backwards.slice(z) for z in (59, 50, 41)][-1]
    np.testing.assert_array_equal(asked_alone[0], after_others[0])
    np.testing.assert_array_equal(asked_alone[1], after_others[1])


def test_mask_alone_is_the_mask_of_the_slice() -> None:
    np.testing.assert_array_equal(sample().mask(25), sample().slice(25)[1])


def test_every_cpu_makes_the_same_slices() -> None:
    """NumPy picks its functions by the CPU: without those for newer ones nothing may change."""
    name = "_multiarray_umath"
    features = getattr(np._core, name).__cpu_features__
    newer = [f for f in getattr(np._core, name).__cpu_dispatch__ if features[f]]
    assert newer, "this CPU has nothing to take away"
    code = (
        "from hashlib import sha256; from tests.test_phantom import sample\n"
        "for one in (sample('Ti'), sample('Mg-10Gd')):\n"
        "    print(*(sha256(a.tobytes()).hexdigest() for z in (20, 40) for a in one.slice(z)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONPATH": "."},
            cwd=REPOSITORY,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        for disabled in ("", " ".join(newer))
    }
    assert len(found) == 1


def test_seed_changes_the_explant() -> None:
    assert (sample(seed=7).mask(30) != sample(seed=8).mask(30)).mean() > 0.05


def test_slice_outside_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="has no slice 60, it has 0 to 59"):
        sample().slice(60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"material": "steel"}, "'steel', expected one of: Mg-5Gd"),
        ({"shape": (0, 9, 9)}, "three positive sizes"),
        ({"field_of_view": 9.0}, "at most 6.8"),
        ({"seed": -1}, "expected 0 or more"),
    ],
)
def test_bad_sample(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhantomSample(**({"seed": 1} | options))  # type: ignore[arg-type]


def test_same_explant_at_another_resolution() -> None:
    coarse = PhantomSample(7, (60, 96, 96)).mask(30)
    fine = PhantomSample(7, (60, 192, 192)).mask(30)
    votes = fine.reshape(96, 2, 96, 2)
    agreement = (coarse[:, None, :, None] == votes).mean()
    assert agreement > 0.93


def test_a_slice_needs_no_more_memory_in_a_taller_volume() -> None:
    def peak(slices: int) -> int:
        tall = PhantomSample(7, (slices, 96, 96))
        tracemalloc.start()
        tall.slice(slices // 2)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(100_000) < 1.2 * peak(60)


# -- a scan of a screw in a bone


def test_neighbouring_slices_are_near_copies_and_distant_ones_are_not() -> None:
    fine = PhantomSample(7, (480, 96, 96))  # 0.01 mm a slice

    def agreement(step: int) -> float:
        a, b = fine.mask(240), fine.mask(240 + step)
        return float((a == b)[(a > 0) | (b > 0)].mean())

    assert agreement(1) > 0.9
    assert agreement(1) > agreement(8) > agreement(60)
    assert agreement(60) < 0.65


def test_grey_values_are_correlated_along_z_too() -> None:
    images, _ = volume()
    here, near, far = (images[z].astype(float).ravel() for z in (30, 31, 12))
    assert np.corrcoef(here, near)[0, 1] > 0.85
    assert np.corrcoef(here, near)[0, 1] > np.corrcoef(here, far)[0, 1] + 0.1


def test_slices_above_and_below_are_empty_but_not_constant() -> None:
    images, masks = volume()
    for z in (0, 59):
        assert (masks[z] == BACKGROUND).all()
        assert images[z].std() > 0


@pytest.mark.parametrize("material", ["Mg-5Gd", "Mg-10Gd"])
def test_classes_of_a_degrading_screw(material: str) -> None:
    _, masks = volume(material)
    share = np.bincount(masks.ravel(), minlength=4) / masks.size
    assert 0.08 < share[BONE] < 0.40
    assert 0.02 < share[IMPLANT] < 0.12
    assert 0.01 < share[LAYER] < 0.08
    present = [(masks == k).any(axis=(1, 2)).mean() for k in (BONE, IMPLANT, LAYER)]
    assert min(present) > 0.7


@pytest.mark.parametrize("material", ["Ti", "PEEK"])
def test_inert_screws_have_no_layer(material: str) -> None:
    _, masks = volume(material)
    assert set(np.unique(masks)) == {BACKGROUND, BONE, IMPLANT}


def test_layer_lies_at_the_screw() -> None:
    _, masks = volume()
    touching = 0
    for mask in masks[15:45]:
        y, x = np.nonzero(mask == IMPLANT)
        middle, radius = (y.mean(), x.mean()), 1.25 * 96 / 5.8
        ly, lx = np.nonzero(mask == LAYER)
        touching += int((np.hypot(ly - middle[0], lx - middle[1]) < radius).all())
    assert touching == 30


def test_thread_is_a_helix_of_its_pitch() -> None:
    ti = PhantomSample(7, (490, 96, 96), "Ti")  # 0.01 mm a slice
    side = [int((ti.mask(z)[:, 48:] == IMPLANT).sum()) for z in range(200, 280, 5)]
    other = [int((ti.mask(z)[:, :48] == IMPLANT).sum()) for z in range(200, 280, 5)]
    # pitch 0.4 mm = 40 slices = 8 places: again as before; half a turn: the other side
    assert np.corrcoef(side[:8], side[8:])[0, 1] > 0.9
    assert np.corrcoef(side, other)[0, 1] < -0.8


def test_longer_healing_corrodes_more() -> None:
    early, late = (PhantomSample(7, (60, 96, 96), "Mg-5Gd", weeks) for weeks in (4, 12))
    lost = [int((s.mask(30) == IMPLANT).sum()) for s in (early, late)]
    assert lost[1] < 0.95 * lost[0]


def test_materials_differ_in_grey_value_as_they_should() -> None:
    means = {}
    for material in MATERIALS:
        images, masks = volume(material)
        means[material] = images[masks == IMPLANT].mean()
    assert means["PEEK"] < means["Mg-5Gd"] < means["Mg-10Gd"] < means["Ti"]


def test_layer_is_the_hardest_class_by_grey_value_alone() -> None:
    images, masks = volume("Mg-5Gd")
    bins = images // 100
    counts = np.stack([np.bincount(bins[masks == k], minlength=700) for k in range(4)])
    guess = counts.argmax(axis=0)[bins]  # the most frequent class of each grey value
    iou = [
        ((guess == k) & (masks == k)).sum() / ((guess == k) | (masks == k)).sum() for k in range(4)
    ]
    assert min(iou) == iou[LAYER]
    assert iou[LAYER] < 0.4
    assert min(iou[BONE], iou[IMPLANT]) > 0.6


def test_titanium_streaks_reach_the_empty_tube() -> None:
    def spread_outside(material: str) -> float:
        images, masks = volume(material)
        far = np.hypot(*np.meshgrid(np.arange(96) - 48, np.arange(96) - 48)) < 45
        return float(np.std([images[z][(masks[z] == 0) & far].std() for z in range(20, 40)]))

    assert spread_outside("Ti") > spread_outside("PEEK")


# -- several samples


def test_phantom_is_a_slice_source() -> None:
    source = phantom("demo", plane=(32, 32))
    assert isinstance(source, SliceSource)
    assert source.classes == CLASSES
    assert len(source.ids) == 120
    first, second = source.ids[:2]
    assert source.position(second) == Position("s01-mg10gd-08w", 1.0)
    assert source.image(first).shape == source.mask(first).shape == (32, 32)
    with pytest.raises(KeyError, match="no slice 'nowhere'"):
        source.mask("nowhere")


def test_seed_size_is_that_of_the_experiment() -> None:
    source = phantom("seed")
    assert {k: len(v) for k, v in source.splits.items()} == {
        "train": 6878,
        "val": 5591,
        "test": 6000,
    }
    assert len(source.samples) == 8 + 6 + 6


@pytest.mark.parametrize("size", ["small", "seed"])
def test_splits_are_by_sample_and_each_has_all_materials_that_degrade(size: str) -> None:
    source = phantom(size)
    volumes = {k: {source.position(i).volume for i in v} for k, v in source.splits.items()}
    assert not volumes["train"] & (volumes["val"] | volumes["test"])
    assert not volumes["val"] & volumes["test"]
    for names in volumes.values():
        assert {"mg5gd", "mg10gd"} <= {name.split("-")[1] for name in names}
    assert len({s.seed for s in source.samples}) == len(source.samples)


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="'huge', expected one of: demo, small, seed"):
        phantom("huge")


def test_samples_need_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="unique"):
        Phantom([PhantomSample(1), PhantomSample(2)])


# -- on disk


def tiny(seed: int = 1) -> Phantom:
    samples = [PhantomSample(seed + i, (3, 24, 24), name=f"p{i}") for i in range(2)]
    return Phantom(samples, {"p0": "train", "p1": "test"})


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_written_folder_reads_back_the_same(tmp_path: Path) -> None:
    source = tiny()
    folder = FolderSource(source.write(tmp_path / "out"))
    assert folder.ids == source.ids
    assert folder.classes == CLASSES
    assert folder.splits == {k: v for k, v in source.splits.items() if v}
    for slice_id in source.ids:
        np.testing.assert_array_equal(folder.image(slice_id), source.image(slice_id))
        np.testing.assert_array_equal(folder.mask(slice_id), source.mask(slice_id))
        assert folder.position(slice_id) == source.position(slice_id)
        assert folder.image(slice_id).dtype == np.uint16


def test_interrupted_write_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    whole = contents(tiny().write(tmp_path / "whole"))
    with pytest.raises(Killed):
        tiny().write(tmp_path / "cut", kill)
    (tmp_path / "cut" / "masks" / "p0_z0001.png").unlink()  # an image without its mask
    kept = (tmp_path / "cut" / "images" / "p0_z0000.png").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    tiny().write(tmp_path / "cut", lambda step, done, total: seen.append((done, total)))
    assert seen == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert (tmp_path / "cut" / "images" / "p0_z0000.png").stat().st_mtime_ns == kept
    assert contents(tmp_path / "cut") == whole


def test_several_processes_write_the_same(tmp_path: Path) -> None:
    one = contents(tiny().write(tmp_path / "one"))
    assert contents(tiny().write(tmp_path / "two", jobs=2)) == one


def test_another_phantom_is_not_mixed_in(tmp_path: Path) -> None:
    tiny(seed=1).write(tmp_path)
    with pytest.raises(ValueError, match="describes another phantom"):
        tiny(seed=5).write(tmp_path)


def test_somebody_elses_images_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="not ours"):
        tiny().write(tmp_path)


def test_files_are_what_the_readme_of_the_data_says(tmp_path: Path) -> None:
    tiny().write(tmp_path)
    with Image.open(tmp_path / "images" / "p0_z0001.png") as image:
        assert image.mode == "I;16"
    with Image.open(tmp_path / "masks" / "p0_z0001.png") as mask:
        assert mask.mode == "L"
    assert json.loads((tmp_path / "classes.json").read_text()) == {"names": list(CLASSES)}


# -- for a browser


@pytest.mark.parametrize("material", list(MATERIALS))
def test_window_of_a_sample_shows_bone_and_marrow(material: str) -> None:
    images, masks = volume(material)
    seen = render(images, sample(material).window)
    assert 40 < np.median(seen[masks == BONE]) < 235
    assert (seen == 0).mean() < 0.02
