"""The commands by name, each imported when it is called: help and completion import none of them.

Its module declares its options, and imports what it does when it is called: that takes a second of
CPU and more, its help a fifth of one, `nextslice --help` a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer

__all__ = ["COMMANDS", "Commands", "load"]

COMMANDS: Mapping[str, str] = {
    "demo": "Show the whole loop on this machine: Label Studio, Redis, backend, workers, one "
    "project.",
    "up": "Start the backend and its workers; Ctrl-C stops them.",
    "worker": "Work off the queues of a kind.",
    "connect": "Connect a project: the same as adding the URL under Settings → Model, from a "
    "shell.",
    "import": "Create or extend a Label Studio project with the slices of a volume.",
    "rounds": "List a project's rounds, run one now, or free space.",
    "project": "Show or change the settings of one project; the service's are their defaults.",
    "export": "Write a round's masks, annotations, record and learning curve into a folder.",
    "segment": "Segment a whole volume with the published model.",
    "config": "Show what every setting is, and where it is given.",
    "doctor": "Look at Label Studio, token, database, store, Redis, workers and projects, and say "
    "what mends them.",
    "strategies": "List the acquisition functions, and which of them is the default.",
    "simulate": "Rank the strategies on slices whose masks are known.",
}
"""Every command and the first sentence of its help, in the order in which one meets them. It is in
the module of its name; ``import``, which is a keyword, in ``import_``."""


def load(name: str) -> bool:
    """Import the module of the command called ``name``, which adds it to the app. Whether there is
    such a module."""
    for module in (name, f"{name}_"):
        place = f"ml_backend.cli.{module}"
        if name.isidentifier() and find_spec(place) is not None:
            import_module(place)
            return True
    return False


class Commands(typer.core.TyperGroup):
    """The app's commands, which are imported by name."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """`COMMANDS`, and what was added besides."""
        return [*COMMANDS, *(name for name in self.commands if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported if need be; None without one. While they are listed, one that has
        its name and its help alone."""
        if self._listing and cmd_name in COMMANDS:
            return typer.core.TyperCommand(cmd_name, short_help=COMMANDS[cmd_name])
        if cmd_name not in self.commands and load(cmd_name):
            from ml_backend.cli import app

            # all that the app has now, with this one
            self.commands = typer.main.get_group(app).commands
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help."""
        with self._listed():
            super().format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Names of commands, and the options of the app."""
        with self._listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False
