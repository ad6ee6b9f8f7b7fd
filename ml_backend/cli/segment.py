"""`nextslice segment`: the published model, or any checkpoint, over a whole volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ml_backend.cli import app, as_written, console
from ml_backend.cli.reading import (
    ChannelOption,
    DatasetOption,
    DtypeOption,
    OffsetOption,
    ShapeOption,
    TimeOption,
    reading,
)
from ml_backend.cli.tables import whole
from ml_backend.errors import OptionError
from ml_backend.volumes.formats.registry import written_endings

if TYPE_CHECKING:
    from ml_backend.rounds.project import ConnectedProject
    from ml_backend.rounds.service import Service
    from ml_backend.segment import Extra, SegmentationReport
    from ml_backend.volumes.volume import Volume

__all__ = ["segment"]

_SPEED_OVER_S = 60.0
_STOPPED = 130  # what shells report for Ctrl-C


def _project(service: Service, project: int | None) -> ConnectedProject:
    """The project in the store; the only one there when no number is given."""
    from ml_backend.rounds.project import stored_project, stored_projects

    numbers = sorted({one.number for one in stored_projects(service)})
    if project is None and len(numbers) > 1:
        raise OptionError(f"give --project, one of {', '.join(map(str, numbers))}, or --weights")
    number = project if project is not None else next(iter(numbers), None)
    found = None if number is None else stored_project(service, number)
    if found is None:
        known = ", ".join(map(str, numbers)) or "none"
        what = "no project" if project is None else f"no project {project}"
        raise OptionError(
            f"{service.settings.store} holds {what} of {service.settings.label_studio_url} (known: "
            f"{known}). Connect it first, or give --weights FILE."
        )
    return found


@dataclass(frozen=True)
class _Model:
    """A checkpoint, its name for people, and along which axes the slices that it learned from were
    cut, as far as is known."""

    data: bytes
    version: str
    axes: tuple[str, ...] = ()
    source: str = ""
    """The project's key, if it is a project's."""


def _of_project(project: int | None, work: Path) -> _Model:
    """The model that the unfinished job in ``work`` began with, or else what the project serves. No
    call on Label Studio."""
    from ml_backend.rounds.service import Service
    from ml_backend.segment import kept_model

    service = Service.from_environment()
    found = _project(service, project)
    kept = kept_model(work)
    if kept is None or kept.source != found.key:
        return _published(service, found)
    published = found.published
    if published is None or published.model_version != kept.version:
        now = "no model" if published is None else published.model_version
        said = (
            f"goes on with {kept.version}, with which it began; project {found.number} serves "
            f"{now} now: delete {work} to begin again with what is served"
        )
        console.print(as_written(said), highlight=False, soft_wrap=True)
    return _Model(kept.data, kept.version, (kept.axis,), kept.source)


def _published(service: Service, found: ConnectedProject) -> _Model:
    from ml_backend.rounds.artefacts import DATASET, ROUND

    folder, published = found.folder, found.published
    if published is not None and published.retired is not None:
        # The round's own record: `published.json` names no weights any more.
        record = folder.round(published.round).load(ROUND)
        if record is not None and record.weights is not None:
            raise OptionError(
                f"the model {record.model_version} of project {found.number} is retired "
                f"({published.retired}): wait for the next round, or give --weights "
                f"{service.store.root}/{folder.path}/{record.weights}"
            )
    if published is None or published.weights is None:
        raise OptionError(
            f"project {found.number} has no trained model yet: none is published before round 1 "
            "is done. Annotate some slices, or give --weights FILE."
        )
    dataset = folder.round(published.round).load(DATASET)
    axes = tuple(sorted({task.axis for task in dataset.tasks})) if dataset is not None else ()
    return _Model(folder.read_at(published.weights), published.model_version, axes, found.key)


def _axis(asked: str | None, learned: tuple[str, ...]) -> str:
    """Along which the volume is cut: as was asked, or as the slices were that the model learned."""
    from ml_backend.volumes.volume import AXES, axis_index

    alone = learned[0] if len(learned) == 1 else "z"
    axis = alone if asked is None else AXES[axis_index(asked)]
    if asked is None and axis != "z":
        console.print(f"cut along {axis}, as the project's slices are", highlight=False)
    if learned and axis not in learned:
        console.print(
            f"the model learned slices along {', '.join(learned)}, these are cut along {axis}: "
            "compare on slices that you know",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return axis


class _Rate(ProgressColumn):
    """Slices a second, of this call alone."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} slices/s")


class _Bars:
    """A bar a step, with speed and time to go; ``place`` says where the last step is."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self.place = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        self.place = f"{step} {done} of {total}"
        for task in self._bars.tasks:
            if task.description == step:
                self._bars.update(task.id, completed=done)
                return
        self._bars.add_task(step, completed=done, total=total)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, speed_estimate_period=_SPEED_OVER_S) as bars:
        yield _Bars(bars)


def _extra(uncertainty: bool, probability: bool) -> Extra | None:
    if uncertainty and probability:
        raise OptionError("give --uncertainty or --probability, not both")
    return "uncertainty" if uncertainty else "probability" if probability else None


@app.command()
def segment(
    volume: Annotated[Path, typer.Argument(help="The volume: a file or a folder.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=f"Labels; by ending: {' '.join(written_endings())}, folder."
        ),
    ],
    project: Annotated[
        int | None, typer.Option(help="Use the model that this project serves.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Use this checkpoint (.safetensors)."),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also a volume of the normalised entropy.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also a volume of each class's probability.")
    ] = False,
    three_axes: Annotated[
        bool, typer.Option("--three-axes", help="Predict along z, y and x, and vote.")
    ] = False,
    axis: Annotated[
        str | None,
        typer.Option(help="Along which slices are cut: z, y or x (default: as the project's, z)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu; auto: cuda when there.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    any_scale: Annotated[
        bool, typer.Option("--any-scale", help="Do not compare grey values with the model's.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Working folder (default: OUT.partial).")
    ] = None,
    dataset: DatasetOption = None,
    shape: ShapeOption = None,
    dtype: DtypeOption = None,
    offset: OffsetOption = None,
    channel: ChannelOption = None,
    time: TimeOption = None,
) -> None:
    """Segment a whole volume with the published model.

    Interrupted, it goes on from the last whole slice when it is called again.
    """
    extra = _extra(uncertainty, probability)
    if three_axes and axis not in (None, "z"):
        raise OptionError(f"--three-axes predicts along all axes, but --axis is {axis!r}: give one")
    if project is not None and weights is not None:
        raise OptionError("give --project or --weights, not both")
    if device != "auto":
        from ml_backend.experiment.plan import check_device

        check_device(device, here=True)

    # what is wrong on the command line has been said without these
    from ml_backend.rounds.service import volume_roots
    from ml_backend.segment import partial_folder
    from ml_backend.settings import load_settings
    from ml_backend.volumes.opening import open_volume

    settings = load_settings()
    roots = volume_roots(settings)
    chosen = reading(dataset, shape, dtype, offset, channel, time)
    options = replace(chosen, bounds=roots.bounds_of(volume))
    work = work or partial_folder(out)
    with open_volume(volume, options, strict=True) as opened:
        model = (
            _of_project(project, work)
            if weights is None
            else _Model(weights.read_bytes(), weights.name)
        )
        said = f"{volume}: {_size(opened)}, segmented by {model.version}"
        console.print(as_written(said), highlight=False)
        cut = opened if three_axes else opened.along(_axis(axis, model.axes))
        report = _segment(
            model, cut, out, extra, three_axes, device, overwrite,
            any_scale, work,
        )  # fmt: skip
        written = ", ".join(str(path) for path in (report.out, *report.extras))
        console.print(
            f"{as_written(written)}: "
            f"{report.predicted} slices predicted in {report.seconds:.0f} s"
            + (f", {report.resumed} were there before" if report.resumed else ""),
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        typer.echo(whole(_voxels_table(report, opened)))


def _segment(
    model: _Model,
    volume: Volume,
    out: Path,
    extra: Extra | None,
    three_axes: bool,
    device: str,
    overwrite: bool,
    any_scale: bool,
    work: Path,
) -> SegmentationReport:
    from ml_backend.rounds.learners import load_learner
    from ml_backend.segment import segment_volume
    from ml_backend.settings import load_settings

    learner = load_learner(load_settings(), model.data, device)
    with _bars() as bars:
        try:
            return segment_volume(
                learner, volume, out, extra=extra, three_axes=three_axes, overwrite=overwrite,
                any_scale=any_scale, progress=bars, work=work, model_version=model.version,
                model_source=model.source,
            )  # fmt: skip
        except KeyboardInterrupt:
            stopped = bars.place
    console.print(
        f"Stopped at {stopped or 'the start'}. What is done is kept in "
        f"{as_written(str(work))}: the same command goes on from there.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    raise typer.Exit(_STOPPED)


def _size(volume: Volume) -> str:
    return f"{' × '.join(map(str, volume.shape))} {volume.dtype}"


def _voxels_table(report: SegmentationReport, volume: Volume) -> Table:
    """One row a class: voxels, their part, and their volume where the voxel size is known."""
    table = Table()
    for column in ("class", "voxels", "%"):
        table.add_column(column, justify="left" if column == "class" else "right")
    edges = volume.voxel_size
    if edges is not None:
        table.add_column(f"{volume.unit or 'unit'}³", justify="right")
    total = sum(report.voxels.values())
    for name, count in report.voxels.items():
        row = [name, str(count), f"{100 * count / total:.2f}"]
        if edges is not None:
            row.append(f"{count * edges[0] * edges[1] * edges[2]:.6g}")
        table.add_row(*row)
    return table
