"""What only torch can tell of a setting: whether a device is there, whether a network can be built.

``option`` is what the message calls the setting, as ``--device``.
"""

from __future__ import annotations

import sys

import torch

from ml_backend.errors import OptionError
from ml_backend.segmentation.networks import BUILD_ERRORS, build_network, described_elsewhere

__all__ = ["check_architecture", "check_gpu"]


def check_gpu(device: str, option: str) -> None:
    """Raise OptionError unless this machine has ``device``: ``cpu``, ``cuda``, ``cuda:1``, …"""
    if device == "cpu":
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= found:
        raise OptionError(
            f"{option} is {device!r}, and torch {torch.__version__} finds {found} CUDA GPUs here: "
            "give one that is there, or cpu, or install a driver and a torch that fit the GPU"
        )


def check_architecture(architecture: str, option: str) -> None:
    """Build the network once. Raises OptionError when there is none of that name, or its weights
    could not be read back."""
    if described_elsewhere(architecture):
        raise OptionError(
            f"{option} is {architecture!r}, whose encoder is described elsewhere, and nothing is "
            "fetched to read its weights back: expected for example hrnet_w18, unet or "
            "unet:resnet34"
        )
    try:
        build_network(architecture, classes=2)
    except BUILD_ERRORS as error:
        raise OptionError(
            f"{option} is {architecture!r}, which cannot be built ({error}): expected for example "
            "hrnet_w18, unet or unet:resnet34"
        ) from error


if __name__ == "__main__":  # for processes that must not import torch
    try:
        check_architecture(sys.argv[1], "architecture")
    except OptionError as refusal:
        print(refusal)
        sys.exit(2)
