"""A gunicorn worker that gives a request a thread only when all of it is there.

gunicorn's own threads read from the client: as many clients as threads that send a header slowly,
or not to its end, and nobody else is answered. Here waitress receives requests and sends answers in
one loop, for hundreds of connections at once; threads see whole requests. gunicorn starts the
process, watches it and starts it again.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import sys
import time
from typing import Any

from gunicorn.workers.base import Worker
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from ml_backend.api.auth import check_address
from ml_backend.api.limits import BODY_BYTES
from ml_backend.settings import SettingsError, load_settings

__all__ = ["CONNECTIONS", "IDLE_S", "RECEIVED_WITHIN_S", "BufferingWorker"]

CONNECTIONS = 800
"""At once, or as many as the limit of open files allows."""
IDLE_S = 30
"""A connection on which nothing is sent or taken for so long is closed."""
RECEIVED_WITHIN_S = 60
"""So is one whose request is not there whole after so long, however often a byte comes."""
_LOOK_EVERY_S = 5
_WAIT_S = 0.5
_NEVER = 1 << 40
_FILES = 4096
"""Open at once, where the hard limit lets us raise the soft one, which is 1,024 as a rule."""
_OWN_FILES = 224
"""Of these for what is no connection: store, cache, volumes, Redis, Label Studio."""
_FILES_EACH = 3
"""Of a connection: its socket, and temporary ones for a large body and a large answer."""
_FEWEST_CONNECTIONS = 16
_NO_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST_S = 1.0
"""No connection is taken for so long after one could not be for want of a file."""
_REFUSED = 3
"""The status with which a worker tells gunicorn not to start it again."""


class _Channel(HTTPChannel):  # type: ignore[misc]
    """``begun``: when the request that is being received began; None: there is none."""

    begun: float | None = None

    def received(self, data: bytes) -> bool:
        taken: bool = super().received(data)
        if self.request is None:
            self.begun = None
        elif self.begun is None:
            self.begun = time.time()
        return taken


class _Server(TcpWSGIServer):  # type: ignore[misc]
    channel_class = _Channel
    rests_until = 0.0

    def readable(self) -> bool:
        return bool(super().readable()) and time.monotonic() >= self.rests_until

    def accept(self) -> Any:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            # the connection goes on waiting, so the loop would be back here at once, for ever
            self.rests_until = time.monotonic() + _REST_S
            self.logger.warning("no connection is taken for %g s: %s", _REST_S, error.strerror)
            return None

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in self.active_channels.values():
            begun = None if channel.requests else channel.begun
            if begun is not None and now - begun > RECEIVED_WITHIN_S:
                channel.will_close = True


class BufferingWorker(Worker):  # type: ignore[misc]
    """``gunicorn --worker-class ml_backend.api.buffering.BufferingWorker``, with ``--threads``."""

    def init_process(self) -> None:
        os.umask(0o077)  # store, cache and temporary files are the service's own
        try:
            for one in self.sockets:
                if one.sock.family != socket.AF_UNIX:
                    check_address(load_settings(), one.sock.getsockname()[0])
        except SettingsError as error:
            self.log.error("%s", error)
            sys.exit(_REFUSED)
        _raise_file_limit()
        if _connections() < CONNECTIONS:
            self.log.warning(
                "%d connections are taken at once instead of %d: more files must be allowed to be "
                "open (ulimit -Hn)", _connections(), CONNECTIONS,
            )  # fmt: skip
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop, or until gunicorn's main process has gone."""
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that requests wait is known
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(self.cfg.threads)
        connections: dict[int, Any] = {}
        servers = [self._server(one.sock, connections, dispatcher) for one in self.sockets]
        while self.alive and self.ppid == os.getppid():
            self._turn(connections)
        for server in servers:
            server.del_channel(connections)  # no new ones; gunicorn holds the sockets
        until = time.monotonic() + self.cfg.graceful_timeout
        while time.monotonic() < until and any(_busy(one) for one in connections.values()):
            self._turn(connections)
        dispatcher.shutdown(timeout=1)

    def _turn(self, connections: dict[int, Any]) -> None:
        self.notify()
        wasyncore.loop(timeout=_WAIT_S, use_poll=True, map=connections, count=1)

    def _server(self, sock: Any, connections: dict[int, Any], dispatcher: Any) -> _Server:
        settings = Adjustments(
            sockets=[sock],
            threads=self.cfg.threads,
            ident=None,
            connection_limit=_connections(),
            channel_timeout=IDLE_S,
            cleanup_interval=_LOOK_EVERY_S,
            asyncore_use_poll=True,
            max_request_body_size=BODY_BYTES,
            max_request_header_size=1 << 16,
            # what a slow reader has not taken waits in a temporary file, and no thread for it
            outbuf_high_watermark=_NEVER,
            # as gunicorn: a proxy on this machine may say that it was asked over https
            trusted_proxy="127.0.0.1",
            trusted_proxy_headers={"x-forwarded-proto"},
            clear_untrusted_proxy_headers=False,
        )
        where = (sock.family, sock.type, sock.proto, sock.getsockname())
        return _Server(
            self.wsgi,
            connections,
            _sock=sock,
            dispatcher=dispatcher,
            adj=settings,
            bind_socket=False,
            sockinfo=where,
        )


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _connections() -> int:
    """How many there may be at once, so that none takes the last file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(_FEWEST_CONNECTIONS, min(CONNECTIONS, (soft - _OWN_FILES) // _FILES_EACH))


def _busy(one: Any) -> bool:
    return isinstance(one, _Channel) and bool(one.requests or one.total_outbufs_len)
