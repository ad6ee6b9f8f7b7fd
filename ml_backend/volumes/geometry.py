"""Where the voxels of two files lie, by what the files say: the same place, or a refusal.

Axes are swapped and reversed, exactly; nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.notes import length_in
from ml_backend.volumes.turn import Affine, Turn, as_affine
from ml_backend.volumes.volume import Slice, Volume, VolumeError, VolumeSpec

__all__ = [
    "LEFT_POSTERIOR",
    "flipped",
    "in_millimetres_of_itk",
    "is_default",
    "laid_on",
    "placed",
    "sides",
    "towards_superior",
    "turned",
]

_APART = 0.1
"""Voxels by which two grids may differ at their corners: headers hold float32."""
_SIZES_APART = 0.01
"""Share of a voxel's edge by which two files may differ: some write three digits."""

_FAR = 1e100
"""Headers may claim any number; squares of those are none."""
_FLAT = 1e-3
"""Volume of three directions of length 1 below which they are taken for none."""

Matrix = npt.NDArray[np.float64]

LEFT_POSTERIOR: Matrix = np.diag([-1.0, -1.0, 1.0])
"""From places towards left, posterior, superior (DICOM, ITK) to those of an `Affine`, and back."""


def is_default(matrix: npt.NDArray[Any]) -> bool:
    """Whether ``matrix`` (3, 4) of x, y, z is what ITK writes, towards left, posterior, superior,
    for an image that nobody has placed: it says nothing but the voxel size."""
    steps, start = matrix[:, :3], matrix[:, 3]
    return not start.any() and bool((np.diag(np.diag(steps)) == steps).all() and (steps >= 0).all())


def placed(volume: Volume, matrix: npt.NDArray[Any] | None) -> Volume:
    """``volume`` as its file says that it lies: ``matrix`` (3 or 4, 4) of x, y, z, towards right,
    anterior and superior; as it is where the file does not say, or what makes no sense."""
    import nibabel

    if matrix is None:
        return volume
    affine = matrix.astype(np.float64)
    if not (np.abs(affine) < _FAR).all():  # what is no number is not
        return volume
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not edges.all():
        return volume
    if abs(np.linalg.det(affine[:3, :3] / edges)) < _FLAT:
        return volume
    orientations: Any = nibabel.orientations
    square = np.vstack([affine[:3], (0, 0, 0, 1)])
    names = "".join(str(name) for name in orientations.aff2axcodes(square))
    return replace(volume, affine=as_affine(affine[:, [2, 1, 0, 3]]), stored=names)


def in_millimetres_of_itk(spec: VolumeSpec) -> VolumeSpec:
    """``spec`` in mm where it lies on a NIfTI scan (only these say a ``frame``) in another unit:
    programs built on ITK turn the units of NIfTI to mm, and take the numbers of NRRD and MetaImage
    for mm whatever these say."""
    factor = length_in(spec.unit, "mm")
    if spec.affine is None or not spec.frame or factor is None or factor == 1:
        return spec
    return replace(
        spec,
        voxel_size=None if spec.voxel_size is None else _times(spec.voxel_size, factor),
        unit="mm",
        affine=as_affine(factor * np.array(spec.affine)),
    )


def _times(sizes: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    z, y, x = sizes
    return z * factor, y * factor, x * factor


def turned(volume: Volume, turn: Turn) -> Volume:
    """The same voxels with their axes as ``turn`` says."""
    if not turn.changes:
        return volume
    shape, read = volume.shape, volume.read

    def read_turned(axis: int, index: int) -> Slice:
        was, place = turn.place(axis, index, shape)
        return turn.slice(axis, read(was, place))

    size, affine = volume.voxel_size, volume.affine
    return replace(
        volume,
        shape=turn.of(shape),
        read=read_turned,
        voxel_size=None if size is None else turn.of(size),
        affine=None if affine is None else turn.affine(affine, shape),
        turned=True,
        runs=lambda: None,  # they lie in the order of the file
    )


def flipped(volume: Volume, axes: str) -> Volume:
    """``volume`` with ``axes`` (of "zyx") running the other way."""
    reverse = ["z" in axes, "y" in axes, "x" in axes]
    return turned(volume, _turn([0, 1, 2], reverse)) if axes else volume


def sides(volume: Volume) -> tuple[str, str] | None:
    """What lies at the top and at the left of a slice along the volume's axis ("anterior", "left",
    …); None where the file does not say it."""
    if volume.affine is None:
        return None
    import nibabel

    orientations: Any = nibabel.orientations
    # what an axis runs away from; None where the file's numbers are no directions
    away = [("right", "left"), ("anterior", "posterior"), ("superior", "inferior")]
    begin = orientations.aff2axcodes(_square(volume.affine), away)
    rows, columns = (begin[axis] for axis in range(3) if axis != volume.axis)
    return (rows, columns) if rows and columns else None


def towards_superior(volume: Volume) -> Volume:
    """``volume`` with x running nearest to right, y to anterior, z to superior, by its affine;
    as it is without one."""
    if volume.affine is None:
        return volume
    import nibabel

    orientations: Any = nibabel.orientations
    # for each axis: 0, 1, 2 of the world, and 1 or -1
    towards = orientations.io_orientation(_square(volume.affine))
    axes = [int(np.flatnonzero(towards[:, 0] == 2 - axis)[0]) for axis in range(3)]
    return turned(volume, _turn(axes, [towards[was, 1] < 0 for was in axes]))


def laid_on(labels: Volume, scan: Volume) -> Volume:
    """``labels`` in the order of the voxels of ``scan``, both as they are along z.

    Where both say where they lie, their axes may run another way, and nothing else may differ.
    Where one does not, they belong voxel to voxel, unless the other one was turned when it was
    read: then nobody can tell. Voxels must be of one size where both say it. Raises VolumeError
    that says what both files say. Shapes are only compared where both lie somewhere.
    """
    if labels.affine is None or scan.affine is None:
        if (labels if scan.affine is None else scan).turned:
            raise _elsewhere(labels, scan, "one of them does not say how it lies")
        _check_sizes(labels, scan)
        return labels
    there, here = _square(scan.affine), _square(labels.affine)
    here[:3] *= length_in(labels.unit, scan.unit) or 1.0
    steps = np.linalg.solve(there[:3, :3], here[:3, :3])  # column i: axis i of labels, in scan's
    axes = [int(row.argmax()) for row in np.abs(steps)]
    if sorted(axes) != [0, 1, 2]:
        raise _elsewhere(labels, scan, "their axes run in other directions")
    turn = _turn(axes, [steps[axis, was] < 0 for axis, was in enumerate(axes)])
    laid = turned(labels, turn)
    if laid.shape != scan.shape:
        raise _elsewhere(labels, scan, "they differ in shape")
    assert laid.affine is not None
    found = _square(laid.affine)
    found[:3] *= length_in(labels.unit, scan.unit) or 1.0
    apart = np.abs(np.linalg.solve(there, found) @ _corners(scan.shape) - _corners(scan.shape))
    if apart.max() > _APART:
        raise _elsewhere(labels, scan, f"up to {apart.max():.3g} voxels apart")
    return laid


def _turn(axes: list[int], reverse: list[Any]) -> Turn:
    return Turn((axes[0], axes[1], axes[2]), (bool(reverse[0]), bool(reverse[1]), bool(reverse[2])))


def _square(affine: Affine) -> Matrix:
    return np.vstack([np.array(affine, np.float64), (0, 0, 0, 1)])


def _corners(shape: tuple[int, int, int]) -> Matrix:
    """(4, 8): first and last voxel along each axis."""
    ends = [(0, length - 1) for length in shape]
    corners = [(z, y, x, 1) for z in ends[0] for y in ends[1] for x in ends[2]]
    return np.array(corners, np.float64).T


def _check_sizes(labels: Volume, scan: Volume) -> None:
    if labels.voxel_size is None or scan.voxel_size is None:
        return
    factor = 1.0 if labels.unit == scan.unit else length_in(labels.unit, scan.unit)
    if factor is None:
        return
    pairs = zip(labels.voxel_size, scan.voxel_size, strict=True)
    if any(abs(ours * factor / theirs - 1) > _SIZES_APART for ours, theirs in pairs):
        raise _elsewhere(labels, scan, "their voxels are of other sizes")


def _elsewhere(labels: Volume, scan: Volume, why: str) -> VolumeError:
    return VolumeError(
        f"{labels.path} ({_said(labels)}) and {scan.path} ({_said(scan)}) do not lie on one "
        f"another: {why}. Expected labels on the very grid of the scan, though their axes may run "
        "another way: resample them onto it, and write them with what the scan's file says"
    )


def _said(volume: Volume) -> str:
    """What the file says of where its voxels lie, in the order in which it has been read."""
    z, y, x = volume.shape
    said = [f"{x} x {y} x {z} voxels along x, y, z"]
    if volume.voxel_size is not None:
        edges = " x ".join(f"{edge:.6g}" for edge in reversed(volume.voxel_size))
        said.append(f"of {edges} {volume.unit}".rstrip())
    if volume.affine is None:
        return f"{' '.join(said)}, without an orientation"
    import nibabel

    orientations: Any = nibabel.orientations
    affine = _square(volume.affine)
    names = "".join(str(name) for name in orientations.aff2axcodes(affine[:, [2, 1, 0, 3]]))
    origin = ", ".join(f"{value:.6g}" for value in affine[:3, 3])
    stored = f", in the file {volume.stored}" if volume.stored not in ("", names) else ""
    return f"{' '.join(said)}, orientation {names}{stored}, from ({origin}) on"
