"""What `doctor` says of each part: of real sockets, a real Redis, real folders."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend.health.examination import examine
from ml_backend.health.finding import Finding
from ml_backend.health.parts import part
from ml_backend.rounds.schedule import CONTROL, GPU
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, own_redis_socket
from ml_backend.studio.client import Studio
from ml_backend.studio.database import database_kind
from tests.http_studio import CONFIG, HttpStudio, phantom_server
from tests.memory_studio import MemoryStudio
from tests.other_deployment import OTHER, OTHER_PID, register_other


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.posix = True
        yield server


@pytest.fixture
def service(server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str) -> Service:
    service = Service(
        make_settings(
            REDIS_URL=redis_url,
            NEXTSLICE_QUEUE_PREFIX="doctor",
            LABEL_STUDIO_URL=server.url,
            LABEL_STUDIO_API_KEY=server.key,
        )
    )
    for kind in (CONTROL, GPU):
        queue = service.schedule.queue(kind)
        Worker([queue], connection=queue.connection, serializer=JSONSerializer).register_birth()
    return service


def examined(service: Service) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(service)}


def other(service: Service, **settings: object) -> Service:
    return Service(service.settings.model_copy(update=settings))


def test_a_service_that_is_well_has_nothing_to_mend(service: Service, server: HttpStudio) -> None:
    found = examined(service)
    assert {finding.verdict for finding in found.values()} == {"good"}
    assert not any(finding.mend for finding in found.values())
    assert found["Label Studio"].says == f"1.23.2 answers at {server.url}."
    assert "somebody@lab.example" in found["token"].says


def test_a_misspelt_variable_is_warned_of(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTSLICE_STRATEGEY", "badge")
    found = examined(service)["settings"]
    assert (found.verdict, found.mend) == ("warning", "nextslice config")
    assert "is NEXTSLICE_STRATEGY meant?" in found.says


def test_a_store_that_is_nearly_full_is_warned_of(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "GiB are free" in part(service, "store").says
    monkeypatch.setattr("ml_backend.health.parts._LITTLE_GIB", 1e9)
    found = part(service, "store")
    assert (found.verdict, found.mend) == ("warning", "nextslice rounds prune")
    assert "That is little." in found.says


def test_sqlite_is_warned_of(service: Service, server: HttpStudio) -> None:
    server.posix = False
    found = examined(service)["database"]
    assert found.verdict == "warning"
    assert found.mend == "DJANGO_DB=default"
    assert "one slice to several people" in found.says


def test_where_no_task_is_the_kind_of_database_is_not_guessed(
    service: Service, server: HttpStudio
) -> None:
    server.memory = MemoryStudio(CONFIG, 0, lambda task: pytest.fail(f"image of {task}"))
    assert database_kind(Studio(server.url, server.key)) is None
    found = examined(service)["database"]
    assert found.verdict == "unknown"
    assert "no project that this token may see has one" in found.says


def test_a_label_studio_that_does_not_answer_is_one_fault(service: Service) -> None:
    found = examined(other(service, label_studio_url="http://127.0.0.1:9"))
    faults = [finding for finding in found.values() if finding.verdict == "fault"]
    assert [(fault.check, fault.mend) for fault in faults] == [("Label Studio", "LABEL_STUDIO_URL")]
    assert "http://127.0.0.1:9" in faults[0].says
    assert found["token"].says == "Not looked at: mend Label Studio first."
    assert found["database"].says == found["token"].says


def test_another_server_is_not_taken_for_label_studio(service: Service, server: HttpStudio) -> None:
    found = examined(other(service, label_studio_url=f"{server.url}/elsewhere"))["Label Studio"]
    assert found.verdict == "fault"
    assert "not as Label Studio does" in found.says


@pytest.mark.parametrize("key", ["", "revoked"])
def test_a_token_that_is_not_taken_names_the_setting(
    service: Service, server: HttpStudio, key: str
) -> None:
    server.renewable = False
    settings = service.settings
    secret = type(settings.label_studio_api_key)(key)
    found = examined(other(service, label_studio_api_key=secret))
    assert found["token"].verdict == "fault"
    assert found["token"].mend == "LABEL_STUDIO_API_KEY"
    assert "LABEL_STUDIO_API_KEY" in found["token"].says
    assert found["database"].says == "Not looked at: mend token first."


def test_redis_that_does_not_answer_is_one_fault_and_no_password_is_shown(
    service: Service,
) -> None:
    found = examined(other(service, redis_url="redis://:secret@127.0.0.1:9/0"))
    assert found["Redis"].verdict == "fault"
    assert found["Redis"].mend == "REDIS_URL"
    assert found["gpu worker"].says == "Not looked at: mend Redis first."
    assert not any("secret" in finding.says for finding in found.values())


def test_the_redis_that_is_named_is_the_one_that_answers(
    make_settings: Callable[..., Settings],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no REDIS_URL is set: that of `nextslice up`, on a socket of this user."""
    monkeypatch.setenv("NEXTSLICE_HOME", str(tmp_path))
    own_redis_socket().symlink_to(redis_url.removeprefix("unix://").partition("?")[0])
    service = Service(make_settings())
    assert part(service, "redis").says == f"unix://{own_redis_socket()}?db=0 answers."


def test_a_worker_that_is_missing_is_named_with_its_command(service: Service) -> None:
    service.schedule.connection.flushall()
    found = examined(service)
    assert found["gpu worker"].verdict == found["control worker"].verdict == "fault"
    assert found["gpu worker"].mend == "nextslice worker gpu"
    assert found["control worker"].mend == "nextslice worker control"


def test_workers_of_another_deployment_are_not_ours(service: Service) -> None:
    register_other(service.schedule.queue(GPU))
    for beside_ours in (True, False):  # it drops what it takes of our jobs; ours would not start
        for which in ("control", "gpu"):
            found = part(service, which)
            assert (found.verdict, found.mend) == ("fault", "NEXTSLICE_QUEUE_PREFIX")
            assert f"{OTHER_PID} on {socket.gethostname()} works for the Label Studio {OTHER}" in (
                found.says
            )
        if beside_ours:
            service.schedule.connection.flushall()
            register_other(service.schedule.queue(GPU))


def test_a_store_that_cannot_be_written_is_named(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = examined(other(service, store=str(tmp_path / "file" / "store")))["store"]
    assert found.verdict == "fault"
    assert found.mend == "NEXTSLICE_STORE"
    assert str(tmp_path / "file") in found.says


@pytest.mark.parametrize("status", [403, 502])
def test_projects_that_cannot_be_listed_are_one_fault(
    service: Service, server: HttpStudio, status: int
) -> None:
    server.refused["api/projects"] = status
    found = examined(service)
    assert found["projects"].verdict == "fault"
    assert str(status) in found["projects"].says
    assert [name for name, f in found.items() if f.verdict == "fault"] == ["projects"]


def doctor(service: Service, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = service.settings
    known = {
        "LABEL_STUDIO_URL": settings.label_studio_url,
        "LABEL_STUDIO_API_KEY": settings.label_studio_api_key.get_secret_value(),
        "REDIS_URL": settings.redis_url,
        "NEXTSLICE_STORE": settings.store,
        "NEXTSLICE_QUEUE_PREFIX": settings.queue_prefix,
    }
    command = [sys.executable, "-m", "ml_backend.cli", "doctor", *options]
    whole = {**os.environ, **known, **env}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=whole
    )


def test_the_command_says_a_line_each_and_ends_well_with_a_warning(
    service: Service, server: HttpStudio
) -> None:
    server.posix = False
    done = doctor(service)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(examined(service))
    (warned,) = (line for line in lines if line.startswith("warning"))
    assert "database: " in warned
    assert "DJANGO_DB=default" in warned


def test_the_command_says_what_stands_in_the_way_of_mending(
    service: Service, server: HttpStudio, tmp_path: Path
) -> None:
    server.refused["api/projects"] = 502
    done = doctor(service, "--fix")
    assert (done.returncode, done.stderr) == (1, "")
    assert "502" in next(line for line in done.stdout.splitlines() if "  projects: " in line)
    server.refused.clear()
    (tmp_path / "file").write_text("no folder")
    done = doctor(service, "--fix", NEXTSLICE_STORE=str(tmp_path / "file" / "store"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "WRONG    store: " in done.stdout


def test_the_command_ends_with_1_where_something_is_wrong_in_json_too(service: Service) -> None:
    done = doctor(service, "--json", LABEL_STUDIO_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["ok"] is False
    first = said["findings"][0]
    assert (first["check"], first["verdict"]) == ("Label Studio", "fault")
    assert first["mend"] == "LABEL_STUDIO_URL"
