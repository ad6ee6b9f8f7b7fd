"""Files that others write: every variant of every format that is read, made by its own library."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from ml_backend.pictures import PICTURES
from ml_backend.studio.client import StudioError
from ml_backend.studio.images import decode_image
from ml_backend.volumes.formats.registry import formats
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import SHAPE, assert_holds, values, write

GREY = values("u2", (5, 16, 32))
NOT_SHOWN_BY_BROWSERS = ("DICOM", "EDF", "JPEG 2000")


def packed_png(image: np.ndarray, bits: int) -> bytes:
    """A grey PNG of ``bits`` a pixel, which Pillow reads and does not write."""
    each = np.unpackbits(image[..., None].astype("u1"), axis=2)[..., -bits:]
    rows = np.packbits(each.reshape(len(image), -1), axis=1)
    height, width = image.shape
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, bits, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def opened_as(path: Path, array: np.ndarray, options: ReadOptions | None = None) -> Any:
    volume = open_volume(path, options)
    assert_holds(volume, array)
    return volume


class TestTiff:
    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "u8"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_types_and_byte_orders(self, tmp_path: Path, dtype: str, order: str) -> None:
        array = values(dtype)
        tifffile.imwrite(tmp_path / "a.tif", array, byteorder=order, photometric="minisblack")
        opened_as(tmp_path / "a.tif", array)

    @pytest.mark.parametrize("compression", [None, "lzw", "zlib", "deflate", "zstd", "packbits"])
    @pytest.mark.parametrize(
        "form",
        [{}, {"rowsperstrip": 7}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}],
        ids=str,
    )
    def test_compressions_strips_and_tiles(
        self, tmp_path: Path, compression: str | None, form: dict[str, Any]
    ) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, compression=compression, metadata=None, **form)
        opened_as(tmp_path / "a.tif", GREY)

    @pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
    def test_predictors(self, tmp_path: Path, dtype: str) -> None:
        array = np.nan_to_num(values(dtype, (3, 16, 32)))
        tifffile.imwrite(
            tmp_path / "a.tif", array, compression="lzw", predictor=True, photometric="minisblack"
        )
        opened_as(tmp_path / "a.tif", array)

    def test_pillow_writes_stacks_too(self, tmp_path: Path) -> None:
        pages = [Image.fromarray(page) for page in GREY]
        pages[0].save(
            tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw"
        )
        opened_as(tmp_path / "a.tif", GREY)

    def test_bilevel_pages_are_bool(self, tmp_path: Path) -> None:
        array = values("?", (3, 5, 8))
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata=None)
        opened_as(tmp_path / "a.tif", array)

    def test_packed_bits_are_unpacked(self, tmp_path: Path) -> None:
        array = values("u2") % 4096
        tifffile.imwrite(
            tmp_path / "a.tif", array, bitspersample=12, metadata=None, photometric="minisblack"
        )
        opened_as(tmp_path / "a.tif", array)

    def test_pages_of_differing_compression_are_one_stack(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for page, compression in zip(GREY, [None, "lzw", "zlib", None, "zstd"], strict=True):
                tif.write(page, compression=compression, metadata=None)
        opened_as(tmp_path / "a.tif", GREY)

    def test_imagej_says_the_voxel_size(self, tmp_path: Path) -> None:
        tifffile.imwrite(
            tmp_path / "a.tif", GREY, imagej=True, resolution=(1 / 1.5, 1 / 2.5),
            metadata={"axes": "ZYX", "spacing": 4.25, "unit": "um"},
        )  # fmt: skip
        volume = opened_as(tmp_path / "a.tif", GREY)
        assert volume.voxel_size == pytest.approx((4.25, 2.5, 1.5))
        assert volume.unit == "µm"

    @pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "microns"])
    def test_imagej_has_several_names_for_micrometres(self, tmp_path: Path, unit: str) -> None:
        text = f"ImageJ=1.53t\nimages=5\nslices=5\nunit={unit}\nspacing=2.0\nloop=false\n"
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for z, page in enumerate(GREY):
                tif.write(
                    page, metadata=None, resolution=(1.0, 1.0), description=text if not z else None
                )
        volume = opened_as(tmp_path / "a.tif", GREY)
        assert (volume.voxel_size, volume.unit) == ((2.0, 1.0, 1.0), "µm")

    @pytest.mark.parametrize("axes", ["ZYX", "TYX", "CYX"])
    def test_imagej_stacks_of_frames_or_channels_are_stacks(
        self, tmp_path: Path, axes: str
    ) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, metadata={"axes": axes})
        assert opened_as(tmp_path / "a.tif", GREY).voxel_size is None

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_imagej_keeps_many_images_behind_one_page(self, tmp_path: Path, order: str) -> None:
        text = "ImageJ=1.53t\nimages=5\nslices=5\nloop=false\n"
        tifffile.imwrite(
            tmp_path / "a.tif", GREY[0], description=text, metadata=None, byteorder=order
        )
        with (tmp_path / "a.tif").open("ab") as file:
            file.write(GREY[1:].astype(f"{order}u2").tobytes())
        assert len(tifffile.TiffFile(tmp_path / "a.tif").pages) == 1
        opened_as(tmp_path / "a.tif", GREY)

    def test_tifffile_keeps_many_images_behind_one_page(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, metadata={"truncate": True}, align=16)
        tifffile.imwrite(tmp_path / "b.tif", GREY, volumetric=True)
        opened_as(tmp_path / "a.tif", GREY)
        opened_as(tmp_path / "b.tif", GREY)

    def test_ome_says_the_voxel_size_in_any_units(self, tmp_path: Path) -> None:
        metadata = {
            "axes": "ZYX", "PhysicalSizeX": 1.5, "PhysicalSizeY": 2.0, "PhysicalSizeZ": 0.004,
            "PhysicalSizeZUnit": "mm",
        }  # fmt: skip
        tifffile.imwrite(
            tmp_path / "a.ome.tif", GREY, metadata=metadata, compression="zlib", tile=(16, 16)
        )
        volume = opened_as(tmp_path / "a.ome.tif", GREY)
        assert (volume.voxel_size, volume.unit) == (pytest.approx((4.0, 2.0, 1.5)), "µm")

    def test_an_ome_pyramid_is_read_at_full_resolution(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
            tif.write(GREY, subifds=1, metadata={"axes": "ZYX"})
            tif.write(GREY[:, ::2, ::2], subfiletype=1)
        opened_as(tmp_path / "a.ome.tif", GREY)

    def test_resolution_tags_alone_are_no_voxel_size(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, resolution=(72, 72), resolutionunit="INCH")
        assert opened_as(tmp_path / "a.tif", GREY).voxel_size is None

    def test_a_folder_is_read_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        array = values("f4", (12, 7, 6))
        for z, page in enumerate(array):
            tifffile.imwrite(tmp_path / f"scan_{z}.tif", page, compression=[None, "zlib"][z % 2])
        (tmp_path / "readme.txt").write_text("a note")
        (tmp_path / "._scan_0.tif").write_bytes(b"of a Mac")
        opened_as(tmp_path, array)

    @pytest.mark.parametrize("odd", [GREY[2, :-1], GREY[2].astype("f4")], ids=["shape", "type"])
    @pytest.mark.parametrize("place", [2, 4])
    def test_a_folder_of_mixed_images_names_the_odd_one(
        self, tmp_path: Path, odd: np.ndarray, place: int
    ) -> None:
        for z, page in enumerate(GREY):
            tifffile.imwrite(tmp_path / f"{z}.tif", odd if z == place else page)
        with pytest.raises(VolumeError, match=rf"{place}\.tif is .* as 0\.tif"):
            list(open_volume(tmp_path))

    def test_stacks_in_a_folder_are_no_slices(self, tmp_path: Path) -> None:
        for name in ("1.tif", "2.tif"):
            tifffile.imwrite(tmp_path / name, GREY)
        with pytest.raises(VolumeError, match=r"1\.tif has 5 pages"):
            open_volume(tmp_path)

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_colour_is_refused(self, tmp_path: Path, planar: str) -> None:
        shape = (4, 8, 8, 3) if planar == "contig" else (4, 3, 8, 8)
        tifffile.imwrite(
            tmp_path / "a.tif", np.zeros(shape, "u1"), photometric="rgb", planarconfig=planar
        )
        with pytest.raises(VolumeError, match=r"colour image \(3 values a pixel\)"):
            open_volume(tmp_path / "a.tif")

    @pytest.mark.parametrize("kind", ["imagej", "ome"])
    def test_stacks_of_several_channels_are_refused(self, tmp_path: Path, kind: str) -> None:
        array, metadata = np.zeros((4, 2, 8, 8), "u1"), {"axes": "ZCYX"}
        tifffile.imwrite(tmp_path / "a.tif", array, **{kind: True}, metadata=metadata)
        with pytest.raises(VolumeError, match="expected one axis of slices"):
            open_volume(tmp_path / "a.tif")

    @pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
    def test_stacks_over_time_are_refused(self, tmp_path: Path, kind: str) -> None:
        array, metadata = np.zeros((4, 2, 8, 8), "u1"), {"axes": "TZYX"}
        tifffile.imwrite(tmp_path / "a.tif", array, **{kind: True}, metadata=metadata)
        with pytest.raises(VolumeError, match=r"stacks of .* images, expected one axis of slices"):
            open_volume(tmp_path / "a.tif")

    def test_ome_images_beside_each_other_are_refused(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
            tif.write(GREY, metadata={"axes": "ZYX"})
            tif.write(GREY, metadata={"axes": "ZYX"})
        with pytest.raises(VolumeError, match="has 2 OME images"):
            open_volume(tmp_path / "a.ome.tif")


class TestHdf5:
    @pytest.mark.parametrize("dtype", ["<u1", ">u2", "<i4", ">f4", "<f2", ">f8", "?"])
    @pytest.mark.parametrize(
        "form",
        [
            {},
            {"chunks": (2, 3, 4)},
            {"chunks": (2, 4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
            {"chunks": (1, 7, 6), "compression": "lzf"},
        ],
        ids=["contiguous", "chunked", "gzip", "lzf"],
    )
    def test_types_and_storage(self, tmp_path: Path, dtype: str, form: dict[str, Any]) -> None:
        array = values(dtype)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("scan/grey", data=array, **form)
            file["note"] = "a scan"
            file["profile"] = np.zeros(9)
        opened_as(tmp_path / "a.h5", array)

    @pytest.mark.parametrize("name", ["Bitshuffle", "LZ4", "Blosc", "Blosc2", "Zstd", "BZip2"])
    def test_compressions_of_detectors(self, tmp_path: Path, name: str) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            chosen = getattr(hdf5plugin, name)()
            file.create_dataset("data", data=GREY, chunks=(1, 16, 32), compression=chosen)
        # h5py reads it in a process that has opened nothing but our volume
        read = "import sys; from ml_backend.volumes.opening import open_volume as o; "
        run = [sys.executable, "-c", f"{read}print(o(sys.argv[1])[4].sum())", tmp_path / "a.h5"]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        assert int(done.stdout) == GREY[4].sum()
        opened_as(tmp_path / "a.h5", GREY)

    def test_nexus_defaults_lead_to_the_signal(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.nxs", "w") as file:
            file.attrs["default"] = "scan"
            file["scan/raw/projections"] = np.zeros((8, 8, 8))
            file["scan"].attrs["default"] = "recon"
            group = file.create_group("scan/recon")
            group.attrs.update({"NX_class": "NXdata", "signal": "volume"})
            group.attrs["axes"] = ["z", "y", "x"]
            group["volume"] = GREY
            for name, step, length in zip("zyx", (0.01, 0.005, 0.0025), GREY.shape, strict=True):
                group[name] = 3 - step * np.arange(length)
                group[name].attrs["units"] = b"millimeter"
        volume = opened_as(tmp_path / "a.nxs", GREY)
        assert (volume.voxel_size, volume.unit) == (pytest.approx((0.01, 0.005, 0.0025)), "mm")

    @pytest.mark.parametrize("default", ["/", ".", "a/b", "/a"])
    def test_defaults_that_lead_nowhere_end(self, tmp_path: Path, default: str) -> None:
        with h5py.File(tmp_path / "a.nxs", "w") as file:
            file["a/b/volume"] = GREY
            file.attrs["default"] = "a"
            file["a"].attrs["default"] = "b"
            file["a/b"].attrs["default"] = default
        opened_as(tmp_path / "a.nxs", GREY)

    def test_older_nexus_marks_the_signal(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.nxs", "w") as file:
            for name in ("before", "flat", "volume"):
                file[f"entry/data/{name}"] = GREY if name == "volume" else np.zeros((2, 2, 2))
            file["entry/data/volume"].attrs["signal"] = 1
        opened_as(tmp_path / "a.nxs", GREY)

    def test_linked_datasets_are_one(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["entry/instrument/data"] = GREY
            file["entry/data/data"] = file["entry/instrument/data"]
            file["entry/soft"] = h5py.SoftLink("/entry/instrument/data")
            file["entry/loop"] = h5py.SoftLink("/entry")
            file["entry/broken"] = h5py.ExternalLink("gone.h5", "/data")
        opened_as(tmp_path / "a.h5", GREY)

    def test_several_volumes_are_listed_and_one_is_named(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["grey"] = GREY
            file["labels"] = np.zeros((5, 16, 32), "u1")
        with pytest.raises(VolumeError, match=r"2 datasets .*\n  /grey uint16 \(5, 16, 32\)\n  /l"):
            open_volume(tmp_path / "a.h5")
        opened_as(tmp_path / "a.h5", GREY, ReadOptions(dataset="grey"))
        with pytest.raises(VolumeError, match=r"has no dataset gray, .*\n  /grey"):
            open_volume(tmp_path / "a.h5", ReadOptions(dataset="gray"))

    def test_ilastik_says_the_voxel_size(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["exported_data"] = GREY
            file["exported_data"].attrs["element_size_um"] = [4.0, 2.0, 1.0]
        volume = opened_as(tmp_path / "a.h5", GREY)
        assert (volume.voxel_size, volume.unit) == ((4.0, 2.0, 1.0), "µm")

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
    def test_units_in_either_encoding(self, tmp_path: Path, encoding: str) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["g/data"] = GREY
            file["g"].attrs["axes"] = ["z", "y", "x"]
            for name, length in zip("zyx", GREY.shape, strict=True):
                file[f"g/{name}"] = 2 * np.arange(length)
                file[f"g/{name}"].attrs["units"] = np.bytes_("µm".encode(encoding))
        volume = opened_as(tmp_path / "a.h5", GREY)
        assert (volume.voxel_size, volume.unit) == ((2.0, 2.0, 2.0), "µm")

    def test_uneven_axes_are_no_voxel_size(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["g/data"] = GREY
            file["g"].attrs["axes"] = ["z", "y", "x"]
            for name, length in zip("zyx", GREY.shape, strict=True):
                file[f"g/{name}"] = np.arange(length) ** 2
                file[f"g/{name}"].attrs["units"] = "um"
        assert opened_as(tmp_path / "a.h5", GREY).voxel_size is None

    @pytest.mark.parametrize("shape", [(1, 5, 16, 32), (5, 16, 32, 1), (1, 5, 16, 32, 1)])
    def test_axes_of_length_one_are_left_out(self, tmp_path: Path, shape: tuple) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data"] = GREY.reshape(shape)
        opened_as(tmp_path / "a.h5", GREY)

    def test_a_virtual_dataset_misses_its_files(self, tmp_path: Path) -> None:
        layout = h5py.VirtualLayout(GREY.shape, "u2")
        for z, page in enumerate(GREY):
            with h5py.File(tmp_path / f"{z}.h5", "w") as file:
                file["data"] = page
            layout[z] = h5py.VirtualSource(f"{z}.h5", "data", page.shape)
        with h5py.File(tmp_path / "master.h5", "w") as file:
            file.create_virtual_dataset("data", layout)
        opened_as(tmp_path / "master.h5", GREY).close()
        (tmp_path / "3.h5").unlink()
        with pytest.raises(VolumeError, match=r"3\.h5 is not there"):
            open_volume(tmp_path / "master.h5")

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4)), "no dataset with three axes"),
            (np.zeros((2, 3, 4, 5)), "no dataset with three axes"),
            (np.zeros((2, 3, 4), "c8"), "no dataset with three axes"),
            (np.zeros((0, 3, 4)), "it is empty"),
        ],
    )
    def test_what_is_no_volume_is_refused(
        self, tmp_path: Path, array: np.ndarray, message: str
    ) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data"] = array
        with pytest.raises(VolumeError, match=message):
            open_volume(tmp_path / "a.h5")


def ngff(path: Path, version: int, array: np.ndarray, axes: str, scale: list[float]) -> None:
    group = zarr.create_group(path, zarr_format=version)
    for level, step in (("full", 1), ("half", 2)):
        part = array[..., ::step, ::step]
        group.create_array(level, shape=part.shape, dtype=part.dtype, chunks=part.shape)[:] = part
    kinds = {"t": "time", "c": "channel"}
    content = {
        "multiscales": [
            {
                "axes": [
                    {"name": n, "type": "space", "unit": "micrometer"}
                    if n in "zyx"
                    else {"name": n, "type": kinds[n]}
                    for n in axes
                ],
                "datasets": [
                    {
                        "path": level,
                        "coordinateTransformations": [{"type": "scale", "scale": scale}],
                    }
                    for level in ("full", "half")
                ],
            }
        ]
    }
    group.attrs.update(content if version == 2 else {"ome": {"version": "0.5", **content}})


class TestZarr:
    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize(("axes", "ones"), [("zyx", ()), ("czyx", (1,)), ("tczyx", (1, 1))])
    def test_the_full_resolution_of_an_image(
        self, tmp_path: Path, version: int, axes: str, ones: tuple
    ) -> None:
        scale = [1.0] * (len(axes) - 3) + [4.0, 2.0, 1.5]
        ngff(tmp_path / "a.zarr", version, GREY.reshape(*ones, *GREY.shape), axes, scale)
        volume = opened_as(tmp_path / "a.zarr", GREY)
        assert (volume.voxel_size, volume.unit) == ((4.0, 2.0, 1.5), "µm")

    def test_axes_in_another_order(self, tmp_path: Path) -> None:
        ngff(tmp_path / "a.zarr", 3, GREY.transpose(2, 1, 0), "xyz", [1.0, 2.0, 4.0])
        assert opened_as(tmp_path / "a.zarr", GREY).voxel_size == (4.0, 2.0, 1.0)

    def test_channels_are_refused(self, tmp_path: Path) -> None:
        ngff(tmp_path / "a.zarr", 3, np.zeros((2, 3, 4, 5)), "czyx", [1.0] * 4)
        with pytest.raises(VolumeError, match="expected z, y, x and only one c"):
            open_volume(tmp_path / "a.zarr")

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "i4", "f2", ">f4", "?"])
    def test_plain_arrays(self, tmp_path: Path, version: Any, dtype: str) -> None:
        array = values(dtype)
        stored = zarr.create_array(
            tmp_path / "plain", shape=SHAPE, dtype=dtype, chunks=(2, 3, 4), zarr_format=version
        )
        stored[:] = array
        assert opened_as(tmp_path / "plain", array).voxel_size is None

    def test_sharded_arrays(self, tmp_path: Path) -> None:
        stored = zarr.create_array(
            tmp_path / "a.zarr", shape=GREY.shape, dtype="u2", chunks=(2, 8, 8), shards=(4, 32, 32)
        )
        stored[:] = GREY
        opened_as(tmp_path / "a.zarr", GREY)

    def test_one_of_several_arrays_is_named(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr")
        group.create_array("grey", data=GREY)
        group.create_group("labels").create_array("bone", data=GREY // 2)
        with pytest.raises(VolumeError, match=r"2 arrays .*\n  grey uint16"):
            open_volume(tmp_path / "a.zarr")
        opened_as(tmp_path / "a.zarr", GREY // 2, ReadOptions(dataset="labels/bone"))
        with pytest.raises(VolumeError, match="has no gray"):
            open_volume(tmp_path / "a.zarr", ReadOptions(dataset="gray"))

    def test_bioformats2raw_puts_the_image_one_level_down(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        group.attrs["bioformats2raw.layout"] = 3
        ngff(tmp_path / "a.zarr" / "0", 2, GREY[None, None], "tczyx", [1, 1, 3, 2, 1])
        assert opened_as(tmp_path / "a.zarr", GREY).voxel_size == (3.0, 2.0, 1.0)

    def test_label_names_of_others_are_read(self, tmp_path: Path) -> None:
        ngff(tmp_path / "a.zarr", 2, GREY, "zyx", [1.0] * 3)
        properties = [{"label-value": 1, "name": "bone"}, {"label-value": 3, "name": "screw"}]
        group = zarr.open_group(tmp_path / "a.zarr")
        group.attrs["image-label"] = {"version": "0.4", "properties": properties}
        classes = opened_as(tmp_path / "a.zarr", GREY).classes
        assert classes == ("background", "bone", "class 2", "screw")


class TestNifti:
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
    def test_types_are_kept(self, tmp_path: Path, kind: Any, ending: str, dtype: str) -> None:
        array = values(dtype)
        image = kind(array.T, np.diag([1.5, 2.5, 4.6, 1]))
        image.header.set_xyzt_units("micron")
        nibabel.save(image, tmp_path / f"a{ending}")
        with opened_as(tmp_path / f"a{ending}", array) as volume:
            assert (volume.voxel_size, volume.unit) == ((4.6, 2.5, 1.5), "µm")

    def test_big_endian(self, tmp_path: Path) -> None:
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(">i2")
        array = values(">i2")
        nibabel.save(nibabel.Nifti1Image(array.T, None, header), tmp_path / "a.nii")
        opened_as(tmp_path / "a.nii", array)

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_scaled_values_are_those_of_nibabel(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        nibabel.save(nibabel.Nifti1Image(values("i2").T, None), path)
        content = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
        # scl_slope and scl_inter: nibabel itself would divide the values that it writes
        content = content[:112] + struct.pack("<2f", 0.25, -3) + content[120:]
        path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
        expected = np.asanyarray(nibabel.load(path).dataobj).T
        assert expected.dtype == np.float64
        opened_as(path, expected)

    def test_a_fourth_axis_of_one_is_left_out(self, tmp_path: Path) -> None:
        array = values("i2")
        nibabel.save(nibabel.Nifti1Image(array.T[..., None], None), tmp_path / "a.nii")
        opened_as(tmp_path / "a.nii", array)

    def test_time_is_refused(self, tmp_path: Path) -> None:
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5)), None), tmp_path / "a.nii")
        with pytest.raises(VolumeError, match="expected three axes"):
            open_volume(tmp_path / "a.nii")

    def test_nibabel_reads_what_we_write(self, tmp_path: Path) -> None:
        array = write(tmp_path / "a.nii.gz", values("u2"))
        image: Any = nibabel.load(tmp_path / "a.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj).T, array)
        assert image.header.get_zooms() == pytest.approx((1.15, 2.3, 4.6))
        assert image.header.get_xyzt_units()[0] == "micron"
        assert np.abs(np.diag(image.affine)) == pytest.approx([1.15, 2.3, 4.6, 1])


class TestNumpy:
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "i8", ">f4", "f2", "?"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_types_and_orders(self, tmp_path: Path, dtype: str, order: Any) -> None:
        array = values(dtype)
        np.save(tmp_path / "a.npy", np.asarray(array, order=order))
        opened_as(tmp_path / "a.npy", array)

    def test_an_archive_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", a=GREY)
        with pytest.raises(VolumeError, match=r"numpy\.save"):
            open_volume(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((2, 2, 2), "c8"),
            np.zeros((2, 2, 2), [("a", "u1")]),
            np.full((2, 2, 2), None),
            np.full((2, 2, 2), "a"),
            np.zeros((2, 2, 2), "M8[s]"),
            np.zeros((2, 2, 2), np.longdouble),
        ],
        ids=lambda a: str(a.dtype),
    )
    def test_what_is_no_number_is_refused(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(VolumeError, match="expected one number a voxel"):
            open_volume(tmp_path / "a.npy")

    @pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 5), (0, 3, 4), (3, 4, 0), ()])
    def test_other_shapes_are_refused(self, tmp_path: Path, shape: tuple) -> None:
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(VolumeError, match=r"expected (three axes|voxels)"):
            open_volume(tmp_path / "a.npy")


class TestPng:
    def test_16_bit_in_the_order_of_numbers(self, tmp_path: Path) -> None:
        array = values("u2", (12, 7, 6))
        for z, page in enumerate(array):
            Image.fromarray(page).save(tmp_path / f"s{z}.png")
        opened_as(tmp_path, array)

    def test_palettes_are_read_by_index_and_bits_as_bool(self, tmp_path: Path) -> None:
        for mode, array in (("P", values("u1") % 5), ("1", values("?"))):
            folder = tmp_path / mode
            folder.mkdir()
            for z, page in enumerate(array):
                image = Image.fromarray(page)
                if mode == "P":
                    image.putpalette([9, 8, 7] * 5)
                assert image.mode == mode
                image.save(folder / f"{z}.png")
            opened_as(folder, array)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_are_spread_over_grey_and_kept_of_labels(
        self, tmp_path: Path, bits: int
    ) -> None:
        array = values("u1") % 2**bits
        for z, page in enumerate(array):
            (tmp_path / f"{z}.png").write_bytes(packed_png(page, bits))
        kind = "?" if bits == 1 else "u1"
        opened_as(tmp_path, array.astype(kind), ReadOptions(labels=True))
        opened_as(tmp_path, (array * (1 if bits == 1 else 255 // (2**bits - 1))).astype(kind))

    def test_jpeg_is_read(self, tmp_path: Path) -> None:
        for z in range(3):
            Image.fromarray(np.full((8, 8), 40 * z, "u1")).save(tmp_path / f"{z}.jpg")
        assert open_volume(tmp_path)[2][4, 4] == pytest.approx(80, abs=2)

    def test_what_may_be_uploaded_is_read_as_slices(self) -> None:
        kinds = {kind for one in formats() for kind in one.images}
        assert kinds == {*PICTURES, *NOT_SHOWN_BY_BROWSERS}

    @pytest.mark.parametrize("ending", ["png", "webp", "gif", "bmp", "tif"])
    def test_a_slice_is_what_an_upload_of_its_file_shows(self, tmp_path: Path, ending: str) -> None:
        array = values("u1", (3, 20, 24))
        for z, page in enumerate(array):
            lossless = {"lossless": True} if ending == "webp" else {}
            Image.fromarray(page).save(tmp_path / f"{z}.{ending}", **lossless)
        opened_as(tmp_path, array)
        shown = decode_image((tmp_path / f"1.{ending}").read_bytes(), "1")
        assert np.array_equal(shown if shown.ndim == 2 else shown[..., 0], array[1])

    def test_a_program_is_no_image(self, tmp_path: Path) -> None:
        """Pillow would hand it to Ghostscript."""
        Image.new("L", (8, 8)).save(tmp_path / "0.eps")
        (tmp_path / "0.eps").rename(tmp_path / "0.png")
        with pytest.raises(VolumeError, match=r"0\.png cannot be read \(cannot identify"):
            open_volume(tmp_path)
        with pytest.raises(StudioError, match="cannot be read as an image"):
            decode_image((tmp_path / "0.png").read_bytes(), "0")

    def test_a_moving_image_is_no_slice(self, tmp_path: Path) -> None:
        pages = [Image.fromarray(page) for page in values("u1", (3, 20, 24))]
        pages[0].save(tmp_path / "0.gif", save_all=True, append_images=pages[1:])
        with pytest.raises(VolumeError, match=r"0\.gif has 3 images, expected one slice a file"):
            open_volume(tmp_path)

    def test_coloured_webp_is_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "0.webp")
        with pytest.raises(VolumeError, match=r"0\.webp is a colour image \(RGB\)"):
            open_volume(tmp_path)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_colour_is_refused(self, tmp_path: Path, mode: str) -> None:
        Image.new(mode, (4, 4)).save(tmp_path / "0.png")
        with pytest.raises(VolumeError, match=rf"0\.png is a colour image \({mode}\)"):
            open_volume(tmp_path)

    def test_mixed_images_name_the_odd_one(self, tmp_path: Path) -> None:
        for z in range(4):
            Image.new("L", (4, 4 + (z == 2))).save(tmp_path / f"{z}.png")
        with pytest.raises(VolumeError, match=r"2\.png is uint8 of shape \(5, 4\)"):
            list(open_volume(tmp_path))

    def test_a_note_in_the_folder_is_read(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "0.png")
        (tmp_path / "volume.json").write_text(json.dumps({"voxel_size": [3, 2, 1], "unit": "mm"}))
        volume = open_volume(tmp_path)
        assert (volume.voxel_size, volume.unit) == ((3.0, 2.0, 1.0), "mm")
