"""A trained network together with all it needs to be used: preprocessing and class names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ml_backend.segmentation.networks import SegmentationNetwork
from ml_backend.segmentation.preprocessing import Preprocessing

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """What a training leaves, a checkpoint holds and inference takes.

    ``classes``: the name of each class index; by convention of the caller 0 is the background.
    ``seed``: the one it was trained with.
    """

    network: SegmentationNetwork
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.classes) != self.network.classes:
            raise ValueError(
                f"The network has {self.network.classes} classes, but {len(self.classes)} names "
                f"were given: {', '.join(self.classes)}."
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"Class names must differ, found {', '.join(self.classes)}.")
        if self.preprocessing.planes != self.network.channels:
            raise ValueError(
                f"The preprocessing makes {self.preprocessing.planes} channels, the network "
                f"takes {self.network.channels}."
            )

    @property
    def architecture(self) -> str:
        """The name that `build_network` builds the network from."""
        return self.network.architecture

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return self.network.classifier.weight.device

    def to(self, device: str | torch.device) -> Model:
        """The same model on ``device``; the network itself is moved."""
        return replace(self, network=self.network.to(device))
