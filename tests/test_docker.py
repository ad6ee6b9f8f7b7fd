"""The image and the compose file hold together with the rest: versions, commands, settings, files.

No engine runs here: `docker/README.md` says what that leaves open.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AliasChoices
from typer.testing import CliRunner

from ml_backend.api.server import gunicorn_argv
from ml_backend.cli import app, worker
from ml_backend.embedded.label_studio import LABEL_STUDIO_VERSION
from ml_backend.embedded.processes import ProcessGroup, free_port, wait_until
from ml_backend.embedded.stack import start_backend, start_worker
from ml_backend.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "nextslice"}
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")


def settings_variables() -> set[str]:
    """Every environment variable that Settings reads."""
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else []
        names |= {str(choice) for choice in choices} or {f"NEXTSLICE_{name.upper()}"}
    return names


def variables_used(text: str) -> set[str]:
    return set(re.findall(r"\b((?:NEXTSLICE|LABEL_STUDIO|BASIC_AUTH|REDIS)_[A-Z_]+)\b", text))


# -- the compose file


def test_label_studio_is_the_version_that_the_tests_run() -> None:
    assert SERVICES["label-studio"]["image"].endswith(f":{LABEL_STUDIO_VERSION}")


def test_label_studio_accepts_a_backend_on_a_private_address() -> None:
    environment = SERVICES["label-studio"]["environment"]
    assert environment["ML_BLOCK_LOCAL_IP"] == "false"
    assert environment["SSRF_PROTECTION_ENABLED"] == "false"


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_of_ours_is_a_setting(name: str) -> None:
    assert set(OURS[name]["environment"]) <= settings_variables() | {"LABEL_STUDIO_PASSWORD"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_label_studios_alone_is_not_ours(name: str) -> None:
    """Each of ours is given the whole of .env, but for what is set beside it."""
    assert [file["path"] for file in OURS[name]["env_file"]] == [".env"]
    assert OURS[name]["environment"]["LABEL_STUDIO_PASSWORD"] == ""


def test_every_variable_of_the_example_is_used() -> None:
    example = (DOCKER / ".env.example").read_text()
    offered = set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", example, flags=re.MULTILINE))
    interpolated = set(re.findall(r"\$\{([A-Z_]+)", (DOCKER / "docker-compose.yml").read_text()))
    assert offered <= settings_variables() | interpolated | {"COMPOSE_PROFILES"}
    assert interpolated <= offered


@pytest.mark.parametrize("name", ["PUBLIC_URL", "NEXTSLICE_CORS_ORIGINS"])
def test_what_browsers_are_told_follows_the_ports(name: str) -> None:
    value = OURS["backend"]["environment"][name]

    def expanded(**variables: str) -> str:  # these forms mean the same in bash as in compose
        run = ["bash", "-c", f'printf %s "{value}"']
        return subprocess.run(run, env=variables, capture_output=True, text=True, check=True).stdout

    usual = {"PUBLIC_URL": "9090", "NEXTSLICE_CORS_ORIGINS": "8080"}[name]
    moved = expanded(BACKEND_PORT="7001", LABEL_STUDIO_PORT="7001")
    assert usual in expanded()
    assert moved == expanded().replace(usual, "7001")
    assert expanded(**{name: "https://lab.example"}) == "https://lab.example"
    assert all(re.fullmatch(r"http://[a-z0-9.]+:\d+", url) for url in moved.split(","))


@pytest.mark.parametrize("page", ["Dockerfile", "README.md"])
def test_every_variable_that_a_page_names_exists(page: str) -> None:
    label_studio = set(SERVICES["label-studio"]["environment"])
    named = variables_used((DOCKER / page).read_text())
    assert named <= settings_variables() | label_studio | {"LABEL_STUDIO_PORT", "LABEL_STUDIO_HOST"}


def test_every_part_of_ours_sees_the_same_queues_and_store() -> None:
    environments = [service["environment"] for service in OURS.values()]
    assert all(environment == environments[0] for environment in environments)
    assert all("data:/data" in service["volumes"] for service in OURS.values())


@pytest.mark.parametrize(
    "name", ["LABEL_STUDIO_API_KEY", "LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD"]
)
def test_a_secret_without_a_value_is_an_error(name: str) -> None:
    values = [
        str(value)
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
        if value != "" and (key == name or f"${{{name}" in str(value))
    ]
    assert values
    assert all(re.fullmatch(rf"\$\{{{name}:\?.+\}}", value) for value in values)


def test_nothing_is_published_but_on_this_machine() -> None:
    ports = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert set(ports) == {"label-studio", "backend"}
    assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for port in ports.values())


def test_label_studio_cannot_reach_redis() -> None:
    """Its guard against private addresses is off, and what is in the queue is run."""
    assert not set(SERVICES["label-studio"]["networks"]) & set(SERVICES["redis"]["networks"])
    assert COMPOSE["networks"]["queue"]["internal"]


def test_redis_keeps_its_jobs() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"


def test_every_service_has_a_health_check_and_waits_for_healthy_ones() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert condition["condition"] == "service_healthy"
            # compose refuses a file that needs a service of a profile that is off
            assert ("profiles" in SERVICES[other]) == (condition.get("required") is False)


def test_no_health_check_asks_a_proxy() -> None:
    """Docker may give one to every container (its config.json)."""
    asked = SERVICES["label-studio"]["healthcheck"]["test"][-1]
    assert "build_opener(r.ProxyHandler({})).open(" in asked
    compile(asked, "healthcheck", "exec")


def test_no_service_fills_the_disk_with_its_log() -> None:
    for name, service in SERVICES.items():
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_the_scans_that_are_shown_are_mounted_and_only_read() -> None:
    for name, service in OURS.items():
        volumes = service["environment"]["NEXTSLICE_VOLUMES"]
        folder = volumes.removesuffix("}").rpartition("=")[2]
        assert f"${{SCANS:-./scans}}:{folder}:ro" in service["volumes"], name


@pytest.mark.parametrize("name", sorted(name for name in OURS if "command" in OURS[name]))
def test_every_command_exists(name: str) -> None:
    program, command, kind = OURS[name]["command"]
    assert program == "nextslice"
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    assert worker.Kind(kind)
    assert OURS[name]["healthcheck"]["test"][-1] == kind


def test_only_the_gpu_worker_reserves_a_gpu() -> None:
    gpu, cpu = dict(OURS["gpu-worker"]), dict(OURS["cpu-worker"])
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert (gpu.pop("profiles"), cpu.pop("profiles")) == (["gpu"], ["cpu"])
    assert gpu == cpu


# -- the image


def test_the_image_runs_gunicorn_as_nextslice_up_does() -> None:
    (argv,) = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, flags=re.MULTILINE)
    expected = ["python", *gunicorn_argv("0.0.0.0:9090")[1:]]
    assert json.loads(argv) == [*expected[:-1], "/dev/shm"]


def test_the_image_does_not_run_as_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user} " in DOCKERFILE


def test_what_is_copied_exists_and_is_sent_to_the_engine() -> None:
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    copied = {source for line in lines for source in line.split()}
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


def test_everything_that_the_image_installs_is_pinned() -> None:
    argv = [sys.executable, DOCKER / "dependencies.py", ROOT / "pyproject.toml"]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    requirements = [Requirement(line) for line in printed.splitlines()]
    assert requirements
    for requirement in requirements:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


# -- the health check, on real processes


@pytest.fixture
def environment(make_settings: Callable[..., Settings], redis_url: str) -> dict[str, str]:
    settings = make_settings(REDIS_URL=redis_url)
    return {
        "REDIS_URL": redis_url,
        "NEXTSLICE_STORE": settings.store,
        "NEXTSLICE_QUEUE_PREFIX": "docker-test",
        "BASIC_AUTH_USER": "ls",
        "BASIC_AUTH_PASS": "secret",
    }


def healthcheck(kind: str, environment: dict[str, str]) -> int:
    """What Docker runs, and what it makes of it: 0 is healthy."""
    argv = [sys.executable, str(DOCKER / "healthcheck.py"), kind]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(argv, env=env, check=False, capture_output=True).returncode


def test_a_worker_is_in_service_once_it_is_on_its_queue(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert healthcheck("control", environment) == 1
    with ProcessGroup(tmp_path / "logs") as group:
        start_worker(group, "control", environment)
        wait_until(lambda: healthcheck("control", environment) == 0, "registration", 240)
        assert healthcheck("gpu", environment) == 1
        assert healthcheck("control", {**environment, "REDIS_URL": "redis://127.0.0.1:1/0"}) == 1


def test_the_backend_is_in_service_when_it_asks_for_a_password(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked without the proxy that a container may be given."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # for `start_backend`
    answers = runpy.run_path(str(DOCKER / "healthcheck.py"))["backend_answers"]
    port = free_port()
    with ProcessGroup(tmp_path / "logs") as group:
        start_backend(group, port, environment)
        monkeypatch.delenv("no_proxy")
        assert answers(f"http://127.0.0.1:{port}/health")
        assert not answers(f"http://127.0.0.1:{port}/nowhere")
    with pytest.raises(OSError):
        answers(f"http://127.0.0.1:{port}/health")
