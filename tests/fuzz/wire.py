"""The target that sends bytes to the backend as it is served: gunicorn, our worker, real Redis."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.fuzz.target import Sample, Target

__all__ = ["WIRE", "backend_environment"]

KEY = "7.1763865028"
SECRET = "a secret of the fuzzer"
_WAIT_S = 20
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_DOCUMENTED = frozenset(
    {
        *(200, 304, 308, 400, 401, 403, 404, 405, 413, 422, 503),  # openapi.json
        *(100, 204, 206, 414, 416, 417, 431, 501, 505),  # HTTP itself: waitress and Werkzeug
    }
)


class Undocumented(Exception):
    """An answer that no page says."""


def backend_environment(folder: Path, redis_url: str) -> dict[str, str]:
    """Of a backend that has all its state in ``folder``, and a volume to show."""
    (folder / "scans").mkdir()
    (folder / "scans" / "a.raw").write_bytes(bytes(4 * 10 * 12))
    return {
        "NEXTSLICE_STORE": str(folder / "store"),
        "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
        "NEXTSLICE_VOLUMES": f"scans={folder / 'scans'}",
        "NEXTSLICE_SLICE_SECRET": SECRET,
        "LABEL_STUDIO_API_KEY": "token",
        "REDIS_URL": redis_url,
        "NEXTSLICE_LOG_LEVEL": "ERROR",
    }


@contextmanager
def served() -> Iterator[Callable[[Sample], None]]:
    # seconds of imports, which the other targets do not need
    from ml_backend.embedded.processes import ProcessGroup, free_port
    from ml_backend.embedded.redis_server import start_redis
    from ml_backend.embedded.stack import start_backend

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        with ProcessGroup(folder / "logs") as group:
            environment = backend_environment(folder, start_redis(group, folder))
            port = free_port()
            start_backend(group, port, environment)
            yield partial(_send, port)


def _send(port: int, sample: Sample) -> None:
    with socket.create_connection(("127.0.0.1", port), _WAIT_S) as connection:
        answer = b""
        try:
            connection.sendall(sample[""])
            connection.shutdown(socket.SHUT_WR)
            while len(answer) < 1 << 20 and (part := connection.recv(1 << 16)):
                answer += part
        except TimeoutError:
            raise
        except OSError:  # it was closed with bytes left unread
            pass
    statuses = {int(found) for found in _STATUS.findall(answer)}
    if strange := statuses - _DOCUMENTED:
        raise Undocumented(f"{sorted(strange)}: {answer[:300]!r}")


_WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"[" * 3000,
    *b"""Content-Length: |Host: |X-Forwarded-For: |X-Forwarded-Proto: |Authorization: Basic |Accept:
Range: bytes=0-|If-None-Match: |Origin: http://[|HTTP/1.0|HTTP/1.1|HEAD |OPTIONS |GET |POST |/setup
/predict|/webhook|/versions|/ready|/metrics|/slices/|/zarr/|%00|%2e%2e|%ff|//|{}|[]|null|"project"|"tasks"
"id"|application/json|text/plain|?exclude=|?project=""".replace(b"\n", b"|").split(b"|"),
)

WIRE = (Target("wire", served, (), "text", words=_WORDS, slow=True),)
