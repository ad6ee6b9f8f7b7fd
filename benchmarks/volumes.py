"""One z slice of every format through `open_volume`, beside the format's own library.

    python benchmarks/volumes.py [--shape 128 1024 1024] [--repeat 15] [--folder /tmp/volumes]
        [--only DICOM]

All read the same slice in turn, at random places, repeat after repeat; the figures are medians.
Only the ratios of one run mean anything. *ours* is what `open_volume` gives, which reads TIFF, HDF5
and Zarr in a child process; *here* is the same reader in this process. Results are checked against
each other before timing. Files are written once into the folder and found in the page cache: it is
the software that is compared, not the disk.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.foreign_volumes import FOREIGN
from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.recognition import format_of
from ml_backend.volumes.volume import Volume, VolumeSpec

Slice = npt.NDArray[Any]
Open = Callable[[], Callable[[int], Slice]]
"""Opens a volume the library's way and gives what reads slice z of it."""


def tomogram(z: int, plane: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """Structure and noise, so that compression has something to do."""
    rng = np.random.default_rng(z)
    small = gaussian_filter(rng.standard_normal((plane[0] // 8, plane[1] // 8)), 4) * 40000
    grey = 20000 + np.kron(small, np.ones((8, 8))) + rng.normal(0, 60, plane)
    return np.asarray(grey, np.uint16)


def libraries(folder: Path, shape: tuple[int, int, int]) -> dict[str, tuple[Path, Open]]:
    """Label → the file and how its library reads it."""

    def tiff(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            file = tifffile.TiffFile(path)
            return lambda z: file.pages[z].asarray()

        return opening

    def hdf5(path: Path, name: str) -> Open:
        def opening() -> Callable[[int], Slice]:
            dataset: Any = h5py.File(path, locking=False)[name]
            return lambda z: dataset[z]

        return opening

    def ome_zarr(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            array: Any = zarr.open(path, mode="r")["0"]
            return lambda z: array[z]

        return opening

    def nifti(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            image: Any = nibabel.load(path)
            return lambda z: np.array(image.dataobj[..., z].T)

        return opening

    def mapped(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            array = np.load(path, mmap_mode="r")
            return lambda z: np.array(array[z])

        return opening

    def raw(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            array = np.memmap(path, np.uint16, "r", 0, shape)
            return lambda z: np.array(array[z])

        return opening

    def png(path: Path) -> Open:
        def opening() -> Callable[[int], Slice]:
            files = sorted(path.glob("*.png"))
            return lambda z: np.array(Image.open(files[z]))

        return opening

    ways: dict[str, tuple[str, Callable[[Path], Open]]] = {
        "TIFF": ("a.tif", tiff),
        "TIFF, deflate": ("zlib.tif", tiff),
        "HDF5": ("flat.h5", lambda path: hdf5(path, "data")),
        "HDF5, gzip": ("a.h5", lambda path: hdf5(path, "entry/data/data")),
        "OME-Zarr": ("a.zarr", ome_zarr),
        "NIfTI": ("a.nii", nifti),
        "NumPy": ("a.npy", mapped),
        "raw": ("a.raw", raw),
        "PNG folder": ("a_png", png),
    }
    foreign = {label: (one.name, one.opening) for label, one in FOREIGN.items()}
    return {
        label: (folder / name, way(folder / name))
        for label, (name, way) in (ways | foreign).items()
    }


def prepare(folder: Path, shape: tuple[int, int, int]) -> None:
    """Every file that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = VolumeSpec(shape, np.dtype(np.uint16), (2.0, 2.0, 2.0), "µm")
    if not (folder / "a.npy").exists():
        write_volume(folder / "a.npy", (tomogram(z, shape[1:]) for z in range(shape[0])), spec)
    volume = np.load(folder / "a.npy", mmap_mode="r")
    if volume.shape != shape:
        raise SystemExit(f"{folder} holds volumes of {volume.shape}: choose another folder")
    for name in ("a.tif", "a.zarr", "a.h5", "a.nii", "a.raw", "a_png"):
        if not (folder / name).exists():
            write_volume(folder / name, volume, spec)
    if not (folder / "zlib.tif").exists():
        tifffile.imwrite(
            folder / "zlib.tif",
            volume,
            photometric="minisblack",  # 4 or 3 slices are no colours
            compression="zlib",
            metadata=None,
        )
    if not (folder / "flat.h5").exists():
        with h5py.File(folder / "flat.h5", "w") as file:
            file["data"] = volume
    for one in FOREIGN.values():
        if not (folder / one.name).exists():
            one.make(folder / one.name, volume)


def read_here(path: Path, options: ReadOptions) -> Volume:
    """The volume as the child processes read it, in this one."""
    return format_of(path, options).read(path, options)


def medians(repeat: int, depth: int, **candidates: Callable[[int], Any]) -> dict[str, float]:
    """Milliseconds of each candidate, run in turn at the same random places."""
    rng = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeat):
        z = rng.randrange(depth)
        # in another order each time: who comes later finds the slice in the CPU's caches
        for name, run in rng.sample(list(candidates.items()), len(candidates)):
            start = time.perf_counter()
            run(z)
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 1024, 1024))
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose label has this in it")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/nextslice-volumes"))
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1], arguments.shape[2])
    prepare(arguments.folder, shape)
    print(f"one z slice of {shape} uint16, ms (medians, interleaved; × = ours / what is before it)")
    print(
        f"{'':20}{'library':>9}{'here':>9}{'ours':>9}{'×':>7}"
        f"{'open+1':>11}{'here':>9}{'ours':>9}{'×':>7}{'in order':>11}"
    )
    for label, (path, opening) in libraries(arguments.folder, shape).items():
        if arguments.only not in label:
            continue
        options = ReadOptions(shape=shape, dtype="u2")
        theirs, ours, here = opening(), open_volume(path, options), read_here(path, options)
        for z in (0, shape[0] // 2, shape[0] - 1):
            assert np.array_equal(theirs(z), ours[z]), label

        def first(z: int, path: Path = path, options: ReadOptions = options) -> None:
            with open_volume(path, options) as volume:
                volume[z]

        def first_here(z: int, path: Path = path, options: ReadOptions = options) -> None:
            with read_here(path, options) as volume:
                volume[z]

        ms = medians(
            arguments.repeat,
            shape[0],
            library=theirs,
            ours=ours.__getitem__,
            opened=lambda z, opening=opening: opening()(z),
            ours_opened=first,
            here=here.__getitem__,
            here_opened=first_here,
        )
        start = time.perf_counter()
        count = min(32, shape[0])
        for z in range(count):
            ours[z]
        in_order = 1000 * (time.perf_counter() - start) / count
        print(
            f"{label:20}{ms['library']:>9.2f}{ms['here']:>9.2f}{ms['ours']:>9.2f}"
            f"{ms['ours'] / ms['here']:>7.2f}"
            f"{ms['opened']:>11.2f}{ms['here_opened']:>9.2f}{ms['ours_opened']:>9.2f}"
            f"{ms['ours_opened'] / ms['here_opened']:>7.2f}{in_order:>11.2f}"
        )
        ours.close()
        here.close()


if __name__ == "__main__":
    main()
