"""Axes have names: obeyed by every format, or refused saying what was found."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from typer.testing import CliRunner

from ml_backend.cli import app, load_commands
from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.volumes.address import SliceAddress, SliceKeys, slice_of
from ml_backend.volumes.formats import hdf5
from ml_backend.volumes.formats.axes import choose_axes, letter_of
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (4, 5, 6))
SEVERAL = np.stack([GREY + 1000 * i for i in range(6)]).reshape(2, 3, *GREY.shape)
"""Two times, three channels."""


def opened(path: Path, **options: Any) -> Volume:
    return open_volume(path, ReadOptions(**options))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "letter"),
        [
            *(("z", "z"), ("Z", "z"), ("depth", "z"), ("slices", "z"), ("y", "y"), ("x", "x")),
            *(("detector_y", "y"), ("voxel_x.units", "x"), ("z (µm)", "z"), ("c", "c")),
            *(("Channel", "c"), ("t", "t"), ("frames", "t"), ("energy", "c"), (".", ""), ("", "")),
            *(("rotation_angle", ""), ("x_y", ""), ("c_1", "c"), ("data_c", ""), ("zoom", "")),
        ],
    )
    def test_a_name_is_an_axis(self, name: str, letter: str) -> None:
        assert letter_of(name) == letter

    @pytest.mark.parametrize(
        ("names", "shape", "axes"),
        [
            ("zyx", (4, 5, 6), (0, 1, 2)),
            ("xyz", (6, 5, 4), (2, 1, 0)),
            ("yzx", (5, 4, 6), (1, 0, 2)),
            ("tzyxc", (1, 4, 5, 6, 1), (1, 2, 3)),
            ("zyx", (1, 5, 6), (0, 1, 2)),
            (["", "y", "x"], (4, 5, 6), (0, 1, 2)),
            (["angle", "detector_y", "detector_x"], (4, 5, 6), (0, 1, 2)),
            (["", "", "x"], (4, 5, 6), (0, 1, 2)),
            (["", "z", "y", "x", "?"], (1, 4, 5, 6, 1), (1, 2, 3)),
            ([".", ".", "."], (4, 5, 6), (0, 1, 2)),
            ((), (1, 4, 5, 6, 1), (1, 2, 3)),
        ],
    )
    def test_which_are_z_y_x(self, names: Any, shape: Any, axes: Any) -> None:
        assert choose_axes(Path("a"), list(names), shape, ReadOptions()).axes == axes

    @pytest.mark.parametrize(
        ("names", "shape", "found"),
        [
            ("yxc", (5, 6, 3), "axes y, x, c of lengths .*expected z, y, x among them"),
            ("tyx", (4, 5, 6), "expected z, y, x among them"),
            ("yx", (5, 6), "expected z, y, x among them"),
            (["y", "x", ""], (5, 6, 3), "expected z, y, x among them"),
            (["x", "", ""], (5, 6, 3), "expected z, y, x among them"),
            (["z", "z", "x"], (5, 6, 3), "expected only one z"),
            ("czyx", (3, 4, 5, 6), r"expected z, y, x and only one c: .* --channel, 0 to 2"),
            ("zyxt", (4, 5, 6, 2), r"only one t: choose it with --time, 0 to 1"),
            (["", "z", "y", "x"], (3, 4, 5, 6), "only one of what has no name"),
            ("zyx", (1, 4, 5, 6), r"names 3 axes \(z, y, x\) for an array of shape"),
            ("zyx", (0, 5, 6), "it is empty"),
            ((), (2, 4, 5, 6), "expected three axes"),
        ],
    )
    def test_what_is_refused(self, names: Any, shape: Any, found: str) -> None:
        with pytest.raises(VolumeError, match=found):
            choose_axes(Path("a"), list(names), shape, ReadOptions())

    @pytest.mark.parametrize("option", ["channel", "time"])
    def test_a_choice_of_what_is_not_there_is_refused(self, option: str, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", GREY)
        write_hdf5(tmp_path / "a.h5", SEVERAL, "tczyx")
        tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="minisblack")
        for name, index in (("a.npy", 1), ("a.tif", 1), ("a.h5", 3)):
            with pytest.raises(VolumeError, match=rf"--{option} {index}"):
                opened(tmp_path / name, **{"channel": 0, "time": 0} | {option: index})
        assert_holds(opened(tmp_path / "a.npy", **{option: 0}), GREY)


def write_hdf5(path: Path, array: np.ndarray, names: str, how: str = "tags") -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("g/data", data=array)
        if how == "tags":
            axes = [{"key": name, "typeFlags": 2, "resolution": 0} for name in names]
            data.attrs["axistags"] = json.dumps({"axes": axes})
        elif how == "labels":
            for place, name in enumerate(names):
                data.dims[place].label = name
        elif how == "scales":
            for place, name in enumerate(names):
                scale = file.create_dataset(name, data=np.arange(array.shape[place]))
                scale.make_scale()
                data.dims[place].attach_scale(scale)
        elif how == "nxdata":
            file["g"].attrs.update({"NX_class": "NXdata", "signal": "data"})
            file["g"].attrs["axes"] = list(names)
        else:
            data.attrs["axes"] = ":".join(names)


class TestHdf5:
    @pytest.mark.parametrize("how", ["tags", "labels", "scales", "nxdata", "older NeXus"])
    def test_names_are_obeyed(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "a.h5"
        write_hdf5(path, GREY.transpose(2, 1, 0), "xyz", how)
        assert_holds(opened(path), GREY)
        write_hdf5(path, GREY.transpose(1, 2, 0)[..., :3], "yxc", how)
        with pytest.raises(VolumeError, match="axes y, x, c of lengths"):
            opened(path)
        write_hdf5(path, SEVERAL.transpose(0, 4, 3, 2, 1), "txyzc", how)
        assert_holds(opened(path, channel=2, time=1, dataset="g/data"), SEVERAL[1, 2])
        assert_holds(opened(path, channel=2, time=1), SEVERAL[1, 2])
        with pytest.raises(VolumeError, match="only one t: choose it with --time, 0 to 1"):
            opened(path, channel=2)

    def test_what_is_turned_or_chosen_does_not_lie_as_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        for array, names, chosen in (
            (GREY, "zyx", {}),
            (GREY.transpose(2, 1, 0), "xyz", {}),
            (SEVERAL, "tczyx", {"channel": 1, "time": 1}),
        ):
            write_hdf5(path, array, names)
            with closing(hdf5.read(path, ReadOptions(**chosen))) as volume:
                assert (volume.runs() is None) == (names != "zyx")

    def test_indices_that_contradict_the_names_are_refused(self, tmp_path: Path) -> None:
        write_hdf5(tmp_path / "a.h5", GREY, "zyx", "nxdata")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["g"].attrs["z_indices"] = 2
        with pytest.raises(VolumeError, match="z_indices says that z is axis 2"):
            opened(tmp_path / "a.h5")

    def test_the_voxel_size_turns_with_the_axes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_hdf5(path, GREY.transpose(2, 1, 0), "xyz", "nxdata")
        with h5py.File(path, "r+") as file:
            for name, length, step in zip("zyx", GREY.shape, (3.0, 2.0, 1.0), strict=True):
                file[f"g/{name}"] = step * np.arange(length)
                file[f"g/{name}"].attrs["units"] = "mm"
        assert opened(path).voxel_size == (3.0, 2.0, 1.0)

    def test_names_that_contradict_each_other_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_hdf5(path, GREY, "xyz")
        with h5py.File(path, "r+") as file:
            file["g/data"].dims[0].label = "z"
        with pytest.raises(VolumeError, match="x, y, z by its axistags and z, ,  by its dim"):
            opened(path)

    @pytest.mark.parametrize("kind", ["hard", "soft", "external"])
    @pytest.mark.parametrize("dataset", [None, "entry/data", "entry/data/volume"])
    def test_nxdata_that_links_to_its_signal(
        self, tmp_path: Path, kind: str, dataset: str | None
    ) -> None:
        """As NeXus files do: the detector has the values, NXdata says what they are."""
        with h5py.File(tmp_path / "a.h5", "w") as file:
            other = file if kind != "external" else h5py.File(tmp_path / "b.h5", "w")
            other["entry/detector/frames"] = GREY.transpose(2, 1, 0)
            file.attrs["default"] = "entry/data"
            group = file.create_group("entry/data")
            group.attrs.update({"NX_class": "NXdata", "signal": "volume", "axes": list("xyz")})
            links = {
                "soft": h5py.SoftLink("/entry/detector/frames"),
                "external": h5py.ExternalLink("b.h5", "/entry/detector/frames"),
            }
            group["volume"] = links.get(kind, other["entry/detector/frames"])
            for name, length, step in zip("zyx", GREY.shape, (3.0, 2.0, 1.0), strict=True):
                group[name] = step * np.arange(length)
                group[name].attrs["units"] = "mm"
            if kind == "external":
                other.close()
        volume = opened(tmp_path / "a.h5", dataset=dataset)
        assert_holds(volume, GREY)
        assert volume.voxel_size == (3.0, 2.0, 1.0)

    @pytest.mark.parametrize("left", ["nothing", "a copy"])
    def test_scales_that_are_gone_name_nothing(self, tmp_path: Path, left: str) -> None:
        write_hdf5(tmp_path / "a.h5", GREY, "zyx", "scales")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            for name in "zyx":
                del file[name]
            if left == "a copy":
                file.copy("g/data", "h", name="data")
                del file["g/data"]
        assert_holds(opened(tmp_path / "a.h5"), GREY)

    def test_tags_that_are_none_are_refused(self, tmp_path: Path) -> None:
        write_hdf5(tmp_path / "a.h5", GREY, "zyx")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["g/data"].attrs["axistags"] = "zyx"
        with pytest.raises(VolumeError, match="axistags that cannot be read"):
            opened(tmp_path / "a.h5")


class TestZarr:
    @pytest.mark.parametrize("version", [2, 3])
    def test_dimension_names_of_plain_arrays(self, tmp_path: Path, version: Any) -> None:
        array = np.ascontiguousarray(SEVERAL.transpose(0, 4, 3, 2, 1))
        names = ("time", "x", "y", "z", "channel")
        stored = zarr.create_array(
            tmp_path / "a.zarr", shape=array.shape, dtype=array.dtype, chunks=(1, 3, 4, 2, 2),
            zarr_format=version, dimension_names=names if version == 3 else None,
        )  # fmt: skip
        stored[:] = array
        if version == 2:  # as xarray says it
            stored.attrs["_ARRAY_DIMENSIONS"] = list(names)
        assert_holds(opened(tmp_path / "a.zarr", channel=1, time=1), SEVERAL[1, 1])
        with pytest.raises(VolumeError, match="only one time"):
            opened(tmp_path / "a.zarr")

    def test_ngff_calls_axes_by_their_types(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array("0", data=SEVERAL)
        axes = [{"name": "a", "type": "time"}, {"name": "dye", "type": "channel"}]
        axes += [{"name": name, "type": "space"} for name in "zyx"]
        level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1] * 5}]}
        image = {"multiscales": [{"axes": axes, "datasets": [level]}]}
        group.attrs.update({"ome": {"version": "0.5", **image}})
        assert_holds(opened(tmp_path / "a.zarr", channel=2, time=0), SEVERAL[0, 2])
        with pytest.raises(VolumeError, match="only one time: choose it with --time, 0 to 1"):
            opened(tmp_path / "a.zarr", channel=0)


class TestNifti:
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_time_and_channel_are_chosen(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        nibabel.save(nibabel.Nifti1Image(SEVERAL.transpose(4, 3, 2, 0, 1), None), path)
        with opened(path, time=1, channel=2) as volume:
            assert_holds(volume, SEVERAL[1, 2])
        with pytest.raises(VolumeError, match=r"expected three axes, .*only one t: choose"):
            opened(path)

    def test_a_first_axis_of_one_is_x(self, tmp_path: Path) -> None:
        nibabel.save(nibabel.Nifti1Image(GREY.T[None], None), tmp_path / "a.nii")
        with pytest.raises(VolumeError, match="only one t: choose it with --time, 0 to 3"):
            opened(tmp_path / "a.nii")


class TestAddresses:
    KEYS = SliceKeys(("a secret of sixteen",))

    def test_a_choice_is_part_of_the_address(self) -> None:
        plain = SliceAddress("scans/a.h5", "z", 3)
        chosen = SliceAddress("scans/a.h5", "z", 3, options=ReadOptions(channel=0, time=2))
        url = chosen.url("https://x.example", self.KEYS)
        assert "?channel=0&time=2&key=" in url
        assert SliceAddress.parse(url, self.KEYS) == chosen
        assert slice_of(url) != slice_of(plain.url("https://x.example", self.KEYS))

    def test_addresses_of_before_are_good(self) -> None:
        """As they stood in tasks before anything could be chosen."""
        url = (
            "/slices/scans/a.h5/z/3.png?dataset=entry%2Fdata&high=9.0&low=1.0&key=bcb53d48"
            "&sig=caf2210cbccd43fdcc188e7a35b8d609"
        )
        found = SliceAddress.parse(url, self.KEYS)
        assert found.options == ReadOptions(dataset="entry/data")
        assert found.url("", self.KEYS) == url


def test_a_simulation_reads_the_chosen_channel(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", SEVERAL, "tczyx")
    np.save(tmp_path / "labels.npy", np.ones(GREY.shape, "u1"))
    paths = str(tmp_path / "a.h5"), str(tmp_path / "labels.npy")
    data = load_data(DataSpec(*paths, gap=0, fraction=0.25, channel=1, time=1))
    assert np.array_equal(data.source.image("z0002"), SEVERAL[1, 1, 2])


@pytest.mark.parametrize("command", ["import", "segment", "simulate"])
def test_commands_that_open_volumes_have_the_options(command: str) -> None:
    load_commands()
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "--channel" in result.output
    assert "--time" in result.output
