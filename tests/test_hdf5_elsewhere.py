"""HDF5 data that is elsewhere: read where it is, else refused by name, never as zeros."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5s

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (4, 6, 5)) // 2 + 1
FLATS = np.full((3, 6, 5), 7, np.uint16)
NOWHERE = "voxels that are nowhere"


def saved(path: Path, array: np.ndarray, name: str = "data") -> Path:
    with h5py.File(path, "w") as file:
        file[name] = array
    return path


def virtual(path: Path, *mapped: tuple[object, h5py.VirtualSource], **form: object) -> Path:
    """A virtual dataset of the shape of `GREY`: which part of it is which source."""
    layout = h5py.VirtualLayout(GREY.shape, "u2", **form)
    for part, source in mapped:
        layout[part] = source
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout, fillvalue=0)
    return path


def whole(file: str, array: np.ndarray = GREY, name: str = "data") -> h5py.VirtualSource:
    return h5py.VirtualSource(file, name, array.shape)


def readable(path: Path) -> list[int]:
    """The z slices of `GREY` that can be read and are right; the others say that they are not
    there."""
    found, refused = [], {}
    with open_volume(path) as volume:
        for z, expected in enumerate(GREY):
            try:
                assert np.array_equal(volume[z], expected)
                found.append(z)
            except VolumeError as error:
                refused[z] = str(error)
        for z, message in refused.items():
            assert f"{path}:/data, slice {z} along z, has {NOWHERE}" in message
        if refused:
            for axis in "yx":
                with pytest.raises(VolumeError, match=NOWHERE):
                    volume.along(axis)[0]
        else:
            assert_holds(volume, GREY)
    return found


LINKS: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "a file that is gone": (
        lambda group: group.__setitem__("data", h5py.ExternalLink("detector-0001.h5", "frames")),
        "detector-0001.h5",
    ),
    "a dataset that is gone": (
        lambda group: group.__setitem__("data", h5py.ExternalLink("there.h5", "gone")),
        r"gone in .*there\.h5",
    ),
    "a file that is none": (
        lambda group: group.__setitem__("data", h5py.ExternalLink("text.h5", "frames")),
        r"text\.h5, which cannot be opened",
    ),
    "a name that is gone": (
        lambda group: group.__setitem__("data", h5py.SoftLink("/entry/gone")),
        "/entry/gone, which is not there",
    ),
    "itself": (
        lambda group: group.__setitem__("data", h5py.SoftLink("/entry/data/data")),
        "in a circle",
    ),
}


class TestDeadLinks:
    @pytest.fixture(params=LINKS)
    def scan(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
        """A file with flats and a link to data that is not there, and what an error must say."""
        link, message = LINKS[request.param]
        saved(tmp_path / "there.h5", GREY)
        (tmp_path / "text.h5").write_text("no HDF5")
        with h5py.File(tmp_path / "scan.nxs", "w") as file:
            link(file.create_group("entry/data"))
            file["entry/flats"] = FLATS
        return tmp_path / "scan.nxs", rf"scan\.nxs:/entry/data/data (leads|cannot).*{message}"

    def test_the_default_chain_is_not_answered_with_something_else(
        self, scan: tuple[Path, str]
    ) -> None:
        path, message = scan
        with h5py.File(path, "r+") as file:
            file.attrs["default"], file["entry"].attrs["default"] = "entry", "data"
            file["entry/data"].attrs["signal"] = "data"
        with pytest.raises(VolumeError, match=message):
            open_volume(path)

    def test_a_dataset_that_is_named_is_refused_by_what_is_missing(
        self, scan: tuple[Path, str]
    ) -> None:
        path, message = scan
        for name in ("entry/data", "/entry/data/data"):
            with pytest.raises(VolumeError, match=message):
                open_volume(path, ReadOptions(dataset=name))

    def test_the_flats_are_not_taken_for_it(self, scan: tuple[Path, str]) -> None:
        path, message = scan
        with pytest.raises(VolumeError, match=rf"(?s)\n  /entry/flats uint16.*{message}"):
            open_volume(path)
        with open_volume(path, ReadOptions(dataset="entry/flats")) as volume:
            assert_holds(volume, FLATS)

    def test_they_stand_in_the_list(self, scan: tuple[Path, str]) -> None:
        path, message = scan
        with pytest.raises(VolumeError, match=rf"(?s)has no dataset gone, .*{message}"):
            open_volume(path, ReadOptions(dataset="gone"))
        with h5py.File(path, "r+") as file:
            del file["entry/flats"]
        with pytest.raises(VolumeError, match=rf"(?s)has no dataset with three axes.*{message}"):
            open_volume(path)


def test_a_signal_that_is_not_there(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path / "scan.nxs", FLATS, "flats"), "r+") as file:
        file.attrs["default"] = "data"
        file.create_group("data").attrs["signal"] = "frames"
    with pytest.raises(VolumeError, match=r"scan\.nxs:/data says that its signal is frames"):
        open_volume(tmp_path / "scan.nxs")


@pytest.mark.parametrize("at", ["/", "entry"])
def test_a_default_that_is_not_there_is_not_answered_with_the_flats(
    tmp_path: Path, at: str
) -> None:
    with h5py.File(saved(tmp_path / "scan.nxs", FLATS, "flats"), "r+") as file:
        file.create_group("entry")
        file.attrs["default"] = "entry"
        file[at].attrs["default"] = "gone"
    with pytest.raises(VolumeError, match=r"says that its default is gone, .*\n  /flats uint16"):
        open_volume(tmp_path / "scan.nxs")


def test_a_default_or_signal_is_obeyed_whatever_it_is(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path / "scan.nxs", FLATS, "flats"), "r+") as file:
        file["frames"] = GREY
        file.attrs["default"] = "frames"
    with open_volume(tmp_path / "scan.nxs") as volume:
        assert_holds(volume, GREY)
    with h5py.File(saved(tmp_path / "b.nxs", FLATS, "flats"), "r+") as file:
        file.create_group("frames")
        file.attrs["signal"] = "frames"
    with pytest.raises(VolumeError, match=r"says that its signal is frames, which is not there"):
        open_volume(tmp_path / "b.nxs")


class TestPartsThatAreMapped:
    """Every way in which a virtual dataset says what it is made of: read where it is whole."""

    def test_of_slices(self, tmp_path: Path) -> None:
        for z in range(4):
            saved(tmp_path / f"{z}.h5", GREY[z])
        parts = [(z, whole(f"{z}.h5", GREY[z])) for z in range(4)]
        assert readable(virtual(tmp_path / "a.h5", *parts)) == [0, 1, 2, 3]
        assert readable(virtual(tmp_path / "b.h5", *parts[:1], *parts[2:])) == [0, 2, 3]

    def test_of_slices_with_an_axis_of_their_own(self, tmp_path: Path) -> None:
        for z in range(4):
            saved(tmp_path / f"{z}.h5", GREY[z : z + 1])
        parts = [(slice(z, z + 1), whole(f"{z}.h5", GREY[:1])) for z in range(4)]
        assert readable(virtual(tmp_path / "a.h5", *parts)) == [0, 1, 2, 3]

    def test_of_tiles(self, tmp_path: Path) -> None:
        saved(tmp_path / "left.h5", GREY[:, :, :3])
        saved(tmp_path / "right.h5", GREY[:, :, 3:])
        left = np.s_[:, :, :3], whole("left.h5", GREY[:, :, :3])
        right = np.s_[:, :, 3:], whole("right.h5", GREY[:, :, 3:])
        assert readable(virtual(tmp_path / "a.h5", left, right)) == [0, 1, 2, 3]
        with open_volume(virtual(tmp_path / "b.h5", left)) as volume:
            assert np.array_equal(volume.along("x")[2], GREY[:, :, 2])
            for axis, index in (("z", 0), ("y", 0), ("x", 3)):
                with pytest.raises(VolumeError, match=NOWHERE):
                    volume.along(axis)[index]

    def test_of_every_other_slice(self, tmp_path: Path) -> None:
        for first in range(2):
            saved(tmp_path / f"{first}.h5", GREY[first::2])
        parts = [(np.s_[f::2], whole(f"{f}.h5", GREY[f::2])) for f in range(2)]
        assert readable(virtual(tmp_path / "a.h5", *parts)) == [0, 1, 2, 3]
        assert readable(virtual(tmp_path / "b.h5", parts[1])) == [1, 3]

    def test_of_a_part_of_a_larger_source(self, tmp_path: Path) -> None:
        saved(tmp_path / "b.h5", np.concatenate([GREY, GREY]))
        source = h5py.VirtualSource("b.h5", "data", (8, 6, 5))[1:8:2]
        with open_volume(virtual(tmp_path / "a.h5", (np.s_[:], source))) as volume:
            assert_holds(volume, np.concatenate([GREY, GREY])[1:8:2])

    def test_of_what_grows(self, tmp_path: Path) -> None:
        """Two detectors that write in turn, one frame or two each."""
        for length in (1, 2):
            layout = h5py.VirtualLayout(GREY.shape, "u2", maxshape=(None, 6, 5))
            turns = np.arange(4) // length % 2
            for detector in range(2):
                frames = GREY[turns == detector]
                form = {"maxshape": (None, 6, 5), "chunks": (1, 6, 5)}
                with h5py.File(tmp_path / f"{detector}.h5", "w") as file:
                    file.create_dataset("data", data=frames, **form)
                source = h5py.VirtualSource(
                    f"{detector}.h5", "data", frames.shape, maxshape=(None, 6, 5)
                )
                own = h5s.create_simple(GREY.shape, (h5s.UNLIMITED, 6, 5))
                own.select_hyperslab(
                    (detector * length, 0, 0), (h5s.UNLIMITED, 1, 1), (2 * length, 1, 1),
                    (length, 6, 5),
                )  # fmt: skip
                taken = source[: h5s.UNLIMITED].sel.id
                layout.dcpl.set_virtual(own, f"{detector}.h5".encode(), b"data", taken)
            with h5py.File(tmp_path / "a.h5", "w") as file:
                file.create_virtual_dataset("data", layout, fillvalue=0)
            assert readable(tmp_path / "a.h5") == [0, 1, 2, 3]
            with h5py.File(tmp_path / "0.h5", "r+") as file:
                file["data"].resize(1, 0)
            there = [z for z in range(4) if turns[z] or not z]
            assert readable(tmp_path / "a.h5") == there

    def test_of_single_points(self, tmp_path: Path) -> None:
        saved(tmp_path / "b.h5", GREY.ravel())
        path = virtual(tmp_path / "a.h5")
        with h5py.File(path, "w") as file:
            own, plist = h5s.create_simple(GREY.shape), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            own.select_hyperslab((0, 0, 0), (2, 1, 1), (2, 1, 1), (1, 6, 5))
            own.select_hyperslab((1, 0, 0), (1, 1, 1), (1, 1, 1), (1, 6, 5), op=h5s.SELECT_OR)
            taken = h5s.create_simple((120,))
            taken.select_hyperslab((0,), (1,), (1,), (90,))
            plist.set_virtual(own, b"b.h5", b"data", taken)
            h5py.h5d.create(
                file.id, b"data", h5py.h5t.NATIVE_UINT16, h5s.create_simple(own.shape), plist
            )
        assert readable(path) == [0, 1, 2]


class TestPartsThatAreMissing:
    def test_a_part_that_is_mapped_to_nothing(self, tmp_path: Path) -> None:
        saved(tmp_path / "half.h5", GREY[:2])
        path = virtual(tmp_path / "a.h5", (np.s_[:2], whole("half.h5", GREY[:2])))
        assert readable(path) == [0, 1]

    def test_a_source_that_is_shorter_than_what_is_taken_of_it(self, tmp_path: Path) -> None:
        saved(tmp_path / "half.h5", GREY[:3])
        path = virtual(tmp_path / "a.h5", (np.s_[:], whole("half.h5")[0:4]))
        assert readable(path) == [0, 1, 2]
        path = virtual(tmp_path / "b.h5", (np.s_[:], whole("half.h5")))
        with pytest.raises(
            VolumeError, match=r"half\.h5:/data has the shape \(3, 6, 5\), expected"
        ):
            open_volume(path)

    def test_rows_that_have_become_longer(self, tmp_path: Path) -> None:
        """HDF5 would take the first values of the source, as they come."""
        saved(tmp_path / "wide.h5", np.repeat(GREY, 2, 1))
        path = virtual(tmp_path / "a.h5", (np.s_[:], whole("wide.h5")))
        with pytest.raises(VolumeError, match=r"wide\.h5:/data has the shape \(4, 12, 5\)"):
            open_volume(path)

    @pytest.mark.parametrize("link", [h5py.ExternalLink("gone.h5", "x"), h5py.SoftLink("/gone")])
    def test_a_source_that_is_a_dead_link(self, tmp_path: Path, link: object) -> None:
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file["data"] = link
        path = virtual(tmp_path / "a.h5", (np.s_[:], whole("b.h5")))
        with pytest.raises(VolumeError, match=r"b\.h5 has no data: .*gone"):
            open_volume(path)

    def test_of_a_virtual_dataset_of_virtual_ones(self, tmp_path: Path) -> None:
        """What is not there is found through all of them, and only where it is."""
        with h5py.File(tmp_path / "c.h5", "w") as file:
            file.create_dataset("data", (3, 6, 5), "u2", chunks=(1, 6, 5))[:2] = GREY[1:3]
        layout = h5py.VirtualLayout((3, 6, 5), "u2")
        layout[:] = whole("c.h5", GREY[:3])
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file.create_virtual_dataset("data", layout)
        saved(tmp_path / "first.h5", GREY[0])
        parts = [(0, whole("first.h5", GREY[0])), (np.s_[1:], whole("b.h5", GREY[1:]))]
        assert readable(virtual(tmp_path / "a.h5", *parts)) == [0, 1, 2]

    def test_chunks_that_were_never_written(self, tmp_path: Path) -> None:
        for name, chunks in (("a.h5", (1, 6, 5)), ("b.h5", (1, 4, 3))):
            with h5py.File(tmp_path / name, "w") as file:
                data = file.create_dataset("data", GREY.shape, "u2", chunks=chunks)
                data[:2] = GREY[:2]
                data[3] = GREY[3]
            assert readable(tmp_path / name) == [0, 1, 3]

    def test_a_dataset_that_was_never_written(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("data", GREY.shape, "u2")
            file.create_dataset("chunks", GREY.shape, "u2", chunks=(2, 3, 5))
        for name in ("data", "chunks"):
            with (
                open_volume(tmp_path / "a.h5", ReadOptions(dataset=name)) as volume,
                pytest.raises(VolumeError, match=f"nothing was ever written into .*{name}"),
            ):
                volume[0]

    def test_a_fill_value_that_the_file_sets_is_read(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("data", GREY.shape, "u2", fillvalue=9, chunks=(1, 6, 5))[0] = GREY[
                0
            ]
        with open_volume(tmp_path / "a.h5") as volume:
            assert np.array_equal(volume[0], GREY[0])
            assert (volume[3] == 9).all()

    def test_values_that_are_cut_off(self, tmp_path: Path) -> None:
        GREY.tofile(tmp_path / "grey.raw")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            where = [("grey.raw", 0, 120), ("grey.raw", 120, h5py.h5f.UNLIMITED)]
            file.create_dataset("data", GREY.shape, "u2", external=where)
        volume = open_volume(tmp_path / "a.h5")
        assert_holds(volume, GREY)
        os.truncate(tmp_path / "grey.raw", 200)
        for read in (lambda: open_volume(tmp_path / "a.h5"), lambda: volume[3]):
            with pytest.raises(VolumeError, match=r"grey\.raw has 200 bytes, expected 240"):
                read()


class TestPlaces:
    def test_sources_lie_beside_the_file_that_names_them(self, tmp_path: Path) -> None:
        folder = tmp_path / "run" / "raw"
        folder.mkdir(parents=True)
        GREY.tofile(folder / "grey.raw")
        with h5py.File(folder / "grey.h5", "w") as file:
            file.create_dataset("data", GREY.shape, "u2", external=[("grey.raw", 0, 240)])
        virtual(folder / "scan.h5", (np.s_[:], whole("grey.h5")))
        virtual(tmp_path / "run" / "virtual.h5", (np.s_[:], whole("raw/scan.h5")))
        with h5py.File(tmp_path / "linked.h5", "w") as file:
            file["data"] = h5py.ExternalLink("run/virtual.h5", "data")
        for path in (folder / "scan.h5", tmp_path / "run" / "virtual.h5", tmp_path / "linked.h5"):
            with open_volume(path) as volume:
                assert_holds(volume, GREY)

    @pytest.mark.parametrize("link", [False, True])
    def test_of_a_file_that_is_a_symbolic_link(self, tmp_path: Path, link: bool) -> None:
        folder = tmp_path / "raw"
        folder.mkdir()
        saved(folder / "grey.h5", GREY)
        if link:
            with h5py.File(folder / "a.h5", "w") as file:
                file["data"] = h5py.ExternalLink("grey.h5", "data")
        else:
            virtual(folder / "a.h5", (np.s_[:], whole("grey.h5")))
        (tmp_path / "a.h5").symlink_to("raw/a.h5")
        with open_volume(tmp_path / "a.h5") as volume:
            assert_holds(volume, GREY)


def counted(path: Path, file: str, name: str, length: int = 1) -> Path:
    """A virtual dataset whose sources are counted by ``%b``."""
    own = h5s.create_simple(GREY.shape, (h5s.UNLIMITED, 6, 5))
    own.select_hyperslab((0, 0, 0), (h5s.UNLIMITED, 1, 1), (length, 1, 1), (length, 6, 5))
    taken, plist = h5s.create_simple((length, 6, 5)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_virtual(own, file.encode(), name.encode(), taken)
    with h5py.File(path, "w", libver="latest") as made:
        h5py.h5d.create(made.id, b"data", h5py.h5t.NATIVE_UINT16, own, plist)
    return path


class TestNamesThatCount:
    @pytest.mark.parametrize("length", [1, 2])
    def test_they_are_read(self, tmp_path: Path, length: int) -> None:
        (tmp_path / "raw").mkdir()
        for block in range(4 // length):
            part = GREY[block * length : (block + 1) * length]
            saved(tmp_path / "raw" / f"50%-{block}.h5", part)
        path = counted(tmp_path / "a.h5", "raw/50%%-%b.h5", "data", length)
        assert readable(path) == [0, 1, 2, 3]

    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_gap_is_no_end(self, tmp_path: Path, missing: int) -> None:
        for block in range(4):
            if block != missing:
                saved(tmp_path / f"{block}.h5", GREY[block : block + 1])
        path = counted(tmp_path / "a.h5", "%b.h5", "data")
        message = rf"numbered from 0 to 3, and {missing}\.h5 is not there"
        with pytest.raises(VolumeError, match=message):
            open_volume(path)

    def test_datasets_of_one_file(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "b.h5", "w") as file:
            for block in range(4):
                file[f"scan/frame-{block}"] = GREY[block : block + 1]
        path = counted(tmp_path / "a.h5", "b.h5", "scan/frame-%b")
        assert readable(path) == [0, 1, 2, 3]
        with h5py.File(tmp_path / "b.h5", "r+") as file:
            del file["scan/frame-2"]
        with pytest.raises(VolumeError, match="from 0 to 3, and scan/frame-2 is not there"):
            open_volume(path)


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    """HDF5 reads zeros of those that it cannot open any more."""
    array = values("u2", (60, 6, 5)) // 2 + 1
    layout = h5py.VirtualLayout(array.shape, "u2")
    for z, page in enumerate(array):
        saved(tmp_path / f"{z}.h5", page)
        layout[z] = h5py.VirtualSource(f"{z}.h5", "data", page.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from ml_backend.volumes.opening import open_volume
volume = open_volume(sys.argv[1])
print(all(one.all() for one in volume), *(int(volume.along(axis)[2].sum()) for axis in "yx"))
"""
    run = [sys.executable, "-c", code, tmp_path / "a.h5"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", f"{array[:, 2].sum()}", f"{array[:, :, 2].sum()}"]


class TestWriters:
    WRITE = "import h5py, sys; h5py.File(sys.argv[1], 'r+')['data'][3] = 9"

    def written(self, path: Path) -> None:
        """By somebody else, while we have it open."""
        subprocess.run([sys.executable, "-c", self.WRITE, path], check=True)

    def test_an_open_volume_blocks_nobody(self, tmp_path: Path) -> None:
        saved(tmp_path / "grey.h5", GREY)
        virtual(tmp_path / "a.h5", (np.s_[:], whole("grey.h5")))
        for name in ("grey.h5", "a.h5"):
            with open_volume(tmp_path / name) as volume:
                assert volume[0].any()
                self.written(tmp_path / "grey.h5")
                assert (volume[3] == 9).all()

    def test_what_was_written_since_is_there(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "grey.h5", "w") as file:
            file.create_dataset("data", GREY.shape, "u2", chunks=(1, 6, 5))[:3] = GREY[:3]
        virtual(tmp_path / "a.h5", (np.s_[:], whole("grey.h5")))
        with open_volume(tmp_path / "grey.h5") as volume, open_volume(tmp_path / "a.h5") as made:
            for one in (volume, made):
                assert np.array_equal(one[2], GREY[2])
                with pytest.raises(VolumeError, match=NOWHERE):
                    one[3]
            self.written(tmp_path / "grey.h5")
            assert (volume[3] == 9).all()
            assert (made[3] == 9).all()

    def test_a_file_that_is_being_written_for_others_to_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w", libver="latest") as file:
            form = {"maxshape": (None, 6, 5), "chunks": (1, 6, 5)}
            data = file.create_dataset("data", data=GREY[:3], **form)
            file.swmr_mode = True
            with open_volume(path) as volume:
                assert_holds(volume, GREY[:3])
            data.resize(4, 0)
            data.flush()
            with open_volume(path) as volume:
                with pytest.raises(VolumeError, match=NOWHERE):
                    volume[3]
                data[3] = GREY[3]
                data.flush()
                assert np.array_equal(volume[3], GREY[3])
            virtual(tmp_path / "made.h5", (np.s_[:], whole("a.h5")))
            # HDF5 reads zeros of a source that it cannot open
            with pytest.raises(VolumeError, match=r"a\.h5 cannot be opened"):
                open_volume(tmp_path / "made.h5")

    def test_another_volume_in_its_place(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.h5", GREY)
        with open_volume(path) as volume:
            assert_holds(volume, GREY)
            saved(path, np.tile(GREY, (2, 1, 1)))
            with pytest.raises(VolumeError, match="has been replaced since it was opened"):
                volume[3]
