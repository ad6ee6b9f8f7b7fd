"""Draw docs/images/phantom.png: three samples of the phantom, cut along all three axes.

python docs/scripts/phantom_picture.py [PATH]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ml_backend.volumes.phantom import CLASSES, PhantomSample
from ml_backend.volumes.window import render

SHAPE = (128, 192, 192)
SAMPLES = (("Mg-10Gd", 8), ("Ti", 12), ("PEEK", 4))
COLOURS = ("#00000000", "#d9a05b", "#3b7dd8", "#d6336c")


def main(path: Path) -> None:
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    axes = figure.subplots(len(SAMPLES), 4)
    for seed, (row, (material, weeks)) in enumerate(zip(axes, SAMPLES, strict=True), start=1):
        sample = PhantomSample(seed, SHAPE, material, weeks)
        slices = [sample.slice(z) for z in range(SHAPE[0])]
        image = render(np.stack([s[0] for s in slices]), sample.window)
        mask = np.stack([s[1] for s in slices])
        z, y, x = (length // 2 for length in SHAPE)
        cuts = (
            ("slice (z)", image[z]),
            ("along y", image[:, y]),
            ("along x", image[:, :, x]),
            ("its mask", image[z]),
        )
        for axis, (title, cut) in zip(row, cuts, strict=True):
            axis.imshow(
                cut, cmap="gray", vmin=0, vmax=255, aspect="auto" if "along" in title else 1
            )
            axis.set(xticks=[], yticks=[])
            if row is axes[0]:
                axis.set_title(title, fontsize=10)
        row[3].imshow(mask[z], cmap=ListedColormap(COLOURS), vmin=0, vmax=3, alpha=0.65)
        row[0].set_ylabel(f"{material}, {weeks} weeks", fontsize=10)
    handles = [
        axes[0][3].plot([], [], "s", color=colour, label=name)[0]
        for name, colour in zip(CLASSES[1:], COLOURS[1:], strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=10)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "images" / "phantom.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
