"""The command line as a script and a shell meet it: quick help, completion, plain output."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ml_backend import __version__, cli
from ml_backend.cli import app, load_commands
from ml_backend.cli.commands import COMMANDS
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.store import Store
from tests.test_cli import nextslice

CLIENTS = {"redis", "rq", "httpx", "requests", "label_studio_sdk.client"}
HEAVY = {"numpy", "torch", "scipy", "matplotlib", "PIL", "flask", "fsspec", *CLIENTS}
"""What takes CPU to import: a command that needs it imports it when it is called."""
SETTINGS = "pydantic_settings"

LISTING = {
    "config": {SETTINGS},
    "demo": {SETTINGS},  # defaults of options
    "strategies": {SETTINGS, "numpy"},
    "export": {"numpy"},  # the formats that there are
    "segment": {"numpy"},
}
"""Command → what its help needs nonetheless."""

LOADED = """
import json, sys
from ml_backend.cli import main
sys.argv = ["nextslice", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


def imported(*arguments: str, **env: str) -> tuple[int, set[str]]:
    """How the command ended, and the modules that it had imported then."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith(("REDIS_URL", "_STORE"))}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        capture_output=True, text=True, timeout=120, check=True, env=clean | env,
    )  # fmt: skip
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, {*modules}


def command_lines() -> list[str]:
    """``rounds``, ``rounds list`` and so on: all that there are."""
    load_commands()
    found: list[str] = []
    for name, command in typer.main.get_group(app).commands.items():
        found += [name, *(f"{name} {part}" for part in getattr(command, "commands", ()))]
    return found


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["-h"], 0), (["--help"], 0), ([], 2), (["rouns"], 2), (["-x"], 2)],
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str], code: int) -> None:
    ended, modules = imported(*arguments)
    assert (ended, (HEAVY | {SETTINGS}) & modules) == (code, set())


@pytest.mark.parametrize("line", command_lines())
def test_the_help_of_a_command_imports_nothing_heavy(line: str) -> None:
    ended, modules = imported(*line.split(), "-h")
    unneeded = (HEAVY | {SETTINGS}) - LISTING.get(line, set())
    assert (ended, unneeded & modules) == (0, set())


@pytest.mark.parametrize("redis", ["", "redis://redis.example:6379/1"])
def test_the_settings_are_read_without_what_they_do_not_need(redis: str) -> None:
    ended, modules = imported("config", REDIS_URL=redis)
    assert (ended, HEAVY & modules) == (0, set())


def test_what_the_store_answers_imports_no_clients(tmp_path: Path) -> None:
    record = ProjectRecord(project=9, key="9.1")
    Store(str(tmp_path)).project("ls.example", "9.1").record = record
    env = {"NEXTSLICE_STORE": str(tmp_path), "LABEL_STUDIO_URL": "http://ls.example"}
    for line in ("project show 9", "project show 9 --json", "rounds prune 9"):
        ended, modules = imported(*line.split(), **env)
        assert (ended, {*CLIENTS, "numpy", "PIL", "torch", "scipy", "matplotlib"} & modules) == (
            0,
            set(),
        ), line


def test_doctor_imports_what_it_asks_with_and_no_more(tmp_path: Path) -> None:
    given = {"NEXTSLICE_STORE": str(tmp_path), "LABEL_STUDIO_URL": "http://127.0.0.1:1"}
    ended, modules = imported("doctor", REDIS_URL="redis://127.0.0.1:1/0", **given)
    assert (ended, (HEAVY - {"fsspec", *CLIENTS}) & modules) == (1, set())


STRATEGY, STORE = "al_strategies.coreset", "ml_backend.rounds.store"


@pytest.mark.parametrize(
    ("line", "code", "unneeded"),
    [
        ("rounds list", 1, {*CLIENTS, STRATEGY, "numpy", "PIL"}),  # no project is known
        ("rounds list 9", 1, {*CLIENTS, STRATEGY, "numpy", "PIL"}),
        ("rounds prune 9", 1, {*CLIENTS, STRATEGY, "numpy", "PIL"}),
        ("project show 9", 1, {*CLIENTS, STRATEGY, "numpy", "PIL"}),
        ("segment x.tif -o y.tif --uncertainty --probability", 2, {*CLIENTS, SETTINGS}),
        ("segment /no/such.tif -o y.tif", 1, {*CLIENTS, STRATEGY, STORE}),
        ("simulate", 2, {*CLIENTS, SETTINGS}),
        ("simulate --out x", 2, {*CLIENTS, SETTINGS}),  # of what data is not said
        ("demo --strategy nosuch", 2, {*CLIENTS}),
        ("worker nosuch", 2, {*CLIENTS, "numpy", SETTINGS}),
        ("export 9", 2, {*CLIENTS, SETTINGS}),  # --out is missing
    ],
)
def test_what_ends_early_imports_no_more_than_it_got_to(
    line: str, code: int, unneeded: set[str], tmp_path: Path
) -> None:
    redis = "redis://redis.example:6379/1"
    ended, modules = imported(*line.split(), NEXTSLICE_STORE=str(tmp_path), REDIS_URL=redis)
    assert (ended, (unneeded | {"torch", "scipy", "matplotlib"}) & modules) == (code, set())


def test_the_list_says_what_the_commands_say() -> None:
    load_commands()
    group = typer.main.get_group(app)
    assert set(group.commands) == set(COMMANDS)
    for name, says in COMMANDS.items():
        command = group.commands[name]
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert first.startswith(says), name


def test_every_module_with_a_command_is_in_the_list() -> None:
    folder = Path(cli.__file__).parent
    added = {
        path.stem.rstrip("_")
        for path in folder.glob("*.py")
        if any(
            line.startswith(("@app.command", "app.add_typer"))
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    }
    assert added == set(COMMANDS)


def test_the_version() -> None:
    done = nextslice("--version")
    assert (done.stdout, done.stderr, done.returncode) == (f"nextslice {__version__}\n", "", 0)


@pytest.mark.parametrize("arguments", [["config", "-h"], ["rounds", "list", "-h"]])
def test_h_is_help_everywhere_and_has_no_boxes(arguments: list[str]) -> None:
    done = nextslice(*arguments)
    assert done.returncode == 0
    assert f"Usage: nextslice {' '.join(arguments[:-1])}" in done.stdout
    assert not set("│─╭╰┃") & set(done.stdout)


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        env = {"_NEXTSLICE_COMPLETE": "complete_bash", "COMP_WORDS": words,
               "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
        return nextslice(**env).stdout.split()

    assert completed("nextslice st") == ["strategies"]
    assert "--json" in completed("nextslice strategies --")


def in_a_terminal(*arguments: str, **env: str) -> str:
    """What the command shows where both outputs are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ml_backend.cli", *arguments],
        stdout=theirs, stderr=theirs, stdin=theirs, env={**os.environ, "TERM": "xterm", **env},
    ):  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return shown.decode()


def test_no_color_leaves_no_escapes_at_all() -> None:
    wrong = ("simulate", "--phantom", "small")
    assert "\x1b[" in in_a_terminal(*wrong)
    assert "\x1b" not in in_a_terminal(*wrong, NO_COLOR="1")
    assert "\x1b" not in in_a_terminal("strategies", NO_COLOR="1")


def test_in_a_pipe_nothing_is_wrapped_or_boxed() -> None:
    done = nextslice("strategies", COLUMNS="80")
    lines = done.stdout.splitlines()
    assert lines[0].split("\t") == ["name", "summary", "evidence", "source"]
    assert {len(line.split("\t")) for line in lines[1:-1]} == {4}
    error = nextslice("simulate", "--phantom", "small", "--data", "x" * 200, COLUMNS="40").stderr
    assert len(error.strip().splitlines()) == 1


def test_strategies_for_programs() -> None:
    said = json.loads(nextslice("strategies", "--json").stdout)
    assert said["default"] == {"strategy": "entropy", "cold_start": "strided"}
    assert {"coreset", "random"} <= {row["name"] for row in said["strategies"]}


def test_an_unknown_command_is_none() -> None:
    group = typer.main.get_group(app)
    for name in ("nosuch", "../x", "a-b", "_x"):
        assert group.get_command(None, name) is None, name
