"""The `nextslice` command: one command a file."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

__all__ = ["app", "load_commands", "main"]

_TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h."""

app = typer.Typer(
    name="nextslice",
    help="Active-learning segmentation of tomograms in Label Studio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)
"""Everything for people goes to standard error; standard output is for what programs read."""


def load_commands() -> None:
    """Import the modules of this package, each of which adds its command to `app`."""
    from ml_backend.cli import (  # noqa: F401
        connect,
        demo,
        export,
        import_,
        rounds,
        segment,
        simulate,
        strategies,
        up,
        worker,
    )


def main() -> None:
    """Entry point. Errors that a person can act on are one sentence, not a traceback."""
    load_commands()
    from ml_backend.embedded.processes import StartError
    from ml_backend.experiment.files import RunTaken
    from ml_backend.experiment.runner import RunFailed
    from ml_backend.experiment.workers import NoRedis
    from ml_backend.rounds.store import StoreError
    from ml_backend.settings import SettingsError
    from ml_backend.studio.client import StudioError

    # libgomp's threads spin at every barrier; beside other busy processes that made a training step
    # on two cores take 16 s instead of 3. Inherited by the workers, before they load torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    known = (StudioError, StoreError, RunFailed, NoRedis, SettingsError, StartError, ValueError)
    try:
        app()
    except RunTaken as error:
        console.print(f"[bold yellow]nextslice:[/] {error}", highlight=False)
        sys.exit(_TRY_AGAIN)
    except known as error:
        console.print(f"[bold red]nextslice:[/] {error}", highlight=False)
        sys.exit(1)
