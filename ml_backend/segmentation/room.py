"""What is done when a device's memory is full: less at once, smaller pieces, then a clear error.

One rule for training, scoring and predicting: half the batch, down to the least one, then half the
side of what is computed at once, down to the least one. What was computed meanwhile is thrown away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from ml_backend.errors import NextsliceError
from ml_backend.segmentation.networks import MULTIPLE

__all__ = ["OutOfMemory", "Room", "or_on_cpu", "within"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAID = ("out of memory", "alloc_failed", "defaultcpuallocator", "bad_alloc", "find an engine")
"""How CUDA, the libraries below torch (cuDNN finds no engine without a workspace), and torch for
the CPU say it: by a plain RuntimeError."""
_ADVICE = (
    "End what else uses it, take a smaller network (NEXTSLICE_ARCHITECTURE, without +filters), or "
    "let the CPU do it (NEXTSLICE_TRAIN_DEVICE=cpu for rounds, PREDICT_DEVICE=cpu for /predict)."
)


class OutOfMemory(NextsliceError, RuntimeError):
    """A device's memory does not hold even the least piece; the message says what was tried."""


class Room:
    """How much ``device`` computes at once: as much as is asked for, until its memory is full.

    From then on less, for as long as this object is used. ``what``: is computed, in words.
    ``least``: the smallest batch, and the smallest side, a multiple of `MULTIPLE`. ``advice``: what
    a person can do when that is too much. ``tried``: what was too much, in words.
    """

    def __init__(
        self, device: torch.device, what: str, least: tuple[int, int], advice: str
    ) -> None:
        self.tried: list[str] = []
        self._device = device
        self._what = what
        self._least = least
        self._advice = advice
        self._batch = self._side = 1 << 30

    def run(self, batch: int, side: int, work: Callable[[int, int], T]) -> T:
        """``work(batch, side)``, or with less where that is too much. Raises OutOfMemory.

        ``work`` is called again from its beginning.
        """
        while True:
            batch, side = min(batch, self._batch), min(side, self._side)
            try:
                return work(batch, side)
            except (RuntimeError, MemoryError) as error:
                if not _is_full(error):
                    raise
                said = _said(error)
            # Here the error is gone, and with it the frames that held tensors.
            _release(self._device)
            self._shrink(batch, side, said)

    def _shrink(self, batch: int, side: int, said: str) -> None:
        """Take less from now on than ``batch`` and ``side``. Raises OutOfMemory at the least."""
        self.tried.append(f"{batch} × {side}²")
        least_batch, least_side = self._least
        smaller = max(least_side, side // 2 // MULTIPLE * MULTIPLE)
        if batch > least_batch:
            self._batch = max(least_batch, batch // 2)
        elif smaller < side:
            self._side = smaller
        else:
            raise OutOfMemory(
                f"The memory of {self._device} is too small for {self._what}. Tried: "
                f"{', '.join(self.tried)} pixels at once. {self._advice} It said: {said}"
            )
        logger.warning(
            "the memory of %s is full: %s goes on with less at once than %s pixels: %s",
            self._device,
            self._what,
            self.tried[-1],
            said,
        )


def or_on_cpu(network: nn.Module, device: torch.device, work: Callable[[], T]) -> T:
    """``work``, which computes where ``network`` is; on the CPU where the memory of ``device`` is
    full. Afterwards the network is on ``device``. Raises OutOfMemory."""
    what = "what the network learns of whole slices"
    try:
        with within(device, what):
            return work()
    except OutOfMemory as error:
        said = str(error)
    _release(device)
    logger.warning("%s The CPU goes on.", said)
    network.to("cpu")
    try:
        with within(torch.device("cpu"), f"{what}, and so is that of {device}"):
            return work()
    finally:
        with within(device, "the network"):
            network.to(device)


@contextmanager
def within(device: torch.device, what: str) -> Iterator[None]:
    """Of what is done all at once: OutOfMemory, for a person, where the memory of ``device`` does
    not hold it. ``what``: in words."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_full(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is too small for {what}. {_ADVICE} It said: {_said(error)}"
        ) from error


def _is_full(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, OutOfMemory):  # what could be done about it was done
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return any(said in told for said in _SAID)


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _release(device: torch.device) -> None:
    """Give back what torch keeps for later: in pieces of another size it is of no use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
