"""Arrays of a real Tiled server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.stack import default_home
from ml_backend.rounds.service import volume_roots
from ml_backend.rounds.unreadable import may_come_back
from ml_backend.settings import Settings, SettingsError
from ml_backend.volumes.formats import tiled
from ml_backend.volumes.formats.tiled import TiledUnavailable
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from tests.test_formats import assert_holds, values
from tests.tiled_server import KEY, start_tiled

SCAN = values("u2", (5, 16, 32))
NAMED = values("f4", (2, 5, 7, 6))
BIG = values("i2", (5, 7, 6)).astype(">i2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tiled")
    for name, array in {"scan": SCAN, "named": NAMED, "big": BIG}.items():
        np.save(folder / f"{name}.npy", array)
    with ProcessGroup(folder / "logs") as group:
        url = start_tiled(group, default_home(), folder, free_port())

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        group.wait("tiled", ready, 120)
        yield url


def said(folder: Path, uri: str, **others: Any) -> Path:
    path = folder / "scan.tiled"
    path.write_text(json.dumps({"uri": uri, **others}))
    return path


def options(server: str, key: str = KEY, **others: Any) -> ReadOptions:
    return ReadOptions(bounds=Bounds(tiled=(server,), tiled_key=key), **others)


@pytest.mark.parametrize("place", ["api/v1/metadata", "api/v1/array/full", "ui/browse"])
def test_an_array_is_a_volume(tmp_path: Path, server: str, place: str) -> None:
    path = said(tmp_path, f"{server}/{place}/raw/scan", voxel_size=[4, 2, 1], unit="um")
    with open_volume(path, options(server)) as volume:
        assert_holds(volume, SCAN)
        assert (volume.voxel_size, volume.unit) == ((4.0, 2.0, 1.0), "µm")


def test_its_axes_are_obeyed(tmp_path: Path, server: str) -> None:
    path = said(tmp_path, f"{server}/api/v1/metadata/raw/named")
    for time in range(2):
        with open_volume(path, options(server, time=time)) as volume:
            assert_holds(volume, NAMED[time])
    with pytest.raises(VolumeError, match="only one time: choose it with --time, 0 to 1"):
        open_volume(path, options(server))


def test_names_are_quoted_and_byte_orders_kept(tmp_path: Path, server: str) -> None:
    path = said(tmp_path, f"{server}/api/v1/metadata/raw/big%20end")
    with open_volume(path, options(server)) as volume:
        assert_holds(volume, BIG)


def test_slices_are_asked_for_in_bands(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "_ASKED_BYTES", 3 * 32 * 2)
    with open_volume(said(tmp_path, f"{server}/ui/browse/raw/scan"), options(server)) as volume:
        assert_holds(volume, SCAN)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("api/v1/metadata/raw/gone", r"is not there \(404\), expected an array"),
        ("api/v1/metadata/raw", "is a container, expected an array"),
        ("api/v1/metadata/raw/picture", r"shape \(16, 32\), expected three axes"),
        ("api/v1/metadata/raw/complex", "expected numbers"),
        ("api/v1/metadata/raw/../raw/scan", "and the path of an array"),
        ("api/v1/metadata/raw/scan?slice=1", "and the path of an array"),
        ("api/v1/register/raw", "and the path of an array"),
        ("", "and the path of an array"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, server: str, place: str, message: str
) -> None:
    with pytest.raises(VolumeError, match=message):
        open_volume(said(tmp_path, f"{server}/{place}"), options(server))


def test_a_key_that_is_wrong_or_missing_is_said(tmp_path: Path, server: str) -> None:
    path = said(tmp_path, f"{server}/api/v1/metadata/raw/scan")
    for key in ("", "another"):
        with pytest.raises(VolumeError, match=r"not shown to us \(401\), .* TILED_API_KEY"):
            open_volume(path, options(server, key))


def test_only_servers_that_are_named_are_asked(tmp_path: Path, server: str) -> None:
    """And see the key: whoever may put a file there chooses the address."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        port = other.getsockname()[1]
        for uri in (
            f"http://127.0.0.1:{port}/api/v1/metadata/raw/scan",
            f"{server}@127.0.0.1:{port}/api/v1/metadata/raw/scan",
            f"{server}.127.0.0.1:{port}/api/v1/metadata/raw/scan",
            "file:///etc/passwd",
            "http://[",
        ):
            with pytest.raises(VolumeError, match=r"scan\.tiled .*expected"):
                open_volume(said(tmp_path, uri), options(server))
        with pytest.raises(TimeoutError):
            other.accept()
    path = said(tmp_path, f"{server}/api/v1/metadata/raw/scan")
    with pytest.raises(VolumeError, match=r"NEXTSLICE_TILED_SERVERS \(none\): add that server"):
        open_volume(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"uri": 7}', "[" * 10_000, "\udcff"])
def test_a_file_that_names_no_array_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scan.tiled"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VolumeError, match=r"scan\.tiled .*expected.* api/v1|scan\.tiled .*api/v1"):
        open_volume(path)


def test_a_server_that_is_down_may_come_back(tmp_path: Path) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    path = said(tmp_path, f"{server}/api/v1/metadata/raw/scan")
    with pytest.raises(TiledUnavailable, match=r"cannot be asked for .*scan\.tiled") as refused:
        open_volume(path, options(server))
    assert may_come_back(refused.value)


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        path = said(tmp_path, f"{server}/api/v1/metadata/raw/scan")
        bounds = Bounds(tiled=(server,), timeout_s=0.3)
        with pytest.raises(TiledUnavailable, match="cannot be asked"):
            open_volume(path, ReadOptions(bounds=bounds))


def test_the_settings_say_which_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILED_API_KEY", "secret")
    monkeypatch.setenv("NEXTSLICE_TILED_SERVERS", "https://a.example/, http://b.example:8000")
    monkeypatch.setenv("NEXTSLICE_VOLUMES", "scans=/data/scans")
    roots = volume_roots(Settings())
    for bounds in (roots.bounds, roots.bounds_of(Path("/data/scans/a.tiled"))):
        assert bounds.tiled == ("https://a.example", "http://b.example:8000")
        assert bounds.tiled_key == "secret"
    assert "secret" not in repr(roots)
    monkeypatch.setenv("NEXTSLICE_TILED_SERVERS", "b.example")
    with pytest.raises(SettingsError, match=r"NEXTSLICE_TILED_SERVERS is 'b\.example': expected"):
        volume_roots(Settings())
