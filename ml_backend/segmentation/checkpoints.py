"""Models as safetensors bytes: weights with the metadata to rebuild the network. Never pickled.

The metadata (all strings, as the format has it) names the architecture, classes, preprocessing,
channels, seed and the versions of the libraries that made the file.
"""

from __future__ import annotations

import json
import struct
from importlib.metadata import version
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ml_backend.errors import NextsliceError
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import (
    BUILD_ERRORS,
    SegmentationNetwork,
    build_network,
    described_elsewhere,
)
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.room import within

__all__ = ["FORMAT", "CheckpointError", "from_bytes", "read_metadata", "to_bytes"]

FORMAT = "nextslice-model-1"

_MOST_CHANNELS = 64
"""More than a slice of colours with its neighbours has."""
_LIBRARIES = ("torch", "timm", "segmentation-models-pytorch")


class CheckpointError(NextsliceError, ValueError):
    """Bytes that are not a checkpoint of ours, or not a whole one; the message says which."""


def to_bytes(model: Model) -> bytes:
    """The model as one safetensors file. Equal models on the same libraries give equal bytes."""
    metadata = {
        "format": FORMAT,
        "architecture": model.architecture,
        "classes": json.dumps(model.classes),
        "preprocessing": model.preprocessing.to_json(),
        "channels": str(model.network.channels),
        "seed": str(model.seed),
        **{f"version.{name}": version(name) for name in _LIBRARIES},
    }
    # Contiguous: safetensors does not store channels_last strides.
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.network.state_dict().items()
    }
    return _sorted_header(safetensors.torch.save(tensors, metadata))


def _sorted_header(data: bytes) -> bytes:
    """The same file with the keys of its header in order: safetensors writes them in any."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors start at a multiple of 8
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a checkpoint, without its weights.

    Raises CheckpointError when ``data`` is not a safetensors file of ours.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > len(data) - 8:
            raise CheckpointError(
                f"The checkpoint is cut off: its header has {length} bytes, the file {len(data)}."
            )
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
    except (struct.error, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"Expected a safetensors file, found {len(data)} bytes that start with {data[:8]!r}."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise CheckpointError(
            f"Expected a checkpoint of the format {FORMAT!r}, found a safetensors file of the "
            f"format {found!r}. Was it written by nextslice?"
        )
    return metadata


def from_bytes(data: bytes, device: str | torch.device = "cpu") -> Model:
    """The model that `to_bytes` wrote, in evaluation mode on ``device``.

    Raises CheckpointError for files that are cut off, foreign, of an architecture that cannot be
    built here, or whose weights do not fit it, OutOfMemory.
    """
    metadata = read_metadata(data)
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"The checkpoint's weights cannot be read, the file ({len(data)} bytes) is cut off or "
            f"damaged: {error}"
        ) from error
    try:
        classes, channels = _named(json.loads(metadata["classes"])), int(metadata["channels"])
        if not 1 <= channels <= _MOST_CHANNELS:
            raise ValueError(f"channels: expected 1 to {_MOST_CHANNELS}, found {channels}")
        architecture = metadata["architecture"]
        preprocessing = Preprocessing.from_json(metadata["preprocessing"])
        seed = int(metadata["seed"])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"The checkpoint's metadata is damaged: {error!r}") from error
    network = _built(architecture, len(classes), channels)
    _check_tensors(network.state_dict(), tensors, metadata)
    network.load_state_dict(tensors)
    network.eval().to(memory_format=torch.channels_last)
    with within(torch.device(device), "a network"):
        network.to(device)
    try:
        return Model(network, preprocessing, classes, seed)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint's metadata is damaged: {error}") from error


def _named(classes: object) -> tuple[str, ...]:
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes: expected names, found {str(classes)[:60]}")
    return tuple(classes)


def _built(architecture: str, classes: int, channels: int) -> SegmentationNetwork:
    """Raises CheckpointError for what cannot be built, or would be asked of the network."""
    if described_elsewhere(architecture):
        raise CheckpointError(
            f"The checkpoint cannot be built here: its encoder {architecture!r} is described "
            "elsewhere, and nothing is fetched for a file"
        )
    try:
        return build_network(architecture, classes, channels=channels)
    except BUILD_ERRORS as error:
        raise CheckpointError(f"The checkpoint cannot be built here: {error}") from error


def _check_tensors(
    expected: dict[str, Any], found: dict[str, Any], metadata: dict[str, str]
) -> None:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    damaged = [
        name
        for name in sorted(expected.keys() & found.keys())
        if found[name].dtype != expected[name].dtype or not _possible(name, found[name])
    ]
    problems = [
        f"{len(names)} tensors {what}, e.g. {names[0]}"
        for names, what in (
            (missing, "missing"),
            (extra, "too many"),
            (shapes, "of a wrong shape"),
            (damaged, "with values that no training gives"),
        )
        if names
    ]
    if problems:
        made = ", ".join(f"{name} {metadata.get(f'version.{name}', '?')}" for name in _LIBRARIES)
        here = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
        raise CheckpointError(
            f"The weights do not fit {metadata['architecture']!r}: {'; '.join(problems)}. The "
            f"checkpoint was made with {made}; installed are {here}."
        )


def _possible(name: str, values: torch.Tensor) -> bool:
    """Whether a training can have come to such values: a damaged file may hold any."""
    if not values.is_floating_point():
        return True
    if not bool(values.isfinite().all()):
        return False
    kind = name.rpartition(".")[2]
    if kind == "spread":
        return bool((values > 0).all())
    return kind != "running_var" or bool((values >= 0).all())
