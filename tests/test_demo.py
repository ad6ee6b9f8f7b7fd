"""A demo takes the place of the last one, and nobody's labels go with it; a seed makes another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from ml_backend.cli import demo_loop
from ml_backend.cli.demo import _asked, _begun, _fresh
from ml_backend.cli.demo_loop import _table
from ml_backend.embedded import stack
from ml_backend.embedded.label_studio import LabelStudioServer
from ml_backend.embedded.processes import StartError
from ml_backend.embedded.stack import settings_from
from ml_backend.studio import projects
from ml_backend.studio.task_order import BackendLink
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.phantom import phantom
from tests.conftest import REPOSITORY
from tests.test_cli import nextslice
from tests.tiny_experiment import write_slices


def labels(folder: Path) -> Path:
    """What a demo leaves: the database of its Label Studio."""
    database = folder / "label-studio" / "label_studio.sqlite3"
    database.parent.mkdir()
    database.write_text("labels")
    return database


def test_what_a_person_labelled_is_kept_beside_the_next_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _fresh(tmp_path / "demo", unattended=False) as folder:
        labels(folder)

    with _fresh(tmp_path / "demo", unattended=False) as folder:
        assert list(folder.iterdir()) == []

    (kept,) = tmp_path.glob("demo-*")
    assert (kept / "label-studio" / "label_studio.sqlite3").read_text() == "labels"
    assert kept.name in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("unattended", [True, False])
def test_what_nobody_labelled_is_replaced(tmp_path: Path, unattended: bool) -> None:
    with _fresh(tmp_path / "demo", unattended=unattended) as folder:
        if unattended:
            labels(folder)
        (folder / "logs").mkdir()  # all there is when the server did not start

    with _fresh(tmp_path / "demo", unattended=False) as folder:
        assert list(folder.iterdir()) == []

    assert list(tmp_path.glob("demo-*")) == []


def test_a_demo_that_runs_is_left_alone(tmp_path: Path) -> None:
    with _fresh(tmp_path / "demo", unattended=True) as folder:
        database = labels(folder)
        with (
            pytest.raises(StartError, match=r"A demo is running in .*demo: end it with Ctrl-C"),
            _fresh(tmp_path / "demo", unattended=True),
        ):
            pass
        assert database.read_text() == "labels"


def test_a_mistyped_folder_and_a_running_demo_leave_the_last_one_as_it_is(tmp_path: Path) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    write_slices(slices)
    asked = ["demo", "--headless", "--data"]
    with _fresh(tmp_path / "demo", unattended=True) as folder:
        database = labels(folder)
        running = nextslice(*asked, str(slices), NEXTSLICE_HOME=str(tmp_path))
    mistyped = nextslice(*asked, str(slices / "nowhere"), NEXTSLICE_HOME=str(tmp_path))

    assert (running.returncode, mistyped.returncode) == (1, 1)
    assert "A demo is running in" in running.stderr
    assert "nowhere" in mistyped.stderr
    assert "Traceback" not in running.stderr + mistyped.stderr
    assert database.read_text() == "labels"


@pytest.mark.parametrize(
    ("options", "variable", "folder", "seed"),
    [([], "", "phantom-demo", 0), (["--seed", "3"], "4", "phantom-demo-3", 3)],
)
def test_each_seed_has_a_phantom_of_its_own(
    tmp_path: Path, options: list[str], variable: str, folder: str, seed: int
) -> None:
    env = {"NEXTSLICE_HOME": str(tmp_path), "NEXTSLICE_SEED": variable}
    with _fresh(tmp_path / "demo", unattended=True):
        shown = nextslice("demo", "--headless", *options, **env)
    assert "A demo is running in" in shown.stderr  # all that is missing

    made, expected = FolderSource(tmp_path / folder), phantom("demo", seed=seed)
    assert set(made.ids) == set(expected.ids)
    for slice_id in expected.ids[20::40]:
        np.testing.assert_array_equal(made.image(slice_id), expected.image(slice_id))
        np.testing.assert_array_equal(made.mask(slice_id), expected.mask(slice_id))


def test_the_seed_is_also_that_of_the_rounds() -> None:
    settings = settings_from(_asked(k=5, strategy="badge", seed=3))

    assert (settings.k, settings.strategy, settings.seed) == (5, "badge", 3)


def started(folder: Path, label_studio: str) -> subprocess.Popen[str]:
    """A headless demo whose Label Studio is the script ``label_studio``, under umask 002."""
    (folder / "slices").mkdir()
    write_slices(folder / "slices")
    (folder / "bin").mkdir()
    script = folder / "bin" / "label-studio"
    script.write_text(f"#!/bin/sh\n{label_studio}\n")
    script.chmod(0o755)
    argv = [sys.executable, "-m", "ml_backend.cli", "demo", "--headless", "--data", "slices"]
    env = {
        **os.environ, "LABEL_STUDIO_BIN": "bin/label-studio", "PYTHONPATH": str(REPOSITORY),
        "NEXTSLICE_HOME": str(folder / "home"),
    }  # fmt: skip
    return subprocess.Popen(
        argv, cwd=folder, env=env, umask=0o002,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


NOTHING = {"ok": False, "first_mask_s": None, "rounds": [], "without_labels": []}


def test_one_that_does_not_start_says_so_to_programs_too(tmp_path: Path) -> None:
    with started(tmp_path, "echo no disk; exit 3") as process:
        out, said = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "label-studio ended with code 3" in said
    assert "no disk" in said
    assert json.loads(out.splitlines()[-1]) == NOTHING
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_stopped_before_its_rounds_are_done_has_not_done_them(
    tmp_path: Path, number: int
) -> None:
    with started(tmp_path, "exec sleep 600") as process:
        assert process.stderr
        while "starting Label Studio" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(number)
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1]) == NOTHING


def test_its_project_has_the_credentials_that_its_backend_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it has them in the environment, or in .env."""
    env = {"BASIC_AUTH_USER": "ls", "BASIC_AUTH_PASS": "secret", "LABEL_STUDIO_API_KEY": "token"}
    server = LabelStudioServer("http://127.0.0.1:9", "a@b", "c", "token")
    links: list[BackendLink] = []
    monkeypatch.setenv("NEXTSLICE_HOME", str(tmp_path))
    monkeypatch.setattr(
        stack, "start_stack", lambda *_, **__: stack.Stack(server, "", "http://127.0.0.1:9", env)
    )
    monkeypatch.setattr(demo_loop, "upload", lambda *_: 7)
    monkeypatch.setattr(demo_loop, "Loop", MagicMock())
    monkeypatch.setattr(projects, "register_backend", lambda *asked: links.append(asked[-1]))
    slices = tmp_path / "slices"
    slices.mkdir()
    with ExitStack() as running:
        _begun(running, 2, "entropy", 0, write_slices(slices), True)
    assert links == [BackendLink("http://127.0.0.1:9", ("ls", "secret"))]


def test_a_pace_is_a_number_of_seconds(tmp_path: Path) -> None:
    refused = nextslice("demo", "--headless", "--pace", "inf", NEXTSLICE_HOME=str(tmp_path))

    assert refused.returncode == 2
    assert "--pace: found inf, expected a number of seconds" in refused.stderr


def test_a_seed_that_a_training_would_refuse_is_refused_at_once(tmp_path: Path) -> None:
    refused = nextslice("demo", "--headless", "--seed", str(2**32), NEXTSLICE_HOME=str(tmp_path))

    assert refused.returncode == 2
    assert "less than or equal to 2147483647" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_what_labels_cost() -> None:
    row = {
        "model_version": "nextslice-r001-abcdef", "annotated": 8, "miou": 0.5, "iou": {"bone": 0.5},
        "corrected_pixels": 1234, "corrected_share": 0.0471, "queue_matches_selection": True,
        "submit_to_publish_s": 12.0,
    }  # fmt: skip
    unknown = {**row, "corrected_pixels": None, "corrected_share": None}

    table = _table([row, unknown], 20)

    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["corrected px"] == ["1,234 (4.7%)", "–"]
