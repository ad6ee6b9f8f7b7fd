"""The `nextslice` command: one command a file."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape

from ml_backend.errors import FileFault, NextsliceError, RedisUnavailable, TryAgainLater
from ml_backend.settings import asked_log_level, configure_logging, without_passwords

__all__ = ["app", "as_written", "load_commands", "main"]

logger = logging.getLogger(__name__)

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


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log everything, as NEXTSLICE_LOG_LEVEL=DEBUG.")
    ] = False,
) -> None:
    if verbose:
        os.environ["NEXTSLICE_LOG_LEVEL"] = "DEBUG"  # for the processes that are started, too
    level = asked_log_level()
    if level is not None:  # else each command has its own
        configure_logging(level)


def load_commands() -> None:
    """Import the modules of this package, each of which adds its command to `app`."""
    from ml_backend.cli import (  # noqa: F401
        config,
        connect,
        demo,
        doctor,
        export,
        import_,
        project,
        rounds,
        segment,
        simulate,
        strategies,
        up,
        worker,
    )


def as_written(text: str) -> str:
    """Foreign text for `console.print`: brackets are no markup, passwords of URLs are masked."""
    return escape(without_passwords(text))


def main() -> None:
    """Entry point. Errors that a person can act on are one sentence, not a traceback."""
    load_commands()
    # libgomp's threads spin at every barrier; beside other busy processes that made a training step
    # on two cores take 16 s instead of 3. Not at all is as bad for the small steps of the default
    # network: on two idle cores 0.29 s instead of 0.13 s, which some microseconds of it mend.
    # Inherited by the workers, before they load torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        app()
    except Exception as error:
        said = _sentence(error)
        if said is None:
            raise
        logger.debug("the error in full", exc_info=True)
        later = isinstance(error, TryAgainLater)
        colour = "yellow" if later else "red"
        console.print(f"[bold {colour}]nextslice:[/] {as_written(said)}", highlight=False)
        sys.exit(_TRY_AGAIN if later else 1)


def _sentence(error: Exception) -> str | None:
    """What is said of an error; None: it is none that a person can act on, but a bug."""
    known = error if isinstance(error, NextsliceError) else _fault(error)
    return None if known is None else str(known) or type(known).__name__


def _fault(error: Exception) -> NextsliceError | None:
    """A fault of Redis or of the system as one of ours, wherever it came up; None for all else.

    Any call may meet these two: Redis goes away, a disk is full. An `OSError` counts where the
    system has raised it, with its number; libraries raise others without one. Never one of
    ValueError, KeyError or the like: what a person has made of those is one of ours where it arose.
    """
    if isinstance(error, RedisError):
        return RedisUnavailable(
            f"Redis cannot be used: {str(error).rstrip('.')}. Check REDIS_URL, and that this Redis "
            "runs (`nextslice up` starts one where REDIS_URL is not set, or a Unix socket). The "
            "same command goes on then."
        )
    if isinstance(error, OSError) and (
        error.errno is not None or isinstance(error, (TimeoutError, ConnectionError))
    ):
        return FileFault(str(error) or type(error).__name__)
    return None
