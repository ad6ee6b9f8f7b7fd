"""No password and no signature of an address in a log or a record."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from ml_backend.logs import formatter
from ml_backend.rounds.records import DatasetWarnings, FurtherRecord, ProjectRecord, TriesRecord
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.volume_address import VolumeAddress

_SAYS = """
import logging
from ml_backend.settings import configure_logging
configure_logging("INFO")
logger = logging.getLogger("somewhere")
logger.warning("%s cannot be fetched", "http://ann:secret@lab.example/1.png")
try:
    raise ValueError("redis://:secret@127.0.0.1:6379/0?password=secret")
except ValueError:
    logger.exception("lost")
"""


def test_a_log_shows_no_password_of_an_address() -> None:
    done = subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True)
    assert "http://ann:***@lab.example/1.png cannot be fetched" in done.stderr
    assert "ValueError: redis://:***@127.0.0.1" in done.stderr
    assert done.stderr.count("raise ValueError") <= 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/slices/a.h5/z/8.png?high=2&key=1f0c93aa&sig=", ""),
        ("/slices/a.h5/z/8.png?sig=", "&key=1f0c93aa"),
        ("/zarr/WyI3LjEiLCAiYSIsICJ6IiwgMV0.1f0c93aa.", "/scan.zarr/0/0/0/0"),
        ("https://s3.example/1.png?X-Amz-Expires=60&X-Amz-Signature=", "&X-Amz-Date=1"),
        ("https://blob.example/1.png?se=2026&sig=", ""),
    ],
)
def test_a_log_shows_no_signature_of_an_address(form: str, before: str, after: str) -> None:
    """Whoever has the signed address sees what it is of."""
    secret = "5ecede4f00c0ffee"
    message = f"The image of task 5 ({before}{secret}{after}) cannot be read"
    record = logging.LogRecord("ours", logging.WARNING, "", 0, message, None, None)
    line = formatter(form).format(record)
    assert f"({before}***{after}) cannot be read" in line


def test_addresses_of_ours_are_logged_without_their_signature() -> None:
    keys = SliceKeys(("a secret of sixteen characters",))
    slice_, volume = SliceAddress("a.h5", "z", 8), VolumeAddress("7.1", "a.h5", "z", 2_000_000_000)
    for url in (slice_.url("http://here", keys), volume.url("http://here", keys)):
        record = logging.LogRecord("ours", logging.WARNING, "", 0, f"{url}: no", None, None)
        assert url[-16:] not in formatter("text").format(record)
        assert url[:-40] in formatter("text").format(record)


_WHY = (
    "http://ann:secret@lab.example/1.png: moved to "
    "https://b.s3.example/1.png?X-Amz-Expires=60&X-Amz-Signature=5ecede4f cannot be fetched"
)
_SHOWN = (
    "http://ann:***@lab.example/1.png: moved to "
    "https://b.s3.example/1.png?X-Amz-Expires=60&X-Amz-Signature=*** cannot be fetched"
)


def test_a_record_of_a_failure_shows_no_secret_of_an_address() -> None:
    project = ProjectRecord(project=7, key="7.1")
    project.attempt_failed(1.0, _WHY)
    assert project.last_error == _SHOWN
    project.lacks_images(_WHY)
    assert project.imageless == _SHOWN
    for tries in (TriesRecord(), FurtherRecord()):
        tries.last_error = _WHY
        assert tries.last_error == _SHOWN


def test_a_record_that_was_kept_with_secrets_is_read_without() -> None:
    kept = ProjectRecord.model_construct(project=7, key="7.1", last_error=_WHY).model_dump_json()
    assert ProjectRecord.model_validate_json(kept).last_error == _SHOWN


def test_warnings_of_a_round_show_no_secret_of_an_address() -> None:
    assert DatasetWarnings(warnings=["none", _WHY]).warnings == ["none", _SHOWN]
