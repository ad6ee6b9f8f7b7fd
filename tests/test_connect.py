"""What `connect` says: why a project cannot be connected, and what a person does next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.core.api_error import ApiError

from ml_backend.cli.connect import _next, put_drags
from ml_backend.rounds import adopt
from ml_backend.rounds.imageless import unreadable
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend, Studio, StudioError
from ml_backend.studio.label_config import LabelConfigError, bitmask_config, parse_label_config
from tests.http_studio import HttpStudio, phantom_server
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="l" toName="image"><Label value="bone"/></BrushLabels>'
CHOICES = '<Choices name="c" toName="image"><Choice value="good"/></Choices>'
GOOD = bitmask_config(["bone"])


class Connected(MemoryStudio):
    def set_webhook_header(self, project_id: int, url: str, name: str, value: str) -> bool:
        return True


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    studio: Any = Connected(GOOD, 4, lambda _: np.zeros((8, 9), np.uint8))
    service = Service(make_settings(REDIS_URL=redis_url), studio=studio)
    return ConnectedProject(service, f"7.{int(FIRST_MOMENT.timestamp())}")


def memory(project: ConnectedProject) -> MemoryStudio:
    studio: Any = project.studio
    return studio  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (f"{BRUSH}", "has no Image tag: add <Image"),
        (f"{IMAGE}{IMAGE.replace('image', 'other')}{BRUSH}", "shows 2 images .*keep one Image tag"),
        (f"{IMAGE}{CHOICES}", "no control that paints labelled masks"),
    ],
)
def test_a_config_that_cannot_be_segmented_is_said_before_anything_is_done(
    project: ConnectedProject, body: str, says: str
) -> None:
    memory(project).fields["label_config"] = f"<View>{body}</View>"
    with pytest.raises(LabelConfigError, match=says):
        adopt.connect(project)  # the studio in memory could register nothing
    assert not project.adopted


def test_images_that_are_gone_are_said_instead_of_what_to_press(project: ConnectedProject) -> None:
    memory(project).backend = Backend(id=1, url=project.settings.backend_url)
    adopt.adopt(project)
    config = parse_label_config(GOOD)
    assert unreadable(project, config) == ""
    assert "Press [bold]Label All Tasks" in _next(project, "")
    memory(project).unreadable |= {0, 1, 2, 3}
    cached = project.settings.cache_dir
    for file in [one for one in cached.rglob("*") if one.is_file()]:
        file.unlink()
    dead = unreadable(project, config)
    assert dead.startswith("None of the 3 images that were asked for can be read: The image of")
    assert "Label All Tasks" not in _next(project, dead)
    memory(project).unreadable.remove(1)
    assert unreadable(project, config) == ""


def test_a_project_without_tasks_is_not_to_be_annotated(project: ConnectedProject) -> None:
    said = _next(project, "")
    assert said == (
        "Model version: none yet, since the project has no tasks. Round 0 begins by itself when "
        "one has."
    )


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        yield server


def test_a_project_that_is_not_there_is_one_sentence(server: HttpStudio) -> None:
    with pytest.raises(StudioError) as refused:
        Studio(server.url, server.key).project(999)
    said = str(refused.value)
    assert said.startswith(f"Label Studio at {server.url} has no project 999, or none that the")
    assert "It has 7 (" in said
    assert not any(sign in said for sign in '{}\\"')


def test_what_label_studio_answers_is_said_in_its_words(server: HttpStudio) -> None:
    """Its answers are JSON in JSON, and the reason comes last."""
    reason = "the labelling config has no Image tag: add one"
    body = {
        "id": "2f" * 16, "status_code": 400, "version": "1.23.2", "exc_info": None,
        "detail": "Validation error",
        "validation_errors": {"non_field_errors": [f"{'x' * 500} {reason}"], "title": ["short"]},
    }  # fmt: skip

    def refuse() -> None:
        raise ApiError(status_code=400, body=body)

    with pytest.raises(StudioError) as refused:
        Studio(server.url, server.key).call("add the ML backend", refuse)
    said = str(refused.value)
    assert f"answered 400 to add the ML backend: Validation error {'x' * 500} {reason}" in said
    assert said.endswith("title: short")
    assert refused.value.status == 400


def test_a_backend_is_asked_for_drags_where_the_config_has_a_control_for_them(
    project: ConnectedProject,
) -> None:
    memory(project).backend = Backend(id=1, url=project.settings.backend_url)
    adopt.adopt(project)
    found = memory(project).backend
    assert found is not None
    assert found.is_interactive


def test_a_config_without_that_control_is_changed_when_somebody_asks(
    project: ConnectedProject,
) -> None:
    plain = f"<View>{IMAGE}{BRUSH}</View>"
    memory(project).fields["label_config"] = plain
    memory(project).backend = Backend(id=1, url=project.settings.backend_url)
    adopt.adopt(project)
    assert memory(project).fields["label_config"] == plain
    found = memory(project).backend
    assert found is not None
    assert not found.is_interactive
    put_drags(project)
    changed = project.in_studio().label_config
    assert parse_label_config(changed).prompts == ("fix",)
    put_drags(project)
    assert project.in_studio().label_config == changed
