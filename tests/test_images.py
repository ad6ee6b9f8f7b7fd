"""Slices as arrays: native grey values, fetched once, within a limit."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.download import ImageHosts
from ml_backend.studio.images import ImageCache, decode_image
from tests.http_server import serving
from tests.http_studio import phantom_server


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        GREY.astype(np.uint16) * 1000,
        np.stack([GREY, GREY + 1, GREY + 2], -1),
        np.stack([GREY, GREY, GREY, GREY], -1),
    ],
    ids=["8-bit", "16-bit", "RGB", "RGBA"],
)
def test_png_values_are_native(array: npt.NDArray[Any]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(array)), "x"), array)


def test_float_tiff_values_are_native() -> None:
    values = GREY.astype(np.float32) / 7
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(values), "TIFF"), "x"), values
    )


def test_a_palette_becomes_colour_and_bits_become_grey() -> None:
    palette = Image.fromarray(np.stack([GREY] * 3, -1)).convert("P")
    assert decode_image(encoded(palette), "x").shape == (6, 8, 3)
    bits = Image.fromarray(GREY > 20)
    assert set(np.unique(decode_image(encoded(bits), "x"))) == {0, 255}


def turned(array: npt.NDArray[Any], orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1)])
@pytest.mark.parametrize(
    "array", [GREY, GREY.astype(np.uint16) * 1000, np.stack([GREY, GREY + 1, GREY + 2], -1)]
)
def test_an_image_is_turned_as_browsers_turn_it(
    array: npt.NDArray[Any], orientation: int, quarters: int
) -> None:
    found = decode_image(turned(array, orientation), "x")

    np.testing.assert_array_equal(found, np.rot90(array, quarters))
    assert found.dtype == array.dtype


def test_a_jpeg_is_turned_too_and_a_tiff_only_once() -> None:
    assert decode_image(turned(GREY, 6, "JPEG"), "x").shape == (8, 6)
    np.testing.assert_array_equal(decode_image(turned(GREY, 3, "TIFF"), "x"), np.rot90(GREY, 2))


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, format="PNG", exif=b"what a camera made of it")

    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), GREY)


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.fromarray(GREY))[:40]])
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(StudioError, match=r"task 5: found \d+ bytes .* expected PNG, JPEG or TIFF"):
        decode_image(data, "task 5")


def test_only_what_is_an_image_for_browsers_or_a_tiff_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow knows fifty formats more, and has Ghostscript run EPS, which is a program."""
    ran = tmp_path / "ran"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for once a process
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n0 0 moveto\n%%EOF\n"
    for data in (
        eps,
        encoded(Image.fromarray(GREY), "PPM"),
        encoded(Image.fromarray(GREY), "AVIF"),
    ):
        with pytest.raises(StudioError, match=r"task 5: found .* expected PNG, JPEG or TIFF"):
            decode_image(data, "task 5")
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what we broke
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_whatever_is_broken_is_named(kind: str) -> None:
    whole = encoded(Image.fromarray(np.stack([GREY] * 3, -1)), kind)
    noise = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in noise.integers(0, len(data), 3):
            data[place] = noise.integers(256)
        with suppress(StudioError):
            decode_image(bytes(data[: noise.integers(8, len(data) + 1)]), "task 5")


def test_the_dds_of_an_unknown_layout_is_named() -> None:
    """Pillow raises NotImplementedError at it."""
    head = struct.pack("<4I", 124, 0x1007, 6, 8) + bytes(56) + struct.pack("<2I", 32, 0) + bytes(44)
    with pytest.raises(StudioError, match="task 5: found"):
        decode_image(b"DDS " + head, "task 5")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(kind: str) -> None:
    data = encoded(Image.new("1", (12000, 12000)), kind)
    tracemalloc.start()
    try:
        with pytest.raises(StudioError, match="12000 × 12000 pixels, at most 134217728 are read"):
            decode_image(data, "task 5")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_png_with_a_damaged_chunk_is_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    data = bytearray(encoded(Image.fromarray(noise)))
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)  # Pillow: 64 KiB a chunk
    data[second : second + 4] = b"\0\0\0\0"
    with pytest.raises(StudioError, match="task 5: found"):
        decode_image(bytes(data), "task 5")


@pytest.mark.parametrize(
    ("server", "url", "address"),
    [
        ("http://ls", "/data/upload/1/a.png", "http://ls/data/upload/1/a.png"),
        ("http://ls/studio", "/data/upload/1/a.png", "http://ls/studio/data/upload/1/a.png"),
        ("http://ls/studio", "/studio/data/upload/1/a.png", "http://ls/studio/data/upload/1/a.png"),
        ("http://ls/studio", "https://other/a.png", "https://other/a.png"),
    ],
)
def test_the_address_of_an_upload(server: str, url: str, address: str) -> None:
    assert Studio(server, "token").absolute(url, 1) == address


def test_the_address_of_a_storage_is_the_one_that_label_studio_reads_back() -> None:
    """The base64 of some keys has a +, which a query does not keep."""
    url = "s3://scans/a~~~.png"
    address = urlsplit(Studio("http://ls/studio", "token").absolute(url, 3))
    (uri,) = parse_qs(address.query)["fileuri"]
    assert address.path == "/studio/tasks/3/presign/"
    assert base64.urlsafe_b64decode(uri.encode()).decode() == url


def test_pages_of_tasks_name_images_as_they_are_stored() -> None:
    with phantom_server() as server:
        data = {"image": "s3://scans/a.png"}
        server.memory.request("PATCH", "api/tasks/3/", json={"data": data})
        studio = Studio(server.url, server.key)
        assert [row.data for row in studio.tasks_by_id(7, [3])] == [data]
        assert [row["data"] for row in studio.full_tasks_by_id(7, [3])] == [data]


class Server(ThreadingHTTPServer):
    """Answers every path; ``moved``: path → address that it redirects to. ``seen``: path and token
    of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.moved: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []

    def url(self, path: str = "", scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        target = self.server.moved.get(self.path)
        self.send_response(200 if target is None else 302)
        if target is not None:
            self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


TOKEN = "Token a-legacy-token"


@pytest.mark.parametrize("below", ["", "/studio"])
def test_label_studio_gets_the_token(server: Server, below: str) -> None:
    studio = Studio(server.url(below), "a-legacy-token")
    server.moved = {f"{below}/a.png": f"{below}/b.png"}
    studio.download("/a.png", 1)
    studio.download(server.url(f"{below}/b.png"), 1)
    assert server.seen == [(f"{below}/{name}.png", TOKEN) for name in "abb"]


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/other/a.png", "127.0.0.1"),
        ("/studio2/a.png", "127.0.0.1"),
        ("/studio/../other/a.png", "127.0.0.1"),
        ("/studio/%2e%2e/other/a.png", "127.0.0.1"),
        ("/studio/..%2fother/a.png", "127.0.0.1"),
        ("/studio/a.png", "localhost"),
    ],
)
def test_the_token_goes_to_no_other_application(server: Server, path: str, host: str) -> None:
    hosts = ImageHosts("localhost")
    studio = Studio(server.url("/studio"), "a-legacy-token", image_hosts=hosts)
    studio.download(server.url(path, host=host), 1)
    server.moved = {"/studio/moved.png": server.url(path, host=host)}
    studio.download("/moved.png", 1)
    assert [token for _, token in server.seen] == [None, TOKEN, None]


def test_an_address_with_a_password_of_its_own_keeps_it(server: Server) -> None:
    studio = Studio(server.url("/studio"), "a-legacy-token")
    studio.download(server.url("/a.png", host="ada:lovelace@127.0.0.1"), 1)
    assert server.seen == [("/a.png", "Basic YWRhOmxvdmVsYWNl")]


def test_the_token_of_https_is_not_sent_in_plain_text(server: Server) -> None:
    hosts = ImageHosts("127.0.0.1")
    studio = Studio(server.url(scheme="https"), "a-legacy-token", image_hosts=hosts)
    studio.download(server.url("/a.png"), 1)
    assert server.seen == [("/a.png", None)]


@pytest.mark.parametrize("address", ["http://ls/a\x00.png", "http://ls:port/a.png"])
def test_an_address_that_cannot_be_one_is_named(address: str) -> None:
    with pytest.raises(StudioError, match=r"The image of task 5 at http://ls.* cannot be fetched"):
        Studio("http://ls", "token").download(address, 5)


class CountingStudio:
    """Stands where Label Studio does: hands out bytes, and counts how often it is asked."""

    def __init__(self, size: int = 0) -> None:
        self.asked: list[tuple[int, str]] = []
        self.data = encoded(Image.fromarray(GREY)) + b"\0" * size

    def download(self, url: str, task_id: int, within_s: float | None = None) -> bytes:
        self.asked.append((task_id, url))
        return self.data


def cache(studio: CountingStudio, folder: Path, gib: float = 1.0, key: str = "1.1") -> ImageCache:
    return ImageCache(studio, folder, key, gib)  # type: ignore[arg-type]


def test_an_image_is_fetched_once(tmp_path: Path) -> None:
    studio = CountingStudio()
    for _ in range(3):
        found = cache(studio, tmp_path).image(1, "/data/upload/1/a.png")
        np.testing.assert_array_equal(found, GREY)
    assert studio.asked == [(1, "/data/upload/1/a.png")]


def test_a_new_address_or_another_project_is_fetched_again(tmp_path: Path) -> None:
    studio = CountingStudio()
    cache(studio, tmp_path).image(1, "/a.png")
    cache(studio, tmp_path).image(1, "/b.png")
    cache(studio, tmp_path, key="1.2").image(1, "/a.png")
    assert len(studio.asked) == 3


def test_what_is_no_image_is_not_kept(tmp_path: Path) -> None:
    """As a login or maintenance page that is answered with 200."""
    studio = CountingStudio()
    image, studio.data = studio.data, b"<html>Please log in</html>"
    with pytest.raises(StudioError, match=r"task 1 .*found 26 bytes"):
        cache(studio, tmp_path).image(1, "/a.png")
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    studio.data = image
    np.testing.assert_array_equal(cache(studio, tmp_path).image(1, "/a.png"), GREY)
    assert len(studio.asked) == 2


@pytest.mark.parametrize("broken", [b"", b"<html>Please log in</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_kept_file_that_is_no_image_is_fetched_once_more(tmp_path: Path, broken: bytes) -> None:
    studio = CountingStudio()
    cache(studio, tmp_path).image(1, "/a.png")
    (kept,) = (f for f in tmp_path.rglob("*") if f.is_file())
    kept.write_bytes(broken)
    for _ in range(2):
        np.testing.assert_array_equal(cache(studio, tmp_path).image(1, "/a.png"), GREY)
    assert len(studio.asked) == 2


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    studio = CountingStudio(size=100_000)
    small = cache(studio, tmp_path, gib=350_000 / 2**30)
    for task in (1, 2, 3):
        small.image(task, "/x.png")
        time.sleep(0.02)
    small.image(1, "/x.png")
    time.sleep(0.02)
    small.image(4, "/x.png")
    asked = len(studio.asked)
    small.image(1, "/x.png")
    assert len(studio.asked) == asked, "1 was used lately and must still be there"
    small.image(2, "/x.png")
    assert len(studio.asked) == asked + 1, "2 was the oldest and must have gone"
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) <= 450_000


class Flood(BaseHTTPRequestHandler):
    """Answers /endless with bytes for ever, /long with a length, /bomb with 300 MB in 300 kB."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/bomb":
            self.send_header("Content-Encoding", "gzip")
        if self.path == "/other":
            self.send_header("Content-Encoding", "br")
        if self.path == "/long":
            self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        piece = GZIPPED if self.path == "/bomb" else bytes(1 << 20)
        with suppress(OSError):  # the reader has gone
            for _ in range(1 if self.path == "/bomb" else 2000):
                self.wfile.write(piece)


GZIPPED = gzip.compress(bytes(300 << 20), 1)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/endless", "more than the 268435456 bytes that are read"),
        ("/long", "has 1099511627776 bytes, at most 268435456 are read"),
        ("/bomb", "more than the 268435456 bytes that are read"),
        ("/other", "packed as 'br', expected gzip, deflate, identity"),
    ],
)
def test_an_answer_without_end_is_not_kept_in_memory(path: str, why: str) -> None:
    """The growth that is allowed is one limit, twice: what is read is copied once."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Flood)) as server:
        studio = Studio(f"http://127.0.0.1:{server.server_port}", "token")
        tracemalloc.start()
        try:
            with pytest.raises(StudioError, match=f"image of task 5 at .*{path} .*{why}"):
                studio.download(path, 5)
            assert tracemalloc.get_traced_memory()[1] < 400 << 20
        finally:
            tracemalloc.stop()
