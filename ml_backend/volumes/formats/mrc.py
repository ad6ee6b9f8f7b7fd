"""MRC2014 (``.mrc``, ``.rec``, ``.map``), as IMOD, tomography of cells and CCP4 have it.

mrcfile knows the header; the values behind it are read where they lie. Voxel sizes are Å. Values of
one byte are signed unless IMOD, or a maximum above 127, says otherwise. MRC has no type for uint8:
it is written as uint16, which everyone reads, and comes back by a label of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import reading
from ml_backend.volumes.formats.flat import Cut, cut_out
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes, length_in, our_note
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "an MRC file"
_HEADER = 1024
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MODES = {np.dtype(code).name: mode for mode, code in _TYPES.items()} | {"uint8": 6}
_IMOD = 1146047817
"""What IMOD leaves in the place that MRC2014 calls extra2, before flags: bit 0 for signed bytes."""
_IMOD_AT = 40
_STACKS = 401
"""From this space group on it is a stack of volumes."""
_MARK = "nextslice "

Slice = npt.NDArray[Any]


def read(path: Path, options: ReadOptions) -> Volume:
    """Sections are slices along z, whatever the file calls their axis; the order is refused where
    it is not x, y, z. Of a stack of volumes ``options.time`` says which."""
    with reading(path, _EXPECTED):
        header, order = _header(path)
        stored = _stored_type(path, header).newbyteorder(order)
        sections, rows, columns = int(header.nz), int(header.ny), int(header.nx)
        _check(path, header, (sections, rows, columns))
        depth = _depth(header)
        lengths = (sections // depth, depth, rows, columns)
        choice = choose_axes(path, ("time (volume)", "z", "y", "x"), lengths, options)
        start = _HEADER + int(header.nsymbt)
        flat = cut_out(path, lengths, stored, start, choice)
    Cut(path, lengths, stored, start, choice).check()
    shape = flat.shape
    ours = _label(header)
    if (stored.kind, ours.get("type")) == ("u", "uint8"):

        def read_bytes(axis: int, index: int) -> Slice:
            return flat.read(axis, index).astype(np.uint8)

        return _notes(header, ours).volume(path, shape, np.dtype(np.uint8), read_bytes)
    return _notes(header, ours).volume(path, shape, stored.newbyteorder("="), flat.read)


def write(path: Path, slices: Iterable[Slice], spec: VolumeSpec) -> None:
    """Little-endian. The cell is in Å; what people call the unit is in a label."""
    from mrcfile.dtypes import HEADER_DTYPE

    mode = _MODES[spec.dtype.name]
    stored = np.dtype(_TYPES[mode]).newbyteorder("<")
    header: Any = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    for place, name in enumerate("zyx"):
        for count in (f"n{name}", f"m{name}"):
            header[count] = spec.shape[place]
        if spec.voxel_size is not None:
            factor = length_in(spec.unit, "Å") or 1.0
            header["cella"][name] = spec.voxel_size[place] * factor * spec.shape[place]
    header["mode"], header["map"], header["machst"] = mode, b"MAP ", (0x44, 0x44, 0, 0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["cellb"] = (90, 90, 90)
    header["ispg"], header["nversion"], header["nlabl"] = 1, 20140, 1
    header["label"][0] = _label_of(spec)
    lowest, highest = np.inf, -np.inf
    with path.open("wb") as file:
        file.write(header.tobytes())
        for values in slices:
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                lowest, highest = min(lowest, finite.min()), max(highest, finite.max())
            file.write(values.astype(stored).tobytes())
        # dmean below dmin and rms below 0: not determined
        known = lowest <= highest
        header["dmin"], header["dmax"] = (lowest, highest) if known else (0, -1)
        header["dmean"], header["rms"] = header["dmin"] - 2, -1
        file.seek(0)
        file.write(header.tobytes())


FORMAT = Format(
    name="mrc",
    title="MRC",
    summary="`.mrc`, `.rec`, `.map`: a volume, or one of a stack of volumes; not compressed",
    endings=(".mrc", ".rec", ".map"),
    read=read,
    chooses=True,
    apart=False,
    write=write,
    dtypes=("uint8", "int8", "uint16", "int16", "float16", "float32"),
    keeps=("voxel_size", "unit"),
    repeatable=True,
    masks=".mrc",
    place=56,
)


def _header(path: Path) -> tuple[Any, Literal["<", ">"]]:
    """The first 1,024 bytes, and their byte order. Raises VolumeError."""
    from mrcfile.dtypes import HEADER_DTYPE

    with path.open("rb") as file:
        head = file.read(_HEADER)
    if len(head) < _HEADER:
        raise VolumeError(f"{path} has {len(head)} bytes, expected an MRC header of {_HEADER}")
    # the stamp of the byte order is missing or wrong in older files: the axes are 1, 2, 3 in any
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0]
        axes = (int(header.mapc), int(header.mapr), int(header.maps))
        if sorted(axes) == [1, 2, 3] or (axes == (0, 0, 0) and 0 <= header.mode < 128):
            return header, order
    raise VolumeError(
        f"{path} has the axes {axes} in its header, expected 1, 2 and 3: it is no MRC file (raw "
        "values are read with --shape, --dtype and --offset, as a file that ends in .raw)"
    )


def _check(path: Path, header: Any, shape: tuple[int, int, int]) -> None:
    axes = (int(header.mapc), int(header.mapr), int(header.maps))
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise VolumeError(
            f"{path} has its columns, rows and sections along the axes {axes}, expected (1, 2, 3):"
            " x, y, z; `clip rotx` or EMAN2 change the order"
        )
    if min(shape) < 1 or header.nsymbt < 0:
        raise VolumeError(
            f"{path} has the shape {shape} and {header.nsymbt} bytes of extended header, expected "
            "voxels"
        )
    if header.nz % _depth(header):
        raise VolumeError(
            f"{path} is a stack of volumes of {_depth(header)} sections each, and has {header.nz}: "
            "expected whole volumes"
        )


def _depth(header: Any) -> int:
    """Sections of a volume."""
    stack = header.ispg >= _STACKS and 0 < header.mz < header.nz
    return int(header.mz if stack else header.nz)


def _stored_type(path: Path, header: Any) -> np.dtype[Any]:
    mode = int(header.mode)
    if mode not in _TYPES:
        raise VolumeError(
            f"{path} has values of mode {mode}, expected one of {', '.join(map(str, _TYPES))}: one "
            "number a voxel; `newstack -mode 2` converts it"
        )
    if mode == 0 and _unsigned(header):
        return np.dtype(np.uint8)
    return np.dtype(_TYPES[mode])


def _unsigned(header: Any) -> bool:
    stamp, flags = np.frombuffer(bytes(header.extra2)[_IMOD_AT : _IMOD_AT + 8], header.dtype["nx"])
    if stamp == _IMOD:
        return not flags & 1
    return bool(header.dmax > 127)


def _notes(header: Any, ours: dict[str, Any]) -> Notes:
    counts = [int(header[f"m{name}"]) for name in "zyx"]
    if min(counts) < 1:
        return Notes()
    # the shortest decimal of the stored float32: 46000, not 45999.998
    sizes = [
        float(str(np.float32(header.cella[name] / count)))
        for name, count in zip("zyx", counts, strict=True)
    ]
    unit = str(ours.get("unit", "Å"))
    factor = length_in("Å", unit) or 1.0
    return Notes.sized([float(f"{size * factor:.9g}") for size in sizes], unit)


def _label_of(spec: VolumeSpec) -> bytes:
    said: dict[str, str] = {} if spec.voxel_size is None else {"unit": spec.unit}
    if spec.dtype == np.uint8:
        said["type"] = "uint8"
    label = (_MARK + json.dumps(said)).encode("ascii")
    return label if len(label) <= 80 else (_MARK + "{}").encode("ascii")


def _label(header: Any) -> dict[str, Any]:
    """What `write` left."""
    for label in header.label[: max(0, min(10, int(header.nlabl)))]:
        text = bytes(label).decode("ascii", "replace")
        if text.startswith(_MARK) and (said := our_note(text.removeprefix(_MARK))):
            return said
    return {}
