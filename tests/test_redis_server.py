"""A Redis of our own where every command finds it, and never in place of somebody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
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


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path / "logs") as group:
        yield group


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_is_started_at_the_address_where_nothing_listens(
    group: ProcessGroup, tmp_path: Path, host: str
) -> None:
    url = f"redis://{host}:{free_port()}/3"

    assert provide_redis(group, url, tmp_path / "redis")

    redis = Redis.from_url(url)
    assert redis.config_get("bind") == {"bind": "127.0.0.1"}
    redis.set("kept", "yes")
    assert not provide_redis(group, url, tmp_path / "other")
    assert redis.get("kept") == b"yes"


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
