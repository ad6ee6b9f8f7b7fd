"""Targets that read volumes as slice server and rounds do: in child processes where those do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ml_backend.pictures import encode_png
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import Bounds, ReadOptions, VolumeError
from ml_backend.volumes.window import fit_window, render
from tests.fuzz.target import Form, Sample, Target

__all__ = ["VOLUMES"]

OPTIONS = ReadOptions(bounds=Bounds(timeout_s=3))
"""Below what an input may take: a file that hangs is refused, and that is documented."""


@contextmanager
def reading(name: str) -> Iterator[Callable[[Sample], None]]:
    """``name``: of the volume. The files of an input lie in its folder, or beside it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        yield partial(_read, Path(folder), name)


def _read(folder: Path, name: str, sample: Sample) -> None:
    # a folder of its own: what is still open of the last one must not change
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for file, content in sample.items():
            place = Path(own) / (file or name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        if not (Path(own) / name).exists():
            (Path(own) / name).mkdir()
        with open_volume(Path(own) / name, OPTIONS) as volume:
            for index in {0, len(volume) // 2, len(volume) - 1}:
                volume[index]
            window = fit_window(volume)
            for axis in "zyx":
                encode_png(render(volume.along(axis)[0], window))


def _target(name: str, volume: str, form: Form = "bytes", words: tuple[bytes, ...] = ()) -> Target:
    forms: dict[str, Form] = {".json": "json", ".zarray": "json", ".zattrs": "json", ".png": "png"}
    return Target(name, partial(reading, volume), (VolumeError,), form, forms, words, slow=True)


_XML = (b'SizeZ="', b'SizeC="', b"<TiffData ", b'IFD="', b'FirstZ="', b"<Pixels ", b'Type="')
_IMAGEJ = (b"images=", b"slices=", b"spacing=", b"unit=", b"hyperstack=true", b"channels=")


def _lines(text: str) -> tuple[bytes, ...]:
    """Of a header; those of ``text`` are divided by ``|``."""
    return tuple(f"{line}\n".encode() for line in text.split("|"))


_DICOM = (b"1.2.840.10008.1.2.4.90", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"1e999", b"\\")
_NRRD = _lines(
    "encoding: gzip|encoding: bz2|type: double|endian: big|byte skip: -1|line skip: 9|space: LPS"
    "|space directions: (1,0,0) (0,1,0) (0,0,1)|data file: a%03d 1 5 1|sizes: 12 10 3|sizes: 0 0 0"
    "|kinds: domain domain vector|spacings: nan inf 1e999|key:=value"
)
_METAIMAGE = _lines(
    "CompressedData = True|CompressedDataSize = 9|HeaderSize = -1|NDims = 2|DimSize = 12 10 3"
    "|ElementNumberOfChannels = 3|ElementType = MET_DOUBLE|ElementSpacing = nan 1 1e999"
    "|ElementDataFile = LIST|ElementDataFile = LOCAL|ElementDataFile = a.mha"
)
_VGI = _lines(
    "[file2]|{volume2}|Size = 12 10 3|BitsPerElement = 64|SkipHeader = -1|Datatype = float"
    "|FileFormat = gzip|Name = ../scan.vol|Name = a.vgi|unit = nm|resolution = nan 1e999 0"
)
_EDF = _lines(
    "EDF_BinaryFileName = a.bin ;|EDF_BinaryFilePosition = -1 ;|EDF_BinaryFileSize = 720 ;"
    "|EDF_HeaderSize = 512 ;|COMPRESSION = GZIP ;|DataType = DoubleValue ;|Size = 1 ;|Dim_1 = 3 ;"
    "|PSize_1 = 1e999 ;|EDF_DataBlockID = 1.Image.Psd ;|}|{"
)
_AMIRA = (
    *_lines("define Lattice 32 16 5|BoundingBox 0 1 0 1 0 nan|Lattice { float Data } @1|}|@1|@2"),
    *(b"BINARY", b"HxZip", b"HxByteRLE", b"Parameters {", b"labels { short Labels }"),
)

VOLUMES = (
    _target("hdf5", "a.h5", words=(b"default", b"signal", b"axes", b"units", b"TREE", b"SNOD")),
    _target("nifti", "a.nii"),
    _target("nifti-gz", "a.nii.gz", "gzip"),
    _target("tiff", "a.tif", words=(*_XML, *_IMAGEJ)),
    _target("tiff-folder", "a_tif"),
    _target("zarr", "a.zarr"),
    _target("numpy", "a.npy", words=(b"'descr': '<f8'", b"True", b"(1, 2, 3)", b"|O", b"'<c8'")),
    _target("raw", "a.raw"),
    _target("pictures", "a_png", "png"),
    _target("dicom", "a.dcm", words=_DICOM),
    _target("dicom-folder", "a_dicom", words=_DICOM),
    _target("mrc", "a.mrc", words=(b"MAP ", b"SERI", b"FEI1", b"IMOD")),
    _target("nrrd", "a.nrrd", words=_NRRD),
    _target("metaimage", "a.mha", words=_METAIMAGE),
    _target("txm", "a.txm"),
    _target("vgi", "a.vgi", words=_VGI),
    _target("edf", "a.edf", words=_EDF),
    _target("edf-folder", "a_edf", words=_EDF),
    _target("jpeg2000", "a_jp2", words=(b"\xff\x4f", b"\xff\xd9", b"ihdr", b"colr", b"pclr")),
    _target("isq", "a.isq"),
    _target("amira", "a.am", words=_AMIRA),
    _target("ome-zarr-zip", "a.ozx", "zip"),
)
