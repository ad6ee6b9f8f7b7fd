"""No password of an address in a log or a record."""

from __future__ import annotations

import subprocess
import sys

from ml_backend.rounds.records import ProjectRecord

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


def test_a_record_of_a_failure_shows_no_password_of_an_address() -> None:
    record = ProjectRecord(project=7, key="7.1")
    record.attempt_failed(1.0, "http://ann:secret@lab.example/1.png: 404")
    assert record.last_error == "http://ann:***@lab.example/1.png: 404"
