"""Lines of the log in JSON: what they are about, and no password in them. In real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from ml_backend.api.server import gunicorn_argv
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.logs import JsonLines
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio
from tests.test_cli import nextslice

KEY = "7.1763865028"

_SAYS = """
import logging
from ml_backend.logs import about, mention
from ml_backend.settings import configure_logging
configure_logging("INFO")
logger = logging.getLogger("somewhere")
logger.info("before")
with about(project="7.1", job="j"):
    with about(round=3):
        logger.warning("%s: scored\\nwith »a\\"b« by someone@example.org", "http://ann:secret@lab/1")
    mention(round=4)
    try:
        raise ValueError("redis://:secret@127.0.0.1:6379/0?password=secret")
    except ValueError:
        logger.exception("lost")
logger.info("after")
"""


def said(text: str) -> list[dict[str, Any]]:
    """The lines of a log, each of which has to be a JSON object."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines, "nothing was logged"
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys(), line
        moment = datetime.fromisoformat(line["time"])
        assert abs((datetime.now(UTC) - moment).total_seconds()) < 600
    return lines


def test_each_line_is_an_object_that_says_what_it_is_about() -> None:
    env = {**os.environ, "NEXTSLICE_LOG_FORMAT": "JSON"}
    done = subprocess.run(
        [sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True, env=env
    )
    before, scored, lost, after = said(done.stderr)
    assert before.keys() == {"time", "level", "logger", "message"} == after.keys()
    assert scored["message"] == 'http://ann:***@lab/1: scored\nwith »a"b« by someone@example.org'
    assert (scored["level"], scored["logger"]) == ("WARNING", "somewhere")
    subjects = [{n: line.get(n) for n in ("project", "round", "job")} for line in (scored, lost)]
    assert subjects == [
        {"project": "7.1", "round": 3, "job": "j"},
        {"project": "7.1", "round": 4, "job": "j"},
    ]
    assert lost["exception"].startswith("Traceback (most recent call last)")
    assert "ValueError: redis://:***@127.0.0.1" in lost["exception"]
    assert "secret" not in done.stderr


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> dict[str, str]:
    return {
        "REDIS_URL": redis_url,
        "NEXTSLICE_STORE": str(tmp_path / "store"),
        "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
        "NEXTSLICE_LOG_FORMAT": "json",
        "LABEL_STUDIO_API_KEY": "token",
        "LABEL_STUDIO_URL": f"http://127.0.0.1:{free_port()}",
    }


def test_what_a_job_logs_names_job_and_project(
    make_settings: Callable[..., Settings], environment: dict[str, str]
) -> None:
    """The traceback of one that fails, too: Label Studio is not there."""
    environment["NEXTSLICE_QUEUE_PREFIX"] = "logs"
    project = ConnectedProject(Service(make_settings(**environment)), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    project.schedule.count()

    done = nextslice("worker", "control", "--burst", **environment)

    (failed,) = [line for line in said(done.stderr) if "Traceback" in line["message"]]
    assert failed["job"] == project.schedule.job_id("count")
    assert failed["project"] == KEY
    assert failed["level"] == "ERROR"
    assert "StudioError" in failed["message"]


def test_what_a_round_logs_names_the_round(
    make_settings: Callable[..., Settings], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="logs-round")
    studio: Any = MemoryStudio(bitmask_config(["bone"]), 9, lambda _: np.zeros((8, 9)))
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    caplog.handler.setFormatter(JsonLines())
    with caplog.at_level("INFO", "ml_backend.rounds"):
        run_round(project, "cold start")
    (took,) = [line for line in said(caplog.text) if " took " in line["message"]]
    assert (took["project"], took["round"]) == (KEY, 0)


def test_the_server_logs_json_from_its_first_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    port = free_port()
    with ProcessGroup(tmp_path / "logs") as group:
        group.start("backend", gunicorn_argv(f"127.0.0.1:{port}"), env=environment)
        group.wait("backend", lambda: _refused(port), timeout_s=240)
    lines = said((tmp_path / "logs" / "backend.log").read_text())
    assert any(line["logger"] == "gunicorn.error" for line in lines)
    (bad,) = [line for line in lines if line["logger"] == "ml_backend.api.protocol"]
    assert bad["message"].startswith("POST /predict: tasks: found NoneType")


def _refused(port: int) -> bool:
    try:
        answer = requests.post(f"http://127.0.0.1:{port}/predict", json={}, timeout=60)
    except requests.RequestException:
        return False
    return answer.status_code == 400
