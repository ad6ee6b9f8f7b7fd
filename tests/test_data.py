"""Which slices are the pool and which are tested on: what a folder names, or a block along z."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.experiment.data import DataSpec, load_data, phantom_has_test_split


def write(folder: Path, masks: str, splits: dict[str, str]) -> DataSpec:
    """Volumes a and b of ten slices each; ``masks``: which of them have masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for volume in "ab":
        for z in range(10):
            slice_ = Image.fromarray(np.eye(4, dtype=np.uint8))
            slice_.save(folder / "images" / f"{volume}_z{z}.png")
            if volume in masks:
                slice_.save(folder / "masks" / f"{volume}_z{z}.png")
    volumes = [{"name": name, "split": split} for name, split in splits.items()]
    (folder / "volumes.json").write_text(json.dumps({"volumes": volumes}))
    return DataSpec(str(folder), gap=0)


def test_the_splits_that_a_folder_names_are_kept(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "ab", {"a": "train", "b": "test"}))
    assert data.named
    assert {str(i)[0] for i in data.pool} == {"a"}
    assert {str(i)[0] for i in data.test} == {"b"}


@pytest.mark.parametrize(("masks", "without"), [("a", "test"), ("b", "train")])
def test_a_split_that_is_named_must_have_masks(tmp_path: Path, masks: str, without: str) -> None:
    spec = write(tmp_path, masks, {"a": "train", "b": "test"})
    with pytest.raises(ValueError, match=rf"10 slices as the split {without}, and none of them"):
        load_data(spec)


def test_a_split_that_is_named_must_have_images(tmp_path: Path) -> None:
    spec = write(tmp_path, "ab", {"a": "train", "B": "test"})
    with pytest.raises(ValueError, match="volumes of the split test, and no image is of one"):
        load_data(spec)


def test_without_both_splits_a_block_of_each_volume_is_held_out(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "ab", {"a": "train", "b": "train"}))
    assert not data.named
    assert {str(i)[0] for i in data.test} == {"a", "b"}


@pytest.mark.parametrize(
    ("a", "b"), [("Train", "Test"), ("training", "test"), ("train", "val"), ("", "test")]
)
def test_splits_without_train_and_test_are_refused(tmp_path: Path, a: str, b: str) -> None:
    with pytest.raises(ValueError, match=r"names the splits .*, expected both train .* and test"):
        load_data(write(tmp_path, "ab", {"a": a, "b": b}))


def test_a_volume_without_its_labels_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy has no folder images/.* label volume.*--labels"):
        load_data(DataSpec(str(tmp_path / "a.npy")))


def test_which_phantoms_have_test_slices_of_their_own() -> None:
    sizes = ("demo", "small", "seed")
    assert [phantom_has_test_split(size) for size in sizes] == [False, True, True]


def test_a_path_that_does_not_exist_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load_data(DataSpec(str(tmp_path / "nowhere")))


def test_a_folder_of_slices_alone_is_told_of_its_labels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "z0.png")
    with pytest.raises(
        ValueError, match=r"no folder images/.*or, where it is a volume, .*--labels"
    ):
        load_data(DataSpec(str(tmp_path)))


def test_masks_of_0_and_255_are_told_from_classes(tmp_path: Path) -> None:
    spec = write(tmp_path, "ab", {"a": "train", "b": "test"})
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(path)
    with pytest.raises(ValueError, match=r"nothing but 0 \(background\) and 255 .*write class ids"):
        load_data(spec)


def unlabel(folder: Path, *names: str) -> None:
    for name in names:
        Image.fromarray(np.full((4, 4), 255, np.uint8)).save(folder / "masks" / f"{name}.png")


def test_slices_without_a_labelled_pixel_are_named_and_left_out_of_the_pool(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "ab", {"a": "train", "b": "test"}))
    unlabel(tmp_path, "a_z3", "a_z7", "b_z1")
    contents = data.read()
    assert contents.unlabelled == ("a_z3", "a_z7")
    assert data.without(contents.unlabelled).pool == tuple(
        f"a_z{z}" for z in (0, 1, 2, 4, 5, 6, 8, 9)
    )
    assert data.without(()) == data


@pytest.mark.parametrize(("volume", "what"), [("a", "to choose from"), ("b", "to test on")])
def test_a_part_without_a_labelled_pixel_is_refused(tmp_path: Path, volume: str, what: str) -> None:
    data = load_data(write(tmp_path, "ab", {"a": "train", "b": "test"}))
    unlabel(tmp_path, *(f"{volume}_z{z}" for z in range(10)))
    with pytest.raises(ValueError, match=f"none of the slices {what} has a labelled pixel"):
        data.read()
