"""What an import does to tasks that are there; the rest is held by the integration tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from ml_backend import import_volume as importing
from ml_backend.cli import app
from ml_backend.import_volume import ImportReport, ImportRequest, import_volume
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings
from ml_backend.studio import projects
from ml_backend.studio.annotations import label_map
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.projects import shortened_title
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.opening import ReadOptions
from ml_backend.volumes.volume import VolumeError
from ml_backend.volumes.window import Window, render
from tests.memory_studio import MemoryStudio

SLICES = 6
OLD, NEW = "https://old.example/nextslice", "https://new.example"
OTHERS = SliceKeys.parse("a secret of another deployment")


class Imported:
    """A volume whose slices are tasks of project 7, with addresses under ``OLD``."""

    def __init__(self, settings: Settings, path: Path) -> None:
        np.save(path, np.random.default_rng(0).integers(0, 4000, (SLICES, 8, 9), np.uint16))
        self.path = path
        self.keys = slice_keys(settings)
        self.studio = MemoryStudio(bitmask_config(["bone"]), SLICES, lambda _: np.zeros((8, 9)))
        self.studio.fields["title"] = "scan"
        self.service = Service(settings, studio=self.studio)
        for z in range(SLICES):
            self.put(z, self.address(z).url(OLD, self.keys))

    def address(self, z: int, window: Window | None = None) -> SliceAddress:
        return SliceAddress("scans/scan.npy", "z", z, window)

    def url(self, z: int, window: Window | None = None) -> str:
        """What the address of a slice is today."""
        return self.address(z, window).url(NEW, self.keys)

    def put(self, z: int, image: str, **data: Any) -> None:
        row = {"image": image, "volume": "scans/scan.npy", "axis": "z", "z": z, **data}
        self.studio.request("PATCH", f"api/tasks/{z}/", json={"data": row})

    def put_picture(self, z: int, values: np.ndarray, window: Window) -> None:
        """What ``--upload`` makes of a slice."""
        url = f"/data/upload/7/scan_z{z:05d}.png"
        row = {"image": url, "volume": self.path.name, "axis": "z", "z": z}
        self.studio.request("PATCH", f"api/tasks/{z}/", json={"data": row})
        self.studio.show(url, render(values, window))

    def data(self) -> dict[int, dict[str, Any]]:
        return {row.id: row.data for row in self.studio.tasks(7)}

    def repeat(self, **request: Any) -> ImportReport:
        asked = ImportRequest(self.path, project=7, connect=False, **request)
        return import_volume(self.service, asked)


@pytest.fixture
def imported(make_settings: Callable[..., Settings], tmp_path: Path) -> Imported:
    (tmp_path / "scans").mkdir()
    settings = make_settings(NEXTSLICE_VOLUMES=f"scans={tmp_path / 'scans'}", PUBLIC_URL=NEW)
    return Imported(settings, tmp_path / "scans" / "scan.npy")


def test_tasks_under_another_base_get_todays_and_nothing_else_changes(imported: Imported) -> None:
    window = Window(100, 900)
    todays = imported.url(1)
    foreign = imported.address(2, window).url(OLD, OTHERS)
    forged = SliceAddress("scans/secret.npy", "z", 4).url(NEW, OTHERS)
    elsewhere = SliceAddress("scans/other.npy", "z", 3).url(OLD, imported.keys)
    imported.put(0, imported.address(0, window).url(OLD, imported.keys), patient="p7")
    imported.put(1, todays)
    imported.put(2, foreign)
    imported.put(3, elsewhere, volume="scans/other.npy")
    imported.put(4, forged)
    before = imported.data()

    report = imported.repeat(span=(4, 6))

    after = {
        **before,
        **{z: {**before[z], "image": imported.url(z, window)} for z in (0, 2)},
        5: {**before[5], "image": imported.url(5)},
    }
    assert imported.data() == after
    assert (report.added, report.kept, report.moved) == (0, 2, 3)


def test_what_others_write_into_the_data_meanwhile_stays(imported: Imported) -> None:
    """As a round does, which tells why a slice is chosen, and another import, which asks for
    another window, while this one has begun to write."""
    others = imported.url(5, Window(5, 60))

    def meanwhile(step: str, done: int, total: int) -> None:
        if (step, done) == ("addresses", 1):
            imported.put(4, imported.address(4).url(OLD, imported.keys), why="Place 1 of 2.")
            imported.put(5, others)

    request = ImportRequest(imported.path, project=7, connect=False)
    import_volume(imported.service, request, meanwhile)

    found = imported.data()
    assert (found[4]["image"], found[4].get("why")) == (imported.url(4), "Place 1 of 2.")
    assert found[5]["image"] == others


def test_done_again_no_address_is_changed(imported: Imported) -> None:
    seen: list[tuple[str, int, int]] = []
    request = ImportRequest(imported.path, project=7, connect=False)
    first = import_volume(imported.service, request, lambda *step: seen.append(step))
    after = imported.data()

    again = imported.repeat()

    assert (first.moved, again.moved) == (SLICES, 0)
    assert imported.data() == after
    assert ("addresses", SLICES, SLICES) in seen


def test_the_window_stays_unless_another_is_asked_for(imported: Imported) -> None:
    for z in range(SLICES):
        imported.put(z, imported.url(z, Window(100, 900)))

    kept = imported.repeat()
    assert (kept.window, kept.moved) == (Window(100, 900), 0)

    other = imported.repeat(window=Window(5, 60), span=(0, 1))
    assert (other.window, other.moved) == (Window(5, 60), SLICES)
    assert {z: row["image"] for z, row in imported.data().items()} == {
        z: imported.url(z, Window(5, 60)) for z in range(SLICES)
    }


def test_two_readings_of_a_raw_file_do_not_meet_in_a_project(imported: Imported) -> None:
    raw = imported.path.with_suffix(".raw")
    np.load(imported.path).tofile(raw)
    there = ReadOptions(shape=(SLICES, 8, 9), dtype=">u2")
    for z in range(SLICES):
        address = SliceAddress("scans/scan.raw", "z", z, options=there)
        imported.put(z, address.url(NEW, imported.keys), volume="scans/scan.raw")
    before = imported.data()
    imported.path = raw

    with pytest.raises(
        StudioError, match=r"another reading of scans/scan\.raw \(dtype >u2 there, "
    ):
        imported.repeat(options=replace(there, dtype="<u2"))
    assert imported.data() == before
    assert imported.repeat(options=there).kept == SLICES
    assert imported.repeat(options=replace(there, offset=0)).kept == SLICES  # says no more
    assert imported.data() == before


def test_an_offset_of_0_is_in_the_addresses_where_the_sidecar_says_another(
    imported: Imported,
) -> None:
    imported.path = imported.path.with_suffix(".raw")
    np.arange(SLICES * 8 * 9, dtype="<u2").tofile(imported.path)
    imported.path.with_name("scan.raw.json").write_text(json.dumps({"offset": 6}))
    options = ReadOptions(shape=(SLICES, 8, 9), dtype="<u2", offset=0)

    for z in range(SLICES):
        url = SliceAddress("scans/scan.raw", "z", z, options=options).url(NEW, imported.keys)
        assert "offset=0" in url
        assert SliceAddress.parse(url, imported.keys).options == options
        imported.put(z, url, volume="scans/scan.raw")

    assert imported.repeat(options=options).kept == SLICES


def test_two_channels_do_not_meet_in_a_project(imported: Imported) -> None:
    stack = imported.path.with_suffix(".tif")
    array = np.random.default_rng(1).integers(0, 4000, (SLICES, 2, 8, 9), np.uint16)
    tifffile.imwrite(stack, array, imagej=True, metadata={"axes": "ZCYX"})
    for z in range(SLICES):
        address = SliceAddress("scans/scan.tif", "z", z, options=ReadOptions(channel=1))
        imported.put(z, address.url(OLD, imported.keys), volume="scans/scan.tif")
    imported.path = stack

    with pytest.raises(StudioError, match=r"\(channel 1 there, 0 now\)"):
        imported.repeat(options=ReadOptions(channel=0))
    report = imported.repeat(options=ReadOptions(channel=1))
    assert (report.kept, report.moved) == (SLICES, SLICES)
    moved = SliceAddress.parse(imported.data()[3]["image"], imported.keys)
    assert moved.options == ReadOptions(channel=1)


def test_labels_in_which_0_is_white_are_as_they_are_stored(imported: Imported) -> None:
    masks = np.ones((SLICES, 8, 9), np.uint8)
    labels = imported.path.with_name("labels.tif")
    tifffile.imwrite(labels, masks, photometric="miniswhite", metadata=None)

    assert imported.repeat(with_labels=labels).labels_added == SLICES
    rows = {row["id"]: row["annotations"] for row in imported.studio.full_tasks(7)}
    config = parse_label_config(imported.studio.fields["label_config"])
    assert (label_map(rows[2][0]["result"], config, 8, 9).mask == 1).all()


def test_labels_of_slices_that_are_there_are_counted_and_left(imported: Imported) -> None:
    masks = np.full((SLICES, 8, 9), 255, np.uint8)
    masks[1:3] = 1
    labels = imported.path.with_name("labels.npy")
    np.save(labels, masks)
    assert imported.repeat(with_labels=labels).labels_left == 2


def test_labels_that_an_import_lost_are_added_by_the_next(imported: Imported) -> None:
    masks = np.full((SLICES, 8, 9), 255, np.uint8)
    masks[1:4] = 1
    labels = imported.path.with_name("labels.npy")
    np.save(labels, masks)
    imported.studio.submit(2, [])  # somebody's

    report = imported.repeat(with_labels=labels)

    assert (report.labels_left, report.labels_added) == (3, 2)
    rows = {row["id"]: row["annotations"] for row in imported.studio.full_tasks(7)}
    assert [len(rows[z]) for z in range(SLICES)] == [0, 1, 1, 1, 0, 0]
    config = parse_label_config(imported.studio.fields["label_config"])
    for z in (1, 3):
        assert (label_map(rows[z][0]["result"], config, 8, 9).mask == 1).all()
    assert rows[2][0]["result"] == []
    assert imported.repeat(with_labels=labels).labels_added == 0


@pytest.mark.parametrize(
    ("step", "done", "added"), [("check labels", 1, 0), ("import", 0, 0), ("import", 2, 2)]
)
def test_the_same_import_beside_it_doubles_nothing(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, step: str, done: int, added: int
) -> None:
    for z in range(1, SLICES):
        imported.studio.delete_task(z)

    def send(studio: MemoryStudio, project: int, rows: list[dict[str, Any]]) -> None:
        assert rows
        for row in rows:
            studio.add_task(row["data"])

    monkeypatch.setattr(importing, "import_tasks", send)
    monkeypatch.setattr(importing, "_TASKS_PER_REQUEST", 2)
    labels = imported.path.with_name("labels.npy")
    np.save(labels, np.ones((SLICES, 8, 9), np.uint8))
    request = ImportRequest(imported.path, project=7, connect=False, with_labels=labels)
    others: list[ImportReport] = []

    def beside(at: str, place: int, _: int) -> None:
        if (at, place) == (step, done):
            others.append(import_volume(imported.service, request))

    report = import_volume(imported.service, request, beside)

    assert sorted(row["z"] for row in imported.data().values()) == list(range(SLICES))
    assert (report.added, report.annotated, others[0].added) == (added, added, 5 - added)
    assert (report.kept, report.labels_left) == (SLICES - added, SLICES - added)


def test_a_project_made_meanwhile_is_not_made_twice(
    imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [[], [imported.studio.project(7)]]
    monkeypatch.setattr(importing, "projects_called", lambda studio, title: listed.pop(0))
    monkeypatch.setattr(importing, "create_project", pytest.fail)
    asked = ImportRequest(imported.path, labels=("bone",), connect=False)
    with pytest.raises(StudioError, match=r"project 7 .* made while .* command again: it goes on"):
        import_volume(imported.service, asked)


@pytest.mark.parametrize(
    ("person", "left"),
    [
        (lambda studio: studio.submit(5, []), 1),
        (lambda studio: studio.submit(5, [], was_cancelled=True), 1),
        (lambda studio: studio.drafted.add(5), 0),
    ],
    ids=["submits", "skips", "begins"],
)
def test_a_slice_that_somebody_takes_while_labels_are_added_is_left(
    imported: Imported,
    person: Callable[[MemoryStudio], None],
    left: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = imported.path.with_name("labels.npy")
    np.save(labels, np.ones((SLICES, 8, 9), np.uint8))
    for module in (importing, projects):
        monkeypatch.setattr(module, "ANNOTATED_AT_ONCE", 2)
    request = imported.studio.request
    sent: list[str] = []

    def beside(method: str, path: str, **options: Any) -> Any:
        if method == "POST":
            sent.append(path)
            if len(sent) == 1:
                person(imported.studio)
        return request(method, path, **options)

    monkeypatch.setattr(imported.studio, "request", beside)

    assert imported.repeat(with_labels=labels).labels_added == SLICES - 1
    rows = {row["id"]: row["annotations"] for row in imported.studio.full_tasks(7)}
    assert [len(rows[z]) for z in range(SLICES)] == [1, 1, 1, 1, 1, left]


@pytest.mark.parametrize(
    "failure",
    [StudioError("Label Studio is gone."), VolumeError("Page 5 is damaged."), KeyboardInterrupt()],
)
def test_what_a_failure_leaves_is_said(
    imported: Imported,
    failure: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for z in (1, 2, 4):
        imported.studio.delete_task(z)
    asked: list[int] = []

    def send(studio: Any, project: int, rows: list[Any]) -> None:
        asked.append(len(rows))
        if len(asked) == 2:
            raise failure

    monkeypatch.setattr(importing, "import_tasks", send)
    monkeypatch.setattr(importing, "_TASKS_PER_REQUEST", 2)
    with pytest.raises(type(failure)) as ended:
        imported.repeat()
    said = f"{ended.value}{caplog.text}"
    assert "Project 7 (scan) was extended: 2 of 3 slices are added. The same command goes" in said
    assert asked == [2, 1]


LPS = np.diag([-1.0, -1, 1, 1])


class Lying(Imported):
    """The same for a NIfTI scan whose x and y run to left and posterior."""

    def __init__(self, settings: Settings, path: Path, *, oriented: bool) -> None:
        self.oriented = oriented
        super().__init__(settings, path)
        self.path = path.with_suffix(".nii")
        self.values = np.random.default_rng(0).integers(0, 4000, (9, 8, SLICES), np.uint16)
        nib.save(nib.Nifti1Image(self.values, LPS), self.path)

    def address(self, z: int, window: Window | None = None) -> SliceAddress:
        options = ReadOptions(oriented=self.oriented)
        return SliceAddress("scans/scan.nii", "z", z, window, options)

    def put(self, z: int, image: str, **data: Any) -> None:
        super().put(z, image, volume="scans/scan.nii", **data)

    def served(self, z: int) -> np.ndarray:
        """The slice of a task, as workers read it."""
        options = SliceAddress.parse(self.data()[z]["image"], self.keys).options
        with self.service.volumes.volume("scans/scan.nii", options) as volume:
            return volume[z]


@pytest.fixture
def lying(make_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Lying]:
    (tmp_path / "scans").mkdir()
    settings = make_settings(NEXTSLICE_VOLUMES=f"scans={tmp_path / 'scans'}", PUBLIC_URL=NEW)
    return lambda oriented: Lying(settings, tmp_path / "scans" / "scan.npy", oriented=oriented)


def test_labels_are_laid_on_the_scan_and_slices_are_read_so(lying: Callable[..., Lying]) -> None:
    imported = lying(oriented=True)
    labels = imported.path.with_name("labels.nii")
    truth = nib.Nifti1Image((imported.values > 2000).astype(np.uint8), LPS)
    swapped = truth.as_reoriented(np.array([[1, 1], [2, -1], [0, -1]]))
    nib.save(swapped, labels)

    report = imported.repeat(with_labels=labels)

    assert (report.added, report.labels_added) == (0, SLICES)
    rows = {row["id"]: row["annotations"] for row in imported.studio.full_tasks(7)}
    config = parse_label_config(imported.studio.fields["label_config"])
    for z in range(SLICES):
        mask = label_map(rows[z][0]["result"], config, 8, 9).mask
        assert np.array_equal(mask == 1, imported.served(z) > 2000)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_and_labels_are_turned_over_together(lying: Callable[..., Lying], axis: str) -> None:
    imported = lying(oriented=True)
    labels = imported.path.with_name("labels.nii")
    nib.save(nib.Nifti1Image((imported.values > 2000).astype(np.uint8), LPS), labels)
    before = [imported.served(z) for z in range(SLICES)]
    for z in range(SLICES):
        claimed = SliceAddress.claimed(imported.data()[z]["image"])
        assert claimed is not None
        turned = replace(claimed, options=replace(claimed.options, flip=axis))
        imported.put(z, turned.url(NEW, imported.keys))

    report = imported.repeat(with_labels=labels, flip=axis)

    assert (report.added, report.labels_added, report.stored) == (0, SLICES, "LPS")
    top, left = report.sides or ("", "")
    assert (top, left) == {
        "z": ("posterior", "left"), "y": ("anterior", "left"), "x": ("posterior", "right"),
    }[axis]  # fmt: skip
    rows = {row["id"]: row["annotations"] for row in imported.studio.full_tasks(7)}
    config = parse_label_config(imported.studio.fields["label_config"])
    for z in range(SLICES):
        there = {"z": before[-1 - z], "y": before[z][::-1], "x": before[z][:, ::-1]}[axis]
        assert np.array_equal(imported.served(z), there)
        mask = label_map(rows[z][0]["result"], config, 8, 9).mask
        assert np.array_equal(mask == 1, there > 2000)


def test_slices_that_are_there_are_not_turned_over(lying: Callable[..., Lying]) -> None:
    imported = lying(oriented=True)
    with pytest.raises(StudioError, match=r"flip none there, y now.*another --title"):
        imported.repeat(flip="y")


def test_labels_that_lie_elsewhere_change_nothing(lying: Callable[..., Lying]) -> None:
    imported = lying(oriented=True)
    labels = imported.path.with_name("labels.nii")
    nib.save(nib.Nifti1Image(np.ones((9, 8, SLICES), np.uint8), np.eye(4)), labels)
    with pytest.raises(VolumeError, match=r"labels\.nii .*RAS.* and .*scan\.nii .*in the file LPS"):
        imported.repeat(with_labels=labels)
    assert not any(row["annotations"] for row in imported.studio.full_tasks(7))


def test_a_scan_imported_as_it_is_stored_stays_so(lying: Callable[..., Lying]) -> None:
    """Its annotations were drawn on slices that ran the other way."""
    imported = lying(oriented=False)
    assert np.array_equal(imported.served(2), imported.values[:, :, 2].T)
    labels = imported.path.with_name("labels.nii")
    truth = nib.Nifti1Image((imported.values > 2000).astype(np.uint8), LPS)
    nib.save(nib.as_closest_canonical(truth), labels)

    report = imported.repeat(with_labels=labels)

    assert (report.added, report.kept, report.labels_added) == (0, SLICES, SLICES)
    (annotation,) = next(imported.studio.full_tasks_by_id(7, [2]))["annotations"]
    config = parse_label_config(imported.studio.fields["label_config"])
    mask = label_map(annotation["result"], config, 8, 9).mask
    assert np.array_equal(imported.served(2), imported.values[:, :, 2].T)
    assert np.array_equal(mask == 1, imported.served(2) > 2000)


@pytest.mark.parametrize("other", [False, True])
def test_pictures_uploaded_as_they_are_stored_are_the_volume_too(
    lying: Callable[..., Lying], other: bool
) -> None:
    imported, window = lying(oriented=False), Window(0, 4000)
    values = imported.values[:, ::-1] if other else imported.values
    for z in range(SLICES):
        imported.put_picture(z, values[:, :, z].T, window)
    if other:
        with pytest.raises(StudioError, match=r"slice \d looks different: another file"):
            imported.repeat(upload=True, window=window)
        return
    report = imported.repeat(upload=True, window=window)
    assert (report.added, report.kept) == (0, SLICES)


WHITE = Window(0, 4000)


def an_uploaded_sample(imported: Imported, seed: int, air: int, there: int) -> np.ndarray:
    """Another sample of the same name, which begins with air: its slices ``there`` are tasks."""
    values = np.random.default_rng(seed).integers(0, 4000, (SLICES, 8, 9), np.uint16)
    values[:air] = 0
    for z in range(SLICES):
        imported.put_picture(z, values[z], WHITE)
    for z in range(there, SLICES):
        imported.studio.delete_task(z)
    return values


@pytest.mark.parametrize(
    ("there", "span"), [(SLICES, None), (SLICES, (0, 1)), (4, (4, 6)), (4, (0, 4))]
)
def test_air_does_not_make_another_sample_the_same_volume(
    imported: Imported, there: int, span: tuple[int, int] | None
) -> None:
    first = an_uploaded_sample(imported, 1, 1, there)
    second = np.where(first == 0, 0, first[::-1, ::-1])
    np.save(imported.path, second)
    labels = imported.path.with_name("labels.npy")
    np.save(labels, (second > 2000).astype(np.uint8))

    with pytest.raises(StudioError, match=r"slice \d looks different: another file"):
        imported.repeat(upload=True, window=WHITE, span=span, with_labels=labels)
    assert not any(row["annotations"] for row in imported.studio.full_tasks(7))


def test_a_longer_sample_is_another_volume(imported: Imported) -> None:
    np.save(imported.path, an_uploaded_sample(imported, 1, 0, SLICES)[:4])
    with pytest.raises(StudioError, match="one is its slice 5, ours has 4: another file"):
        imported.repeat(upload=True, window=WHITE)


def test_where_only_air_was_uploaded_the_import_goes_on(imported: Imported) -> None:
    values = an_uploaded_sample(imported, 1, 5, 4)
    np.save(imported.path, values)
    assert imported.repeat(upload=True, window=WHITE, span=(0, 4)).kept == 4
    values[2] = 4000
    np.save(imported.path, values)
    with pytest.raises(StudioError, match="slice 2 looks different"):
        imported.repeat(upload=True, window=WHITE, span=(0, 4))


@pytest.mark.parametrize("title", ["ct", "a" * 51, "  ct "])
def test_a_title_that_label_studio_refuses_is_said_first(imported: Imported, title: str) -> None:
    asked = ImportRequest(imported.path, labels=("bone",), title=title, connect=False)
    length = len(title.strip())
    with pytest.raises(StudioError, match=rf"has {length} characters.*3 to 50.*--title"):
        import_volume(imported.service, asked)


def test_a_file_name_that_is_no_title_is_made_one() -> None:
    long = f"{'week12_' * 9}recon.h5"
    assert shortened_title("scan.h5") == "scan.h5"
    assert len(shortened_title(long)) == 50
    assert shortened_title(long).endswith("recon.h5")


def test_the_command_gives_programs_the_project(
    imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "from_environment", lambda: imported.service)
    done = CliRunner().invoke(
        app, ["import", str(imported.path), "--project", "7", "--no-connect", "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["project"], said["kept"], said["added"]) == (7, SLICES, 0)
    assert said["window"].keys() == {"low", "high"}
    assert "does not say how the scan lies" in done.stderr
    assert f"Nothing answers at {NEW}" in done.stderr
