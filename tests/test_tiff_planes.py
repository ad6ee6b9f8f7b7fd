"""TIFF beyond one page, one slice: what microscopes write, masks, colours, and white that is 0."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ml_backend.studio.images import decode_image
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.formats import tiff
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec
from ml_backend.volumes.window import Window, render
from tests.microscopes import fluoview, index_mapped, lsm, metamorph, micromanager, ndtiff
from tests.test_formats import assert_holds, values

GREY = values("u2", (4, 8, 10))
SEVERAL = np.stack([GREY + 1000 * i for i in range(6)]).reshape(2, 3, *GREY.shape)
"""Two times, three channels."""
PAGES = SEVERAL.transpose(0, 2, 1, 3, 4)
"""(T, Z, C, Y, X)."""


def opened(path: Path, **options: Any) -> Volume:
    return open_volume(path, ReadOptions(**options))


class TestMetaMorph:
    def test_planes_lie_behind_the_only_page(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "a.tif", GREY, step=2)
        assert len(tifffile.TiffFile(tmp_path / "a.tif").pages) == 1
        volume = opened(tmp_path / "a.tif")
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.5), "µm")

    def test_without_a_distance_there_is_no_voxel_size(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "a.stk", GREY)
        volume = opened(tmp_path / "a.stk")
        assert_holds(volume, GREY)
        assert volume.voxel_size is None

    def test_white_is_zero_in_every_plane(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "a.tif", GREY, photometric=0)
        assert_holds(opened(tmp_path / "a.tif"), 65535 - GREY)

    def test_a_count_that_cannot_be_read_is_no_single_slice(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "a.tif", GREY)
        content = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(
            content.replace(b"\x5d\x83\x05\0\4\0\0\0", b"\x5d\x83\x05\0\x60\0\0\0")
        )
        with pytest.raises(VolumeError, match="says not how many planes lie behind its page"):
            opened(tmp_path / "a.tif")

    def test_a_choice_of_what_is_not_there(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "a.tif", GREY)
        (tmp_path / "one").mkdir()
        tifffile.imwrite(tmp_path / "one" / "0.tif", GREY[0])
        for path in (tmp_path / "a.tif", tmp_path / "one"):
            assert opened(path, channel=0, time=0)[0].tolist() == GREY[0].tolist()
            with pytest.raises(VolumeError, match="no axis of several channels"):
                opened(path, channel=1)
            with pytest.raises(VolumeError, match="--time 1"):
                opened(path, time=1)

    def test_a_folder_of_them_is_no_volume(self, tmp_path: Path) -> None:
        metamorph(tmp_path / "1.tif", GREY)
        metamorph(tmp_path / "2.tif", GREY)
        with pytest.raises(VolumeError, match=r"1\.tif has 4 pages .* one slice a file"):
            opened(tmp_path)


class TestLsm:
    @pytest.mark.parametrize("ending", ["tif", "lsm"])
    def test_thumbnails_are_no_slices(self, tmp_path: Path, ending: str) -> None:
        lsm(tmp_path / f"a.{ending}", PAGES[:1, :, :1])
        volume = opened(tmp_path / f"a.{ending}")
        assert_holds(volume, SEVERAL[0, 0])
        assert (volume.voxel_size, volume.unit) == (pytest.approx((0.4, 0.2, 0.1)), "µm")

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_a_channel_and_a_time_are_chosen(self, tmp_path: Path, compression: Any) -> None:
        lsm(tmp_path / "a.tif", PAGES, compression)
        assert_holds(opened(tmp_path / "a.tif", channel=2, time=1), SEVERAL[1, 2])
        with pytest.raises(VolumeError, match=r"3 values a pixel.* --channel, 0 to 2"):
            opened(tmp_path / "a.tif", time=1)
        with pytest.raises(VolumeError, match="only one T: choose it with --time, 0 to 1"):
            opened(tmp_path / "a.tif", channel=1)

    def test_three_channels_as_small_as_their_thumbnails(self, tmp_path: Path) -> None:
        lsm(tmp_path / "a.tif", PAGES[:1].astype("u1"), thumbnail=GREY.shape[1:])
        assert_holds(opened(tmp_path / "a.tif", channel=1), SEVERAL[0, 1].astype("u1"))

    def test_their_endings_are_not_written(self, tmp_path: Path) -> None:
        spec = VolumeSpec(GREY.shape, GREY.dtype)
        for name in ("a.lsm", "a.stk"):
            with pytest.raises(VolumeError, match="names no format to write"):
                write_volume(tmp_path / name, [*GREY], spec)


class TestFluoView:
    def test_a_stack(self, tmp_path: Path) -> None:
        fluoview(tmp_path / "a.tif", GREY, "ZYX")
        volume = opened(tmp_path / "a.tif")
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((0.4, 0.2, 0.1), "µm")

    @pytest.mark.parametrize("axes", ["TZCYX", "CTZYX", "ZTCYX"])
    def test_pages_in_any_order(self, tmp_path: Path, axes: str) -> None:
        places = ["TCZYX".index(axis) for axis in axes]
        fluoview(tmp_path / "a.tif", SEVERAL.transpose(places), axes)
        assert_holds(opened(tmp_path / "a.tif", channel=2, time=1), SEVERAL[1, 2])
        with pytest.raises(VolumeError, match="expected one axis of slices"):
            opened(tmp_path / "a.tif")


PLACES = [(t, z, c) for z in (3, 1, 0, 2) for c in range(3) for t in range(2)]
"""Time, slice and channel of each page, in the order in which they were taken."""


class TestMicroManager:
    def pages(self) -> list[np.ndarray]:
        return [PAGES[place] for place in PLACES]

    def test_pages_say_where_they_belong(self, tmp_path: Path) -> None:
        micromanager(tmp_path / "a.tif", self.pages(), PLACES)
        volume = opened(tmp_path / "a.tif", channel=1, time=0)
        assert_holds(volume, SEVERAL[0, 1])
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.5), "µm")
        with pytest.raises(VolumeError, match="only one time: choose it with --time, 0 to 1"):
            opened(tmp_path / "a.tif", channel=1)

    def test_the_map_of_the_file_says_it(self, tmp_path: Path) -> None:
        mapped = [(c, z, t) for t, z, c in PLACES]
        summary = {"MicroManagerVersion": "1.4", "Frames": 2, "Slices": 4, "Channels": 3}
        index_mapped(tmp_path / "a.tif", self.pages(), mapped, summary)
        assert_holds(opened(tmp_path / "a.tif", channel=2, time=1), SEVERAL[1, 2])

    def test_a_page_that_is_missing_is_missed(self, tmp_path: Path) -> None:
        micromanager(tmp_path / "a.tif", self.pages()[1:], PLACES[1:])
        with pytest.raises(VolumeError, match="has 23 pages at 23 places, expected one for each"):
            opened(tmp_path / "a.tif", channel=0, time=0)

    def test_slices_in_other_files_are_missed(self, tmp_path: Path) -> None:
        path = tmp_path / "run_MMStack_Pos0.ome.tif"
        summary = {"MicroManagerVersion": "1.4", "Frames": 1, "Slices": 8, "Channels": 1}
        index_mapped(path, [*GREY], [(0, z, 0) for z in range(4)], summary)
        assert_holds(opened(path), GREY)  # that is how far it came
        (tmp_path / "run_MMStack_Pos0_1.ome.tif").touch()
        with pytest.raises(VolumeError, match=r"slices in other files .*Pos0_1\.ome\.tif"):
            opened(path)

    @pytest.mark.parametrize(
        "name",
        [
            "img_channel{c:03}_position000_time{t:09}_z{z:03}.tif",
            "img_{t:09}_{dye}_{z:03}.tif",
        ],
    )
    @pytest.mark.parametrize(("first", "began"), [(0, 0), (998, 999_999_999)])
    def test_a_folder_of_single_images(
        self, tmp_path: Path, name: str, first: int, began: int
    ) -> None:
        for (t, z, c), page in zip(PLACES, self.pages(), strict=True):
            dye = ("DAPI", "FITC", "Cy 5")[c]
            file = name.format(t=began + t, z=first + z, c=c, dye=dye)
            tifffile.imwrite(tmp_path / file, page)
        number = 0 if "dye" in name else 2  # names of dyes stand in the order of their letters
        assert_holds(opened(tmp_path, channel=number, time=1), SEVERAL[1, 2])
        with pytest.raises(VolumeError, match="only one channel: choose it with --channel, 0 to 2"):
            opened(tmp_path, time=0)
        next(tmp_path.glob("*.tif")).unlink()
        with pytest.raises(VolumeError, match="has 23 pages at 23 places"):
            opened(tmp_path, channel=0, time=0)

    def test_a_file_that_has_no_place_among_channels_is_named(self, tmp_path: Path) -> None:
        for c in range(2):
            for z, page in enumerate(GREY):
                tifffile.imwrite(tmp_path / f"img_000000000_{c}_{z:03}.tif", page)
        tifffile.imwrite(tmp_path / "overview.tif", GREY[0])
        with pytest.raises(VolumeError, match=r"overview\.tif is called otherwise"):
            opened(tmp_path, channel=0)

    def test_a_file_beside_one_channel_is_a_slice_as_in_any_folder(self, tmp_path: Path) -> None:
        for z, page in enumerate(GREY):
            name = f"img_000000000_DAPI_{z:03}.tif" if z < 3 else "img_last.tif"
            tifffile.imwrite(tmp_path / name, page)
        assert_holds(opened(tmp_path), GREY)

    def test_ndtiff_names_its_axes(self, tmp_path: Path) -> None:
        axes = [{"z": z, "channel": ("DAPI", "FITC", "Cy5")[c], "time": t} for t, z, c in PLACES]
        ndtiff(tmp_path / "a_NDTiffStack.tif", self.pages(), axes)
        assert_holds(opened(tmp_path / "a_NDTiffStack.tif", channel=1, time=1), SEVERAL[1, 1])
        (tmp_path / "a_NDTiffStack_1.tif").touch()
        with pytest.raises(VolumeError, match=r"slices in other files \(a_NDTiffStack_1\.tif"):
            opened(tmp_path / "a_NDTiffStack.tif", channel=1, time=1)


TWO = [(z, c) for c in range(2) for z in range(4)]


class TestHyperstacks:
    def test_imagej(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", PAGES, imagej=True, metadata={"axes": "TZCYX"})
        assert_holds(opened(tmp_path / "a.tif", channel=2, time=1), SEVERAL[1, 2])
        with pytest.raises(VolumeError, match="only one T: choose it with --time, 0 to 1"):
            opened(tmp_path / "a.tif", channel=0)

    def test_where_the_chosen_slices_lie(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", PAGES, imagej=True, metadata={"axes": "TZCYX"})
        with closing(tiff.read(tmp_path / "a.tif", ReadOptions(channel=2, time=1))) as volume:
            runs = volume.runs()
            assert runs is not None
            for z, page in enumerate(SEVERAL[1, 2]):
                assert np.array_equal(runs.read(z, (8, 10)), page)

    @pytest.mark.parametrize("order", ["TZCYX", "CTZYX", "ZCTYX"])
    def test_ome_in_any_order(self, tmp_path: Path, order: str) -> None:
        array = SEVERAL.transpose(["TCZYX".index(axis) for axis in order])
        tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata={"axes": order})
        assert_holds(opened(tmp_path / "a.ome.tif", channel=1, time=0), SEVERAL[0, 1])

    def test_ome_says_on_which_page_a_plane_is(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY[::-1], ome=True, metadata={"axes": "ZYX"})
        turned = "".join(f'<TiffData FirstZ="{z}" IFD="{3 - z}"/>' for z in range(4))
        replace_description(tmp_path / "a.tif", '<TiffData IFD="0" PlaneCount="4"/>', turned)
        assert_holds(opened(tmp_path / "a.tif"), GREY)

    def test_ome_over_several_files_is_read_from_their_folder(self, tmp_path: Path) -> None:
        places = {f"{name}.ome.tif": place for name, place in zip("fbdaecgh", TWO, strict=True)}
        planes = "".join(
            f'<TiffData FirstZ="{z}" FirstC="{c}" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
            for name, (z, c) in places.items()
        )
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="10" SizeY="8" '
            f'SizeZ="4" SizeC="2" SizeT="1">{planes}</Pixels></Image></OME>'
        )
        for name, (z, c) in places.items():
            tifffile.imwrite(tmp_path / name, SEVERAL[0, c, z], description=xml, metadata=None)
        assert_holds(opened(tmp_path, channel=1), SEVERAL[0, 1])
        with pytest.raises(VolumeError, match="only one C: choose it with --channel, 0 to 1"):
            opened(tmp_path)
        with pytest.raises(VolumeError, match=r"slices in other files .* give the folder instead"):
            opened(tmp_path / "a.ome.tif")
        (tmp_path / "h.ome.tif").rename(tmp_path / "i.ome.tif")
        with pytest.raises(VolumeError, match="has 8 files, 7 of the 8 that the OME-XML of a"):
            opened(tmp_path, channel=1)
        (tmp_path / "i.ome.tif").unlink()
        with pytest.raises(VolumeError, match="has 7 pages at 7 places, expected one for each"):
            opened(tmp_path, channel=1)
        for name, (_, c) in places.items():
            if c == 0:
                (tmp_path / name).unlink(missing_ok=True)
        assert_holds(opened(tmp_path), SEVERAL[0, 1, :3])  # what is left of one channel

    def test_ome_that_says_one_page_twice_is_refused(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, ome=True, metadata={"axes": "ZYX"})
        some = '<TiffData FirstZ="1" IFD="1" PlaneCount="3"/>'
        replace_description(tmp_path / "a.tif", '<TiffData IFD="0" PlaneCount="4"/>', some)
        with pytest.raises(VolumeError, match="where 3 of its 4 slices are, 1 are nowhere"):
            opened(tmp_path / "a.tif")


def replace_description(path: Path, before: str, after: str) -> None:
    with tifffile.TiffFile(path, mode="r+b") as tif:
        text = tif.pages.first.description
        assert before in text
        tif.pages.first.tags["ImageDescription"].overwrite(text.replace(before, after))


def call_pages(path: Path, kind: int, first: int = 1) -> None:
    """Every second page, from ``first`` on, is of this NewSubfileType."""
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages[first::2]:
            page.tags["NewSubfileType"].overwrite(kind)


class TestOtherPages:
    def test_masks_and_thumbnails_are_no_slices(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for page in GREY:
                tif.write(page[::2, ::2], subfiletype=1, metadata=None)
                tif.write(page, metadata=None)
                tif.write(page > 9, subfiletype=4, photometric="mask", metadata=None)
        assert_holds(opened(tmp_path / "a.tif"), GREY)

    def test_a_mask_of_the_type_of_the_image(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for page in GREY:
                tif.write(page, metadata=None)
                tif.write(page // 2, subfiletype=2, metadata=None)
        call_pages(tmp_path / "a.tif", 4)
        assert_holds(opened(tmp_path / "a.tif"), GREY)

    def test_a_reduced_image_as_large_as_the_others_is_refused(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for page in GREY:
                tif.write(page, subfiletype=2, metadata=None)
        call_pages(tmp_path / "a.tif", 1)
        with pytest.raises(VolumeError, match=r"page \(1\) that says it is a reduced image"):
            opened(tmp_path / "a.tif")

    def test_masks_alone_are_no_volume(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY[0], subfiletype=2, metadata=None)
        call_pages(tmp_path / "a.tif", 4, first=0)
        with pytest.raises(VolumeError, match="all of them reduced images or masks"):
            opened(tmp_path / "a.tif")

    def test_several_pages_that_are_volumes_are_refused(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for _ in GREY:
                tif.write(GREY, volumetric=True, photometric="minisblack", metadata=None)
        with pytest.raises(VolumeError, match=r"has 4 pages of shape \(4, 8, 10\)"):
            opened(tmp_path / "a.tif")

    def test_in_a_folder(self, tmp_path: Path) -> None:
        for z, page in enumerate(GREY):
            with tifffile.TiffWriter(tmp_path / f"{z}.tif") as tif:
                tif.write(page, metadata=None)
                tif.write(page[::2, ::2], subfiletype=1, metadata=None)
        assert_holds(opened(tmp_path), GREY)

    def test_images_behind_the_page_of_a_file_in_a_folder(self, tmp_path: Path) -> None:
        tifffile.imwrite(
            tmp_path / "a.tif", GREY, metadata={"truncate": True}, photometric="minisblack"
        )
        with pytest.raises(VolumeError, match=r"a\.tif has 4 pages .* one slice a file"):
            opened(tmp_path)

    def test_a_description_of_the_stack_that_an_image_is_from(self, tmp_path: Path) -> None:
        text = "ImageJ=1.53t\nimages=4\nslices=4\nloop=false\n"
        for z, page in enumerate(GREY):
            tifffile.imwrite(tmp_path / f"{z}.tif", page, description=text, metadata=None)
        assert_holds(opened(tmp_path), GREY)


class TestWhiteIsZero:
    @pytest.mark.parametrize("form", [{}, {"compression": "zlib"}], ids=str)
    @pytest.mark.parametrize("dtype", ["u1", "u2", "?"])
    def test_values_are_those_of_an_upload(
        self, tmp_path: Path, dtype: str, form: dict[str, Any]
    ) -> None:
        array = GREY.astype(dtype) if dtype != "?" else GREY % 3 == 0
        white = ~array if dtype == "?" else np.iinfo(dtype).max - array
        tifffile.imwrite(
            tmp_path / "a.tif", array, photometric="miniswhite", **form,
            metadata=None,
        )  # fmt: skip
        volume = opened(tmp_path / "a.tif")
        assert_holds(volume, white)
        Path(tmp_path / "one").mkdir()
        tifffile.imwrite(tmp_path / "one" / "a.tif", array[0], photometric="miniswhite", **form)
        shown = decode_image((tmp_path / "one" / "a.tif").read_bytes(), "a")
        assert np.array_equal(shown, white[0] * 255 if dtype == "?" else white[0])
        assert_holds(opened(tmp_path / "one"), white[:1])

    def test_either_byte_order(self, tmp_path: Path) -> None:
        white = {"photometric": "miniswhite", "byteorder": ">", "metadata": None}
        tifffile.imwrite(tmp_path / "a.tif", GREY, **white)
        assert_holds(opened(tmp_path / "a.tif"), 65535 - GREY)

    @pytest.mark.parametrize("dtype", ["i2", "f4"])
    def test_values_without_a_white_are_as_they_are(self, tmp_path: Path, dtype: str) -> None:
        array = values(dtype, (3, 5, 6))
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite", metadata=None)
        assert_holds(opened(tmp_path / "a.tif"), array)

    def test_what_is_turned_over_does_not_lie_as_it_is_read(self, tmp_path: Path) -> None:
        for name in ("miniswhite", "minisblack"):
            tifffile.imwrite(tmp_path / "a.tif", GREY, photometric=name, metadata=None)
            with closing(tiff.read(tmp_path / "a.tif", ReadOptions())) as volume:
                assert (volume.runs() is None) == (name == "miniswhite")

    def test_bits_that_are_packed(self, tmp_path: Path) -> None:
        array = GREY % 4096
        tifffile.imwrite(
            tmp_path / "a.tif", array, bitspersample=12, photometric="miniswhite", metadata=None
        )
        assert_holds(opened(tmp_path / "a.tif"), 4095 - array)

    @pytest.mark.parametrize("place", ["folder", "file"])
    def test_both_kinds_are_one_volume(self, tmp_path: Path, place: str) -> None:
        pages = [(page if z % 2 else 65535 - page, z % 2 == 0) for z, page in enumerate(GREY)]
        if place == "folder":
            path = tmp_path
            for z, (page, white) in enumerate(pages):
                tifffile.imwrite(
                    path / f"{z}.tif", page, photometric="miniswhite" if white else "minisblack"
                )
        else:
            path = tmp_path / "a.tif"
            with tifffile.TiffWriter(path) as tif:
                for page, white in pages:
                    kind = "miniswhite" if white else "minisblack"
                    tif.write(page, photometric=kind, metadata=None)
        assert_holds(opened(path), GREY)

    def test_labels_are_never_turned_over(self, tmp_path: Path) -> None:
        labels = (GREY % 3).astype("u1")
        tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="miniswhite", metadata=None)
        tifffile.imwrite(tmp_path / "grey.tif", GREY, photometric="minisblack")
        pair = VolumePair(tmp_path / "grey.tif", tmp_path / "labels.tif")
        assert np.array_equal([pair.mask(i) for i in pair.ids], labels)
        assert_holds(opened(tmp_path / "labels.tif", labels=True), labels)

    def test_in_a_folder_of_images_and_masks(self, tmp_path: Path) -> None:
        """A simulation reads its images as uploads are read, and its masks as they are stored."""
        labels = (GREY % 3).astype("u1")
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for z, (page, mask) in enumerate(zip(GREY, labels, strict=True)):
            white = {"photometric": "miniswhite"}
            tifffile.imwrite(tmp_path / "images" / f"{z}.tif", page, **white)
            tifffile.imwrite(tmp_path / "masks" / f"{z}.tif", mask, **white)
        folder = FolderSource(tmp_path)
        assert np.array_equal([folder.image(i) for i in folder.ids], 65535 - GREY)
        assert np.array_equal([folder.mask(i) for i in folder.ids], labels)

    def test_the_slice_server_shows_it(self, tmp_path: Path) -> None:
        array = (GREY % 256).astype("u1")
        tifffile.imwrite(tmp_path / "a.tif", array[0], photometric="miniswhite")
        shown = render(opened(tmp_path / "a.tif")[0], Window(0, 255))
        assert np.array_equal(shown, decode_image((tmp_path / "a.tif").read_bytes(), "a"))


GREY8 = (GREY % 256).astype("u1")
RGB = np.stack([GREY8] * 3, -1)


class TestColours:
    @pytest.mark.parametrize("ending", ["png", "bmp"])
    def test_a_palette_of_grey(self, tmp_path: Path, ending: str) -> None:
        """An image saved with its look-up table inverted."""
        for z, page in enumerate(GREY8):
            image = Image.fromarray(255 - page).convert("P")
            image.putdata((255 - page).ravel().tolist())
            image.putpalette([grey for grey in range(255, -1, -1) for _ in range(3)])
            image.save(tmp_path / f"{z}.{ending}")
        assert_holds(opened(tmp_path), GREY8)
        shown = decode_image((tmp_path / f"2.{ending}").read_bytes(), "2")
        assert np.array_equal(shown[..., 0], GREY8[2])
        assert_holds(opened(tmp_path, labels=True), 255 - GREY8)

    @pytest.mark.parametrize(
        "form",
        [
            {},
            {"planarconfig": "separate"},
            {"compression": "zlib"},
            {"imagej": True},
            {"metadata": None},
        ],
        ids=str,
    )
    def test_grey_in_rgb(self, tmp_path: Path, form: dict[str, Any]) -> None:
        array = np.moveaxis(RGB, -1, 1) if "planarconfig" in form else RGB
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", **form)
        assert_holds(opened(tmp_path / "a.tif"), GREY8)

    @pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
    def test_grey_with_alpha(self, tmp_path: Path, photometric: str) -> None:
        grey = RGB if photometric == "rgb" else GREY8[..., None]
        form: dict[str, Any] = {"photometric": photometric, "extrasamples": ["unassalpha"]}
        form |= {"planarconfig": "contig", "metadata": None}
        alpha = np.full((*GREY8.shape, 1), 255, "u1")
        tifffile.imwrite(tmp_path / "a.tif", np.concatenate([grey, alpha], -1), **form)
        assert_holds(opened(tmp_path / "a.tif"), GREY8)
        alpha[-1, 2, 3] = 0
        tifffile.imwrite(tmp_path / "b.tif", np.concatenate([grey, alpha], -1), **form)
        with pytest.raises(VolumeError, match="is a colour image"):
            opened(tmp_path / "b.tif")

    def test_a_coloured_pixel_is_refused_where_it_is_read(self, tmp_path: Path) -> None:
        array = RGB.copy()
        array[1, 2, 3, 1] ^= 1
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", metadata=None)
        volume = opened(tmp_path / "a.tif")
        with pytest.raises(VolumeError, match=r"page 1 is a colour image \(3 values a pixel\)"):
            volume[1]
        assert_holds(opened(tmp_path / "a.tif", channel=1), array[..., 1])
        with pytest.raises(VolumeError, match=r"asked for is --channel 3: expected 0 to 2"):
            opened(tmp_path / "a.tif", channel=3)

    def test_values_of_a_pixel_that_are_no_colours_are_channels(self, tmp_path: Path) -> None:
        array = np.stack([GREY, GREY // 2], -1)
        tifffile.imwrite(
            tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig",
            metadata=None,
        )  # fmt: skip
        with pytest.raises(VolumeError, match=r"2 values a pixel.* --channel, 0 to 1"):
            opened(tmp_path / "a.tif")
        assert_holds(opened(tmp_path / "a.tif", channel=1), GREY // 2)

    @pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
    def test_folders(self, tmp_path: Path, ending: str) -> None:
        for z, page in enumerate(RGB):
            Image.fromarray(page).save(tmp_path / f"{z}.{ending}")
        assert_holds(opened(tmp_path), GREY8)
        coloured = RGB[3].copy()
        coloured[2, 3, 0] ^= 1
        Image.fromarray(coloured).save(tmp_path / f"3.{ending}")
        with pytest.raises(VolumeError, match=rf"3\.{ending}.* is a colour image"):
            opened(tmp_path)[3]
        assert_holds(opened(tmp_path, channel=1), GREY8)

    def test_grey_and_alpha_in_png(self, tmp_path: Path) -> None:
        for z, page in enumerate(GREY8):
            alpha = Image.fromarray(np.full_like(page, 255))
            Image.merge("LA", (Image.fromarray(page), alpha)).save(tmp_path / f"{z}.png")
        assert_holds(opened(tmp_path), GREY8)

    def test_black_slices_of_a_grey_stack(self, tmp_path: Path) -> None:
        """Scans often begin and end with nothing."""
        array = np.zeros((9, 8, 10, 3), "u1")
        array[4] = RGB[1]
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", metadata=None)
        assert_holds(opened(tmp_path / "a.tif"), array[..., 0])
