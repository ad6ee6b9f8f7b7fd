"""The factory of learners: the one place that says which kinds there are and makes them.

The training step, serving, segment, the demo and the simulation get theirs here, and know it as
`al_strategies.learner.Learner`. Imports torch: import this where a learner is needed, not before.
"""

from __future__ import annotations

from typing import Protocol

import torch

from al_strategies.learner import Learner
from ml_backend.errors import OptionError, SettingsError
from ml_backend.rounds.store import ProjectStore
from ml_backend.segmentation.checkpoints import CheckpointError
from ml_backend.segmentation.checks import check_architecture, check_gpu
from ml_backend.segmentation.inference import InferenceConfig
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.settings import Settings

__all__ = [
    "KINDS",
    "Kind",
    "LearnerConfig",
    "check_network",
    "device_of",
    "learner_config",
    "load_learner",
    "new_learner",
    "stored_learner",
]


class Kind(Protocol):
    """A kind of learner, as its class is: called for a new one, or made of a checkpoint."""

    def __call__(self, classes: tuple[str, ...], config: LearnerConfig, device: str) -> Learner:
        """A learner without weights."""

    def from_bytes(self, data: bytes, config: LearnerConfig, device: str) -> Learner:
        """A learner with the weights and the classes of what `Learner.to_bytes` wrote.

        Raises ValueError for anything else.
        """


KINDS: dict[str, Kind] = {"network": NetworkLearner}
"""Every kind by its name; `tests/test_learners.py` runs over them."""

_DEFAULT = "network"


def new_learner(
    classes: tuple[str, ...], config: LearnerConfig, device: str, kind: str = _DEFAULT
) -> Learner:
    """A learner without weights. ``device``: of torch, see `device_of`."""
    return KINDS[kind](classes, config, device)


def load_learner(settings: Settings, data: bytes, device_setting: str) -> Learner:
    """The learner of a checkpoint, ready to score and predict.

    ``device_setting``: as in the settings, see `device_of`. Raises CheckpointError.
    """
    device = device_of(device_setting)
    config = LearnerConfig(inference=InferenceConfig.for_device(device, settings.max_tile))
    return KINDS[_DEFAULT].from_bytes(data, config, device)


def stored_learner(settings: Settings, project: ProjectStore, weights: str) -> Learner:
    """The learner of ``weights``, a path relative to the project's folder, on the training device.

    Raises CheckpointError, also where the file is gone.
    """
    try:
        data = project.read_at(weights)
    except FileNotFoundError as error:
        raise CheckpointError("The file is not there any more.") from error
    return load_learner(settings, data, settings.train_device)


def learner_config(settings: Settings, device: str, *, brief: bool = False) -> LearnerConfig:
    """What the settings say, with the defaults of device and data for what they leave open.

    ``brief``: see `LearnerConfig`.
    """
    minutes = settings.train_minutes
    given = {
        "steps": settings.train_steps,
        "crop": settings.crop,
        "seconds": None if minutes is None else 60 * minutes,
    }
    return LearnerConfig(
        architecture=None if settings.architecture == "auto" else settings.architecture,
        pretrained={"auto": "auto", "true": True, "false": False}[settings.pretrained],  # type: ignore[arg-type]
        neighbours=settings.neighbours,
        warm_start=settings.warm_start,
        brief=brief,
        training={name: value for name, value in given.items() if value is not None},
        inference=InferenceConfig.for_device(device, settings.max_tile),
    )


def device_of(setting: str) -> str:
    """The torch device of a device setting; ``auto`` is CUDA where there is one."""
    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_network(settings: Settings) -> None:
    """See that the settings' training device is there and their network can be built.

    Raises SettingsError: without this, that shows after K annotations.
    """
    try:
        check_gpu(device_of(settings.train_device), "NEXTSLICE_TRAIN_DEVICE")
        if settings.architecture != "auto":
            check_architecture(settings.architecture, "NEXTSLICE_ARCHITECTURE")
    except OptionError as error:
        raise SettingsError(str(error)) from error
