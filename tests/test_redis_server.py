"""A Redis of our own where every command finds it, and never in place of somebody else's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from ml_backend.embedded.processes import ProcessGroup, StartError, free_port
from ml_backend.embedded.redis_server import (
    find_redis_server,
    provide_redis,
    redis_answers,
    start_redis,
)
from ml_backend.rounds.schedule import Schedule
from ml_backend.settings import Settings, own_redis_socket


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
    with pytest.raises(StartError, match="cannot be used"):
        provide_redis(group, url, folder / "redis")
    folder.chmod(0o700)
    assert provide_redis(group, url, folder / "redis")
    assert not provide_redis(group, url, folder / "redis")
    assert Redis.from_url(url).ping()


def test_a_folder_of_any_length_has_one(group: ProcessGroup, tmp_path: Path) -> None:
    assert redis_answers(start_redis(group, tmp_path / ("long" * 40)))
