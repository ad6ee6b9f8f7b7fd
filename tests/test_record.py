"""What a kill or a damaged disk can leave of a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.experiment.record import RecordError, load_experiment, read_lines
from tests.experiment_folder import line, write_experiment, write_run

UMLAUT = "\u00fc".encode()
"""A character of two bytes."""


def test_a_last_line_that_was_cut_within_a_character_is_passed_over(tmp_path: Path) -> None:
    path = write_run(tmp_path, [line(miou=0.5)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"strategy":"random","selected":["' + UMLAUT[:1])
    assert list(read_lines(path)) == [line(miou=0.5)]


@pytest.mark.parametrize("damaged", [b'{"selected":["' + UMLAUT[:1] + b'"]}', b"{"])
def test_a_damaged_whole_line_is_named_with_its_file(tmp_path: Path, damaged: bytes) -> None:
    path = write_run(tmp_path, [line(miou=0.5)])
    path.write_bytes(path.read_bytes() + damaged + b"\n")
    with pytest.raises(RecordError, match=r"seed-0\.jsonl, line 2, is not a round"):
        list(read_lines(path))


def test_ids_may_hold_any_character(tmp_path: Path) -> None:
    # U+2028 ends a line for str.splitlines.
    written = line(miou=0.5, selected=["Schr\u00e4ubchen\u2028 7"])
    assert list(read_lines(write_run(tmp_path, [written]))) == [written]


def test_settings_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, {"random": [[0.5]]}) / "experiment.json"
    path.write_bytes(path.read_bytes().replace(b"phantom", UMLAUT[:1]))
    with pytest.raises(RecordError, match=r"experiment\.json cannot be read"):
        load_experiment(tmp_path)
