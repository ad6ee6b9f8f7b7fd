"""Volumes at full resolution: what zarr reads at the address, and who is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numcodecs import Blosc

from ml_backend.api.dashboard import volumes
from ml_backend.api.ome_zarr import pages, planes, served
from ml_backend.api.ome_zarr.images import _colours, scan_image
from ml_backend.app import create_app
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import slice_keys
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config
from ml_backend.volumes.volume import Volume, VolumeSpec
from ml_backend.volumes.volume_address import VolumeAddress, last_day
from ml_backend.volumes.window import Window
from tests.http_studio import CONFIG, SLICES, HttpStudio, phantom_server
from tests.served import client, web_process
from tests.volume_project import NAME, predict, scan, volume_project
from tests.web_files import open_group

SHAPE = (SLICES, 530, 601)
"""Of three levels, four chunks a slice at the first."""
FACTORS = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
"""Voxels are 4 × 2 × 2 µm: they become cubes first."""
ORIGIN = "https://neuroglancer.example"

Make = Callable[..., ConnectedProject]
Values = npt.NDArray[Any]


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        yield server


@pytest.fixture
def make(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path
) -> Make:
    given = {"REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": "ome-zarr"}
    given |= {"NEXTSLICE_CORS_ORIGINS": ORIGIN}
    return partial(volume_project, server, make_settings, tmp_path, **given)


@pytest.fixture
def _ask_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_FRESH_S", 0.0)
    monkeypatch.setattr(served, "_FRESH_S", 0.0)


@pytest.fixture
def live() -> Iterator[Callable[[ConnectedProject], str]]:
    """Serves a project's backend; the base of its address."""
    with ExitStack() as serving:
        yield lambda project: serving.enter_context(
            web_process(create_app(project.service.settings))
        )


def address(
    of: ConnectedProject, name: str = NAME, axis: str = "z", base: str = "", **changed: Any
) -> str:
    said: dict[str, Any] = {"project": of.key, "volume": name, "axis": axis, "expires": last_day()}
    url = VolumeAddress(**(said | changed)).url(base, slice_keys(of.service.settings))
    return f"{url}/scan.zarr"


def noise(dtype: str, shape: tuple[int, int, int] = SHAPE) -> Values:
    values = np.random.default_rng(0).normal(0.3, 0.2, shape)
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return np.asarray((values.clip(0, 1) * np.iinfo(dtype).max).astype(dtype))


def mean_of(values: Values, factors: tuple[int, int, int]) -> Values:
    """What a level is to be: of each cell the mean of its two middle slices, where it has them."""
    deep, rows, columns = factors
    z, y, x = values.shape
    padded = np.full((z, -(-y // rows) * rows, -(-x // columns) * columns), np.nan)
    padded[:, :y, :x] = values
    cells = padded.reshape(z, padded.shape[1] // rows, rows, padded.shape[2] // columns, columns)
    small = np.nanmean(cells, axis=(2, 4))
    if deep == 2:
        small = np.stack([small[at : at + 2].mean(axis=0) for at in range(0, z, 2)])
    return small


# -- what is read


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("scans/bone.nii.gz", "uint16"),
        ("scans/week 4.tif", "uint8"),
        ("scans/bone.npy", "float32"),
        ("scans/bone.ome.zarr", "int16"),
    ],
)
def test_every_level_is_what_it_must_be(
    make: Make, live: Callable[[ConnectedProject], str], name: str, dtype: str
) -> None:
    values = noise(dtype)
    project = make(values=values, name=name, labels=())
    group = open_group(address(project, name, base=live(project)))
    full = np.asarray(group["0"])
    assert full.dtype == dtype
    np.testing.assert_array_equal(full, values)
    assert group["0"].chunks == (1, 512, 512)
    scales = group.attrs["multiscales"][0]["datasets"]
    assert len(scales) == len(FACTORS)
    for level, factors in zip(scales, FACTORS, strict=True):
        found, expected = np.asarray(group[level["path"]]), mean_of(values, factors)
        assert found.dtype == dtype
        assert found.shape == expected.shape
        rounding = 1e-6 if values.dtype.kind == "f" else 0.501
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int64", "float16", "float64"])
def test_every_type_has_smaller_levels(dtype: str) -> None:
    values = noise("float64", (5, 61, 300)) * 100
    values = (values > 30) if dtype == "bool" else values.astype(dtype)
    shape, kind = values.shape, values.dtype
    volume = Volume(Path("a"), shape, kind, lambda axis, at: np.take(values, at, axis))
    image = scan_image(VolumeSpec(shape, kind, (1.0, 1.0, 1.0)), Window(0, 1))
    assert [level.factors for level in image.levels] == [(1, 1, 1), (2, 2, 2)]
    found = np.stack([planes.scan_plane(volume, image.levels[1], at) for at in range(3)])
    if dtype == "int64":  # a mean would lose digits
        expected: Values = values[::2, ::2, ::2]
    else:
        expected = mean_of(values, (2, 2, 2))
        expected = expected if kind.kind == "f" else np.rint(expected)
    exact = 2 * float(np.finfo(kind).eps) if kind.kind == "f" else 0
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=exact, atol=exact)
    data = np.frombuffer(Blosc().decode(image.encode(1, found[0])), image.array(1)["dtype"])
    np.testing.assert_array_equal(data.reshape(31, 150), found[0])


def test_what_is_known_of_the_volume_comes_back(
    make: Make, live: Callable[[ConnectedProject], str]
) -> None:
    upright = ((0.0, 0.0, 2.0, 50.0), (0.0, 2.0, 0.0, 7.0), (4.0, 0.0, 0.0, -3.0))
    project = make(values=noise("uint16"), affine=upright, labels=())
    attributes = open_group(address(project, base=live(project))).attrs
    image = attributes["multiscales"][0]
    assert image["version"] == "0.4"
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    assert image["axes"] == axes
    origin = np.array([-3.0, 7.0, 50.0])
    for level, factors in zip(image["datasets"], FACTORS, strict=True):
        scale, moved = level["coordinateTransformations"]
        assert scale == {
            "type": "scale",
            "scale": [4.0 * factors[0], *(2.0 * np.array(factors[1:]))],
        }
        # the middle of the first voxel, which is that of all that it stands for
        middle = origin + (np.array(factors) - 1) / 2 * [4.0, 2.0, 2.0]
        np.testing.assert_allclose(moved["translation"], middle)
    window = attributes["omero"]["channels"][0]["window"]
    assert (window["start"], window["end"]) == (0, 1000)


@pytest.mark.parametrize(("axis", "flip"), [("z", ""), ("z", "zy"), ("y", ""), ("x", "x")])
def test_labels_lie_on_the_scan(
    make: Make,
    live: Callable[[ConnectedProject], str],
    server: HttpStudio,
    axis: str,
    flip: str,
) -> None:
    """Of every level: the mask of the slice nearest to the middle of those that one stands for."""
    labelled, apart = (0, 1, 5, 9), 1 if axis == "z" else 3
    shape = SHAPE if axis == "z" else (SLICES, 90, 270)
    values = noise("uint16", shape)
    project = make(values=values, axis=axis, apart=apart, flip=flip, labels=())
    expected, config = np.zeros(shape, np.uint8), parse_label_config(CONFIG)
    along = "zyx".index(axis)
    rng = np.random.default_rng(1)
    for task in labelled:
        height, width = (n for i, n in enumerate(shape) if i != along)
        drawn = rng.integers(0, 3, (height // 10 + 1, width // 10 + 1)).astype(np.uint8)
        mask = drawn.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
        place = shape[along] - 1 - apart * task if axis in flip else apart * task
        np.moveaxis(expected, along, 0)[place] = mask
        shown = mask[tuple(slice(None, None, -1 if i in flip else 1) for i in "zyx" if i != axis)]
        server.memory.submit(task, regions(np.ascontiguousarray(shown), config))
    group = open_group(address(project, axis=axis, base=live(project)))
    assert group["labels"].attrs["labels"] == ["labels"]
    image = group["labels/labels"]
    levels = range(len(group.attrs["multiscales"][0]["datasets"]))
    assert [image[f"{n}"].shape for n in levels] == [group[f"{n}"].shape for n in levels]
    np.testing.assert_array_equal(np.asarray(image["0"]), expected)
    both = [one.attrs["multiscales"][0]["datasets"] for one in (group, image)]
    assert both[0] == both[1], "cells of both lie on each other"
    places = [shape[along] - 1 - apart * t if axis in flip else apart * t for t in labelled]
    for level, factors in enumerate(FACTORS[: len(levels)]):
        found = np.asarray(image[f"{level}"])
        middles = [np.minimum(np.arange(n) * f + f // 2, s - 1)
                   for n, f, s in zip(found.shape, factors, shape, strict=True)]  # fmt: skip
        taken = [
            min((p for p in places if p // factors[along] == at), key=lambda p: abs(p - middle),
                default=-1)
            for at, middle in enumerate(middles[along])
        ]  # fmt: skip
        wanted = np.zeros(found.shape, np.uint8)
        for at, place in enumerate(taken):
            if place >= 0:
                plane = np.take(expected, place, along)
                rows, columns = (m for i, m in enumerate(middles) if i != along)
                np.moveaxis(wanted, along, 0)[at] = plane[np.ix_(rows, columns)]
        np.testing.assert_array_equal(found, wanted)
    properties = image.attrs["image-label"]["properties"]
    assert [one["name"] for one in properties] == ["background", "bone", "implant"]
    colours = {c["label-value"]: c["rgba"] for c in image.attrs["image-label"]["colors"]}
    assert colours == {0: [0, 0, 0, 0], 1: [230, 159, 0, 255], 2: [86, 180, 233, 255]}


def test_each_of_many_classes_has_a_colour_of_its_own() -> None:
    colours = [tuple(one["rgba"]) for one in _colours(tuple(map(str, range(13))))]
    assert len(set(colours)) == 13


def test_predictions_that_are_stored_are_an_image_of_their_own(
    make: Make, live: Callable[[ConnectedProject], str], server: HttpStudio
) -> None:
    project = make()
    predict(server, project, (3, 4))
    group = open_group(address(project, base=live(project)))
    assert group["labels"].attrs["labels"] == ["labels", "prediction"]
    slices = {
        kind: {int(z) for z in np.asarray(group[f"labels/{kind}/0"]).nonzero()[0]}
        for kind in ("labels", "prediction")
    }
    assert slices == {"labels": {2, 5, 9}, "prediction": {3, 4}}
    np.testing.assert_array_equal(np.asarray(group["0"]), scan())


@pytest.mark.usefixtures("_ask_each_time")
def test_a_new_annotation_is_seen_and_one_that_cannot_be_read_is_left_out(
    make: Make, server: HttpStudio
) -> None:
    project = make()
    asked, url = client(project), f"{address(project)}/labels/labels/0"
    assert asked.get(f"{url}/7/0/0").status_code == 404
    server.memory.submit(7, server.memory._rows[5]["annotations"][0]["result"])
    assert asked.get(f"{url}/7/0/0").data == asked.get(f"{url}/5/0/0").data
    broken = [{"type": "bitmasklabels", "value": {"imageDataURL": "data:,", "bitmasklabels": [1]}}]
    server.memory.submit(8, broken)
    answer = asked.get(f"{url}/8/0/0")
    assert answer.status_code == 200
    assert not any(Blosc().decode(answer.data))


def test_without_label_studio_the_scan_is_served(make: Make) -> None:
    project = make()
    gone = type(project.service.settings.label_studio_api_key)("refused")
    asked, url = client(project, label_studio_api_key=gone), address(project)
    assert asked.get(f"{url}/0/0/0/0").status_code == 200
    assert asked.get(f"{url}/labels/.zattrs").get_json() == {"labels": []}
    assert asked.get(f"{url}/labels/labels/0/2/0/0").status_code == 503


def test_the_pages_say_where_it_is(make: Make) -> None:
    project = make()
    asked = client(project)
    url = asked.get(f"/api/projects/7/volumes/{NAME}").get_json()["ome_zarr"]
    assert url == address(project, base=project.service.settings.slices_url)
    assert asked.get(url).status_code == 404
    assert asked.get(f"{url}/.zgroup").get_json() == {"zarr_format": 2}
    page = asked.get(f"/projects/7/volumes/{NAME}/").text
    assert f'data-copy="zarr2://{url}"' in page
    assert f'data-copy="zarr2://{url}/labels/labels"' in page
    assert f'data-copy="napari --plugin napari-ome-zarr {url}"' in page
    assert "once that is in <code>NEXTSLICE_CORS_ORIGINS" in page


# -- who may, and what is not there


def test_the_signature_stands_for_the_login(make: Make) -> None:
    project = make()
    password = type(project.service.settings.basic_auth_pass)("secret")
    locked = client(project, basic_auth_user="ann", basic_auth_pass=password)
    assert locked.get("/projects/7/volumes").status_code == 401
    assert locked.get(f"{address(project)}/0/0/0/0").status_code == 200


def test_an_address_that_is_not_signed_by_us_opens_nothing(make: Make) -> None:
    project = make()
    asked = client(project)
    good = address(project).split("/")[2]
    body, key, signature = good.split(".")
    other = address(project, axis="y").split("/")[2].split(".")
    forged = [
        "a", "..", good[:-1], f"{body}.{key}", f"{body}.{key}.", f"{body}..{signature}",
        f"{body}.{key}.{'0' * 32}", f"{body}.00000000.{signature}", f"{other[0]}.{key}.{signature}",
        f"{body[:-2]}.{key}.{signature}", f"{body}é.{key}.{signature}", good + "a" * 5000,
    ]  # fmt: skip
    for token in forged:
        for file in (".zattrs", "0/.zarray", "0/0/0/0", "labels/labels/0/2/0/0"):
            answer = asked.get(f"/zarr/{token}/scan.zarr/{file}")
            assert answer.status_code == 403, token
            assert answer.mimetype == "text/plain"
    expired = address(project, expires=1)
    assert "has expired" in asked.get(f"{expired}/.zattrs").text
    another = type(project.service.settings.slice_secret)("another secret of theirs")
    answer = client(project, slice_secret=another).get(f"{address(project)}/.zattrs")
    assert answer.status_code == 403
    assert "this backend has not" in answer.text


@pytest.mark.parametrize(
    "changed",
    [
        {"project": "8.1"},
        {"project": "../7"},
        {"volume": "scans/other.nii.gz"},
        {"volume": "/etc/passwd"},
        {"volume": "../scans/bone.nii.gz"},
        {"volume": "scans/\ud800"},
        {"axis": "y"},
    ],
)
def test_what_is_signed_and_not_of_the_project_is_not_there(
    make: Make, tmp_path: Path, changed: dict[str, str]
) -> None:
    project = make()
    data = (tmp_path / "scans" / "bone.nii.gz").read_bytes()
    (tmp_path / "scans" / "other.nii.gz").write_bytes(data)
    asked = client(project)
    for file in (".zattrs", "0/0/0/0", "labels/.zattrs", "labels/labels/0/2/0/0"):
        assert asked.get(f"{address(project, **changed)}/{file}").status_code == 404


@pytest.mark.parametrize(
    "file",
    [
        *("", "0", "0/0", "0/0/0", "0/0/0/0/0", "0/0/0/0/", "0.0.0", "0/0.0.0", "zarr.json"),
        *(".zmetadata", "1/.zarray", "9999999/.zarray", "99999999999999999999/0/0/0"),
        *(f"0/{SLICES}/0/0", "0/0/1/0", "0/0/0/1", "0/-1/0/0", "0/1e999/0/0", "0/nan/0/0"),
        *("0/00/0/0", "0/٣/0/0", "0/0/0/0%00", "0/0/0/0%0a", "0/../0/0/0", "%2e%2e/%2e%2e/x"),
        *(
            "labels",
            "labels/scan/.zattrs",
            "labels/weights/.zattrs",
            "labels/labels/labels/.zattrs",
        ),
        *("labels/labels/0/3/0/0", "labels/labels/0/99999/0/0", "labels/prediction/.zattrs", "�"),
    ],
)
def test_what_is_no_file_of_it_is_not_there(make: Make, file: str) -> None:
    project = make()
    answer = client(project).get(f"{address(project)}/{file}", headers={"Origin": ORIGIN})
    assert answer.status_code == 404


def test_pages_that_are_allowed_may_read_it(make: Make) -> None:
    project = make()
    asked, url = client(project), address(project)
    for file, status in (("0/0/0/0", 200), (".zattrs", 200), ("0/99/0/0", 404)):
        answer = asked.get(f"{url}/{file}", headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (
            status,
            ORIGIN,
        )
        other = asked.get(f"{url}/{file}", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
    preflight = asked.options(f"{url}/0/0/0/0", headers={"Origin": ORIGIN})
    assert preflight.status_code == 200
    assert "GET" in preflight.headers["Access-Control-Allow-Methods"]
    head, whole = asked.head(f"{url}/0/0/0/0"), asked.get(f"{url}/0/0/0/0")
    assert head.data == b""
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
    tag = {"If-None-Match": whole.headers["ETag"]}
    assert asked.get(f"{url}/0/0/0/0", headers=tag).status_code == 304
    assert asked.post(f"{url}/0/0/0/0").status_code == 405


@pytest.mark.usefixtures("_ask_each_time")
def test_a_volume_that_cannot_be_read_is_refused(make: Make, tmp_path: Path) -> None:
    project = make()
    asked, url = client(project), address(project)
    (tmp_path / "scans" / "bone.nii.gz").write_bytes(b"\x1f\x8b no volume")
    for file in ("0/0/0/0", ".zattrs"):
        answer = asked.get(f"{url}/{file}")
        assert (answer.status_code, answer.mimetype) == (422, "text/plain")


def test_a_volume_outside_the_roots_is_refused(make: Make, tmp_path: Path) -> None:
    project = make(name="scans/link.nii.gz")
    (tmp_path / "secret.nii.gz").write_bytes((tmp_path / "scans" / "bone.nii.gz").read_bytes())
    (tmp_path / "scans" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    answer = client(project).get(f"{address(project, 'scans/link.nii.gz')}/0/0/0/0")
    assert answer.status_code == 422
    assert "a link that leads out of" in answer.text


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "CHUNKS", 0)
    project = make()
    answer = client(project).get(f"{address(project)}/0/0/0/0")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_a_refusal_is_logged_without_the_address_that_opens_the_volume(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = make()
    signature = address(project).split("/")[2].rpartition(".")[2]
    asked = client(project)
    monkeypatch.setattr(served, "CHUNKS", 0)
    full = client(project)
    assert full.get(f"{address(project)}/0/0/0/0").status_code == 503
    monkeypatch.setattr(pages, "_chunk", lambda *given: 1 // 0)
    assert asked.get(f"{address(project)}/0/0/0/0").status_code == 500
    assert asked.get(f"{address(project, expires=1)}/.zattrs").status_code == 403
    where = f"scan.zarr/0/0/0/0 of {NAME} in project {project.key}"
    assert f"{where}: 503: 0 chunks are asked for at once" in caplog.text
    assert f"{where} cannot be shown" in caplog.text
    assert "scan.zarr/.zattrs: 403: volume address: it has expired" in caplog.text
    assert signature not in caplog.text
    assert "/zarr/" not in caplog.text


# -- what it costs


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of slices that are made from now on."""
    made: list[int] = []

    def scan_plane(volume: Any, level: Any, place: int) -> Values:
        made.append(place)
        return planes.scan_plane(volume, level, place)

    monkeypatch.setattr(served, "scan_plane", scan_plane)
    return made


def test_a_slice_is_read_once_for_all_of_its_chunks(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(values=noise("uint16"), labels=())
    asked, url, made = client(project), address(project), counted(monkeypatch)
    files = [f"0/7/{y}/{x}" for y in range(2) for x in range(2)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda file: asked.application.test_client().get(f"{url}/{file}"), files)
        )
    assert {answer.status_code for answer in answers} == {200}
    assert made == [7]
    first = asked.get(f"{url}/2/3/0/0").data
    assert made == [7, 3]
    # the smaller ones are kept on disk, for the next process
    assert client(project).get(f"{url}/2/3/0/0").data == first
    assert made == [7, 3]


@pytest.mark.usefixtures("_ask_each_time")
def test_a_replaced_file_is_served_anew(make: Make, tmp_path: Path) -> None:
    project = make()
    asked, url = client(project), f"{address(project)}/0/0/0/0"
    before = asked.get(url).data
    make(values=scan() + np.uint16(1))
    found = np.frombuffer(Blosc().decode(asked.get(url).data), np.uint16)
    np.testing.assert_array_equal(found, np.frombuffer(Blosc().decode(before), np.uint16) + 1)


def test_what_is_kept_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planes, "_KEPT_BYTES", 1000)
    kept = planes.Planes(planes.DiskCache(tmp_path, 1))
    made: list[str] = []

    def get(name: str, size: int = 400) -> int:
        return kept.get(name, lambda: made.append(name) or np.zeros(size, np.uint8)).nbytes

    for name in ("a", "b", "a", "c", "a", "b"):
        get(name)
    assert made == ["a", "b", "c", "b"]
    assert get("large", 2000) == get("large", 2000) == 2000
    assert made[-2:] == ["large", "large"]


@pytest.mark.parametrize("file", ["0/1000/3/3", "1/1000/1/1", "3/100/1/0"])
def test_a_chunk_takes_the_memory_of_a_few_slices(make: Make, tmp_path: Path, file: str) -> None:
    """Of 128 GB: a sparse file, of which nothing is written but its first slices."""
    shape, raw = (2000, 8192, 4096), "scans/bone.npy"
    project = make(values=np.zeros((2 * SLICES, 8192 // 64, 64), np.uint16), name=raw, labels=())
    place = tmp_path / "scans" / "bone.npy"
    np.lib.format.open_memmap(place, "w+", np.uint16, shape)[1000, -1, -1] = 7
    asked, url = client(project), address(project, raw)
    asked.get(f"{url}/.zattrs")
    asked.get(f"{url}/0/0/0/0")
    tracemalloc.start()
    answer = asked.get(f"{url}/{file}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 200
    assert len(Blosc().decode(answer.data)) == 512 * 512 * 2
    assert peak < 3 * 8192 * 4096 * 2
