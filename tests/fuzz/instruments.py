"""Corpus of what instruments and other programs write: `seeds` puts it where it belongs."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ml_backend.volumes.formats.ome_zarr import write
from ml_backend.volumes.volume import VolumeSpec
from tests import (
    test_amira,
    test_dicom,
    test_edf,
    test_isq,
    test_metaimage,
    test_mrc,
    test_nrrd,
    test_skyscan,
    test_txm,
    test_vgi,
)
from tests.compound_file import write_compound

__all__ = ["INSTRUMENTS"]

Seeds = Iterator[tuple[str, bytes]]
"""Path under the target's folder → bytes."""

_GREY = (np.arange(3 * 10 * 12).reshape(3, 10, 12) * 37 % 1000).astype("u2")
_LABELS = test_amira.LABELS
_UIDS = {"SOPInstanceUID": "1.2.3.4"}
"""As they are drawn anew for each file, it would be another every time."""


def _of(write: Callable[[Path], object]) -> Seeds:
    """The files that ``write`` leaves in a folder."""
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        for path in sorted(Path(made).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(made)), path.read_bytes()


def _under(name: str, seeds: Seeds) -> Seeds:
    yield from ((f"{name}/{path}", content) for path, content in seeds)


def _one(write: Callable[[Path], object], name: str) -> bytes:
    return dict(_of(lambda folder: write(folder / name)))[name]


def _dicom() -> Seeds:
    def saved(path: Path, syntax: str) -> None:
        test_dicom.save(path, test_dicom.image(_GREY, **_UIDS), syntax)

    yield "plain", _one(lambda path: saved(path, test_dicom.ExplicitVRLittleEndian), "a.dcm")
    yield "implicit", _one(lambda path: saved(path, test_dicom.ImplicitVRLittleEndian), "a.dcm")
    yield "big", _one(lambda path: saved(path, test_dicom.ExplicitVRBigEndian), "a.dcm")
    for syntax, encode in test_dicom.CODECS.items():
        # all 16 bits, as the codes say
        one = test_dicom.image(_GREY, BitsStored=16, HighBit=15, **_UIDS)
        one.PixelData = encapsulate([encode(page) for page in _GREY])
        one["PixelData"].VR = "OB"
        yield syntax, _one(partial(test_dicom.save, one=one, syntax=syntax), "a.dcm")
    one = test_dicom.image(_GREY, **_UIDS)
    one.file_meta.TransferSyntaxUID = test_dicom.ExplicitVRLittleEndian
    one.compress(RLELossless, generate_instance_uid=False)
    yield "rle", _one(partial(one.save_as, enforce_file_format=True), "a.dcm")


def _dicom_folder() -> Seeds:
    yield from _under(
        "series", _of(lambda made: test_dicom.series(made / "a_dicom", _GREY, **_UIDS))
    )


def _mrc() -> Seeds:
    for kind in ("i1", "u2", "f2", ">f4"):
        array = (_GREY % 100).astype(kind)
        yield kind.strip(">"), _one(lambda path, a=array: test_mrc.saved(path, a, 2.0), "a.mrc")


def _nrrd() -> Seeds:
    for encoding in ("raw", "gzip", "bzip2"):
        header = {"encoding": encoding, "spacings": [1.5, 2.5, 4.25], "units": ["mm"] * 3}
        yield encoding, _one(lambda path, h=header: test_nrrd.saved(path, _GREY, h), "a.nrrd")
    head = (
        "NRRD0004\ntype: unsigned short\ndimension: 4\nsizes: 1 12 10 3\nendian: little\n"
        'labels: "c" "x" "y" "z"\nkinds: stub space space space\nencoding: raw\n'
        "spacings: NaN 1.5 1.5 2\nline skip: 2\nbyte skip: 3\ndata file: values.bin\n"
    )
    yield "elsewhere/a.nrrd", head.encode()
    yield "elsewhere/values.bin", b"first\nsecond\n123" + _GREY.tobytes()
    lines = head.replace("skip: 2", "skip: 0").partition("data file")[0].encode()
    names = [f"part{z}.raw" for z in range(3)]
    yield "list/a.nrrd", lines + b"data file: LIST\n" + "\n".join(names).encode() + b"\n"
    yield "pattern/a.nrrd", lines + b"data file: part%d.raw 0 2 1\n"
    for folder in ("list", "pattern"):
        for name, page in zip(names, _GREY, strict=True):
            yield f"{folder}/{name}", b"123" + page.tobytes()


def _metaimage() -> Seeds:
    for name, packed in {"plain": False, "packed": True}.items():
        yield name, _one(lambda path, p=packed: test_metaimage.saved(path, _GREY, p), "a.mha")
    head = (
        "NDims = 3\nDimSize = 12 10 3\nHeaderSize = -1\nElementSize = 1 1 3\n"
        "TransformMatrix = 0 1 0 1 0 0 0 0 -1\nOffset = 1 2 3\nDistanceUnits = um\n"
        "ElementType = MET_USHORT\nBinaryDataByteOrderMSB = True\nElementDataFile = scan.raw\n"
    )
    yield "elsewhere/a.mha", head.encode()
    yield "elsewhere/scan.raw", b"twelve bytes" + _GREY.byteswap().tobytes()
    names = [f"part{z}.raw" for z in range(3)]
    yield "list/a.mha", head.replace("scan.raw", "\n".join(["LIST", *names])).encode()
    for name, page in zip(names, _GREY, strict=True):
        yield f"list/{name}", b"twelve bytes" + page.byteswap().tobytes()


def _txm() -> Seeds:
    large = np.resize(_GREY, (2, 50, 60))  # beyond what the mini stream holds
    for name, array in {"small": _GREY, "large": large, "float": _GREY.astype("f4")}.items():
        streams = test_txm.streams(array)
        yield name, _one(lambda path, s=streams: write_compound(path, s), "a.txm")


def _vgi() -> Seeds:
    for name, array in {"u2": _GREY, "f4": _GREY.astype("f4")}.items():
        yield from _under(name, _of(lambda made, a=array: test_vgi.saved(made / "a.vgi", a, 100)))


def _edf() -> Seeds:
    yield "many", _one(lambda path: test_edf.many(path, _GREY), "a.edf")
    yield "block", test_edf.block(_GREY.astype(">f4"))
    where = [
        "EDF_BinaryFileName = a.bin ;",
        "EDF_BinaryFilePosition = 0 ;",
        f"EDF_BinaryFileSize = {_GREY.nbytes} ;",
    ]
    yield "elsewhere/a.edf", test_edf.block(_GREY, *where)[:1024]
    yield "elsewhere/a.bin", _GREY.tobytes()


def _edf_folder() -> Seeds:
    for z, page in enumerate(_GREY):
        content = _one(lambda path, p=page: test_edf.many(path, p[None]), "a.edf")
        yield f"plain/a_edf/{z}.edf", content


def _jpeg2000() -> Seeds:
    for ending in test_skyscan.ENDINGS:
        for name, array in {"u2": _GREY[:2], "u1": (_GREY[:2] % 256).astype("u1")}.items():
            yield from _under(
                f"{ending}-{name}",
                _of(lambda to, a=array, e=ending: test_skyscan.jpeg2000(to / "a_jp2", a, e)),
            )


def _isq() -> Seeds:
    array = _GREY.astype("i2")
    for blocks in (0, 4):
        yield (
            f"blocks{blocks}",
            _one(lambda path, b=blocks: test_isq.saved(path, array, blocks=b), "a.isq"),
        )


def _amira() -> Seeds:
    grey = np.resize(_GREY, (5, 16, 32)).astype("u2")
    for name, (kind, data, packing) in {
        "plain": ("ushort", grey.tobytes(), ""),
        "zip": ("ushort", zlib.compress(grey.tobytes()), "HxZip"),
        "runs": ("byte", test_amira.runs(_LABELS.tobytes()), "HxByteRLE"),
    }.items():
        packed = f"({packing},{len(data)})" if packing else ""
        saved = partial(test_amira.saved, kind=kind, data=data, packing=packed)
        yield name, _one(saved, "a.am")


def _ome_zarr_zip() -> Seeds:
    spec = VolumeSpec(_GREY.shape, _GREY.dtype, (4.0, 2.0, 1.5), "µm", ("background", "bone"))
    for version in (2, 3):
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            path = f"v{version}-{'stored' if kind == zipfile.ZIP_STORED else 'deflated'}"
            yield path, _one(lambda to, v=version, k=kind: _zipped(to, spec, v, k), "a.ozx")


def _zipped(path: Path, spec: VolumeSpec, version: int, kind: int) -> None:
    def written(made: Path) -> None:
        write(made / "a", iter(_GREY), spec, zarr_format=version)  # type: ignore[arg-type]

    with zipfile.ZipFile(path, "w") as file:
        for name, content in _of(written):
            # with a date that does not change
            file.writestr(zipfile.ZipInfo(name.removeprefix("a/")), content, kind)


INSTRUMENTS: dict[str, Callable[[], Seeds]] = {
    "dicom": _dicom,
    "dicom-folder": _dicom_folder,
    "mrc": _mrc,
    "nrrd": _nrrd,
    "metaimage": _metaimage,
    "txm": _txm,
    "vgi": _vgi,
    "edf": _edf,
    "edf-folder": _edf_folder,
    "jpeg2000": _jpeg2000,
    "isq": _isq,
    "amira": _amira,
    "ome-zarr-zip": _ome_zarr_zip,
}
"""Target → what makes its corpus."""
