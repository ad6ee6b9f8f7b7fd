"""`nextslice up` beside a Label Studio that has no projects."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from ml_backend.embedded.processes import ProcessGroup, free_port, split_address
from ml_backend.embedded.redis_server import redis_answers, start_redis
from ml_backend.embedded.stack import settings_from, start_worker
from ml_backend.errors import OptionError
from ml_backend.rounds.schedule import CONTROL, Schedule
from ml_backend.settings import Settings
from tests.test_cli import nextslice


class _NoProjects(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"count": 0, "next": None, "previous": None, "results": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def label_studio() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _NoProjects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_up_starts_the_redis_that_other_commands_look_for(
    label_studio: str, make_settings: Callable[..., Settings], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    backend = f"http://127.0.0.1:{free_port()}"
    env = {
        "LABEL_STUDIO_URL": label_studio,
        "LABEL_STUDIO_API_KEY": "token",
        "NEXTSLICE_BACKEND_URL": backend,
        "REDIS_URL": f"unix://{tmp_path_factory.mktemp('r')}/redis.sock",
        "NEXTSLICE_STORE": str(tmp_path / "store"),
    }
    argv = ["-m", "ml_backend.cli", "up", "--gpu-workers", "0", "--data", str(tmp_path / "data")]
    # what a command in another shell has: the same environment
    schedule = Schedule(make_settings(**env))

    def at_work() -> bool:
        return redis_answers(env["REDIS_URL"]) and schedule.listening(CONTROL) == 1

    def answers() -> bool:
        try:
            return requests.get(f"{backend}/health", timeout=60).ok
        except requests.RequestException:
            return False

    log = tmp_path / "logs" / "up.log"
    with ProcessGroup(tmp_path / "logs") as group:
        group.start("up", [sys.executable, *argv], env=env)
        group.wait("up", lambda: "nextslice listens on" in log.read_text(), timeout_s=240)
        assert answers()  # it is only said when it is so
        group.wait("up", at_work, timeout_s=240)
    assert not redis_answers(env["REDIS_URL"])
    said = " ".join((tmp_path / "logs" / "up.log").read_text().split())
    assert "one is started there" in said
    made = [path for path in (tmp_path / "data").rglob("*") if path.exists()]
    assert len(made) > 4
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_up_says_whose_redis_it_has_behind_a_proxy_too(
    label_studio: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("h")
    env = {
        "http_proxy": "http://127.0.0.1:9",
        "LABEL_STUDIO_URL": label_studio,
        "LABEL_STUDIO_API_KEY": "token",
        "NEXTSLICE_HOME": str(home),
        "NEXTSLICE_STORE": str(tmp_path / "store"),
        "REDIS_URL": "",
    }
    data = tmp_path / "data[old] :b:"
    bind = f"127.0.0.1:{free_port()}"
    argv = ["-m", "ml_backend.cli", "up", "--bind", bind, "--data", str(data)]
    argv += ["--gpu-workers", "0", "--control-workers", "0"]
    log = tmp_path / "logs" / "up.log"
    with ProcessGroup(tmp_path / "logs") as group:
        start_redis(group, tmp_path / "redis", home / "redis.sock")
        group.start("up", [sys.executable, *argv], env=env)
        group.wait("up", lambda: "nextslice listens on" in log.read_text(), timeout_s=240)
    said = log.read_text()
    assert f"The Redis at unix://{home}/redis.sock?db=0 is another nextslice up's" in said
    assert f"Logs: {data / 'logs'}." in said


def test_up_refuses_the_queues_of_another_one(
    label_studio: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Started in another folder, for another Label Studio, it would find the first one's Redis."""
    env = {
        "LABEL_STUDIO_URL": label_studio,
        "LABEL_STUDIO_API_KEY": "token",
        "NEXTSLICE_HOME": str(tmp_path_factory.mktemp("h")),
        "REDIS_URL": "",
    }
    with ProcessGroup(tmp_path / "logs") as group:
        url = start_redis(group, tmp_path / "redis", Path(env["NEXTSLICE_HOME"], "redis.sock"))
        first = {
            "REDIS_URL": url,
            "LABEL_STUDIO_URL": "http://first.example",
            "NEXTSLICE_STORE": str(tmp_path / "first"),
        }
        schedule = Schedule(settings_from(first))
        start_worker(group, "control", first)
        group.wait("worker-control", lambda: schedule.listening(CONTROL) == 1, timeout_s=120)
        done = nextslice(
            "up",
            "--bind",
            f"127.0.0.1:{free_port()}",
            "--data",
            str(tmp_path / "data"),
            **env,
            NEXTSLICE_STORE=str(tmp_path / "second"),
        )
    assert done.returncode == 75
    assert "NEXTSLICE_QUEUE_PREFIX" in done.stderr
    assert "first.example" in done.stderr


def test_up_stops_at_a_redis_that_it_cannot_use_and_hides_its_password(
    label_studio: str, tmp_path: Path
) -> None:
    done = nextslice(
        "up",
        "--data",
        str(tmp_path),
        LABEL_STUDIO_URL=label_studio,
        LABEL_STUDIO_API_KEY="token",
        REDIS_URL=f"redis://:secret@127.0.0.1:{free_port()}/0",
    )
    assert done.returncode == 1
    assert "redis://:***@127.0.0.1:" in done.stderr
    assert "cannot be used" in done.stderr.replace("\n", " ")
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:9090"])
def test_up_does_not_listen_beyond_this_machine_without_credentials(
    label_studio: str, tmp_path: Path, address: str
) -> None:
    done = nextslice(
        "up",
        "--bind",
        address,
        "--data",
        str(tmp_path / "data"),
        LABEL_STUDIO_URL=label_studio,
        LABEL_STUDIO_API_KEY="token",
        REDIS_URL=f"redis://127.0.0.1:{free_port()}/0",
    )
    assert done.returncode == 78
    assert "BASIC_AUTH_USER" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:-1", "127.0.0.1:", "127.0.0.1", "9090",
        "127.0.0.1:http", "::1:9090", "[::1:9090", "a..b:9090", "127.0.0.1:٩٠٩٠",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_a_mistake_of_who_gave_it(address: str) -> None:
    with pytest.raises(OptionError, match=r"--bind: found .*, expected an address and a port"):
        split_address(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("[::1]:65535", ("::1", 65535)),
        (":9090", ("", 9090)),
        ("lab.example:1", ("lab.example", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1"])
def test_up_refuses_such_an_address_as_a_usage_error(tmp_path: Path, address: str) -> None:
    done = nextslice(
        "up", "--bind", address, "--data", str(tmp_path / "data"), LABEL_STUDIO_API_KEY="token"
    )
    assert done.returncode == 2
    assert f"--bind: found '{address}', expected" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_up_says_first_that_the_store_cannot_be_written(label_studio: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = nextslice(
        "up",
        "--data",
        str(tmp_path / "data"),
        LABEL_STUDIO_URL=label_studio,
        LABEL_STUDIO_API_KEY="token",
        NEXTSLICE_STORE=str(tmp_path / "file" / "store"),
    )
    assert done.returncode == 74
    assert "It is given by NEXTSLICE_STORE" in done.stderr
    assert str(tmp_path / "file" / "store") in done.stderr
    assert not (tmp_path / "data").exists()


def test_up_calls_a_used_port_that(label_studio: str, tmp_path: Path) -> None:
    port = label_studio.rpartition(":")[2]
    done = nextslice(
        "up",
        "--bind",
        f"127.0.0.1:{port}",
        "--data",
        str(tmp_path / "data"),
        LABEL_STUDIO_URL=label_studio,
        LABEL_STUDIO_API_KEY="token",
        NEXTSLICE_STORE=str(tmp_path / "store"),
    )
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 is used by another program" in done.stderr
    assert "listens on" not in done.stderr
    assert not (tmp_path / "data").exists()
