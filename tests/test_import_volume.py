"""What an import does to tasks that are there; the rest is held by the integration tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.import_volume import ImportReport, ImportRequest, import_volume
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from ml_backend.volumes.address import SliceAddress, SliceKeys
from ml_backend.volumes.window import Window
from tests.memory_studio import MemoryStudio

SLICES = 6
OLD, NEW = "https://old.example/nextslice", "https://new.example"
OTHERS = SliceKeys.parse("a secret of another deployment")


class Imported:
    """A volume whose slices are tasks of project 7, with addresses under ``OLD``."""

    def __init__(self, settings: Settings, path: Path) -> None:
        np.save(path, np.random.default_rng(0).integers(0, 4000, (SLICES, 8, 9), np.uint16))
        self.path = path
        self.service = Service(settings)
        self.keys = slice_keys(settings)
        self.studio = MemoryStudio(bitmask_config(["bone"]), SLICES, lambda _: np.zeros((8, 9)))
        self.studio.fields["title"] = "scan"
        self.service.__dict__["studio"] = self.studio
        for z in range(SLICES):
            self.put(z, self.address(z).url(OLD, self.keys))

    def address(self, z: int, window: Window | None = None) -> SliceAddress:
        return SliceAddress("scans/scan.npy", "z", z, window)

    def put(self, z: int, image: str, **data: Any) -> None:
        row = {"image": image, "volume": "scans/scan.npy", "axis": "z", "z": z, **data}
        self.studio.request("PATCH", f"api/tasks/{z}/", json={"data": row})

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
    todays = imported.address(1).url(f"{NEW}/", imported.keys)
    foreign = imported.address(2).url(OLD, OTHERS)
    elsewhere = SliceAddress("scans/other.npy", "z", 3).url(OLD, imported.keys)
    imported.put(0, imported.address(0, window).url(OLD, imported.keys), patient="p7")
    imported.put(1, todays)
    imported.put(2, foreign)
    imported.put(3, elsewhere, volume="scans/other.npy")
    before = imported.data()

    report = imported.repeat(span=(4, 6))

    after = {
        0: {**before[0], "image": imported.address(0, window).url(NEW, imported.keys)},
        **{z: before[z] for z in (1, 2, 3)},
        **{z: {**before[z], "image": imported.address(z).url(NEW, imported.keys)} for z in (4, 5)},
    }
    assert imported.data() == after
    assert (report.added, report.kept, report.moved) == (0, 2, 3)


def test_done_again_no_address_is_changed(imported: Imported) -> None:
    seen: list[tuple[str, int, int]] = []
    request = ImportRequest(imported.path, project=7, connect=False)
    first = import_volume(imported.service, request, lambda *step: seen.append(step))
    after = imported.data()

    again = imported.repeat()

    assert (first.moved, again.moved) == (SLICES, 0)
    assert imported.data() == after
    assert ("addresses", SLICES, SLICES) in seen
