"""Files of instruments and other programs for benchmarks/volumes.py: each written and read by its
own library."""

from __future__ import annotations

import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FOREIGN", "Foreign"]

Slice = npt.NDArray[Any]
Open = Callable[[], Callable[[int], Slice]]


@dataclass(frozen=True)
class Foreign:
    """``name``: of the file or folder; ``make(path, volume)`` writes it; ``opening(path)`` gives
    what opens it the library's way."""

    name: str
    make: Callable[[Path, Slice], None]
    opening: Callable[[Path], Open]


def _dicom_image(pixels: Slice, z: int) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
    one.SeriesInstanceUID, one.InstanceNumber = "1.2.3", z + 1
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.ImagePositionPatient, one.PixelSpacing = [0, 0, 2.0 * z], [2, 2]
    one.Rows, one.Columns = pixels.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.PixelData = pixels.tobytes()
    return one


def _make_dicom(folder: Path, volume: Slice, *, packed: bool = False) -> None:
    import imagecodecs
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    folder.mkdir()
    for z, pixels in enumerate(volume):
        one = _dicom_image(np.asarray(pixels), z)
        if packed:
            code = imagecodecs.jpeg2k_encode(np.asarray(pixels), level=0, codecformat="j2k")
            one.PixelData = encapsulate([code])
            one["PixelData"].VR = "OB"
            one.file_meta.TransferSyntaxUID = JPEG2000Lossless
        one.save_as(folder / f"{z:04d}.dcm", enforce_file_format=True)


def _dicom(folder: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import pydicom

        files = sorted(folder.iterdir())
        return lambda z: np.array(pydicom.dcmread(files[z]).pixel_array)

    return opening


def _make_mrc(path: Path, volume: Slice) -> None:
    import mrcfile

    with mrcfile.new_mmap(path, volume.shape, 6) as mrc:
        mrc.data[:] = volume
        mrc.set_volume()


def _mrc(path: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import mrcfile

        data = mrcfile.mmap(path).data
        return lambda z: np.array(data[z])

    return opening


def _make_itk(path: Path, volume: Slice) -> None:
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.asarray(volume)), str(path))


def _itk(path: Path) -> Open:
    """A region at a time, as ITK streams it."""

    def opening() -> Callable[[int], Slice]:
        import SimpleITK

        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        width, height, _ = reader.GetSize()

        def read(z: int) -> Slice:
            reader.SetExtractIndex((0, 0, z))
            reader.SetExtractSize((width, height, 0))
            return np.asarray(SimpleITK.GetArrayFromImage(reader.Execute()))

        return read

    return opening


def _make_nrrd(path: Path, volume: Slice) -> None:
    import nrrd

    nrrd.write(str(path), np.asarray(volume), {"encoding": "raw"}, index_order="C")


def _nrrd(path: Path) -> Open:
    """pynrrd reads whole files only: mapped as its header says."""

    def opening() -> Callable[[int], Slice]:
        import nrrd

        with path.open("rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
        array = np.memmap(path, np.uint16, "r", start, tuple(header["sizes"][::-1]))
        return lambda z: np.array(array[z])

    return opening


def _make_txm(path: Path, volume: Slice) -> None:
    from tests.compound_file import write_compound

    depth, height, width = volume.shape
    numbers = {"ImageWidth": width, "ImageHeight": height, "NoOfImages": depth, "DataType": 5}
    streams = {f"ImageInfo/{name}": struct.pack("<I", n) for name, n in numbers.items()}
    for z, pixels in enumerate(volume):
        streams[f"ImageData{z // 100 + 1}/Image{z + 1}"] = pixels.tobytes()
    write_compound(path, streams)


def _txm(path: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import olefile

        file = olefile.OleFileIO(path)

        def read(z: int) -> Slice:
            data = file.openstream(f"ImageData{z // 100 + 1}/Image{z + 1}").read()
            width, height = (
                struct.unpack("<I", file.openstream(f"ImageInfo/Image{name}").read())[0]
                for name in ("Width", "Height")
            )
            return np.array(np.frombuffer(data, "<u2").reshape(height, width))

        return read

    return opening


def _make_vgi(path: Path, volume: Slice) -> None:
    size = " ".join(map(str, volume.shape[::-1]))
    path.write_text(
        f"{{volume1}}\n[file1]\nSize = {size}\nDatatype = unsigned integer\nBitsPerElement = 16\n"
        f"FileFormat = raw\nName = {path.stem}.vol\n"
    )
    np.asarray(volume).tofile(path.with_suffix(".vol"))


def _vgi(path: Path) -> Open:
    """No library reads it: its values, mapped."""

    def opening() -> Callable[[int], Slice]:
        size = path.read_text().split("\n")[2]
        shape = tuple(map(int, size.partition("=")[2].split()))[::-1]
        array = np.memmap(path.with_suffix(".vol"), np.uint16, "r", 0, shape)
        return lambda z: np.array(array[z])

    return opening


def _make_edf(path: Path, volume: Slice) -> None:
    from fabio.edfimage import EdfImage

    image = EdfImage(data=np.asarray(volume[0]))
    for pixels in volume[1:]:
        image.append_frame(data=np.asarray(pixels))
    image.write(str(path))


def _edf(path: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import fabio

        image = fabio.open(str(path))

        def read(z: int) -> Slice:
            # a frame keeps what it has read: each one anew
            frame = image.get_frame(z)
            values = np.array(frame.data)
            frame._data, frame._dtype = None, values.dtype
            return values

        return read

    return opening


def _make_jpeg2000(folder: Path, volume: Slice) -> None:
    import imagecodecs

    folder.mkdir()
    for z, pixels in enumerate(volume):
        code = imagecodecs.jpeg2k_encode(np.asarray(pixels), level=0, codecformat="jp2")
        (folder / f"{z:04d}.jp2").write_bytes(code)


def _jpeg2000(folder: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import imagecodecs

        files = sorted(folder.glob("*.jp2"))
        return lambda z: np.asarray(imagecodecs.jpeg2k_decode(files[z].read_bytes()))

    return opening


def _make_isq(path: Path, volume: Slice) -> None:
    """By the layout that ITK's ScancoImageIO reads."""
    size = volume.shape[::-1]
    head = struct.pack("<16s5i8s3i3i", b"CTDATA-HEADER_V1", 3, 0, 0, 0, 0, bytes(8), *size, *size)
    with path.open("wb") as file:
        file.write(head.ljust(508, b"\0") + struct.pack("<i", 0))
        for pixels in volume:
            file.write(np.asarray(pixels).view("<i2").tobytes())


def _isq(path: Path) -> Open:
    """No library at hand reads it: its values, mapped."""

    def opening() -> Callable[[int], Slice]:
        with path.open("rb") as file:
            size = struct.unpack_from("<3i", file.read(512), 44)
        array = np.memmap(path, "<i2", "r", 512, size[::-1])
        return lambda z: np.array(array[z])

    return opening


_AMIRA = """# AmiraMesh BINARY-LITTLE-ENDIAN 2.1
define Lattice {} {} {}
Parameters {{ CoordType "uniform", BoundingBox 0 1 0 1 0 1 }}
Lattice {{ ushort Data }} @1{}
# Data section follows
@1
"""


def _make_amira(path: Path, volume: Slice, *, packed: bool = False) -> None:
    code = zlib.compress(np.asarray(volume).tobytes(), 1) if packed else b""
    packing = f"(HxZip,{len(code)})" if packed else ""
    with path.open("wb") as file:
        file.write(_AMIRA.format(*volume.shape[::-1], packing).encode())
        file.write(code)
        for pixels in () if packed else volume:
            file.write(np.asarray(pixels).tobytes())
        file.write(b"\n")


def _amira(path: Path) -> Open:
    """No library at hand reads it: its values, mapped where they lie as they are, else all of them
    unpacked by zlib."""

    def opening() -> Callable[[int], Slice]:
        with path.open("rb") as file:
            head = file.read(512).partition(b"\n@1\n")[0]
        lattice = head.partition(b"Lattice")[2].split(b"\n")[0]
        shape, start = tuple(map(int, lattice.split()))[::-1], len(head) + 4
        if b"HxZip" in head:
            values = zlib.decompress(path.read_bytes()[start:-1])
            array = np.frombuffer(values, "<u2").reshape(shape)
        else:
            array = np.memmap(path, "<u2", "r", start, shape)
        return lambda z: np.array(array[z])

    return opening


def _make_ome_zarr_zip(path: Path, volume: Slice) -> None:
    from ml_backend.volumes.formats.ome_zarr import write
    from ml_backend.volumes.volume import VolumeSpec

    z, y, x = volume.shape
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        write(Path(made) / "a", iter(volume), VolumeSpec((z, y, x), volume.dtype))
        with zipfile.ZipFile(path, "w") as file:
            for one in sorted((Path(made) / "a").rglob("*")):
                if one.is_file():
                    file.write(one, one.relative_to(Path(made) / "a"))


def _ome_zarr_zip(path: Path) -> Open:
    def opening() -> Callable[[int], Slice]:
        import zarr

        group: Any = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
        array = group["0"]
        return lambda z: np.asarray(array[z])

    return opening


FOREIGN: dict[str, Foreign] = {
    "DICOM": Foreign("a_dicom", _make_dicom, _dicom),
    "DICOM, JPEG 2000": Foreign(
        "a_j2k_dicom", lambda path, volume: _make_dicom(path, volume, packed=True), _dicom
    ),
    "MRC": Foreign("a.mrc", _make_mrc, _mrc),
    "NRRD": Foreign("a.nrrd", _make_nrrd, _nrrd),
    "MetaImage": Foreign("a.mha", _make_itk, _itk),
    "Zeiss TXM": Foreign("a.txm", _make_txm, _txm),
    "VGI": Foreign("a.vgi", _make_vgi, _vgi),
    "EDF": Foreign("a.edf", _make_edf, _edf),
    "JPEG 2000 folder": Foreign("a_jp2", _make_jpeg2000, _jpeg2000),
    "Scanco ISQ": Foreign("a.isq", _make_isq, _isq),
    "AmiraMesh": Foreign("a.am", _make_amira, _amira),
    "AmiraMesh, HxZip": Foreign(
        "zip.am", lambda path, volume: _make_amira(path, volume, packed=True), _amira
    ),
    "OME-Zarr, zipped": Foreign("a.ozx", _make_ome_zarr_zip, _ome_zarr_zip),
}
"""Label → how it is made and read."""
