"""A demo takes the place of the last one, and nobody's labels go with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.cli.demo import _fresh
from ml_backend.embedded.processes import StartError
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
