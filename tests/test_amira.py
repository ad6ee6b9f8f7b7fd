"""AmiraMesh as Amira and Avizo write it: headers as of theirs, values packed by the rules."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))
LABELS = np.repeat(np.arange(40, dtype="u1") % 5, 64).reshape(5, 16, 32)
KINDS = {"u1": "byte", "i2": "short", "u2": "ushort", "i4": "int", "f4": "float", "f8": "double"}
HEAD = """# {program} {form} 2.1


define Lattice 32 16 5

Parameters {{
    Units {{
        Coordinates "µm"
    }}
    Colormap "labels.am",
    BoundingBox 10 72 0 22.5 -4 4,
    Content "32x16x5 {kind}, uniform coordinates",
    CoordType "uniform"
}}

Lattice {{ {kind} Data }} @1{packing}

# Data section follows
@1
"""


def saved(
    path: Path, kind: str, data: bytes, packing: str = "", *, program: str = "AmiraMesh",
    form: str = "BINARY-LITTLE-ENDIAN",
) -> Path:  # fmt: skip
    head = HEAD.format(program=program, form=form, kind=kind, packing=packing)
    path.write_bytes(head.encode("latin-1") + data + b"\n")
    return path


def runs(data: bytes) -> bytes:
    """HxByteRLE: runs of equal bytes, others as they are."""
    packed, plain, place = bytearray(), bytearray(), 0

    def flush() -> None:
        while plain:
            part = plain[:127]
            packed.extend([0x80 | len(part), *part])
            del plain[:127]

    while place < len(data):
        count = 1
        while count < 127 and data[place : place + count + 1].count(data[place]) == count + 1:
            count += 1
        if count > 2:
            flush()
            packed.extend([count, data[place]])
        else:
            plain.extend(data[place : place + count])
        place += count
    flush()
    return bytes(packed)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_types(tmp_path: Path, dtype: str, packed: bool) -> None:
    array = values(dtype, (5, 16, 32))
    data = zlib.compress(array.tobytes()) if packed else array.tobytes()
    packing = f"(HxZip,{len(data)})" if packed else ""
    with open_volume(saved(tmp_path / "a.am", KINDS[dtype], data, packing)) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((2.0, 1.5, 2.0), "µm")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_unit_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    path = saved(tmp_path / "a.am", "ushort", GREY.tobytes())
    path.write_bytes(path.read_bytes().replace("µ".encode("latin-1"), "µ".encode(encoding), 1))
    with open_volume(path) as volume:
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((2.0, 1.5, 2.0), "µm")


def test_avizo_and_big_endian(tmp_path: Path) -> None:
    data = GREY.astype(">u2").tobytes()
    with open_volume(saved(tmp_path / "a.am", "ushort", data, form="BINARY")) as volume:
        assert_holds(volume, GREY)
    path = saved(tmp_path / "b.am", "ushort", GREY.tobytes(), program="Avizo")
    with open_volume(path) as volume:
        assert_holds(volume, GREY)


@pytest.mark.parametrize("array", [LABELS, values("u1", (5, 16, 32))], ids=["labels", "noise"])
def test_runs_of_labels(tmp_path: Path, array: np.ndarray) -> None:
    data = runs(array.tobytes())
    path = saved(tmp_path / "a.am", "byte", data, f"(HxByteRLE,{len(data)})")
    with open_volume(path) as volume:
        assert_holds(volume, array)


def test_runs_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(0, 256, (5, 200, 200), "u1")
    data = runs(array.tobytes())
    path = saved(tmp_path / "a.am", "byte", data, f"(HxByteRLE,{len(data)})")
    path.write_bytes(path.read_bytes().replace(b"Lattice 32 16 5", b"Lattice 200 200 5"))
    with open_volume(path) as volume:
        assert_holds(volume, array)


@pytest.mark.parametrize("packing", ["", "HxZip", "HxByteRLE"])
@pytest.mark.parametrize("lost", [2, 50, 400])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, packing: str, lost: int) -> None:
    array = values("u1", (5, 16, 32))
    pack = {"": bytes, "HxZip": zlib.compress, "HxByteRLE": runs}[packing]
    data = pack(array.tobytes())
    path = saved(tmp_path / "a.am", "byte", data, f"({packing},{len(data)})" if packing else "")
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with pytest.raises(VolumeError, match=rf"a\.am has {len(whole) - lost} bytes, expected"):
        open_volume(path)


def test_values_that_unpack_to_fewer_are_refused(tmp_path: Path) -> None:
    for name, pack in (("HxZip", zlib.compress), ("HxByteRLE", runs)):
        data = pack(LABELS[:4].tobytes())
        path = saved(tmp_path / f"{name}.am", "byte", data, f"({name},{len(data)})")
        with open_volume(path) as volume, pytest.raises(VolumeError, match="unpacks to 2048 bytes"):
            volume[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("BINARY-LITTLE-ENDIAN", "ASCII", "has ASCII values of type ushort, expected binary"),
        ('"uniform"', '"curvilinear"', "has curvilinear coordinates, expected uniform"),
        ("{ ushort Data", "{ ushort[3] Data", "channel of lengths .*--channel, 0 to 2"),
        ("} @1", "} @3", "has its lattice behind @3, expected it behind @1"),
        ("{ ushort Data", "{ ushort", "no line 'Lattice { … } @1' in its header"),
        ("{ ushort Data", "{ complex Data", "values of type complex"),
        ("define Lattice 32 16 5", "define Lattice 32 16", "expected three axes"),
        ("define Lattice 32 16 5", "nLattice 5", "no line 'define Lattice'"),
        ("define Lattice 32 16 5", "define Lattice 32 16 9", r"a\.am has \d+ bytes, expected"),
        ("} @1", "} @1(HxLZ,9)", "packed by HxLZ, expected HxZip or none: save it from Amira"),
        ("} @1", "} @1(HxByteRLE,9)", "uint16 packed by HxByteRLE"),
        ("# AmiraMesh", "# HyperSurface", "expected an AmiraMesh file"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = saved(tmp_path / "a.am", "ushort", GREY.tobytes())
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(VolumeError, match=message):
        open_volume(path)


@pytest.mark.parametrize("packed", [False, True])
def test_one_of_several_values_a_voxel(tmp_path: Path, packed: bool) -> None:
    array = values("f4", (5, 16, 32, 3))
    data = zlib.compress(array.tobytes()) if packed else array.tobytes()
    path = saved(tmp_path / "a.am", "float[3]", data, f"(HxZip,{len(data)})" if packed else "")
    for channel in range(3):
        with open_volume(path, ReadOptions(channel=channel)) as volume:
            assert_holds(volume, array[..., channel])
            assert volume.voxel_size == (2.0, 1.5, 2.0)
    with pytest.raises(VolumeError, match="has 3 channels, asked for is --channel 3"):
        open_volume(path, ReadOptions(channel=3))


@pytest.mark.parametrize("packing", ["", "HxZip", "HxByteRLE"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b""])
def test_one_of_several_data_by_its_name(tmp_path: Path, packing: str, newline: bytes) -> None:
    """As label fields with probabilities have it; the second lies behind the first."""
    pack = {"": bytes, "HxZip": zlib.compress, "HxByteRLE": runs}[packing]
    labels, other = pack(LABELS.tobytes()), pack(values("u1", (5, 16, 32)).tobytes())
    one, two = (f"({packing},{len(data)})" if packing else "" for data in (labels, other))
    path = saved(tmp_path / "a.am", "byte", labels, one)
    whole = path.read_bytes().rstrip(b"\n") if packing else path.read_bytes()[:-1]
    head, mark, _ = whole.partition(b"\n# Data section")
    more = f"Lattice {{ byte Probability }} @2{two}\n".encode()
    path.write_bytes(
        head + more + b"\n# Data section follows\n@1\n" + labels + newline + b"@2\n" + other + b"\n"
    )
    assert mark
    for name, array in {"Data": LABELS, "Probability": values("u1", (5, 16, 32))}.items():
        with open_volume(path, ReadOptions(dataset=name)) as volume:
            assert_holds(volume, array)
    with pytest.raises(VolumeError, match=r"several data, name one as dataset:\n  Data byte\n  P"):
        open_volume(path)
    with pytest.raises(VolumeError, match=r"no data Noise, name one as dataset"):
        open_volume(path, ReadOptions(dataset="Noise"))
    path.write_bytes(path.read_bytes().replace(b"@2\n" + other[:4], b"@2 " + other[:4]))
    with pytest.raises(VolumeError, match=r"no line @2 at byte \d+, where the data @1 end"):
        open_volume(path, ReadOptions(dataset="Probability"))


def test_headers_as_other_programs_lay_them_out(tmp_path: Path) -> None:
    head = (
        "# AmiraMesh 3D BINARY-LITTLE-ENDIAN 2.0\r\n# CreationDate: …\r\n\r\n"
        'define  Lattice  32 16 5\r\nParameters { CoordType "uniform", '
        "BoundingBox 10 72 0 22.5 -4 4 }\r\nLattice {ushort ScalarField} = @1\r\n\r\n@1\r\n"
    )
    (tmp_path / "a.am").write_bytes(head.encode() + GREY.tobytes())
    with open_volume(tmp_path / "a.am") as volume:
        assert_holds(volume, GREY)
        assert volume.voxel_size == (2.0, 1.5, 2.0)
