"""The options of every command that reads a volume: what its format does not say by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.errors import OptionError

if TYPE_CHECKING:
    from ml_backend.volumes.opening import ReadOptions

__all__ = [
    "ChannelOption",
    "DatasetOption",
    "DtypeOption",
    "LabelsChannelOption",
    "LabelsTimeOption",
    "OffsetOption",
    "ShapeOption",
    "TimeOption",
    "reading",
]

DatasetOption = Annotated[
    str | None, typer.Option(help="HDF5 dataset or Zarr array inside the volume.")
]
ShapeOption = Annotated[str | None, typer.Option(help="Of a raw file, Z,Y,X: 900,1024,1024.")]
DtypeOption = Annotated[str | None, typer.Option(help="Of a raw file, as NumPy writes it: <u2.")]
OffsetOption = Annotated[
    int | None, typer.Option(min=0, help="Bytes before the values of a raw file (default: 0).")
]
ChannelOption = Annotated[
    int | None, typer.Option(min=0, help="Which of several channels (or colours), from 0.")
]
TimeOption = Annotated[int | None, typer.Option(min=0, help="Which of several times, from 0.")]
LabelsChannelOption = Annotated[
    int | None, typer.Option(min=0, help="Which of several channels of the label volume, from 0.")
]
LabelsTimeOption = Annotated[
    int | None, typer.Option(min=0, help="Which of several times of the label volume, from 0.")
]


def reading(
    dataset: str | None,
    shape: str | None,
    dtype: str | None,
    offset: int | None,
    channel: int | None,
    time: int | None,
) -> ReadOptions:
    """The options as `open_volume` takes them. OptionError for a shape that is none."""
    from ml_backend.volumes.opening import ReadOptions

    three = None if shape is None else _shape(shape)
    return ReadOptions(dataset, three, dtype, offset, oriented=True, channel=channel, time=time)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        z, y, x = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise OptionError(f"--shape is {text!r}, expected Z,Y,X as in 900,1024,1024") from None
    return z, y, x
