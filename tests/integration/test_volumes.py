"""Volumes in, rounds out: import, annotate by machine, train on native values, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import requests

from ml_backend import import_volume as volume_import
from ml_backend.embedded.annotator import Annotator
from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.stack import Stack
from ml_backend.export import export_round
from ml_backend.import_volume import ImportReport, ImportRequest, import_volume
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import ConnectedProject, find_project
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import ProjectSource
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.projects import (
    create_project,
    delete_project,
    import_tasks,
    projects_called,
    upload_images,
)
from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.phantom import CLASSES, PhantomSample
from ml_backend.volumes.volume import VolumeError, VolumeSpec
from ml_backend.volumes.window import Window, render
from tests.conftest import REPOSITORY
from tests.integration.conftest import K, LiveProject, disc, invite

pytestmark = pytest.mark.integration

DEPTH, HEIGHT, WIDTH = 12, 64, 80
VOXEL = (0.005, 0.0025, 0.0025)
LABELS = CLASSES[1:]
FORMATS = {
    "tiff": "explant.tif",
    "hdf5": "explant.h5",
    "ome-zarr": "explant.zarr",
    "nifti": "explant.nii.gz",
}


def explant(seed: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Grey values and labels of a small sample of the phantom."""
    sample = PhantomSample(seed, (DEPTH, HEIGHT, WIDTH))
    images, masks = zip(*(sample.slice(z) for z in range(DEPTH)), strict=True)
    return np.stack(images), np.stack(masks)


def write(path: Path, values: npt.NDArray[Any], **metadata: Any) -> Path:
    spec = VolumeSpec(values.shape, values.dtype, VOXEL, "mm", **metadata)  # type: ignore[arg-type]
    write_volume(path, iter(values), spec)
    return path


@pytest.fixture
def importing(service: Service, session: Session) -> Iterator[Callable[..., ImportReport]]:
    """`import_volume` of a request; projects that it made are deleted after the test."""
    made: set[int] = set()

    def run(path: Path, **request: Any) -> ImportReport:
        report = import_volume(service, ImportRequest(path, **request))
        made.add(report.project)
        return report

    yield run
    for number in made:
        session.call("DELETE", f"/api/projects/{number}/")


def live(service: Service, session: Session, report: ImportReport) -> LiveProject:
    return LiveProject(service, find_project(service, report.project).key, session)


def annotator(project: LiveProject, truth: dict[str, npt.NDArray[np.uint8]]) -> Annotator:
    config = parse_label_config(project.service.studio.project(project.number).label_config)
    return Annotator(
        project.session,
        project.number,
        config,
        lambda data: np.take(truth[data["volume"]], data["z"], "zyx".index(data["axis"])),
    )


def data_of(project: LiveProject) -> dict[int, dict[str, Any]]:
    return {row.id: row.data for row in project.service.studio.tasks(project.number)}


def test_what_is_annotated_in_any_format_comes_out_bit_for_bit(
    importing: Callable[..., ImportReport],
    service: Service,
    session: Session,
    volumes: Path,
    tmp_path: Path,
) -> None:
    """phantom → TIFF, HDF5, OME-Zarr, NIfTI → import → annotate → two rounds → export."""
    truth: dict[str, npt.NDArray[np.uint8]] = {}
    grey: dict[str, npt.NDArray[np.uint16]] = {}
    report: ImportReport | None = None
    for seed, (kind, name) in enumerate(FORMATS.items()):
        values, masks = explant(seed)
        path = write(volumes / kind / name, values)
        last = kind == "nifti"
        report = importing(
            path, labels=LABELS, title="round trip", connect=last, axis="y" if last else "z"
        )
        truth[report.volume], grey[report.volume] = masks, values
        assert report.added == (HEIGHT if last else DEPTH)
        assert report.created == (kind == "tiff")
    assert report is not None
    assert report.volume == "scans/nifti/explant.nii.gz"

    project = live(service, session, report)
    project.wait_for_round(0)
    person = annotator(project, truth)
    done: dict[int, dict[str, Any]] = {}
    for number in (1, 2):
        for _ in range(K):
            task = person.label_next()
            assert task is not None
            done[task["id"]] = task["data"]
        project.wait_for_round(number)

    # Training and serving saw the native values.
    dataset = project.folder.round(2).need(DATASET)
    source = ProjectSource(dataset, project.folder, project.images)
    for task in dataset.tasks[::7]:
        expected = np.take(grey[task.volume], int(task.z or 0), "zyx".index(task.axis))
        assert source.image(task.id).dtype == np.uint16
        assert (source.image(task.id) == expected).all()

    export_round(project, tmp_path / "out", format="ome-zarr")
    index = json.loads((tmp_path / "out" / "masks" / "labels.json").read_text())
    labelled = {(d["volume"], d["axis"], d["z"]) for d in done.values()}
    assert {label.task for label in dataset.labels} == set(done)
    for part in index["volumes"]:
        if part["file"] is None:
            continue
        with open_volume(tmp_path / "out" / "masks" / part["file"]) as volume:
            found = np.stack(list(volume))
            assert volume.voxel_size == pytest.approx(VOXEL)
            assert volume.classes == ("background", *LABELS)
        expected = np.full_like(truth[part["volume"]], 255)
        for name, axis, z in labelled:
            if (name, axis) == (part["volume"], part["axis"]):
                place = tuple(z if a == axis else slice(None) for a in "zyx")
                expected[place] = truth[name][place]
        assert (found == expected).all()
    exported = {(p["volume"], p["axis"]) for p in index["volumes"] if p["labelled"]}
    assert exported == {key[:2] for key in labelled}


@pytest.mark.parametrize("title", [None, " blanks around it "])
def test_done_again_an_import_adds_what_is_missing_and_nothing_else(
    importing: Callable[..., ImportReport],
    service: Service,
    session: Session,
    volumes: Path,
    title: str | None,
) -> None:
    path = write(volumes / ("titled" if title else "again") / "scan.tif", explant(7)[0])

    half = importing(path, labels=LABELS, title=title, connect=False, every=3)
    whole = importing(path, title=title, connect=False)
    again = importing(path, title=title, connect=False)

    assert (half.created, half.added, half.kept) == (True, 4, 0)
    assert (whole.created, whole.added, whole.kept) == (False, 8, 4)
    assert (again.created, again.added, again.kept) == (False, 0, 12)
    assert whole.project == half.project == again.project
    tasks = data_of(live(service, session, whole)).values()
    assert sorted(d["z"] for d in tasks) == list(range(DEPTH))


def test_another_volume_is_not_taken_for_one_that_is_there(
    importing: Callable[..., ImportReport], service: Service, volumes: Path, tmp_path: Path
) -> None:
    values, masks = explant(3)
    one = write(volumes / "week1" / "recon.tif", values)
    two = write(volumes / "week2" / "recon.tif", values[::-1])
    first = importing(one, labels=LABELS, connect=False)

    def refused(match: str, path: Path, **request: Any) -> None:
        with pytest.raises(StudioError, match=match):
            import_volume(service, ImportRequest(path, connect=False, **request))
        assert service.studio.count_tasks(first.project) == DEPTH

    refused(r"holds other volumes .*week1/recon\.tif.*--project", two)
    refused(r"slices of volumes, this import 8-bit pictures", one, upload=True)
    more = importing(two, project=first.project, connect=False)
    assert (more.added, more.kept) == (DEPTH, 0)

    uploaded = importing(one, labels=LABELS, title="uploads", upload=True, connect=False)
    with pytest.raises(
        StudioError, match=r"'recon\.tif' already, and its slice \d+ looks different"
    ):
        importing(two, title="uploads", upload=True, connect=False)
    again = importing(one, title="uploads", upload=True, connect=False)
    assert (again.project, again.added, again.kept) == (uploaded.project, 0, DEPTH)

    named = tmp_path / "labels.h5"
    swapped = ("background", *reversed(LABELS))
    write_volume(named, masks, VolumeSpec(masks.shape, masks.dtype, classes=swapped))
    with pytest.raises(VolumeError, match="names its classes background, "):
        importing(one, labels=LABELS, title="swapped", with_labels=named, connect=False)


def test_another_dataset_of_a_file_is_another_volume(
    importing: Callable[..., ImportReport], volumes: Path
) -> None:
    path = volumes / "two.h5"
    with h5py.File(path, "w") as file:
        file["a"] = file["b"] = explant(4)[0]
    importing(path, labels=LABELS, options=ReadOptions("a"), connect=False)
    with pytest.raises(StudioError, match=r"another reading of scans/two\.h5 \(dataset a "):
        importing(path, labels=LABELS, options=ReadOptions("b"), connect=False)


@pytest.fixture
def repeating(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have each POST of JSON to a path made twice, with ``between()`` in the middle: so does a
    Label Studio whose SQLite is locked after it stored what was asked for."""
    request = service.studio.request

    def start(path: str, between: Callable[[], object] = lambda: None) -> None:
        def twice(method: str, asked: str, **options: Any) -> Any:
            if (method, asked) == ("POST", path) and "json" in options:
                request(method, asked, **options)
                between()
            return request(method, asked, **options)

        monkeypatch.setattr(service.studio, "request", twice)

    return start


def test_a_project_that_a_repeated_request_left_is_deleted(
    service: Service, session: Session, repeating: Callable[..., None]
) -> None:
    repeating("api/projects/")
    made = create_project(service.studio, "made twice", bitmask_config(LABELS))

    found = [project.id for project in projects_called(service.studio, "made twice")]
    for number in found:
        session.call("DELETE", f"/api/projects/{number}/")
    assert found == [made.id]


@pytest.mark.parametrize("upload", [False, True])
def test_tasks_that_a_repeated_request_left_are_deleted_but_not_what_somebody_touched(
    importing: Callable[..., ImportReport],
    service: Service,
    session: Session,
    volumes: Path,
    repeating: Callable[..., None],
    upload: bool,
) -> None:
    values, masks = explant(4)
    masks[DEPTH // 2 :] = 255
    name = "uploaded.tif" if upload else "served.tif"
    path = write(volumes / "repeated" / name, values)
    truth = {path.name if upload else f"repeated/{name}": masks}
    asked = {"upload": upload, "connect": False, "labels": LABELS}
    project = live(service, session, importing(path, span=(0, 2), **asked))
    touched: dict[str, int] = {}

    def touch() -> None:
        """Work on four of the slices that the first attempt left, two of them annotated."""
        person = annotator(project, truth)
        open_tasks = {row.data["z"]: row for row in service.studio.tasks(project.number)}
        touched["annotated"] = open_tasks[8].id
        person.send(open_tasks[8].id, [])
        touched["annotated again"] = open_tasks[2].id
        person.send(open_tasks[2].id, [])
        touched["skipped"] = open_tasks[9].id
        person.skip({"id": open_tasks[9].id})
        touched["drawn on"] = open_tasks[10].id
        draft = session.call(
            "POST",
            f"/api/tasks/{open_tasks[10].id}/drafts",
            params={"project": project.number},
            json={"result": [], "lead_time": 1.0},
        )
        draft.raise_for_status()

    repeating(f"api/projects/{project.number}/import", touch)
    labelled = write(volumes / "repeated" / f"{name}.nii", masks, classes=("background", *LABELS))
    report = importing(path, with_labels=labelled, **asked)

    assert (report.project, report.added) == (project.number, DEPTH - 2)
    rows = list(service.studio.tasks(project.number))
    assert sorted({row.data["z"] for row in rows}) == list(range(DEPTH))
    assert len(rows) == DEPTH + len(touched)
    assert set(touched.values()) <= {row.id for row in rows}


def test_labels_that_are_there_become_annotations(
    importing: Callable[..., ImportReport], service: Service, session: Session, volumes: Path
) -> None:
    values, masks = explant(3)
    masks[DEPTH // 2 :] = 255
    path = write(volumes / "labelled" / "scan.h5", values)
    labels = write(volumes / "labelled" / "labels.nii", masks, classes=("background", *LABELS))

    report = importing(path, with_labels=labels)

    assert report.annotated == DEPTH // 2
    project = live(service, session, report)
    project.wait_for_round(1)  # they are enough for a training
    dataset = project.folder.round(1).need(DATASET)
    source = ProjectSource(dataset, project.folder, project.images)
    assert len(dataset.labels) == DEPTH // 2
    for label in dataset.labels:
        z = int(source.position(label.task).z)
        assert (source.mask(label.task) == masks[z]).all()


def test_an_address_is_served_to_label_studio_s_pages_and_to_nobody_without_it(
    importing: Callable[..., ImportReport],
    service: Service,
    session: Session,
    volumes: Path,
) -> None:
    values, _ = explant(5)
    report = importing(write(volumes / "served.npy", values), labels=LABELS, connect=False)
    image = next(d["image"] for d in data_of(live(service, session, report)).values())

    answer = requests.get(image, headers={"Origin": service.settings.label_studio_url}, timeout=60)

    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == service.settings.label_studio_url
    from ml_backend.studio.images import decode_image

    assert (decode_image(answer.content, "") == render(values[0], report.window)).all()
    assert requests.get(image.replace("/z/0", "/z/1"), timeout=60).status_code == 403


def test_files_are_uploaded_where_browsers_cannot_reach_us(
    importing: Callable[..., ImportReport],
    service: Service,
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, _ = explant(6)
    path = write(tmp_path / f"{'elsewhere ' * 6}.npy", values)  # under no root; no title for long
    sent: list[int] = []

    def noted(studio: Studio, number: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        sent.append(len(files))
        return upload_images(studio, number, files)

    monkeypatch.setattr(volume_import, "upload_images", noted)
    monkeypatch.setattr(volume_import, "_BYTES_PER_REQUEST", 2 * values[:, :, 0].size)

    report = importing(path, labels=LABELS, upload=True, connect=False, axis="x", span=(10, 14))

    project = live(service, session, report)
    tasks = data_of(project)
    assert sorted(d["z"] for d in tasks.values()) == [10, 11, 12, 13]
    for number, data in tasks.items():
        image = project.images.image(number, data["image"])
        assert (image == render(values[:, :, data["z"]], report.window)).all()
    assert sum(sent) == 4
    assert len(sent) > 1  # Label Studio limits a request


def test_the_image_goes_where_the_labelling_config_reads_it(
    service: Service, session: Session, volumes: Path
) -> None:
    config = bitmask_config(["bone"]).replace("$image", "$slice")
    made = create_project(service.studio, "a field of its own", config)
    path = write(volumes / "field.npy", explant(8)[0])

    for added in (DEPTH, 0):
        asked = ImportRequest(path, project=made.id, connect=False)
        assert import_volume(service, asked).added == added
    rows = service.studio.tasks(made.id)
    assert all(set(row.data) == {"slice", "volume", "axis", "z"} for row in rows)
    delete_project(service.studio, made.id)


def test_the_example_script_puts_a_folder_into_one_project(
    stack: Stack, service: Service, session: Session, volumes: Path
) -> None:
    folder = volumes / "a beamtime"
    for seed in (8, 9):
        write(folder / f"scan-{seed}.tif", explant(seed)[0])

    said = subprocess.run(
        [sys.executable, REPOSITORY / "docs/scripts/import_volumes.py", folder, ",".join(LABELS)],
        env={**os.environ, **stack.env},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout

    (project,) = projects_called(service.studio, "a beamtime")
    try:
        for seed in (8, 9):
            assert f"scans/a beamtime/scan-{seed}.tif: {DEPTH} added, 0 were there" in said
        assert service.studio.count_tasks(project.id) == 2 * DEPTH
        assert ConnectedProject(service, project.key).published is not None, "connected and adopted"
    finally:
        session.call("DELETE", f"/api/projects/{project.id}/")


def test_doubles_of_an_import_are_deleted_but_for_those_that_people_have_touched(
    service: Service,
    session: Session,
    make_project: Callable[..., LiveProject],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Label Studio repeats an import that it had stored; people have begun with the first."""
    project = make_project(slices=0, connect=False)
    studio = service.studio
    config = parse_label_config(studio.project(project.number).label_config)
    (colleague,) = invite(session, ["colleague"])
    drawn = regions(disc(3)[1], config)
    rows = [
        {"data": {"image": f"/{z}.png", "z": z}, "annotations": [{"result": labels}]}
        for z, labels in enumerate([drawn, [], drawn, [], drawn, drawn, []])
    ]
    rows += [{"data": {"image": f"/{z}.png", "z": z}} for z in range(7, 11)]
    request, doubles = studio.request, list[int]()

    def repeat(method: str, path: str, **options: Any) -> Any:
        if path.endswith("/import") and not doubles:
            doubles.extend(request(method, path, **options)["task_ids"])
            approved, other = annotations(doubles[2]), annotations(doubles[3])
            colleague.json("PATCH", f"/api/annotations/{approved}/", json={"result": drawn})
            colleague.json("PATCH", f"/api/annotations/{other}/", json={"result": drawn})
            for task, body in {4: {"result": drawn}, 7: {"result": []}}.items():
                colleague.json("POST", f"/api/tasks/{doubles[task]}/annotations/", json=body)
            skipped = {"result": [], "was_cancelled": True}
            colleague.json("POST", f"/api/tasks/{doubles[8]}/annotations/", json=skipped)
            for task in (5, 9):
                begun = {"result": drawn, "lead_time": 1}
                colleague.json("POST", f"/api/tasks/{doubles[task]}/drafts", json=begun)
        return request(method, path, **options)

    def annotations(task: int) -> int:
        (found,) = next(studio.full_tasks_by_id(project.number, [task]))["annotations"]
        return int(found["id"])

    monkeypatch.setattr(studio, "request", repeat)

    import_tasks(studio, project.number, rows)

    there = [row.id for row in studio.tasks(project.number)]
    left = [doubles[z] for z in (2, 3, 4, 5, 7, 8, 9)]
    assert there[: len(left)] == left
    assert len(there) == len(left) + len(rows)


def broken(folder: Path) -> dict[str, Path]:
    """Files that nobody can import, by what is wrong with them."""
    folder.mkdir()
    whole = write(folder / "whole.tif", explant(1)[0])
    cut = folder / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    empty = folder / "empty.h5"
    empty.touch()
    nothing = write(folder / "nan.npy", np.full((4, 32, 32), np.nan, np.float32))
    lying = folder / "lying.raw"
    lying.write_bytes(bytes(1000))
    lying.with_name("lying.raw.json").write_text(json.dumps({"shape": [9, 9, 9], "dtype": "<u2"}))
    flat = folder / "flat.npy"
    np.save(flat, np.zeros((8, 8)))
    return {"cut": cut, "empty": empty, "nan": nothing, "lying": lying, "flat": flat}


def test_a_broken_file_is_one_error_and_no_project(service: Service, volumes: Path) -> None:
    for what, path in broken(volumes / "broken").items():
        with pytest.raises(VolumeError) as failed:
            import_volume(service, ImportRequest(path, labels=LABELS, title=f"broken {what}"))
        assert path.name in str(failed.value)
        assert not projects_called(service.studio, f"broken {what}"), what


@pytest.mark.parametrize(
    ("touch", "deleted"),
    [
        (None, True),
        ("submit", False),
        ("skip", False),
        ("begin", False),
        ("import", False),
        ("config", False),
        ("labels", False),
    ],
    ids=["nobody", "submitted", "skipped", "begun", "imported beside", "config", "label volume"],
)
def test_a_file_that_is_damaged_in_the_middle_leaves_a_project_where_somebody_is_at_work(
    service: Service,
    session: Session,
    volumes: Path,
    touch: str | None,
    deleted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    title = f"damaged, {touch}"
    path = volumes / "damaged" / f"{touch}.h5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        chunks = {"chunks": (1, HEIGHT, WIDTH), "compression": "gzip"}
        file.create_dataset("data", data=explant(1)[0], **chunks)
        file["data"].id.write_direct_chunk((9, 0, 0), b"damaged")
    monkeypatch.setattr(volume_import, "_FILES_PER_REQUEST", 2)
    monkeypatch.setattr(volume_import, "_TASKS_PER_REQUEST", 2)
    (colleague,) = invite(session, ["colleague"])

    def person(step: str, done: int, total: int) -> None:
        if (step, done) != ("import", 4):
            return
        (made,) = projects_called(service.studio, title)
        task = f"/api/tasks/{next(service.studio.tasks(made.id)).id}"
        if touch == "submit":
            colleague.json("POST", f"{task}/annotations/", json={"result": []})
        elif touch == "skip":
            skipped = {"result": [], "was_cancelled": True}
            colleague.json("POST", f"{task}/annotations/", json=skipped)
        elif touch == "begin":
            colleague.json("POST", f"{task}/drafts", json={"result": [], "lead_time": 1})
        elif touch == "import":
            import_tasks(service.studio, made.id, [{"data": {"image": "/another.png"}}])
        elif touch == "config":
            config = {"label_config": bitmask_config([*LABELS, "marrow"])}
            colleague.json("PATCH", f"/api/projects/{made.id}/", json=config)

    window = Window(0, 4000)
    asked = ImportRequest(
        path, labels=LABELS, title=title, window=window, upload=True, connect=False
    )
    if touch == "labels":
        labels = write(volumes / "damaged" / "labels.npy", explant(1)[1])
        asked = replace(asked, with_labels=labels)
    with pytest.raises(VolumeError, match="cannot be read") as failed:
        import_volume(service, asked, person)

    left = projects_called(service.studio, title)
    assert bool(left) == (not deleted)
    for project in left:
        said = f"Project {project.id} ({title}) was made: 6 of 12 slices are added. The same"
        assert said in str(failed.value)
        session.call("DELETE", f"/api/projects/{project.id}/")
    assert left or "was made" not in str(failed.value)


def test_what_does_not_fit_is_said_before_anything_is_created(
    importing: Callable[..., ImportReport], service: Service, volumes: Path, tmp_path: Path
) -> None:
    values, masks = explant(2)
    path = write(volumes / "fitting" / "scan.tif", values)
    outside = write(tmp_path / "outside.tif", values)
    wrong = write(volumes / "fitting" / "wrong.npy", np.where(masks == 2, 7, masks).astype("u1"))
    unknown = np.where(masks == 2, 255, masks).astype("u1")
    partly = write(volumes / "fitting" / "partly.npy", unknown)
    small = write(volumes / "fitting" / "small.npy", masks[:, :32])

    def refused(error: type[Exception], match: str, path: Path, **request: Any) -> None:
        with pytest.raises(error, match=match):
            import_volume(service, ImportRequest(path, title="fitting", **request))
        assert not projects_called(service.studio, "fitting")

    refused(VolumeError, "needs class names", path)
    refused(VolumeError, "NEXTSLICE_VOLUMES", outside, labels=LABELS)
    refused(VolumeError, "values from 0 to 7", path, labels=LABELS, with_labels=wrong)
    refused(VolumeError, "label called background", path, labels=LABELS, with_labels=partly)
    refused(VolumeError, "one label for every voxel", path, labels=LABELS, with_labels=small)
    refused(VolumeError, "every 1: it has 12", path, labels=LABELS, span=(5, 40))

    importing(path, labels=LABELS, title="fitting", connect=False)
    with pytest.raises(StudioError, match="has the classes background, bone, implant, deg"):
        import_volume(service, ImportRequest(path, labels=("steel",), title="fitting"))
