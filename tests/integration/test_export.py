"""What `nextslice export` asks Label Studio for, and what Label Studio takes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk import LabelStudio

from ml_backend.export import annotators, export_studio_json
from ml_backend.studio.annotations import label_map, parse_task, regions
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.projects import import_tasks
from tests.export_store import ExportStore, tasks_of
from tests.integration.conftest import CLASSES, SIDE, LiveProject, disc

pytestmark = pytest.mark.integration


def fill(project: LiveProject) -> None:
    """Four tasks, whose images nobody looks at: two annotations of the first task, one of the
    second, a skip of the third; a prediction."""
    studio = project.service.studio
    rows = [{"data": {"image": f"/{z}.png", "volume": "cone", "z": z}} for z in range(4)]
    import_tasks(studio, project.number, rows)
    config = parse_label_config(studio.project(project.number).label_config)
    first, second, third, _ = (row.id for row in studio.tasks(project.number))
    for task, z in ((first, 1), (first, 2), (second, 3)):
        studio.sdk.annotations.create(task, result=regions(disc(z)[1], config), lead_time=3.5)
    studio.sdk.annotations.create(third, result=[], was_cancelled=True)
    studio.sdk.predictions.create(task=second, model_version="sam", score=0.5, result=[])


def test_the_latest_json_is_what_label_studio_itself_exports(
    make_project: Callable[..., LiveProject], tmp_path: Path
) -> None:
    project = make_project(slices=0, connect=False)
    fill(project)

    count = export_studio_json(project, tmp_path / "a.json")

    found = json.loads((tmp_path / "a.json").read_text())
    studio = project.service.studio
    sdk = LabelStudio(base_url=studio.url, api_key="unused", httpx_client=studio._http)
    own: list[dict[str, Any]] = sdk.projects.exports.as_json(project.number)
    assert count == len(found) == 2
    for task, expected in zip(found, own, strict=False):
        annotations, theirs = task.pop("annotations"), expected.pop("annotations")
        assert expected.pop("allow_skip") is True
        assert task == {**expected, "drafts": [], "predictions": []}
        assert len(annotations) == len(theirs)
        for annotation, of_theirs in zip(annotations, theirs, strict=True):
            assert annotation == {name: of_theirs[name] for name in annotation}
            assert {"id", "result", "completed_by", "updated_at", "lead_time"} <= set(annotation)


def test_an_annotation_that_label_studio_has_lost_from_its_counters_is_exported(
    make_project: Callable[..., LiveProject], tmp_path: Path
) -> None:
    project = make_project(slices=0, connect=False)
    assert export_studio_json(project, tmp_path / "none.json") == 0
    fill(project)
    first, second, *_ = (row.id for row in project.studio.tasks(project.number))
    lost = {"total_annotations": 0}
    project.studio.request("PATCH", f"api/tasks/{second}/", json=lost)

    assert export_studio_json(project, tmp_path / "a.json") == 2

    found = json.loads((tmp_path / "a.json").read_text())
    assert [task["id"] for task in found] == [first, second]


def test_what_was_exported_can_be_imported_again(
    make_project: Callable[..., LiveProject], tmp_path: Path
) -> None:
    project, other = make_project(slices=0, connect=False), make_project(slices=0, connect=False)
    studio = project.service.studio
    label_config = studio.project(project.number).label_config
    config = parse_label_config(label_config)
    fill(project)
    kept = ExportStore(project.service, key=project.key)
    masks = {2: disc(8)[1], 3: disc(9)[1]}
    kept.add_round(1, tasks_of("cone", "z", 4, 0), masks, config=label_config, users=(1,))

    for round_ in (None, 1):
        file = tmp_path / f"{round_}.json"
        export_studio_json(project, file, round=round_)
        import_tasks(studio, other.number, json.loads(file.read_text()))

    rendered = [
        label_map(annotation.result, config, SIDE, SIDE).mask
        for row in studio.full_tasks(other.number)
        for annotation in parse_task(row).annotations
    ]
    expected = [disc(z)[1] for z in (1, 2, 3, 8, 9)]
    np.testing.assert_array_equal(sorted(m.tobytes() for m in rendered),
                                  sorted(m.tobytes() for m in expected))  # fmt: skip


def test_a_round_can_be_imported_where_the_config_shows_other_data(
    make_project: Callable[..., LiveProject], tmp_path: Path
) -> None:
    shown = (
        '<Text name="who" value="$patient.name"/><Text name="site" value="of $site"/>'
        '<List name="pages" value="$pages"/><Header name="z" value="$z"/></View>'
    )
    label_config = bitmask_config(CLASSES).replace("</View>", shown)
    project = make_project(slices=0, connect=False, config=label_config)
    kept = ExportStore(project.service, key=project.key)
    tasks = tasks_of("cone", "z", 4, 0)
    kept.add_round(1, tasks, {2: disc(8)[1]}, config=label_config, users=(1,))

    export_studio_json(project, tmp_path / "a.json", round=1)
    rows = json.loads((tmp_path / "a.json").read_text())
    import_tasks(project.studio, project.number, rows)

    (task,) = project.studio.tasks(project.number)
    nothing = {"patient": {"name": ""}, "site": "", "pages": ""}
    slice_ = {"image": "/cone/2.png", "volume": "cone", "z": 2, "axis": "z"}
    assert task.data == {**slice_, **nothing}


def test_annotators_are_named(service: Any) -> None:
    (address,) = annotators(service).values()
    assert "@" in address
