"""Where a task's image stands, and what is said where it stands nowhere."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds import adopt as adoption
from ml_backend.rounds import imageless, reconcile
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend, Filter, TaskRow
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

KEY = f"7.{int(FIRST_MOMENT.timestamp())}"
TASKS = 4


class Connected(MemoryStudio):
    """A project that has us as its backend."""

    def set_webhook_header(self, project_id: int, url: str, name: str, value: str) -> bool:
        return True

    looked_at = 0

    def tasks(self, project_id: int, filters: Sequence[Filter] = ()) -> Iterator[TaskRow]:
        for row in super().tasks(project_id, filters):
            self.looked_at += 1
            yield row

    def show_in(self, field: str) -> None:
        self.fields["label_config"] = config(field)

    def put(self, data: Callable[[int], dict[str, Any]], tasks: range = range(TASKS)) -> None:
        for task in tasks:
            self.request("PATCH", f"api/tasks/{task}/", json={"data": data(task)})


def config(field: str) -> str:
    return bitmask_config(["bone"]).replace('"$image"', f'"${field}"')


MakeProject = Callable[..., ConnectedProject]


@pytest.fixture
def make_project(make_settings: Callable[..., Settings], redis_url: str) -> MakeProject:
    def make(
        field: str, data: Callable[[int], dict[str, Any]], tasks: int = TASKS
    ) -> ConnectedProject:
        studio: Any = Connected(config(field), tasks, lambda _: np.zeros((8, 9)))
        studio.backend = Backend(id=1, url="http://us:9090")
        studio.put(data, range(tasks))
        return ConnectedProject(Service(make_settings(REDIS_URL=redis_url), studio=studio), KEY)

    return make


def adopted(project: ConnectedProject) -> None:
    adoption.adopt(project, "http://us:9090")


def conditions(project: ConnectedProject) -> list[str]:
    found = project_status(project).conditions
    return [condition.says for condition in found if condition.state == "imageless"]


@pytest.mark.parametrize(
    ("field", "data"),
    [
        ("meta.image", lambda i: {"meta": {"image": f"http://h/{i}.png"}, "image": "no"}),
        ("images[0]", lambda i: {"images": [f"http://h/{i}.png", "second"]}),
        ("scan.views[1].url", lambda i: {"scan": {"views": [{}, {"url": f"http://h/{i}.png"}]}}),
        ("meta.image", lambda i: {"meta.image": f"http://h/{i}.png"}),
    ],
)
def test_a_nested_image_is_found(
    make_project: MakeProject, field: str, data: Callable[[int], dict[str, Any]]
) -> None:
    project = make_project(field, data)
    adopted(project)
    dataset = project.folder.round(0).need(DATASET)
    assert [task.image for task in dataset.tasks] == [f"http://h/{i}.png" for i in range(TASKS)]
    assert conditions(project) == []


def test_a_field_that_no_task_has_is_said_once_with_those_there_are(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(
        "image", lambda i: {"picture": f"{i}.png", "meta": {"a": 1, "views": ["x"]}, "z": i}
    )
    with caplog.at_level(logging.WARNING):
        adopted(project)
        for _ in range(3):
            reconcile.count(project)

    assert project.published is None
    (said,) = conditions(project)
    assert said.startswith(
        "None of the project's 4 tasks has an image where the labelling config reads it "
        '(value="$image" of Image "image"): their data has meta.a, meta.views[0], picture, z.'
    )
    assert len([r for r in caplog.records if "image" in r.message]) == 1

    project.studio.show_in("picture")
    reconcile.count(project)

    assert conditions(project) == []
    assert project.published is not None


def test_a_training_asked_for_before_there_are_slices_follows_the_first_order(
    make_project: MakeProject,
) -> None:
    project = make_project("image", lambda i: {"picture": f"{i}.png"})
    adopted(project)
    project.studio.submit(0, [])
    project.studio.show_in("picture")

    project.request_start()
    reconcile.count(project)

    assert project.published is not None
    (job,) = project.service.schedule.queue(GPU).jobs
    assert job.args == [KEY, "start training", 1]


def test_the_command_shows_it(make_project: MakeProject) -> None:
    project = make_project("image", lambda i: {"picture": f"{i}.png"})
    adopted(project)
    settings = project.settings
    shown = subprocess.run(
        [sys.executable, "-m", "ml_backend.cli", "rounds", "list", "7"],
        capture_output=True, text=True, check=True, timeout=120,
        env={"COLUMNS": "400", "LABEL_STUDIO_API_KEY": "t", "REDIS_URL": settings.redis_url,
             "NEXTSLICE_STORE": settings.store, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert "None of the project's 4 tasks has an image" in shown.stderr
    assert "their data has picture." in shown.stderr


def test_some_tasks_without_an_image_are_counted(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project("image", lambda i: {"image": f"{i}.png"})
    project.studio.put(lambda i: {"picture": "x", "image": None}, range(1))
    with caplog.at_level(logging.WARNING):
        adopted(project)
    said = (
        "1 of the project's 4 tasks have no image in image, which the labelling config reads "
        "(their data has image, picture): they are left out."
    )
    assert conditions(project) == [said]
    dataset = project.folder.round(0).need(DATASET)
    assert [task.id for task in dataset.tasks] == [1, 2, 3]
    assert dataset.warnings == [said]
    assert caplog.text.count("1 of the project's 4 tasks") == 1


def test_a_config_that_comes_to_read_another_field_is_looked_at(make_project: MakeProject) -> None:
    project = make_project("image", lambda i: {"image": f"{i}.png"})
    adopted(project)
    assert conditions(project) == []

    project.studio.show_in("picture")
    reconcile.count(project)
    (said,) = conditions(project)
    assert "their data has image." in said

    project.studio.show_in("image")
    adopted(project)
    assert conditions(project) == []


@pytest.mark.parametrize("slow", [False, True])
def test_a_large_project_is_looked_at_for_a_moment_only(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Of 100,000 tasks the listing takes minutes, each time somebody touches the config."""
    project = make_project("image", lambda i: {"image": f"{i}.png"}, tasks=3000)
    adopted(project)
    project.studio.looked_at = 0
    clock = itertools.count(0.0, 0.5 if slow else 0.001)
    monkeypatch.setattr(imageless.time, "monotonic", lambda: next(clock))

    imageless.look_for_images(project, parse_label_config(config("picture")))

    first = 20 if slow else 1000
    assert project.studio.looked_at == first
    (said,) = conditions(project)
    assert said.startswith(f"None of the first {first} of the project's 3000 tasks has an image")
    imageless.look_for_images(project, parse_label_config(config("image")))
    assert conditions(project) == []
