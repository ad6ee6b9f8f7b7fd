"""The `nextslice` command: one command a file.

It ends with 0; 1 where what was asked for cannot be done; 2 for a wrong command line; else as
sysexits.h has it, by who was wrong: 69 Label Studio or Redis, 70 nextslice itself (a bug), 74 files
and disks, 75 nobody, somebody else is at it, 78 a setting.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ml_backend import __version__
from ml_backend.cli.commands import COMMANDS, Commands, load
from ml_backend.cli.signals import stop_on_signals

if TYPE_CHECKING:
    from ml_backend.errors import NextsliceError

__all__ = ["app", "as_written", "console", "load_commands", "main", "new_console"]

logger = logging.getLogger(__name__)

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_USAGE, _UNAVAILABLE, _BUG, _FILES, _TRY_AGAIN, _SETTING = 2, 69, 70, 74, 75, 78


def new_console(*, stderr: bool = False) -> Console:
    """Where people read. With NO_COLOR nothing is coloured, bold or dim; in pipes and files no line
    is wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        emoji=False,  # in names of files, :a: is no picture
        soft_wrap=not stream.isatty(),
    )


app = typer.Typer(
    name="nextslice",
    help="Active-learning segmentation of tomograms in Label Studio.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
console = new_console(stderr=True)
"""Everything for people goes to standard error; standard output is for what programs read."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nextslice {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log everything, as NEXTSLICE_LOG_LEVEL=DEBUG.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if verbose:
        os.environ["NEXTSLICE_LOG_LEVEL"] = "DEBUG"  # for the processes that are started, too
    from ml_backend.configuration import asked_log_level, configure_logging

    level = asked_log_level()
    if level is not None:  # else each command has its own
        configure_logging(level)


def load_commands() -> None:
    """Import the modules of all commands, each of which adds its own to `app`."""
    for name in COMMANDS:
        load(name)


def as_written(text: str) -> str:
    """Foreign text for `console.print`: brackets are no markup, passwords of URLs are masked."""
    from ml_backend.logs import without_passwords

    return escape(without_passwords(text))


def _print_anything() -> None:
    """Have characters that a terminal or file cannot show replaced: they are no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def _without_proxy() -> None:
    """Have this machine asked without the proxy that the environment names, by all that is started
    as well. Both spellings are read, by one library or another."""
    names = ("no_proxy", "NO_PROXY")
    given = next(filter(None, map(os.environ.get, names)), "")
    for name in names:
        hosts = [host.strip() for host in (os.environ.get(name) or given).split(",")]
        if hosts != ["*"]:
            os.environ[name] = ",".join(filter(None, dict.fromkeys([*hosts, *_THIS_MACHINE])))


def main() -> None:
    """Entry point. Errors that a person can act on are one sentence, not a traceback."""
    stop_on_signals()
    _print_anything()
    _without_proxy()
    # libgomp's threads spin at every barrier; beside other busy processes that made a training step
    # on two cores take 16 s instead of 3. Not at all is as bad for the small steps of the default
    # network: on two idle cores 0.29 s instead of 0.13 s, which some microseconds of it mend.
    # Inherited by the workers, before they load torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        app(prog_name="nextslice")
    except Exception as error:
        said = _sentence(error)
        if said is None:
            traceback.print_exc()
            sys.exit(_BUG)
        logger.debug("the error in full", exc_info=True)
        code = _code(error)
        colour = "yellow" if code == _TRY_AGAIN else "red"
        console.print(f"[bold {colour}]nextslice:[/] {as_written(said)}", highlight=False)
        sys.exit(code)


def _code(error: Exception) -> int:
    """Who was wrong, as `main` ends."""
    from al_strategies.errors import UnknownStrategyError
    from ml_backend.errors import (
        FileFault,
        OptionError,
        RedisUnavailable,
        SettingsError,
        TryAgainLater,
    )
    from ml_backend.studio.failures import NoToken, StudioError

    known = _known(error)
    for kind, code in (
        ((OptionError, UnknownStrategyError), _USAGE),
        ((SettingsError, NoToken), _SETTING),
        (TryAgainLater, _TRY_AGAIN),
        ((StudioError, RedisUnavailable), _UNAVAILABLE),
        (FileFault, _FILES),
    ):
        if isinstance(known, kind):
            return code
    return 1


def _known(error: Exception) -> NextsliceError | None:
    """One of ours; None: it is none that a person can act on, but a bug."""
    from ml_backend.errors import NextsliceError

    return error if isinstance(error, NextsliceError) else _fault(error)


def _sentence(error: Exception) -> str | None:
    """What is said of an error; None: it is none that a person can act on, but a bug."""
    known = _known(error)
    return None if known is None else str(known) or type(known).__name__


def _fault(error: Exception) -> NextsliceError | None:
    """A fault of Redis or of the system as one of ours, wherever it came up; None for all else.

    Any call may meet these two: Redis goes away, a disk is full. An `OSError` counts where the
    system has raised it, with its number; libraries raise others without one. Never one of
    ValueError, KeyError or the like: what a person has made of those is one of ours where it arose.
    """
    from redis.exceptions import RedisError

    from ml_backend.errors import FileFault, RedisUnavailable

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
