"""A private Label Studio keeps all it has in its own folder, and lets people in at its address,
whatever the shell is set for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ml_backend.embedded import label_studio
from ml_backend.embedded.label_studio import install_label_studio, start_label_studio
from ml_backend.embedded.processes import ProcessGroup, StartError

THE_LABS = {
    "DJANGO_DB": "default",
    "POSTGRE_HOST": "db.lab",
    "POSTGRE_NAME": "production",
    "DATABASE_NAME": "/srv/label-studio/label_studio.sqlite3",
    "BASE_DATA_DIR": "/srv/label-studio",
    "STORAGE_TYPE": "s3",
    "STORAGE_AWS_BUCKET_NAME": "uploads",
    "MINIO_STORAGE_ENDPOINT": "https://minio.lab",
    "HOST": "https://labels.lab",
    "ALLOWED_HOSTS": "labels.lab",
    "SESSION_COOKIE_SECURE": "1",
    "SESSION_COOKIE_SAMESITE": "None",
    "CSRF_COOKIE_SECURE": "1",
    "CSRF_COOKIE_HTTPONLY": "1",
    "CSRF_COOKIE_SAMESITE": "None",
    "FRONTEND_HOSTNAME": "https://static.lab",
    "LS_CSP_REPORT_ONLY": "false",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "USER_TOKEN": "0123456789abcdef",
}
"""What a shell on the machine of a lab's Label Studio may hold."""

AT_LOOPBACK = {
    "ALLOWED_HOSTS": "*",
    "SESSION_COOKIE_SECURE": "0",
    "SESSION_COOKIE_SAMESITE": "Lax",
    "CSRF_COOKIE_SECURE": "0",
    "CSRF_COOKIE_HTTPONLY": "0",
    "CSRF_COOKIE_SAMESITE": "Lax",
    "FRONTEND_HOSTNAME": "",
    "LS_CSP_REPORT_ONLY": "true",
    "DISABLE_SIGNUP_WITHOUT_LINK": "false",
    "USER_TOKEN": "",
}
"""With what a server lets everybody in at http://127.0.0.1."""


def as_it_reads(env: Mapping[str, str], name: str) -> str | None:
    """A setting as Label Studio 1.23.2 reads it (`get_env` of core/utils/params.py)."""
    values = (env.get(prefix + name) for prefix in ("LABEL_STUDIO_", "HEARTEX_", ""))
    return next((value for value in values if value is not None), None)


@pytest.fixture(params=["", "HEARTEX_", "LABEL_STUDIO_"])
def _shell_of_the_lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in THE_LABS.items():
        monkeypatch.setenv(request.param + name, value)
    monkeypatch.delenv("LABEL_STUDIO_BIN", raising=False)


def check_apart(given: Mapping[str, str], folder: Path) -> None:
    env = {**os.environ, **given}
    assert as_it_reads(env, "DJANGO_DB") == "sqlite"
    assert as_it_reads(env, "DATABASE_NAME") == str(folder / "label_studio.sqlite3")
    assert as_it_reads(env, "BASE_DATA_DIR") == str(folder)
    for name in ("STORAGE_TYPE", "MINIO_STORAGE_ENDPOINT", "HOST"):
        assert as_it_reads(env, name) == ""
    assert {name: as_it_reads(env, name) for name in AT_LOOPBACK} == AT_LOOPBACK


@pytest.mark.usefixtures("_shell_of_the_lab")
def test_the_installation_makes_its_empty_database_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrated: list[dict[str, str]] = []

    def run(*argv: str, env: dict[str, str] | None = None) -> None:
        if "venv" in argv:
            manage = Path(argv[-1], "lib/python3.11/site-packages/label_studio/manage.py")
            manage.parent.mkdir(parents=True)
            manage.touch()
        if "migrate" in argv:
            migrated.append(env or {})

    monkeypatch.setattr(label_studio, "_run", run)
    command = install_label_studio(tmp_path)
    (given,) = migrated
    check_apart(given, command.parents[1] / "empty")


class _Asked(ProcessGroup):
    """What would be started."""

    def start(self, name: str, argv: Sequence[str], **options: Any) -> Any:
        self.env = dict(options["env"])
        raise StartError(name)


@pytest.mark.usefixtures("_shell_of_the_lab")
def test_a_private_server_keeps_everything_in_its_folder(tmp_path: Path) -> None:
    group = _Asked(tmp_path / "logs")
    with pytest.raises(StartError):
        start_label_studio(group, tmp_path / "bin" / "label-studio", tmp_path / "data")
    check_apart(group.env, tmp_path / "data")


@pytest.mark.usefixtures("_shell_of_the_lab")
def test_one_that_is_given_a_database_has_that_one(tmp_path: Path) -> None:
    given = {"DJANGO_DB": "default", "POSTGRE_HOST": "127.0.0.1", "POSTGRE_NAME": "bench"}
    group = _Asked(tmp_path / "logs")
    command = tmp_path / "bin" / "label-studio"
    with pytest.raises(StartError):
        start_label_studio(group, command, tmp_path / "data", database=given)
    env = {**os.environ, **group.env}
    assert {name: as_it_reads(env, name) for name in given} == given
