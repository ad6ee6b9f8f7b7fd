"""Scan, labels and prediction of a volume for a browser: what is in the files, and who gets them.
The page in a browser: `test_volume_browser`."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from flask.testing import FlaskClient

from ml_backend.api.dashboard import volumes
from ml_backend.api.dashboard.grid import Grid
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import ConnectedProject
from ml_backend.settings import Settings
from ml_backend.volumes.window import render
from tests.http_studio import PHANTOM, SLICES, HttpStudio, phantom_server
from tests.served import client
from tests.volume_project import NAME, WINDOW, predict, scan, volume_project

PAGE = f"/projects/7/volumes/{NAME}/"
ABOUT = f"/api/projects/7/volumes/{NAME}"
AFFINE = ((0.0, 0.0, -2.0, 50.0), (0.0, 2.0, 0.0, 7.0), (4.0, 0.0, 0.0, -3.0))

Make = Callable[..., ConnectedProject]


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        yield server


@pytest.fixture
def make(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path
) -> Make:
    given = {"REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": "volumes"}
    return partial(volume_project, server, make_settings, tmp_path, **given)


@pytest.fixture(autouse=True)
def _ask_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_FRESH_S", 0.0)


def image(asked: FlaskClient, kind: str, query: str = "") -> Any:
    answer = asked.get(f"{PAGE}{kind}.nii.gz{query}")
    assert (answer.status_code, answer.mimetype) == (200, "application/gzip"), answer.text
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.data))


def values(found: Any) -> npt.NDArray[Any]:
    """(Z, Y, X)."""
    return np.asarray(found.dataobj).T


def truth(tasks: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    found = np.full((SLICES, 64, 80), 255, np.uint8)
    for task in tasks:
        found[task] = PHANTOM.mask(PHANTOM.ids[task])
    return found


def test_scan_labels_and_prediction_lie_on_each_other(make: Make, server: HttpStudio) -> None:
    project = make(affine=AFFINE)
    version = predict(server, project, (3, 4))
    asked = client(project)
    found = {kind: image(asked, kind) for kind in ("scan", "labels", "prediction")}
    expected = np.array(AFFINE)[:, [2, 1, 0, 3]]
    for one in found.values():
        assert one.shape == (80, 64, SLICES)
        np.testing.assert_allclose(one.affine[:3], expected)
        assert one.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_array_equal(values(found["scan"]), render(scan(), WINDOW))
    np.testing.assert_array_equal(values(found["labels"]), truth((2, 5, 9)))
    np.testing.assert_array_equal(values(found["prediction"]), truth((3, 4)))
    about = asked.get(ABOUT).get_json()
    assert (about["labelled"], about["predicted"], about["model_version"]) == (3, 2, version)
    assert [one["task"] for one in about["slices"] if one["labelled"]] == [2, 5, 9]
    assert about["slices"][5]["label_studio"] == f"{server.url}/projects/7/data?task=5"


def test_a_new_annotation_is_seen_and_what_is_unchanged_is_not_built_again(
    make: Make, server: HttpStudio
) -> None:
    project = make()
    asked = client(project)
    path = f"{PAGE}labels.nii.gz"
    first = asked.get(path)
    tag = {"If-None-Match": first.headers["ETag"]}
    assert asked.get(path, headers=tag).status_code == 304
    before = len(server.seen)
    assert asked.get(path).data == first.data
    assert not [seen for seen in server.seen[before:] if "fields=all" in seen[1]]
    server.memory.submit(7, server.memory._rows[5]["annotations"][0]["result"])
    np.testing.assert_array_equal(values(image(asked, "labels"))[7], truth((5,))[5])
    assert asked.get(path, headers=tag).status_code == 200


def test_a_disk_without_room_is_said_in_the_form_that_was_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client(make())

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(volumes, "_build", full)
    monkeypatch.setattr(volumes.ProjectVolumes, "stacks", full)
    for path, mimetype in (
        (f"{PAGE}scan.nii.gz", "text/plain"),
        ("/api/projects/7/volumes", "application/json"),
        ("/projects/7/volumes", "text/html"),
    ):
        answer = asked.get(path)
        assert (answer.status_code, answer.mimetype) == (503, mimetype)
        assert "No space left on device" in answer.text


def test_slices_that_were_turned_over_go_back_to_where_the_file_has_them(make: Make) -> None:
    asked = client(make(flip="zy"))
    found = values(image(asked, "labels"))
    put = tuple(SLICES - 1 - task for task in (2, 5, 9))
    np.testing.assert_array_equal(found, truth(put))
    np.testing.assert_array_equal(values(image(asked, "scan")), render(scan(), WINDOW))
    about = asked.get(ABOUT).get_json()
    assert (about["slices"][2]["z"], about["slices"][2]["at"]) == (2, SLICES - 1 - 2)


def test_without_a_place_slices_lie_as_people_see_them(make: Make) -> None:
    found = image(client(make()), "scan")
    np.testing.assert_allclose(found.affine[:3, :3], np.diag([2, -2, -4]))


def test_what_a_browser_cannot_hold_is_shown_at_a_part(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Grid.of
    monkeypatch.setattr(Grid, "of", lambda shape: whole(shape, 2000))
    asked = client(make(affine=AFFINE))
    page = asked.get(PAGE).text
    assert "shown at 1/2 along z, 1/8 along y and x" in page
    about = asked.get(ABOUT).get_json()
    grid = whole((SLICES, 64, 80), 2000)
    assert tuple(about["shown"]) == grid.shape
    assert np.prod(grid.shape) <= 2000
    for kind in ("scan", "labels"):
        found = image(asked, kind)
        assert found.shape == grid.shape[::-1]
        expected = np.array(grid.affine(AFFINE))[:, [2, 1, 0, 3]]
        np.testing.assert_allclose(found.affine[:3], expected, rtol=1e-5)
    shown = {int(z) for z in np.nonzero((values(found) != 255).any(axis=(1, 2)))[0]}
    assert shown == {2 // grid.steps[0], 5 // grid.steps[0], 9 // grid.steps[0]}


@pytest.mark.parametrize(
    "path",
    [
        "/projects/8/volumes",
        f"/projects/8/volumes/{NAME}/",
        f"/api/projects/8/volumes/{NAME}",
        "/projects/7/volumes/scans/other.nii.gz/",
        "/api/projects/7/volumes/scans/other.nii.gz",
        "/projects/7/volumes/scans/other.nii.gz/scan.nii.gz",
        "/projects/7/volumes//etc/passwd/scan.nii.gz",
        f"{PAGE}scan.nii.gz?axis=y",
        f"{PAGE}weights.nii.gz",
        f"{PAGE}prediction.nii.gz",
    ],
)
def test_what_is_not_of_this_project_is_not_there(make: Make, tmp_path: Path, path: str) -> None:
    project = make()
    (tmp_path / "scans" / "other.nii.gz").write_bytes(
        (tmp_path / "scans" / "bone.nii.gz").read_bytes()
    )
    assert client(project).get(path).status_code == 404


def test_a_volume_outside_the_roots_is_refused(make: Make, tmp_path: Path) -> None:
    """Its address is signed, and a link in the root leads out of it."""
    project = make(name="scans/link.nii.gz")
    (tmp_path / "secret.nii.gz").write_bytes((tmp_path / "scans" / "bone.nii.gz").read_bytes())
    (tmp_path / "scans" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    asked = client(project)
    for kind in ("scan", "labels"):
        answer = asked.get(f"/projects/7/volumes/scans/link.nii.gz/{kind}.nii.gz")
        assert answer.status_code == 422
        assert "a link that leads out of" in answer.text
    assert "a link that leads out of" in asked.get("/projects/7/volumes/scans/link.nii.gz/").text


def test_an_address_that_nobody_signed_is_refused(make: Make) -> None:
    project = make()
    other = project.service.settings.slice_secret
    asked = client(project, slice_secret=type(other)("another secret of theirs"))
    answer = asked.get(f"{PAGE}scan.nii.gz")
    assert answer.status_code == 422
    assert "this backend has not" in answer.text


def test_pictures_that_are_no_volume_are_listed_with_their_tasks(
    make: Make, server: HttpStudio
) -> None:
    project = make()
    dataset = project.folder.round(0)
    record = dataset.need(DATASET)
    record.tasks = [one.model_copy(update={"image": f"/{one.id}.png"}) for one in record.tasks]
    dataset.save(DATASET, record)
    page = client(project).get(PAGE).text
    assert "Its slices are pictures that Label Studio shows" in page
    assert f'href="{server.url}/projects/7/data?task=11"' in page
    assert "<canvas" not in page
    assert client(project).get(f"{PAGE}scan.nii.gz").status_code == 422


def test_without_label_studio_the_scan_is_shown(make: Make) -> None:
    project = make()
    gone = type(project.service.settings.label_studio_api_key)("refused")
    asked = client(project, label_studio_api_key=gone)
    page = asked.get(PAGE)
    assert "Label Studio did not tell what is labelled" in page.text
    assert image(asked, "scan").shape == (80, 64, SLICES)
    assert asked.get(f"{PAGE}labels.nii.gz").status_code == 503


def test_an_annotation_that_cannot_be_read_is_counted(make: Make, server: HttpStudio) -> None:
    project = make()
    broken = [{"type": "bitmasklabels", "value": {"imageDataURL": "data:,", "bitmasklabels": [1]}}]
    server.memory.submit(8, broken)
    answer = client(project).get(f"{PAGE}labels.nii.gz")
    assert answer.headers["X-Nextslice-Left-Out"] == "1"
    again = client(project).get(f"{PAGE}labels.nii.gz")
    assert (again.data, again.headers["X-Nextslice-Left-Out"]) == (answer.data, "1")


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "VOLUMES", 0)
    answer = client(make()).get(f"{PAGE}scan.nii.gz")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"


def test_a_volume_that_takes_too_long_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_WITHIN_S", -1.0)
    answer = client(make()).get(f"{PAGE}scan.nii.gz")
    assert answer.status_code == 503
    assert "was not read within" in answer.text


def test_the_project_page_leads_to_its_volumes(make: Make) -> None:
    asked = client(make())
    assert 'href="/projects/7/volumes"' in asked.get("/projects/7").text
    assert f'href="{PAGE}?axis=z"' in asked.get("/projects/7/volumes").text
    found = asked.get("/api/projects/7/volumes").get_json()["volumes"]
    assert found == [{"volume": NAME, "axis": "z", "slices": SLICES, "page": f"{PAGE}?axis=z"}]
    page = asked.get(PAGE)
    assert "nextslice segment VOLUME --project 7 --out labels.zarr" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_volumes_are_behind_the_login(make: Make) -> None:
    project = make()
    password = type(project.service.settings.basic_auth_pass)("secret")
    locked = client(project, basic_auth_user="ann", basic_auth_pass=password)
    paths = ["/projects/7/volumes", "/api/projects/7/volumes", PAGE, ABOUT]
    for path in (*paths, f"{PAGE}scan.nii.gz", f"{PAGE}labels.nii.gz", "/dashboard/niivue.umd.js"):
        assert locked.get(path).status_code == 401, path
        assert locked.get(path, auth=("ann", "secret")).status_code == 200, path
