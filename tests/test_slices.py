"""Slices on demand: the native data through the window, for who has a signed address."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from ml_backend.api.server import SLICES
from ml_backend.api.slices import SliceServer
from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.stack import start_backend
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings, SettingsError
from ml_backend.volumes import shelf
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.roots import VolumeRoots
from ml_backend.volumes.shelf import FileState, OpenVolumes
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError
from ml_backend.volumes.window import Window, fit_window, render

KEYS = SliceKeys(("a secret of the laboratory",))
WINDOW = Window(1000.5, 50_000)
ORIGIN = "https://labelstudio.example"


@pytest.fixture
def scan() -> npt.NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 2**16, (5, 48, 37)).astype(np.uint16)


@pytest.fixture
def scans(tmp_path: Path, scan: npt.NDArray[np.uint16]) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    np.save(folder / "week 4.npy", scan)
    return folder


@pytest.fixture
def make_client(make_settings: Callable[..., Settings], scans: Path) -> Callable[..., FlaskClient]:
    def make(**variables: Any) -> FlaskClient:
        given = {
            "NEXTSLICE_VOLUMES": scans,
            "NEXTSLICE_SLICE_SECRET": KEYS.secrets[0],
            "LABEL_STUDIO_URL": ORIGIN,
        }
        return create_app(make_settings(**(given | variables))).test_client()

    return make


@pytest.fixture
def client(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    return make_client()


def address(axis: str = "z", index: int = 2, **more: Any) -> SliceAddress:
    return SliceAddress("scans/week 4.npy", axis, index, **({"window": WINDOW} | more))


def url(axis: str = "z", index: int = 2, **more: Any) -> str:
    return address(axis, index, **more).url("", KEYS)


def pixels(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def text(answer: TestResponse) -> str:
    assert answer.mimetype == "text/plain"
    assert answer.headers["Cache-Control"] == "no-store"
    found = answer.get_data(as_text=True)
    assert "Traceback" not in found
    return found


# -- what is shown


@pytest.mark.parametrize(("axis", "index"), [("z", 0), ("z", 4), ("y", 47), ("x", 11)])
def test_the_png_is_the_slice_through_the_window(
    client: FlaskClient, scan: npt.NDArray[np.uint16], axis: str, index: int
) -> None:
    expected = render(np.take(scan, index, "zyx".index(axis)), WINDOW)
    answer = client.get(url(axis, index))
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    np.testing.assert_array_equal(pixels(answer.data), expected)
    again = client.get(url(axis, index))
    assert again.data == answer.data


def test_read_options_travel_in_the_address(
    client: FlaskClient, scans: Path, scan: npt.NDArray[np.uint16]
) -> None:
    (scans / "scan.raw").write_bytes(b"header" + scan.tobytes())
    options = ReadOptions(shape=(5, 48, 37), dtype="<u2", offset=6)
    wanted = SliceAddress("scans/scan.raw", "z", 3, WINDOW, options)
    answer = client.get(wanted.url("", KEYS))
    np.testing.assert_array_equal(pixels(answer.data), render(scan[3], WINDOW))


def test_without_a_window_the_volume_is_fitted_and_8_bit_is_left_as_it_is(
    client: FlaskClient, scans: Path, scan: npt.NDArray[np.uint16]
) -> None:
    with shelf.open_volume(scans / "week 4.npy") as volume:
        expected = render(scan[2], fit_window(volume))
    np.testing.assert_array_equal(pixels(client.get(url("z", 2, window=None)).data), expected)
    eight = (scan >> 8).astype(np.uint8)
    np.save(scans / "eight.npy", eight)
    answer = client.get(SliceAddress("scans/eight.npy", "z", 2).url("", KEYS))
    np.testing.assert_array_equal(pixels(answer.data), eight[2])


def test_head_is_get_without_a_body(client: FlaskClient) -> None:
    whole, head = client.get(url()), client.head(url())
    assert head.status_code == 200
    assert not head.data
    for name in ("ETag", "Content-Length", "Content-Type", "Cache-Control"):
        assert head.headers[name] == whole.headers[name]


# -- who may see it


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (url().rpartition("?")[0], "it is not signed"),
        (url().replace("/2.png", "/3.png"), "signature does not fit"),
        (url().replace("low=1000.5", "low=1"), "signature does not fit"),
        (address().url("", SliceKeys(("another secret of others",))), "NEXTSLICE_SLICE_SECRET"),
        (url(expires=1_000_000_000), "it expired"),
    ],
)
def test_an_address_that_is_not_signed_is_refused(
    client: FlaskClient, asked: str, reason: str
) -> None:
    answer = client.get(asked)
    assert answer.status_code == 403
    assert reason in text(answer)


def test_the_signature_stands_for_basic_auth(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(BASIC_AUTH_USER="u", BASIC_AUTH_PASS="p")
    assert client.get("/health").status_code == 401
    assert client.get(url()).status_code == 200


def test_a_signed_name_cannot_leave_its_root(client: FlaskClient, scans: Path) -> None:
    """Not even for somebody who has the secret."""
    (scans.parent / "secret.npy").write_bytes((scans / "week 4.npy").read_bytes())
    (scans / "out.npy").symlink_to("../secret.npy")
    for name in ("scans/../secret.npy", "scans/out.npy", "../secret.npy", str(scans)[1:]):
        answer = client.get(SliceAddress(name, "z", 0, WINDOW).url("", KEYS))
        assert answer.status_code in (404, 422)
        text(answer)


def test_without_any_secret_nothing_is_shown(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(NEXTSLICE_SLICE_SECRET="", LABEL_STUDIO_API_KEY="")
    answer = client.get(url())
    assert answer.status_code == 503
    assert "set NEXTSLICE_SLICE_SECRET" in text(answer)


def test_the_keys_are_derived_from_the_api_key_unless_they_are_set(
    make_settings: Callable[..., Settings],
) -> None:
    derived = slice_keys(make_settings(LABEL_STUDIO_API_KEY="one"))
    assert derived == slice_keys(make_settings(LABEL_STUDIO_API_KEY="one"))
    assert derived != slice_keys(make_settings(LABEL_STUDIO_API_KEY="two"))
    given = f"{KEYS.secrets[0]},the one before this secret"
    assert slice_keys(make_settings(NEXTSLICE_SLICE_SECRET=given)).secrets == tuple(
        given.split(",")
    )


def test_addresses_begin_as_browsers_see_the_backend(
    make_settings: Callable[..., Settings],
) -> None:
    inside = {"NEXTSLICE_BACKEND_URL": "http://nextslice:9090"}
    assert make_settings(**inside).slices_url == "http://nextslice:9090"
    public = make_settings(**inside, PUBLIC_URL="https://lab.example/nextslice/")
    assert public.slices_url == "https://lab.example/nextslice"
    with pytest.raises(ValueError, match="expected an address"):
        make_settings(PUBLIC_URL="lab.example")


def test_settings_that_cannot_be_used_stop_the_start(
    make_client: Callable[..., FlaskClient],
) -> None:
    with pytest.raises(SettingsError, match="NEXTSLICE_SLICE_SECRET: found a secret of 5 char"):
        make_client(NEXTSLICE_SLICE_SECRET="short")
    with pytest.raises(SettingsError, match="NEXTSLICE_VOLUMES: two roots are called 'x'"):
        make_client(NEXTSLICE_VOLUMES="/a/x,/b/x")


# -- what is not there, or broken


@pytest.mark.parametrize(
    "wanted",
    [
        address("z", 5),
        address("x", 37),
        replace(address(), volume="scans/none.npy"),
        replace(address(), volume="other/week 4.npy"),
    ],
)
def test_what_is_not_there_is_404(client: FlaskClient, wanted: SliceAddress) -> None:
    answer = client.get(wanted.url("", KEYS))
    assert answer.status_code == 404
    assert "week 4.npy" in text(answer) or "none.npy" in text(answer)


def test_a_broken_volume_says_what_is_wrong_with_it(client: FlaskClient, scans: Path) -> None:
    (scans / "broken.npy").write_bytes(b"no array at all")
    answer = client.get(replace(address(), volume="scans/broken.npy").url("", KEYS))
    assert answer.status_code == 422
    assert "broken.npy" in text(answer)


# -- headers


def test_a_slice_is_kept_for_good_and_known_by_its_tag(client: FlaskClient, scans: Path) -> None:
    answer = client.get(url())
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    tag, weak = answer.get_etag()
    assert tag
    assert not weak
    for given in (f'"{tag}"', f'"x", W/"{tag}"'):
        unchanged = client.get(url(), headers={"If-None-Match": given, "Origin": ORIGIN})
        assert (unchanged.status_code, unchanged.data) == (304, b"")
        assert unchanged.get_etag()[0] == tag
        assert unchanged.headers["Access-Control-Allow-Origin"] == ORIGIN
    others = [url("z", 3), url("y", 2), url(window=Window(0, 1)), url(window=None)]
    assert len({tag, *(client.get(other).get_etag()[0] for other in others)}) == 5


def test_a_replaced_file_is_shown_anew(
    client: FlaskClient, scans: Path, scan: npt.NDArray[np.uint16]
) -> None:
    before = client.get(url())
    np.save(scans / "new.npy", scan[::-1])
    (scans / "new.npy").replace(scans / "week 4.npy")
    after = client.get(url(index=0), headers={"If-None-Match": before.headers["ETag"]})
    np.testing.assert_array_equal(pixels(after.data), render(scan[4], WINDOW))
    assert client.get(url(), headers={"If-None-Match": before.headers["ETag"]}).status_code == 200


@pytest.mark.parametrize("restarted", [False, True])
def test_a_corrected_sidecar_is_shown_anew(
    make_client: Callable[..., FlaskClient],
    scans: Path,
    scan: npt.NDArray[np.uint16],
    restarted: bool,
) -> None:
    scan.tofile(scans / "scan.raw")
    sidecar = scans / "scan.raw.json"
    sidecar.write_text('{"shape": [5, 48, 37], "dtype": ">u2"}')
    os.utime(sidecar, ns=(1, 1))
    wanted = SliceAddress("scans/scan.raw", "z", 2, WINDOW).url("", KEYS)
    client = make_client()
    before = client.get(wanted)
    np.testing.assert_array_equal(pixels(before.data), render(scan[2].byteswap(), WINDOW))

    sidecar.write_text('{"shape": [5, 48, 37], "dtype": "<u2"}')

    client = make_client() if restarted else client
    after = client.get(wanted, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    np.testing.assert_array_equal(pixels(after.data), render(scan[2], WINDOW))


def test_what_expires_is_not_kept_for_longer(client: FlaskClient) -> None:
    answer = client.get(url(expires=int(time.time()) + 100))
    age = int(answer.headers["Cache-Control"].split("max-age=")[1].split(",")[0])
    assert 90 <= age <= 100


def cors(client: FlaskClient, origin: str | None, asked: str | None = None) -> str | None:
    headers = {} if origin is None else {"Origin": origin}
    answer = client.get(asked or url(), headers=headers)
    assert "Origin" in answer.vary
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    return answer.headers.get("Access-Control-Allow-Origin")


def test_label_studios_pages_may_read_the_pixels(client: FlaskClient) -> None:
    assert cors(client, ORIGIN) == ORIGIN
    assert cors(client, ORIGIN, url().replace("low", "high")) == ORIGIN, "refusals are read too"
    assert cors(client, "https://evil.example") is None
    assert cors(client, "http://labelstudio.example") is None
    assert cors(client, "null") is None
    assert cors(client, None) is None


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//["])
def test_an_origin_that_is_no_address_is_nobodys(client: FlaskClient, origin: str) -> None:
    assert cors(client, origin) is None
    assert client.get(url(), headers={"Origin": origin}).status_code == 200


def test_more_origins_can_be_set(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(NEXTSLICE_CORS_ORIGINS="https://a.example:8443, http://B.example:80/")
    for origin in ("https://a.example:8443", "http://b.example", ORIGIN):
        assert cors(client, origin) == origin
    assert cors(client, "https://a.example") is None
    assert cors(make_client(NEXTSLICE_CORS_ORIGINS="*"), "https://any.example") == "*"


def test_a_loopback_label_studio_may_be_opened_by_any_of_its_names(
    make_client: Callable[..., FlaskClient],
) -> None:
    client = make_client(LABEL_STUDIO_URL="http://127.0.0.1:8080")
    for origin in ("http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"):
        assert cors(client, origin) == origin
    assert cors(client, "http://localhost:8081") is None


def test_what_is_no_origin_is_refused(make_settings: Callable[..., Settings]) -> None:
    for wrong in ("labelstudio.example", "https://a.example/path", "ftp://a.example"):
        with pytest.raises(ValueError, match="expected origins such as"):
            make_settings(NEXTSLICE_CORS_ORIGINS=wrong)


def test_a_preflight_is_answered(client: FlaskClient) -> None:
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    answer = client.options(url(), headers=asks)
    assert answer.status_code in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "GET" in answer.headers["Access-Control-Allow-Methods"]
    refused = client.options(url(), headers=asks | {"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(client: FlaskClient) -> None:
    server: SliceServer = client.application.extensions["nextslice slices"]
    with ExitStack() as others:
        for _ in range(SLICES):
            others.enter_context(server.place())
        answer = client.get(url())
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Cache-Control"] == "no-store"
        assert "load it again" in text(answer)
    assert client.get(url()).status_code == 200


# -- the cache and the shelf


def test_a_rendered_slice_is_kept_on_disk(client: FlaskClient, tmp_path: Path) -> None:
    answer = client.get(url())
    (kept,) = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert kept.relative_to(tmp_path / "cache").parts[:2] == ("files", "slices")
    assert kept.read_bytes() == answer.data


def test_a_slice_that_is_asked_for_at_once_is_read_once(
    make_client: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = OpenVolumes.slice

    def slowly(volumes: OpenVolumes, wanted: SliceAddress) -> npt.NDArray[Any]:
        nonlocal reads
        reads += 1
        time.sleep(0.2)
        return read(volumes, wanted)

    monkeypatch.setattr(OpenVolumes, "slice", slowly)
    app = make_client().application
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: app.test_client().get(url()).data, range(8)))
    assert reads == 1
    assert len(set(answers)) == 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of the files that were opened, and of those that were closed."""
    seen: dict[str, list[str]] = {"opened": [], "closed": []}
    real = shelf.open_volume

    def open_volume(path: Path, options: ReadOptions) -> Volume:
        found = real(path, options)
        seen["opened"].append(path.name)

        def close() -> None:
            seen["closed"].append(path.name)
            found.close()

        return replace(found, close=close)

    monkeypatch.setattr(shelf, "open_volume", open_volume)
    return seen


@pytest.fixture
def three(tmp_path: Path) -> VolumeRoots:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((4, 5, 6), number, np.uint16))
    return VolumeRoots({"all": tmp_path})


def test_the_least_recently_used_volume_is_closed(
    three: VolumeRoots, watched: dict[str, list[str]]
) -> None:
    volumes = OpenVolumes(three, limit=2)
    for number in (0, 1, 0, 2, 0, 1):
        found = volumes.slice(SliceAddress(f"all/{number}.npy", "y", 1))
        np.testing.assert_array_equal(found, np.full((4, 6), number))
    assert watched == {
        "opened": ["0.npy", "1.npy", "2.npy", "1.npy"],
        "closed": ["1.npy", "2.npy"],
    }
    volumes.close()
    assert sorted(watched["closed"]) == sorted(watched["opened"])


def test_a_volume_in_use_is_closed_afterwards(
    three: VolumeRoots, watched: dict[str, list[str]]
) -> None:
    volumes = OpenVolumes(three, limit=1)
    with volumes.volume("all/0.npy") as volume:
        volumes.slice(SliceAddress("all/1.npy", "z", 0))
        assert watched["closed"] == []
        np.testing.assert_array_equal(volume[3], np.zeros((5, 6)))
    assert watched["closed"] == ["0.npy"]


def test_a_replaced_file_is_opened_again(three: VolumeRoots, watched: dict[str, list[str]]) -> None:
    volumes = OpenVolumes(three)
    one = SliceAddress("all/1.npy", "z", 0)
    volumes.slice(one)
    (three.folders["all"] / "2.npy").replace(three.folders["all"] / "1.npy")
    os.utime(three.folders["all"] / "1.npy", ns=(1, 1))
    assert volumes.slice(one)[0, 0] == 2
    assert watched["closed"] == ["1.npy"]


@pytest.mark.parametrize("folder", [False, True])
def test_the_sidecar_is_part_of_the_state(tmp_path: Path, folder: bool) -> None:
    volume = tmp_path / "scan"
    volume.mkdir() if folder else volume.write_bytes(b"x")
    sidecar = volume / "volume.json" if folder else tmp_path / "scan.json"

    def state(text: str | None = None, modified_ns: int = 1) -> FileState:
        if text is not None:
            sidecar.write_text(text)
            os.utime(sidecar, ns=(1, modified_ns))
        os.utime(volume, ns=(1, 1))
        return FileState.of(volume)

    states = [state(), state("{}"), state("{ }"), state("{ }", 2)]
    assert len(set(states)) == 4
    assert state("{ }", 2) == states[-1]
    sidecar.unlink()
    assert state() == states[0]


def test_neighbours_stop_at_the_ends(tmp_path: Path) -> None:
    np.save(tmp_path / "ramp.npy", np.arange(5, dtype=np.int16)[:, None, None] * np.ones((1, 2, 3)))
    volumes = OpenVolumes(VolumeRoots({"all": tmp_path}))

    def around(index: int) -> list[int]:
        found = volumes.around(SliceAddress("all/ramp.npy", "z", index), 2)
        return [int(plane[0, 0]) for plane in found]

    assert around(2) == [0, 1, 2, 3, 4]
    assert around(0) == [0, 0, 0, 1, 2]
    assert around(4) == [2, 3, 4, 4, 4]
    with pytest.raises(IndexError):
        around(5)


def test_a_volume_that_cannot_be_opened_takes_no_place(
    three: VolumeRoots, watched: dict[str, list[str]]
) -> None:
    broken = three.folders["all"] / "broken.npy"
    broken.write_bytes(b"nothing")
    volumes = OpenVolumes(three, limit=2)
    for name in ("0.npy", "1.npy"):
        volumes.slice(SliceAddress(f"all/{name}", "z", 0))
    with pytest.raises(VolumeError), volumes.volume("all/broken.npy"):
        pass
    np.save(broken, np.ones((2, 2, 2)))
    assert volumes.slice(SliceAddress("all/broken.npy", "z", 0)).all()


def test_many_threads_read_while_volumes_are_closed_and_opened(three: VolumeRoots) -> None:
    volumes = OpenVolumes(three, limit=1)
    wrong: list[Any] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 3, 60):
            found = volumes.slice(SliceAddress(f"all/{number}.npy", "x", 5))
            if not (found == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- for real


def test_gunicorn_serves_what_the_worker_reads(
    scans: Path, scan: npt.NDArray[np.uint16], tmp_path: Path
) -> None:
    """Over HTTP, by the address that stands in task data: a name with all that needs escaping."""
    name = "100% (1) ä+b&c=d;e#f?.npy"
    np.save(scans / name, scan)
    port = free_port()
    env = {
        **os.environ,
        "NEXTSLICE_VOLUMES": f"lab={scans}",
        "NEXTSLICE_STORE": str(tmp_path / "store"),
        "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
        "LABEL_STUDIO_URL": ORIGIN,
        "LABEL_STUDIO_API_KEY": "token",
        "BASIC_AUTH_USER": "user",
        "BASIC_AUTH_PASS": "password",
    }
    settings = Settings(
        volumes=f"lab={scans}", backend_url=f"http://127.0.0.1:{port}", LABEL_STUDIO_API_KEY="token"
    )
    worker = Service(settings)
    keys = slice_keys(settings)
    wanted = SliceAddress(worker.volumes.roots.name(scans / name), "y", 40, WINDOW)
    shown = wanted.url(settings.slices_url, keys)
    with ProcessGroup(tmp_path / "logs") as group:
        start_backend(group, port, env)
        answer = requests.get(shown, headers={"Origin": ORIGIN}, timeout=120)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        native = worker.volumes.slice(SliceAddress.parse(shown, keys))
        np.testing.assert_array_equal(native, scan[:, 40])
        np.testing.assert_array_equal(pixels(answer.content), render(native, WINDOW))
        tag = {"If-None-Match": answer.headers["ETag"]}
        assert requests.get(shown, headers=tag, timeout=120).status_code == 304
        assert requests.get(shown + "0", timeout=120).status_code == 403
        assert requests.get(f"{settings.slices_url}/versions", timeout=120).status_code == 401
