"""`nextslice import`: the slices of a volume as tasks of a Label Studio project."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.reading import (
    ChannelOption,
    DatasetOption,
    DtypeOption,
    LabelsChannelOption,
    LabelsTimeOption,
    OffsetOption,
    ShapeOption,
    TimeOption,
    reading,
)
from ml_backend.errors import OptionError

if TYPE_CHECKING:
    from ml_backend.import_volume import ImportReport

__all__ = ["import_command"]

Number = TypeVar("Number", int, float)


@app.command("import")
def import_command(
    volume: Annotated[Path, typer.Argument(help="The volume: a file or a folder.")],
    labels: Annotated[
        str,
        typer.Option(help='Class names of a new project: "bone,implant,degradation layer".'),
    ] = "",
    project: Annotated[int | None, typer.Option(help="Number of a project to extend.")] = None,
    title: Annotated[
        str | None,
        typer.Option(help="Title of the project to extend or create; default: the file's name."),
    ] = None,
    brush: Annotated[
        bool, typer.Option("--brush", help="BrushLabels instead of BitmaskLabels.")
    ] = False,
    axis: Annotated[str, typer.Option(help="Along which slices are cut: z, y or x.")] = "z",
    every: Annotated[int, typer.Option(min=1, help="Every n-th slice only.")] = 1,
    span: Annotated[
        str | None, typer.Option("--range", help="First and last slice + 1: 100:900.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Grey values shown black and white: 1200:9800; default: as before, or percentiles."
        ),
    ] = None,
    flip: Annotated[
        str,
        typer.Option(help="Turn slices over along these axes: y puts the other side at the top."),
    ] = "",
    with_labels: Annotated[
        Path | None,
        typer.Option(help="A label volume of the same shape: its slices become annotations."),
    ] = None,
    labels_dataset: Annotated[
        str | None, typer.Option(help="Dataset inside the label volume.")
    ] = None,
    labels_channel: LabelsChannelOption = None,
    labels_time: LabelsTimeOption = None,
    upload: Annotated[
        bool,
        typer.Option(
            "--upload",
            help="Send PNG files into Label Studio, where browsers cannot reach this backend.",
        ),
    ] = False,
    connect: Annotated[
        bool, typer.Option(help="Register the backend and put a first selection in the queue.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was done as one JSON object on standard output.")
    ] = False,
    dataset: DatasetOption = None,
    shape: ShapeOption = None,
    dtype: DtypeOption = None,
    offset: OffsetOption = None,
    channel: ChannelOption = None,
    time: TimeOption = None,
) -> None:
    """Create or extend a Label Studio project with the slices of a volume.

    Done again it adds what is missing and gives tasks of the volume today's address, if PUBLIC_URL,
    the secret or --window changed; nothing else is changed. Slices are rendered on demand from the
    volume, which must lie in a folder of NEXTSLICE_VOLUMES.
    """
    from ml_backend.health.public_url import public_url
    from ml_backend.import_volume import ImportRequest, import_volume
    from ml_backend.rounds.service import Service
    from ml_backend.settings import configure_logging
    from ml_backend.volumes.opening import ReadOptions
    from ml_backend.volumes.window import Window

    service = Service.from_environment()
    configure_logging("WARNING")  # unless NEXTSLICE_LOG_LEVEL or --verbose has asked for another
    request = ImportRequest(
        path=volume,
        labels=tuple(name.strip() for name in labels.split(",") if name.strip()),
        project=project,
        title=title,
        kind="brush" if brush else "bitmask",
        axis=axis,
        every=every,
        span=None if span is None else _pair(span, "--range", int),
        window=None if window is None else Window(*_pair(window, "--window", float)),
        flip=_axes(flip),
        with_labels=with_labels,
        options=reading(dataset, shape, dtype, offset, channel, time),
        label_options=ReadOptions(dataset=labels_dataset, channel=labels_channel, time=labels_time),
        upload=upload,
        connect=connect,
    )
    with round_progress(console) as progress:
        report = import_volume(service, request, progress)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    _say(report, service.settings.label_studio_url)
    console.print(as_written(_lies(report, axis)), highlight=False, soft_wrap=True)
    if not upload:
        seen = public_url(service.settings)
        colour = "" if seen.verdict == "good" else "[bold yellow]"
        console.print(f"{colour}{as_written(seen.says)}", highlight=False, soft_wrap=True)
    if report.moved:
        console.print(
            f"{report.moved} tasks got a new address, under "
            f"{as_written(service.settings.slices_url)}.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if report.labels_added:
        console.print(
            f"{report.labels_added} of the slices that were there had no annotation, and got that "
            f"of {as_written(str(with_labels))}.",
            highlight=False,
            soft_wrap=True,
        )
    if kept := report.labels_left - report.labels_added:
        console.print(
            f"{kept} of the slices that were there are labelled in "
            f"{as_written(str(with_labels))} too: they keep what they have in Label Studio.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _say(report: ImportReport, url: str) -> None:
    state = "created" if report.created else "extended" if report.added else "complete already"
    console.print(
        f"Project {report.project} ({as_written(report.title)}) is {state}: {report.added} slices "
        f"of {as_written(report.volume)} added, {report.annotated} of them with annotations, "
        f"{report.kept} were there.",
        highlight=False,
    )
    console.print(
        f"Grey values from {report.window.low:g} (black) to {report.window.high:g} (white). "
        f"Annotate: {as_written(url)}/projects/{report.project}/data, Label All Tasks.",
        highlight=False,
        soft_wrap=True,
    )


def _lies(report: ImportReport, axis: str) -> str:
    """How slices are shown, and how to turn them over."""
    if report.sides is None:
        return (
            "The file does not say how the scan lies: slices are shown as they are stored. If they "
            "should be turned over, give --flip (y: what is at the top) and another --title."
        )
    top, left = report.sides
    rows = next(one for one in "zyx" if one != axis)
    return (
        f"The file says how the scan lies (stored {report.stored}): along {axis}, {top} is at the "
        f"top of a slice and {left} at its left. To turn them over, give --flip {rows} (what is at "
        "the top) and another --title."
    )


def _axes(text: str) -> str:
    axes = set(text.replace(",", ""))
    if not axes <= set("zyx"):
        raise OptionError(f"--flip is {text!r}, expected some of z, y, x, as in --flip y")
    return "".join(one for one in "zyx" if one in axes)


def _pair(text: str | None, option: str, number: Callable[[str], Number]) -> tuple[Number, Number]:
    """The two numbers of ``FIRST:LAST``."""
    try:
        first, last = (number(part) for part in str(text).split(":"))
    except ValueError:
        raise OptionError(f"{option} is {text!r}, expected two numbers as in 100:900") from None
    return first, last
