"""Who is compared in `benchmarks.learning`: one file a peer, one protocol (`protocol.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.protocol import Peer

__all__ = ["OURS", "PEERS", "Entry"]

OURS = "ours"
"""The peer whose CPU seconds are the measure of those that train as long as they are given."""


@dataclass(frozen=True)
class Entry:
    """A column of the tables.

    ``make(home, device)``: a peer that has learned nothing. ``times``: it trains for so many times
    the CPU seconds that ours took in the same case; None: as long as its own settings say.
    """

    title: str
    make: Callable[[Path, str], Peer]
    times: float | None = None


def _ours(home: Path, device: str) -> Peer:
    from benchmarks.peers.ours import Ours

    return Ours(device)


def _network(home: Path, device: str) -> Peer:
    from benchmarks.peers.ours import NetworkAlone

    return NetworkAlone(device)


def _forest(home: Path, device: str) -> Peer:
    from benchmarks.peers.pixel_forest import PixelForest

    return PixelForest()


def _unet(home: Path, device: str) -> Peer:
    from benchmarks.peers.unet import UNet

    return UNet(device)


def _nnunet(home: Path, device: str) -> Peer:
    from benchmarks.peers.nnunet import NnUNet

    return NnUNet(home, device)


PEERS: dict[str, Entry] = {
    OURS: Entry("ours", _ours),
    "network": Entry("the network alone", _network),
    "forest": Entry("pixel forest", _forest),
    "unet": Entry("U-Net, our time", _unet, times=1),
    "nnunet": Entry("nnU-Net, our time", _nnunet, times=1),
    "nnunet-10x": Entry("nnU-Net, 10 × our time", _nnunet, times=10),
}
