"""A folder of images and masks is a SliceSource."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from al_strategies.evidence import Position
from al_strategies.learner import IGNORE, SliceSource
from ml_backend.volumes.folder import (
    FolderError,
    FolderSource,
    MissingMaskError,
)
from tests.test_foreign_volumes import packed_png

IMAGE = np.arange(24, dtype=np.uint8).reshape(4, 6)
MASK = (IMAGE % 3).astype(np.uint8)


def save(path: Path, pixels: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pair(root: Path, name: str, image: npt.NDArray[np.generic] = IMAGE) -> None:
    save(root / "images" / f"{name}.png", image)
    save(root / "masks" / f"{name}.png", MASK)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs, z 0, 50 and 100, in a folder called scan7."""
    for name in ("0000", "0050", "0100"):
        pair(tmp_path / "scan7", name)
    return tmp_path / "scan7"


# -- what is read


def test_is_a_slice_source_with_names_as_ids(root: Path) -> None:
    source = FolderSource(root)
    assert isinstance(source, SliceSource)
    assert source.ids == ("0000", "0050", "0100")
    np.testing.assert_array_equal(source.image("0050"), IMAGE)
    np.testing.assert_array_equal(source.mask("0050"), MASK)
    assert source.mask("0050").dtype == np.uint8


def test_position_is_folder_name_and_last_number(root: Path) -> None:
    assert FolderSource(root).position("0050") == Position("scan7", 50.0)


def test_order_follows_z_not_the_alphabet(tmp_path: Path) -> None:
    for name in ("slice10", "slice9", "slice100"):
        pair(tmp_path, name)
    assert FolderSource(tmp_path).ids == ("slice9", "slice10", "slice100")


def test_name_can_hold_other_numbers(tmp_path: Path) -> None:
    pair(tmp_path, "2024_scan3_z013")
    assert FolderSource(tmp_path).position("2024_scan3_z013").z == 13.0


@pytest.mark.parametrize("names", [("a", "b1", "c2"), ("a_1", "b_1", "b_2")])
def test_without_a_z_of_its_own_for_each_slice_the_order_counts(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        pair(tmp_path, name)
    source = FolderSource(tmp_path)
    assert [source.position(i).z for i in source.ids] == [0.0, 1.0, 2.0]


def test_a_last_number_that_all_names_have_is_not_z(tmp_path: Path) -> None:
    for z in (1, 2, 10, 12):
        pair(tmp_path, f"slice{z}_8bit")
    source = FolderSource(tmp_path)
    assert source.ids == ("slice1_8bit", "slice2_8bit", "slice10_8bit", "slice12_8bit")
    assert [source.position(i).z for i in source.ids] == [1.0, 2.0, 10.0, 12.0]


def test_the_order_of_names_is_that_of_the_numbers_in_them(tmp_path: Path) -> None:
    for name in ("s10_1", "s2_2", "s2_1", "s1_1"):
        pair(tmp_path, name)
    source = FolderSource(tmp_path)
    assert source.ids == ("s1_1", "s2_1", "s2_2", "s10_1")
    assert [source.position(i).z for i in source.ids] == [0.0, 1.0, 2.0, 3.0]


def test_folder_given_as_dot_still_has_a_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert FolderSource(".").position("0000").volume == "scan7"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_stay_native_in_png(tmp_path: Path, dtype: type[np.generic]) -> None:
    image = np.array([[0, 1, np.iinfo(dtype).max]], dtype)  # type: ignore[type-var]
    save(tmp_path / "images" / "z1.png", image)
    read = FolderSource(tmp_path).image("z1")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int32])
def test_grey_values_stay_native_in_tiff(tmp_path: Path, dtype: type[np.generic]) -> None:
    image = np.array([[0, 1, 100]], dtype)
    save(tmp_path / "images" / "z1.tif", image)
    read = FolderSource(tmp_path).image("z1")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


def test_big_endian_tiff_comes_in_native_order(tmp_path: Path) -> None:
    image = np.array([[1, 258]], np.uint16)
    (tmp_path / "images").mkdir()
    # a minimal big-endian TIFF: header, pixels, one directory
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, 4)]
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
        for tag, kind, value in tags
    )
    data = b"MM\0*" + (12).to_bytes(4, "big") + image.astype(">u2").tobytes()
    data += len(tags).to_bytes(2, "big") + entries + bytes(4)
    (tmp_path / "images" / "z1.tif").write_bytes(data)
    read = FolderSource(tmp_path).image("z1")
    assert read.dtype == np.uint16
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, image)


def test_colour_keeps_three_channels_and_alpha_is_dropped(tmp_path: Path) -> None:
    colour = np.dstack([IMAGE, IMAGE + 1, IMAGE + 2, IMAGE + 100])
    save(tmp_path / "images" / "z1.png", colour)
    np.testing.assert_array_equal(FolderSource(tmp_path).image("z1"), colour[..., :3])


def test_palette_mask_is_read_by_index(root: Path) -> None:
    palette = Image.fromarray(MASK)
    palette.putpalette([255, 255, 255, 200, 0, 0, 0, 0, 200])  # turns mode L into P
    palette.save(root / "masks" / "0050.png")
    np.testing.assert_array_equal(FolderSource(root).mask("0050"), MASK)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_mask_of_few_bits_is_read_as_it_is_stored(
    tmp_path: Path, bits: int, white: bool, ending: str
) -> None:
    ids = (IMAGE % 2**bits).astype(np.uint8)
    save(tmp_path / "images" / "0.png", IMAGE)
    (tmp_path / "masks").mkdir()
    if ending == "png":
        (tmp_path / "masks" / "0.png").write_bytes(packed_png(ids, bits))
    else:
        tifffile.imwrite(
            tmp_path / "masks" / "0.tif", ids, bitspersample=bits, compression=None,
            photometric="miniswhite" if white else "minisblack", metadata=None,
        )  # fmt: skip
    np.testing.assert_array_equal(FolderSource(tmp_path).mask("0"), ids)


def test_hidden_and_foreign_files_are_left_out(root: Path) -> None:
    (root / "images" / ".0200.png.77").write_bytes(b"half")
    (root / "images" / ".0200.png").write_bytes(b"half")
    (root / "images" / "notes.txt").write_text("hello")
    assert len(FolderSource(root).ids) == 3


# -- classes


def test_classes_come_from_classes_json(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps({"names": ["air", "quartz", "clay"]}))
    assert FolderSource(root).classes == ("air", "quartz", "clay")


def test_classes_without_file_count_to_the_highest_value(root: Path) -> None:
    mask = MASK.copy()
    mask[0, 0], mask[0, 1] = 4, IGNORE
    save(root / "masks" / "0100.png", mask)
    expected = ("background", "class 1", "class 2", "class 3", "class 4")
    assert FolderSource(root).classes == expected


@pytest.mark.parametrize(
    "content", ["{}", '{"names": []}', '{"names": ["a", "a"]}', '{"names": [1]}', "[", "3"]
)
def test_malformed_classes_json_is_named(root: Path, content: str) -> None:
    (root / "classes.json").write_text(content)
    with pytest.raises(FolderError, match=r"classes\.json"):
        FolderSource(root)


def test_value_without_a_class_is_named(root: Path) -> None:
    (root / "classes.json").write_text('{"names": ["air", "quartz"]}')
    with pytest.raises(FolderError, match=r"0050\.png has the value 2, expected 0 to 1"):
        FolderSource(root).mask("0050")


def test_unlabelled_pixels_need_no_class(root: Path) -> None:
    (root / "classes.json").write_text('{"names": ["air", "quartz", "clay"]}')
    mask = MASK.copy()
    mask[0] = IGNORE
    save(root / "masks" / "0050.png", mask)
    assert (FolderSource(root).mask("0050")[0] == IGNORE).all()


# -- volumes.json


def test_volumes_json_gives_volume_and_split(tmp_path: Path) -> None:
    for name in ("a_z1", "a_z0", "ab_z0", "other_z5"):
        pair(tmp_path / "many", name)
    volumes = [{"name": "ab", "split": "test"}, {"name": "a", "split": "train"}]
    (tmp_path / "many" / "volumes.json").write_text(json.dumps({"volumes": volumes}))
    source = FolderSource(tmp_path / "many")
    assert source.ids == ("other_z5", "ab_z0", "a_z0", "a_z1")
    assert source.position("ab_z0") == Position("ab", 0.0)
    assert source.position("other_z5") == Position("many", 5.0)
    assert source.splits == {"test": ("ab_z0",), "train": ("a_z0", "a_z1")}


def test_a_split_without_an_image_is_named_all_the_same(root: Path) -> None:
    volumes = [{"name": "nowhere", "split": "test"}, {"name": "a"}]
    (root / "volumes.json").write_text(json.dumps({"volumes": volumes}))
    assert FolderSource(root).splits == {"test": ()}


def test_without_volumes_json_there_are_no_splits(root: Path) -> None:
    assert FolderSource(root).splits == {}


@pytest.mark.parametrize("content", ["[]", '{"volumes": 3}', '{"volumes": [{"split": "a"}]}'])
def test_malformed_volumes_json_is_named(root: Path, content: str) -> None:
    (root / "volumes.json").write_text(content)
    with pytest.raises(FolderError, match=r"volumes\.json"):
        FolderSource(root)


# -- errors name the file, what was found and what was expected


def test_missing_images_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="has no folder images/"):
        FolderSource(tmp_path)


def test_empty_images_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(FolderError, match=r"no \.png or \.tif"):
        FolderSource(tmp_path)


def test_missing_mask_is_told_only_when_asked_for(root: Path) -> None:
    (root / "masks" / "0050.png").unlink()
    source = FolderSource(root)
    assert source.image("0050").shape == (4, 6)
    with pytest.raises(MissingMaskError) as caught:
        source.mask("0050")
    assert isinstance(caught.value, KeyError)  # as SliceSource says
    assert str(caught.value).startswith("no mask for ")
    assert str(caught.value).endswith("masks/0050.png")


def test_folder_without_masks_can_still_be_scored(tmp_path: Path) -> None:
    save(tmp_path / "images" / "z1.png", IMAGE)
    source = FolderSource(tmp_path)
    assert source.classes == ("background",)
    with pytest.raises(MissingMaskError):
        source.mask("z1")


def test_size_mismatch(root: Path) -> None:
    save(root / "masks" / "0050.png", MASK[:2])
    with pytest.raises(FolderError, match=r"0050\.png is 6×2 pixels .*expected 6×4"):
        FolderSource(root).mask("0050")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_unreadable_file(root: Path, kind: str) -> None:
    path = root / kind / "0050.png"
    path.write_bytes(path.read_bytes()[:60])
    source = FolderSource(root)
    with pytest.raises(FolderError, match=rf"{kind}/0050\.png cannot be read"):
        source.image("0050") if kind == "images" else source.mask("0050")


def test_colour_mask_is_refused(root: Path) -> None:
    save(root / "masks" / "0050.png", np.dstack([MASK] * 3))
    with pytest.raises(FolderError, match=r"has mode RGB, expected one channel"):
        FolderSource(root).mask("0050")


def test_mask_of_fractions_is_refused(root: Path) -> None:
    (root / "masks" / "0050.png").unlink()
    save(root / "masks" / "0050.tif", MASK.astype(np.float32) / 2)
    with pytest.raises(FolderError, match="whole class ids"):
        FolderSource(root).mask("0050")


def test_mask_above_eight_bits_is_refused_not_wrapped(root: Path) -> None:
    save(root / "masks" / "0050.png", MASK.astype(np.uint16) + 256)
    with pytest.raises(FolderError, match="from 256 to 258"):
        FolderSource(root).mask("0050")


def test_stack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    page = Image.fromarray(IMAGE)
    page.save(tmp_path / "images" / "z1.tif", save_all=True, append_images=[page, page])
    with pytest.raises(FolderError, match="has 3 pages, expected one slice"):
        FolderSource(tmp_path).image("z1")


def test_two_files_of_one_name(root: Path) -> None:
    save(root / "images" / "0050.tif", IMAGE)
    with pytest.raises(FolderError, match=r"both 0050\.png and 0050\.tif"):
        FolderSource(root)


@pytest.mark.parametrize("method", ["image", "mask", "position"])
def test_unknown_id(root: Path, method: str) -> None:
    with pytest.raises(KeyError, match="no slice '0007', it has 3 slices"):
        getattr(FolderSource(root), method)("0007")


# -- what lies elsewhere


@pytest.mark.parametrize(
    "name", ["images/0050.png", "masks/0050.png", "images", "masks", "classes.json", "volumes.json"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(root: Path, name: str) -> None:
    (root / "classes.json").write_text('["background", "bone", "implant"]')
    (root / "volumes.json").write_text('{"volumes": []}')
    FolderSource(root)
    outside = root.parent / "secret"
    (root / name).rename(outside)
    (root / name).symlink_to(outside)
    with pytest.raises(FolderError, match=rf"{name} is opened for .*scan7, but leads out of"):
        FolderSource(root)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_that_becomes_a_link_is_refused(root: Path, part: str) -> None:
    source = FolderSource(root)
    (root / part / "0050.png").rename(root.parent / "secret.png")
    (root / part / "0050.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(FolderError, match=rf"{part}/0050\.png is opened for .*leads out of"):
        (source.image if part == "images" else source.mask)("0050")


def test_a_link_inside_the_folder_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "images" / "0050.png").rename(root / "scan.png")
    (root / "images" / "0050.png").symlink_to("../scan.png")
    (tmp_path / "linked").symlink_to(root)
    np.testing.assert_array_equal(FolderSource(tmp_path / "linked").image("0050"), IMAGE)
