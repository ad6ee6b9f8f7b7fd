"""A project's slices as arrays: from the volume itself where a task's image is an address of ours.

Then the values are the native ones, and the slices before and after are known. Every other image
(an upload, local storage, cloud storage, any web address) is downloaded once into the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.segmentation.preprocessing import luminance
from ml_backend.studio.failures import StudioError
from ml_backend.studio.images import ImageCache
from ml_backend.volumes.address import AddressRefused, SliceAddress, SliceKeys, is_slice_address
from ml_backend.volumes.shelf import OpenVolumes

__all__ = ["ProjectSlices"]


class ProjectSlices:
    """Images of one project's tasks. Safe to use from several threads.

    ``ours``: what the addresses of slices begin with that this deployment hands out.
    """

    def __init__(
        self, images: ImageCache, volumes: OpenVolumes, keys: SliceKeys, ours: str
    ) -> None:
        self._images = images
        self._volumes = volumes
        self._keys = keys
        self._ours = ours.rstrip("/") + "/"

    def image(self, task_id: int, url: str, within_s: float | None = None) -> npt.NDArray[Any]:
        """The slice in native values: (H, W), or (H, W, 3 or 4) for an uploaded colour image.
        ``within_s``: how long a download may take, at most.

        Raises StudioError for an image that cannot be fetched, VolumeError for a volume that cannot
        be read on this machine; `may_come_back` says which of them are worth another try.
        """
        address = self._address(url)
        if address is None:
            return self._images.image(task_id, url, within_s)
        return self._volumes.slice(address)

    def around(
        self, task_id: int, url: str, neighbours: int, within_s: float | None = None
    ) -> npt.NDArray[Any]:
        """(H, W, 2 n + 1): the slice between its neighbours; the image alone where the volume is
        not known, grey where it is coloured: colours are no neighbours. At the ends of the volume
        the last slice stands in for those beyond it."""
        address = self._address(url)
        if not neighbours:
            return self.image(task_id, url, within_s)
        if address is None:
            return luminance(self.image(task_id, url, within_s))
        return np.stack(self._volumes.around(address, neighbours), axis=2)

    def _address(self, url: str) -> SliceAddress | None:
        """None for what is no address of this deployment: it is downloaded like any other.

        Raises StudioError for one that is ours but for its signature: downloaded, it would be
        another image, of 8 bits, than where the volume itself is read.
        """
        if not is_slice_address(url):
            return None
        try:
            # At the time 0 nothing has expired: that is for browsers, we read the volume itself.
            return SliceAddress.parse(url, self._keys, now=0)
        except AddressRefused as error:
            if url.startswith(self._ours):
                raise StudioError(
                    f"The address of a slice {url} is not signed with this process's secret "
                    f"({error}). Set the same NEXTSLICE_SLICE_SECRET for the backend, every worker "
                    "and `nextslice import`: without it each derives one from its own "
                    "LABEL_STUDIO_API_KEY. If it was changed, `nextslice import` the volume again."
                ) from error
            return None
