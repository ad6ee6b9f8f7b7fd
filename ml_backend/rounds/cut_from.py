"""The volume that slices were cut from: its shape and voxel size, for what is laid on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ml_backend.errors import NextsliceError
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import SettingsError
from ml_backend.volumes.address import AddressRefused, SliceAddress, is_slice_address
from ml_backend.volumes.turn import Affine
from ml_backend.volumes.volume import VolumeError, axis_index, slice_shape

__all__ = ["FindSource", "Source", "SourceError", "address_of", "source_finder", "source_of"]


class SourceError(NextsliceError, ValueError):
    """A volume whose slice address is ours, and that cannot be looked at here; says why."""


@dataclass(frozen=True)
class Source:
    """What a label volume takes over from the volume called ``name``: ``shape`` (Z, Y, X),
    ``voxel_size`` along z, y, x in ``unit``, ``affine`` in its ``frame`` and ``origin``, None where
    its file does not say. ``flip``: the axes along which its slices were turned over; the shape and
    where it lies are those of before."""

    name: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None = None
    unit: str = ""
    affine: Affine | None = None
    frame: str = ""
    origin: tuple[float, float, float] | None = None
    flip: str = ""

    def slice_shape(self, axis: str) -> tuple[int, int]:
        """(height, width) of a slice along ``axis``."""
        return slice_shape(self.shape, axis_index(axis))


FindSource = Callable[[str], Source | None]
"""Image address → the volume that it is a slice of; None for any other image. Raises
SourceError."""


def source_finder(service: Service) -> FindSource:
    """Finds the volumes that `nextslice import` made slices of, on this machine."""

    def find(image: str) -> Source | None:
        address = address_of(service, image)
        return None if address is None else source_of(service, address)

    return find


def address_of(service: Service, image: str) -> SliceAddress | None:
    """What an image address of ours says; None for any other. Raises SourceError for one that we
    have not signed."""
    if not is_slice_address(image):
        return None
    try:
        # The moment 0: what has expired for browsers is still that volume's slice.
        return SliceAddress.parse(image, slice_keys(service.settings), now=0)
    except (AddressRefused, SettingsError) as error:
        raise SourceError(str(error)) from error


def source_of(service: Service, address: SliceAddress) -> Source:
    """The volume of a slice, looked at on this machine. Raises SourceError."""
    options = replace(address.options, flip="")
    try:
        with service.volumes.volume(address.volume, options) as volume:
            return Source(
                address.volume, volume.shape, volume.voxel_size, volume.unit, volume.affine,
                volume.frame, volume.origin, address.options.flip,
            )  # fmt: skip
    except (SettingsError, VolumeError) as error:
        raise SourceError(str(error)) from error
