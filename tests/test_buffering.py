"""Slow and greedy clients against the real server: they are cut, and nobody waits for them."""

from __future__ import annotations

import errno
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests
from waitress import wasyncore

from ml_backend.api import buffering
from ml_backend.api.limits import BODY_BYTES
from ml_backend.api.server import gunicorn_argv
from ml_backend.embedded.processes import ProcessGroup, free_port, wait_until
from tests.conftest import REPOSITORY

HALF = b"POST /webhook HTTP/1.1\r\nHost: nextslice\r\n"
"""The begin of a request; its empty line never comes."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of the backend, as `nextslice up` starts it."""
    folder = tmp_path_factory.mktemp("served")
    env = {"LABEL_STUDIO_API_KEY": "token", "NEXTSLICE_STORE": str(folder / "store")}
    port = free_port()
    with ProcessGroup(folder / "logs") as group:
        group.start("backend", gunicorn_argv(f"127.0.0.1:{port}"), env=env)
        group.wait("backend", lambda: healthy(port), timeout_s=240)
        yield port


def healthy(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=20).ok
    except requests.RequestException:
        return False


def test_the_process_that_serves_tells_prometheus_of_itself(port: int) -> None:
    answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=20)
    assert answer.status_code == 200
    assert "\nprocess_resident_memory_bytes " in answer.text
    assert 'nextslice_http_requests_total{endpoint="/health",status="200"}' in answer.text


def connected(stack: ExitStack, port: int, said: bytes) -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    client.sendall(said)
    return client


@pytest.mark.parametrize(
    "said", [b"", HALF, HALF + b"Content-Length: 1000\r\n\r\n{"], ids=["silent", "header", "body"]
)
def test_two_hundred_half_open_connections_delay_nobody(port: int, said: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            connected(stack, port, said)
        with ThreadPoolExecutor(8) as others:
            assert all(others.map(healthy, [port] * 40))


def test_readers_that_take_nothing_delay_nobody(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            connected(stack, port, b"GET /health HTTP/1.1\r\nHost: nextslice\r\n\r\n" * 3)
        assert healthy(port)


@pytest.mark.parametrize("length", ["Content-Length: 300000000", "Transfer-Encoding: chunked"])
def test_a_body_of_300_mb_is_refused_and_not_kept(port: int, length: str) -> None:
    backend = max(psutil.Process().children(recursive=True), key=lambda one: one.memory_info().rss)
    before = backend.memory_info().rss
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with ExitStack() as stack:
        client = connected(
            stack,
            port,
            HALF + f"Content-Type: application/json\r\n{length}\r\n\r\n".encode(),
        )
        sent = 0
        try:
            while "chunked" in length and sent < 300:
                client.sendall(chunk)
                sent += 1
        except OSError:  # the connection was closed on us
            pass
        else:
            assert b" 413 " in client.recv(1 << 16)
    assert sent < 300
    assert backend.memory_info().rss - before < 4 * BODY_BYTES
    assert healthy(port)


def ok(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    """A WSGI application; /slow takes a while."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.7)
    start("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def served_with_files(
    stack: ExitStack, folder: Path, soft: int, hard: int
) -> tuple[int, psutil.Process]:
    """Port and process of a backend that may have so many files open."""
    port, log = free_port(), stack.enter_context((folder / "log").open("wb"))
    process = subprocess.Popen(
        gunicorn_argv(f"127.0.0.1:{port}", "tests.test_buffering:ok"),
        cwd=REPOSITORY,
        stdout=log,
        stderr=log,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    stack.callback(process.wait, 120)
    stack.callback(process.terminate)
    wait_until(lambda: healthy(port), "the server to answer", 240)
    (worker,) = psutil.Process(process.pid).children()
    return port, worker


LARGE_BODY = HALF + b"Content-Length: 1000000\r\n\r\n" + bytes(600_000)
"""Begun, and so far already more than is kept in memory."""


def hold(stack: ExitStack, port: int, count: int, within_s: float) -> list[socket.socket]:
    """Connections that have sent a `LARGE_BODY`, or as much of it as is taken within a time."""
    clients = []
    for _ in range(count):
        client = connected(stack, port, b"")
        client.settimeout(within_s)
        with suppress(TimeoutError):
            client.sendall(LARGE_BODY)
        clients.append(client)
    return clients


def test_large_bodies_do_not_take_every_file_where_more_may_be_opened(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port, worker = served_with_files(stack, tmp_path, 256, 4096)
        hold(stack, port, 150, within_s=60)
        wait_until(lambda: worker.num_fds() > 300, "the bodies to be received", 25)
        assert healthy(port)
    assert "Too many open files" not in (tmp_path / "log").read_text()


def test_no_more_connections_are_taken_than_there_is_a_file_for(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port, worker = served_with_files(stack, tmp_path, 256, 300)
        clients = hold(stack, port, 150, within_s=0.05)
        assert worker.num_fds() < 150
        for client in clients:
            client.close()
        wait_until(lambda: healthy(port), "the server to answer again", 240)
    said = (tmp_path / "log").read_text()
    assert "25 connections are taken at once instead of 800" in said
    assert "Traceback" not in said


class Waiting:
    """A server of our kind in this process, with short times."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.worker = buffering.BufferingWorker.__new__(buffering.BufferingWorker)
        settings = SimpleNamespace(threads=2, graceful_timeout=1)
        parts: dict[str, Any] = {
            "wsgi": ok, "cfg": settings, "sockets": [SimpleNamespace(sock=self.socket)],
            "alive": True, "ppid": psutil.Process().ppid(), "notify": lambda: None,
        }  # fmt: skip
        for name, part in parts.items():
            setattr(self.worker, name, part)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    for name, seconds in {"IDLE_S": 2, "RECEIVED_WITHIN_S": 1.5, "_LOOK_EVERY_S": 0.1}.items():
        monkeypatch.setattr(buffering, name, seconds)
    server = Waiting()
    server.thread.start()
    yield server
    server.worker.alive = False
    server.thread.join(60)
    server.socket.close()
    assert not server.thread.is_alive()


def test_who_says_nothing_is_cut(impatient: Waiting) -> None:
    with ExitStack() as stack:
        assert connected(stack, impatient.port, b"").recv(10) == b""


def test_a_byte_now_and_then_does_not_keep_a_connection(impatient: Waiting) -> None:
    """Each well within the time after which a silent one is cut."""
    with ExitStack() as stack:
        client = connected(stack, impatient.port, HALF)
        client.settimeout(0.2)

        def cut() -> bool:
            try:
                client.sendall(b"X")
                return client.recv(10) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(cut, "the end of the connection", 60, pause_s=0)


def test_who_is_being_answered_is_not_cut_for_the_next_request(
    monkeypatch: pytest.MonkeyPatch, impatient: Waiting
) -> None:
    """It is half there for longer than it may be, while the first one is at work."""
    for name, seconds in {"RECEIVED_WITHIN_S": 0.2, "_WAIT_S": 0.05}.items():
        monkeypatch.setattr(buffering, name, seconds)
    with ExitStack() as stack:
        first = b"GET /slow HTTP/1.1\r\nHost: nextslice\r\n\r\n"
        assert b"200 OK" in connected(stack, impatient.port, first + HALF).recv(1 << 10)


def test_a_connection_may_be_used_again(impatient: Waiting) -> None:
    with requests.Session() as session:
        for _ in range(5):
            assert session.get(f"http://127.0.0.1:{impatient.port}/", timeout=60).text == "ok"


def test_without_a_file_for_a_connection_it_rests(
    monkeypatch: pytest.MonkeyPatch, impatient: Waiting, caplog: pytest.LogCaptureFixture
) -> None:
    """Instead of asking for it again, and failing, as fast as it can."""
    asked: list[float] = []

    def accept(server: object) -> None:
        asked.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as full, ExitStack() as stack:
        full.setattr(wasyncore.dispatcher, "accept", accept)
        connected(stack, impatient.port, b"")
        wait_until(lambda: len(asked) >= 2, "the next time", 60)
    assert asked[1] - asked[0] >= buffering._REST_S
    assert "Traceback" not in caplog.text
    url = f"http://127.0.0.1:{impatient.port}/"
    assert requests.get(url, timeout=60).text == "ok"


def held(folder: str) -> Callable[..., list[bytes]]:
    """A WSGI application that says that it was asked, and answers once it is let go."""

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        (Path(folder) / "asked").touch()
        wait_until((Path(folder) / "go").exists, "to be let go", 60, pause_s=0.02)
        start("200 OK", [("Content-Length", "4")])
        return [b"done"]

    return app


def test_what_is_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    port = free_port()
    argv = gunicorn_argv(f"127.0.0.1:{port}", f"tests.test_buffering:held('{tmp_path}')")
    process = subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), "the server to listen", 240)
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(requests.get, f"http://127.0.0.1:{port}/", timeout=60)
            wait_until((tmp_path / "asked").exists, "the request to begin", 60, pause_s=0.02)
            process.send_signal(signal.SIGTERM)
            (tmp_path / "go").touch()
            assert answer.result().text == "done"
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("told", [False, True])
def test_it_listens_beyond_this_machine_when_told_to_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: bool
) -> None:
    monkeypatch.setenv("NEXTSLICE_ALLOW_ANYONE", str(told))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(gunicorn_argv(f"0.0.0.0:{port}"), stderr=out, cwd=REPOSITORY)
        try:
            if told:
                wait_until(lambda: healthy(port), "the server to answer", 240)
            else:
                assert process.wait(240) != 0
                assert "BASIC_AUTH_USER and BASIC_AUTH_PASS" in log.read_text()
        finally:
            process.terminate()
            process.wait(120)


def test_the_server_is_ours() -> None:
    assert sys.modules[buffering.__name__].BufferingWorker.__name__ in " ".join(gunicorn_argv("x"))
