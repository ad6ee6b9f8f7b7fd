"""A Redis of our own where every command finds it, and never in place of somebody else's."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker

from ml_backend.embedded.processes import ProcessGroup, StartError, free_port
from ml_backend.embedded.redis_server import (
    find_redis_server,
    provide_redis,
    redis_answers,
    start_redis,
)
from ml_backend.embedded.stack import start_worker
from ml_backend.rounds.schedule import CONTROL, Schedule
from ml_backend.settings import Settings, own_redis_socket, socket_url


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path / "logs") as group:
        yield group


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_none_without_a_password_is_started_on_a_port(
    group: ProcessGroup, tmp_path: Path, host: str
) -> None:
    """Every user of the machine would reach it."""
    url = f"redis://{host}:{free_port()}/3"

    with pytest.raises(StartError, match=r"cannot be used.*only on a Unix socket"):
        provide_redis(group, url, tmp_path / "redis")

    assert not (tmp_path / "redis").exists()
    assert not redis_answers(url)


def test_where_nobody_names_one_it_is_of_the_user_alone_and_other_commands_find_it(
    group: ProcessGroup, tmp_path_factory: pytest.TempPathFactory,
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    home = tmp_path_factory.mktemp("h") / "new"
    monkeypatch.setenv("NEXTSLICE_HOME", str(home))
    monkeypatch.delenv("REDIS_URL", raising=False)
    default = f"redis://127.0.0.1:{free_port()}/0"
    assert make_settings().redis_address == make_settings().redis_url

    url = provide_redis(group, default, home / "redis", own_redis_socket())

    assert make_settings().redis_address == url == f"unix://{home}/redis.sock?db=0"
    redis = Redis.from_url(url)
    assert redis.config_get("port") == {"port": "0"}
    assert (home / "redis.sock").stat().st_mode & 0o077 == 0
    redis.set("kept", "yes")
    assert provide_redis(group, url, home / "other", own_redis_socket()) is None
    assert Schedule(make_settings()).connection.get("kept") == b"yes"
    assert make_settings(REDIS_URL=default).redis_address == default, "who sets it is heard"
    redis.shutdown(nosave=True)
    assert make_settings().redis_address == make_settings().redis_url, "its file locks out nobody"


@pytest.mark.parametrize("name", ["a b", "a=b", "a#b?c", "100%25", "ä:b@c"])
def test_a_home_may_have_any_name(
    group: ProcessGroup, tmp_path_factory: pytest.TempPathFactory,
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    home = tmp_path_factory.mktemp("h") / name
    monkeypatch.setenv("NEXTSLICE_HOME", str(home))
    monkeypatch.delenv("REDIS_URL", raising=False)
    nobody = f"redis://127.0.0.1:{free_port()}/0"

    url = provide_redis(group, nobody, home / "redis", own_redis_socket())

    assert url == make_settings().redis_address == socket_url(home / "redis.sock")
    assert redis_answers(url)
    assert (home / "redis.sock").is_socket()


def test_workers_listen_where_the_path_of_the_socket_has_spaces_and_equals_signs(
    group: ProcessGroup,
    make_settings: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Redis tells it among pairs that are parted by spaces."""
    folder = tmp_path_factory.mktemp("r") / "a b=c=d"
    url = start_redis(group, folder)
    schedule = Schedule(make_settings(REDIS_URL=url))

    start_worker(group, "control", {"REDIS_URL": url, "NEXTSLICE_STORE": str(folder / "store")})

    group.wait("worker-control", lambda: schedule.listening(CONTROL) == 1, timeout_s=120)
    (worker,) = Worker.all(connection=schedule.connection)
    assert worker.ip_address == "unknown"


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_home_that_others_may_write_to_is_closed_to_them(
    group: ProcessGroup, tmp_path_factory: pytest.TempPathFactory, mode: int
) -> None:
    """As made under umask 002."""
    home = tmp_path_factory.mktemp("h")
    home.chmod(mode)
    nobody = f"redis://127.0.0.1:{free_port()}/0"

    assert provide_redis(group, nobody, home / "redis", home / "redis.sock")

    assert home.stat().st_mode & 0o777 == 0o755


def test_one_that_refuses_the_password_is_not_replaced(group: ProcessGroup, tmp_path: Path) -> None:
    port = free_port()
    argv = [find_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    group.start("guarded", [*argv, "--requirepass", "right"])
    group.wait("guarded", lambda: redis_answers(f"redis://:right@127.0.0.1:{port}"), 60)

    assert not provide_redis(group, f"redis://:right@127.0.0.1:{port}", tmp_path / "redis")
    for given, shown in ((":wrong@", ":***@"), ("", "")):
        with pytest.raises(StartError, match=r"cannot be used.*Check REDIS_URL") as refused:
            provide_redis(group, f"redis://{given}127.0.0.1:{port}", tmp_path / "redis")
        assert f"redis://{shown}127.0.0.1:{port} " in str(refused.value)
        assert "wrong" not in str(refused.value)
    assert not (tmp_path / "redis").exists()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:{port}/0",
        "redis://ann:secret@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0?password=secret",
        "rediss://127.0.0.1:{port}/0",
        "redis://redis.invalid:{port}/0",
        "unix:///nowhere/redis.sock",
    ],
)
def test_none_is_started_where_others_would_not_find_it(
    group: ProcessGroup, tmp_path: Path, url: str
) -> None:
    with pytest.raises(StartError, match="cannot be used") as refused:
        provide_redis(group, url.format(port=free_port()), tmp_path / "redis")
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "redis").exists()


def test_what_is_no_redis_is_not_replaced(group: ProcessGroup, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(StartError, match="cannot be used"):
            provide_redis(group, url, tmp_path / "redis")


def test_a_private_one_has_a_port_of_its_own(group: ProcessGroup, tmp_path: Path) -> None:
    urls = {start_redis(group, tmp_path / name) for name in ("a", "b")}
    assert len(urls) == 2
    assert all(redis_answers(url) for url in urls)


def test_a_private_one_is_of_its_user_alone(group: ProcessGroup, tmp_path: Path) -> None:
    url = start_redis(group, tmp_path / "redis")
    redis = Redis.from_url(url)
    assert redis.config_get("port") == {"port": "0"}
    sock = Path(redis.connection_pool.connection_kwargs["path"])
    assert sock.stat().st_mode & 0o077 == 0


def test_one_is_started_on_a_socket_in_a_folder_of_ours_alone(
    group: ProcessGroup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("r")
    url = f"unix://{folder}/s?db=3"
    folder.chmod(0o777)
    with pytest.raises(StartError, match=f"others may write to the folder {folder} .chmod go-w"):
        provide_redis(group, url, folder / "redis")
    folder.chmod(0o700)
    assert provide_redis(group, url, folder / "redis")
    assert not provide_redis(group, url, folder / "redis")
    assert Redis.from_url(url).ping()


def test_why_none_can_be_started_is_said(
    group: ProcessGroup, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    long = tmp_path / ("long" * 40) / "redis.sock"
    missing = tmp_path_factory.mktemp("r") / "missing"

    with pytest.raises(StartError, match=r"has 107 bytes at most, this one \d{3}"):
        provide_redis(group, nobody, tmp_path / "redis", long)
    with pytest.raises(StartError, match=f"there is no folder {missing}"):
        provide_redis(group, socket_url(missing / "redis.sock"), tmp_path / "redis")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StartError, match=f"the folder {missing.parent} is another user's"):
        provide_redis(group, socket_url(missing.parent / "s"), tmp_path / "redis")


def test_a_folder_of_any_length_has_one_and_nothing_of_it_stays(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with ProcessGroup(tmp_path / "logs") as group:
        assert redis_answers(start_redis(group, tmp_path / ("long" * 40)))
        assert list(scratch.iterdir())
    assert list(scratch.iterdir()) == []
