"""`nextslice demo`: the whole loop on this machine, with a person or without one."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import say
from ml_backend.durable import held
from ml_backend.embedded.processes import ProcessGroup, StartError
from ml_backend.errors import OptionError
from ml_backend.settings import LARGEST_SEED, Settings, default_home

if TYPE_CHECKING:
    from ml_backend.cli.demo_loop import Loop
    from ml_backend.embedded.stack import Stack

__all__ = ["Outcome", "demo"]

_UNATTENDED = "headless"
"""File in the folder of a demo that no person labels in."""
_INTERRUPTED = 130  # what shells report for Ctrl-C


@dataclass
class Outcome:
    """What a headless demo has come to."""

    ok: bool = False
    first_mask_s: float | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    without_labels: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def _told(headless: bool) -> Iterator[Outcome]:
    """However this ends: ``headless``, the outcome is the last line of standard output."""
    outcome = Outcome()
    try:
        yield outcome
    finally:
        if headless:
            print(json.dumps(asdict(outcome)), flush=True)


def _check_strategy(name: str) -> None:
    from al_strategies import available_strategies

    names = [info.name for info in available_strategies() if not info.needs_ground_truth]
    if name not in names:
        raise OptionError(f"--strategy: found {name!r}, expected one of {', '.join(names)}")


def _asked(k: int, strategy: str, seed: int) -> dict[str, str]:
    """The options as settings of the service."""
    return {
        "NEXTSLICE_K": str(k),
        "NEXTSLICE_STRATEGY": strategy,
        "NEXTSLICE_SEED": str(seed),
    }


def _may_hold_labels(folder: Path) -> bool:
    """Whether a person may have labelled in the demo: it had a server, and was for a person."""
    return (folder / "label-studio").exists() and not (folder / _UNATTENDED).exists()


@contextmanager
def _fresh(folder: Path, *, unattended: bool) -> Iterator[Path]:
    """A new ``folder`` for this demo alone. ``unattended``: no person labels in it.

    That of the last demo is moved beside it, or deleted if no person can have labelled in it.
    Raises StartError, and leaves it as it is, while that demo runs.
    """
    running = StartError(
        f"A demo is running in {folder}: end it with Ctrl-C where it was started, or set "
        "NEXTSLICE_HOME to another folder."
    )
    with held(folder.with_suffix(".lock"), otherwise=running):
        if _may_hold_labels(folder):
            kept = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            folder.rename(kept)
            say(f"the last demo is kept, with its labels: {as_written(str(kept))}")
        elif folder.exists():
            say("the last demo, in which no person labelled, is replaced")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        if unattended:
            (folder / _UNATTENDED).touch()
        yield folder


@app.command()
def demo(
    headless: Annotated[
        bool, typer.Option("--headless", help="Replace the person: label with the true masks.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to run headless.")] = 2,
    data: Annotated[
        Path | None, typer.Option(help="Folder with images/ and masks/ (default: a phantom).")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Slices per round.")] = 8,
    strategy: Annotated[str, typer.Option(help="Acquisition function.")] = (
        Settings.model_fields["strategy"].default
    ),
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST_SEED,
            envvar="NEXTSLICE_SEED",
            help="Seed of everything random: another one is another phantom, other trainings.",
        ),
    ] = Settings.model_fields["seed"].default,
    pace: Annotated[
        float, typer.Option(min=0, help="Headless: seconds between two submissions.")
    ] = 0.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Headless: leave the servers up until Ctrl-C.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """Show the whole loop on this machine: Label Studio, Redis, backend, workers, one project.

    Headless, the last line of standard output is one JSON object, also where the demo fails. Ctrl-C
    stops all that was started; exit code 130: before what was asked for was done. Each demo begins
    afresh: the last one is moved to a folder beside it, or deleted if it was headless.
    """
    os.umask(0o077)  # all that it writes is this user's own
    _check_strategy(strategy)
    if not math.isfinite(pace):
        raise OptionError(f"--pace: found {pace}, expected a number of seconds")

    try:
        with ExitStack() as running:
            with _told(headless) as outcome:
                loop = _begun(running, k, strategy, seed, data, headless and not keep)
                if headless:
                    from ml_backend.cli.demo_loop import run_headless

                    run_headless(loop, rounds, k, pace, outcome)
            if headless and not keep:
                return
            _tell(loop.stack, loop.project.number)
            if browser and not headless:
                webbrowser.open(
                    f"{loop.stack.label_studio.url}/projects/{loop.project.number}/data"
                )
            _until_interrupted(loop.group)
    except KeyboardInterrupt:
        say("stopped")
        raise typer.Exit(_INTERRUPTED) from None
    say("stopped")


def _begun(
    running: ExitStack, k: int, strategy: str, seed: int, data: Path | None, unattended: bool
) -> Loop:
    """A demo whose first queue is published. ``running`` stops it."""
    # what is wrong on the command line has been said without these
    from ml_backend.cli.demo_loop import Loop, load_slices, phantom_folder, upload
    from ml_backend.embedded.stack import start_stack
    from ml_backend.rounds.service import Service
    from ml_backend.studio.projects import register_backend
    from ml_backend.studio.task_order import BackendLink

    home = default_home()
    loaded = load_slices(data if data is not None else phantom_folder(home, seed))
    say(f"{len(loaded.tasks)} slices to label, {len(loaded.held_out)} held out")
    folder = running.enter_context(_fresh(home / "demo", unattended=unattended))
    group = running.enter_context(ProcessGroup(folder / "logs"))
    stack = start_stack(group, folder, home, env=_asked(k, strategy, seed), step=say)
    say("uploading slices and connecting the project")
    service = Service(stack.settings())
    project = upload(service.studio, loaded, f"nextslice demo: {data.name if data else 'phantom'}")
    link = BackendLink(stack.backend_url, service.settings.basic_auth)
    register_backend(service.studio, project, link)
    loop = Loop(stack, project, loaded, group)
    loop.wait_for(0, lambda text: None)
    return loop


def _tell(stack: Stack, project: int) -> None:
    server = stack.label_studio
    console.print(f"\nLabel Studio  [bold]{server.url}/projects/{project}/data[/]")
    console.print(f"Login         {server.email}  password {server.password}")
    console.print(f"Token         {server.token}", soft_wrap=True)
    console.print(f"Project       {project}")
    console.print(f"Backend       {stack.backend_url}")
    console.print(f"Redis         {as_written(stack.redis_url)}")
    console.print(f"Store         {as_written(stack.env['NEXTSLICE_STORE'])}")
    console.print(
        "Press [bold]Label All Tasks[/]; the first masks come after the first submits, and a whole "
        "training after every K. Ctrl-C ends."
    )


def _until_interrupted(group: ProcessGroup) -> None:
    """Return at Ctrl-C, as people are told to end it. StartError when a process has ended."""
    try:
        while (ended := group.ended()) is None:
            time.sleep(1)
    except KeyboardInterrupt:
        return
    raise StartError(ended)
