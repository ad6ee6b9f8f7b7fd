"""Whom images are fetched from, and how long it may take. Real sockets on 127.0.0.1."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml_backend.studio import download, network
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.download import ImageHosts
from ml_backend.studio.failures import ImageUnavailable
from ml_backend.studio.images import decode_image
from ml_backend.studio.network import is_public
from tests.http_server import serving

Answer = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    """``answers``: path → what is done for it; else 200 and ``an image``. ``asked``: the paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.over = threading.Event()

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answers.get(self.path, plain)(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def plain(handler: Handler) -> None:
    status(200)(handler)


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "8")
        handler.end_headers()
        handler.wfile.write(b"an image")

    return answer


def moved(address: str) -> Answer:
    return status(302, Location=address)


def drip(handler: Handler) -> None:
    """A byte every 50 ms, for as long as somebody takes it."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    _drip(handler, b"x")


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    _drip(handler, b"x")


def _drip(handler: Handler, data: bytes) -> None:
    try:
        while not handler.server.over.wait(0.05):
            handler.wfile.write(data)
    except OSError:  # it was given up
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running
        running.over.set()


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """A host that is not Label Studio."""
    with serving(Server()) as running:
        yield running
        running.over.set()


# -- from whom


def private_spellings(server: Server) -> list[str]:
    hosts = ("127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "[::ffff:127.0.0.1]",
             "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0")  # fmt: skip
    return [server.url("/a.png", host=host) for host in hosts]


@pytest.mark.parametrize("hosts", ["", "*", "images.example"])
@pytest.mark.parametrize("through", ["at once", "by a redirect"])
def test_no_private_address_is_asked(
    server: Server, elsewhere: Server, hosts: str, through: str
) -> None:
    studio = Studio(server.url(), "token", image_hosts=ImageHosts(hosts), download_s=5)
    for address in private_spellings(elsewhere):
        url = address
        if through == "by a redirect":
            server.answers["/moved.png"] = moved(address)
            url = "/moved.png"
        with pytest.raises(StudioError, match=r"NEXTSLICE_IMAGE_HOSTS") as refused:
            studio.download(url, 5)
        assert not isinstance(refused.value, ImageUnavailable), address
    assert elsewhere.asked == []


def test_a_named_host_is_asked_whatever_its_address(server: Server, elsewhere: Server) -> None:
    port = elsewhere.server_port
    for hosts in ("127.0.0.1", f"127.0.0.1:{port}", f"other.example, 127.0.0.1:{port}", "127.0.*"):
        studio = Studio(server.url(), "token", image_hosts=ImageHosts(hosts))
        assert studio.download(elsewhere.url("/a.png"), 5) == b"an image"
    assert len(elsewhere.asked) == 4


def test_another_port_of_a_named_host_is_not_asked(server: Server, elsewhere: Server) -> None:
    studio = Studio(server.url(), "token", image_hosts=ImageHosts("127.0.0.1:1"))
    with pytest.raises(StudioError, match="neither Label Studio nor a host"):
        studio.download(elsewhere.url("/a.png"), 5)
    assert elsewhere.asked == []


def test_a_named_host_may_send_to_another_one_only(server: Server, elsewhere: Server) -> None:
    studio = Studio(server.url(), "token", image_hosts=ImageHosts("localhost"))
    elsewhere.answers["/a.png"] = moved(elsewhere.url("/b.png"))
    with pytest.raises(StudioError, match="neither Label Studio nor a host"):
        studio.download(elsewhere.url("/a.png", host="localhost"), 5)
    assert elsewhere.asked == ["/a.png"]


def test_a_public_host_that_is_not_named_is_not_even_looked_up(server: Server) -> None:
    with pytest.raises(StudioError, match="neither Label Studio nor a host"):
        Studio(server.url(), "token").download("http://images.invalid/a.png", 5)


def test_redirects_end(server: Server) -> None:
    server.answers["/a.png"] = moved("/a.png")
    with pytest.raises(StudioError, match="more than 5 redirects"):
        Studio(server.url(), "token").download("/a.png", 5)
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("fec0::1", False),
        ("5f00::1", False),
        ("3fff::1", False),
        ("2606:4700::1", True),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("text", ["http://images.example", "a/b", "ada@host", "a b"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected hosts such as"):
        ImageHosts(text)


@pytest.mark.parametrize("address", ["http://[", "http://[::1", "//[/a.png", "s3://[b/a.png"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(StudioError, match=r"The image of task 5 at .* cannot be fetched"):
        Studio("http://127.0.0.1:9", "token").download(address, 5)


def test_a_proxy_of_the_environment_is_used(
    server: Server, elsewhere: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", elsewhere.url())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    studio = Studio(server.url(), "token", image_hosts=ImageHosts("*"))

    assert studio.download("http://images.invalid/a.png", 5) == b"an image"
    assert elsewhere.asked == ["http://images.invalid/a.png"]
    with pytest.raises(StudioError, match="no public address"):
        studio.download("http://169.254.169.254/a.png", 5)


# -- how long


@pytest.mark.parametrize("slowly", [drip, drip_headers])
def test_a_byte_now_and_then_does_not_hold_a_download(server: Server, slowly: Answer) -> None:
    server.answers["/a.png"] = slowly
    studio = Studio(server.url(), "token", download_s=0.5)
    begin = time.monotonic()
    with pytest.raises(ImageUnavailable, match=r"task 5 .* did not arrive within 0\.5 s"):
        studio.download("/a.png", 5)
    assert time.monotonic() - begin < 60


def test_redirects_share_the_time(server: Server) -> None:
    def slow_redirect(handler: Handler) -> None:
        handler.server.over.wait(0.3)
        moved("/a.png")(handler)

    server.answers["/a.png"] = slow_redirect
    begin = time.monotonic()
    with pytest.raises(ImageUnavailable, match=r"did not arrive within 0\.5 s"):
        Studio(server.url(), "token", download_s=0.5).download("/a.png", 5)
    assert time.monotonic() - begin < 60


def test_an_address_that_swallows_packets_leaves_time_for_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As IPv6 does on a machine that has it but no way out."""
    deaf = socket.socket()
    deaf.bind(("127.0.0.2", server.server_port))
    deaf.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(deaf.getsockname())
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.server_port))
            for ip in ("127.0.0.2", "127.0.0.1")]  # fmt: skip
    monkeypatch.setattr(network.socket, "getaddrinfo", lambda *a, **k: rows)
    hosts = ImageHosts("images.lab")
    try:
        studio = Studio(server.url(), "token", image_hosts=hosts, download_s=10)
        address = f"http://images.lab:{server.server_port}/a.png"
        assert studio.download(address, 5) == b"an image"
    finally:
        for one in (deaf, *waiting):
            one.close()


def test_who_has_less_time_waits_less(server: Server) -> None:
    server.answers["/a.png"] = drip
    with pytest.raises(ImageUnavailable, match=r"did not arrive within 0\.2 s"):
        Studio(server.url(), "token", download_s=60).download("/a.png", 5, within_s=0.2)
    with pytest.raises(ImageUnavailable, match="did not arrive"):
        Studio(server.url(), "token").download("/a.png", 5, within_s=-1.0)


def test_a_host_that_is_slow_is_waited_for_a_few_times_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_QUIET_S", 600.0)
    server.answers = {f"/{i}.png": drip for i in range(100)}
    studio = Studio(server.url(), "token", download_s=1)

    def fails(i: int) -> str:
        with pytest.raises(ImageUnavailable) as why:
            studio.download(f"/{i}.png", i)
        return str(why.value)

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(fails, range(100)))

    assert len(server.asked) <= 8
    assert all(f"The image of task {i} " in text for i, text in enumerate(said)), "by name"
    assert "failed 5 times in a row" in said[-1]


def test_a_host_is_asked_again_after_a_pause(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_QUIET_S", 0.0)
    server.answers["/a.png"] = status(500)
    studio = Studio(server.url(), "token")
    for _ in range(6):
        with pytest.raises(ImageUnavailable, match="it answered 500"):
            studio.download("/a.png", 5)
    server.answers.clear()
    assert studio.download("/a.png", 5) == b"an image"
    assert studio.downloads.patience._failures == {}


# -- what


@pytest.mark.parametrize(("code", "may_return"), [
    (401, True), (408, True), (429, True), (500, True), (502, True), (503, True),
    (400, False), (403, False), (404, False), (410, False), (204, False),
])  # fmt: skip
def test_which_answers_may_be_others_in_a_moment(
    server: Server, code: int, may_return: bool
) -> None:
    server.answers["/a.png"] = status(code)
    with pytest.raises(StudioError, match=f"answered {code}; expected 200") as refused:
        Studio(server.url(), "token").download("/a.png", 5)
    assert isinstance(refused.value, ImageUnavailable) is may_return


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        (True, "has 1000000000000 bytes, at most 1000000 are read"),
        (False, "has more than the 1000000 bytes that are read"),
    ],
)
def test_an_image_without_end_is_given_up(
    server: Server, announced: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 1_000_000)
    sent = [0]

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        try:
            while not announced:
                sent[0] += handler.wfile.write(b"x" * 100_000)
        except OSError:
            pass

    server.answers["/a.png"] = endless
    with pytest.raises(StudioError, match=why) as refused:
        Studio(server.url(), "token").download("/a.png", 5)
    assert not isinstance(refused.value, ImageUnavailable)
    assert sent[0] < 50_000_000


def test_nothing_of_what_was_fetched_is_said() -> None:
    with pytest.raises(StudioError, match="found 20 bytes") as refused:
        decode_image(b"root:x:0:the secret!", "task 5")
    assert "root" not in str(refused.value)
    assert "secret" not in str(refused.value)
