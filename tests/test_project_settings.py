"""A project's own settings: over the service's, checked when they are given, recorded by rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.cli.project import _print
from ml_backend.errors import OptionError, SettingsError
from ml_backend.rounds import extra_params, reconcile
from ml_backend.rounds.jobs import round as round_job
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings, named_setting
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.settings import Settings, load_settings, own_fields
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"
CONFIG = bitmask_config(["bone"])


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="own", NEXTSLICE_SEED=3)
    project = ConnectedProject(Service(settings), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    return project


def again(project: ConnectedProject) -> ConnectedProject:
    """As the next job sees it."""
    return ConnectedProject(project.service, project.key)


def test_own_settings_lie_over_those_of_the_service(project: ConnectedProject) -> None:
    held = change_settings(project, {"k": "4", "NEXTSLICE_COLD_START": "random"})
    assert again(project).settings == held
    assert (held.k, held.cold_start, held.seed, held.strategy) == (4, "random", 3, "entropy")
    assert held.store == project.service.settings.store
    assert again(project).record.settings == {"k": 4, "cold_start": "random"}
    assert held.of_a_round()["k"] == 4
    assert project.service.settings.k == 8


def test_an_empty_value_takes_the_own_setting_back(project: ConnectedProject) -> None:
    change_settings(project, {"k": "4", "strategy": "badge", "train_steps": "50"})
    held = change_settings(project, {"k": "", "train-steps": " "})
    assert (held.k, held.strategy, held.train_steps) == (8, "badge", None)
    assert again(project).record.settings == {"strategy": "badge"}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("k", "0", r"k: found '0'.*greater than or equal to 1"),
        ("strategy", "corset", r"strategy: found 'corset'.*there are badge, "),
        ("cold_start", "typiclust", r"cold_start: found .*needs embedding"),
        ("unlabelled", "maybe", r"unlabelled: found 'maybe'"),
        ("pause", "perhaps", r"pause: found 'perhaps'"),
        ("kk", "4", r"'kk' is no setting of a project: is k meant\?"),
        ("redis_url", "redis://r:1/0", r"'redis_url' is a setting of the service"),
        ("architecture", "unet:resnet35", r"architecture is 'unet:resnet35', which cannot be"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    project: ConnectedProject, name: str, value: str, complaint: str
) -> None:
    with pytest.raises(OptionError, match=complaint):
        change_settings(project, {"seed": "9", name: value})
    assert again(project).record.settings == {}


def test_what_is_of_the_machine_or_of_the_service_is_no_projects_own() -> None:
    own = set(own_fields())
    assert {"k", "strategy", "cold_start", "neighbours", "unlabelled", "architecture"} <= own
    assert {"train_steps", "pause"} <= own
    assert not own & {"store", "redis_url", "train_device", "max_tile", "round_timeout_s"}
    assert named_setting("Cold-Start") == "cold_start"


def test_a_damaged_own_setting_is_named_with_the_command_that_mends_it(
    project: ConnectedProject,
) -> None:
    project.folder.record = ProjectRecord(project=7, key=KEY, settings={"k": 0, "later": 1})
    with pytest.raises(SettingsError, match=r"project 7.* k: found 0.*nextslice project set 7 k="):
        _ = again(project).settings
    assert change_settings(again(project), {"k": ""}).k == 8


def painted(classes: int) -> Any:
    mask = np.zeros((8, 9), np.uint8)
    mask[:classes] = 1
    return regions(mask, parse_label_config(CONFIG))


def test_no_training_is_asked_for_while_a_project_is_paused(project: ConnectedProject) -> None:
    studio: Any = MemoryStudio(CONFIG, 9, lambda _: np.zeros((8, 9), np.uint8))
    studio.backend = Backend(id=1, url=project.settings.backend_url, title="nextslice")
    service = Service(project.service.settings, studio=studio)

    def look() -> ConnectedProject:
        found = ConnectedProject(service, KEY)
        reconcile.count(found)
        return found

    change_settings(ConnectedProject(service, KEY), {"k": "2", "pause": "true"})
    look()
    for task in range(2):
        studio.submit(task, painted(2))
    ConnectedProject(service, KEY).request_start()
    paused = look()
    assert paused.schedule.round_progress() is None
    assert project_status(paused).has("paused")
    assert not project_status(paused).has("waiting")
    change_settings(ConnectedProject(service, KEY), {"pause": ""})
    going = look()
    assert not project_status(going).has("paused")
    job = service.schedule.job(going.schedule.job_id("round"))
    assert job is not None
    assert job[0].args[1] == "start training"
    job[0].delete()


def test_a_round_that_was_asked_for_before_the_pause_does_not_begin(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr("ml_backend.rounds.jobs._project", lambda key: again(project))
    monkeypatch.setattr(
        "ml_backend.rounds.jobs.attempt", lambda p, why, progress, number: begun.append(why)
    )
    change_settings(project, {"pause": "yes"})
    round_job(KEY, "8 new annotations")
    assert begun == []
    change_settings(project, {"pause": ""})
    round_job(KEY, "8 new annotations")
    assert begun == ["8 new annotations"]


def test_what_is_wrong_with_them_is_shown_as_it_is(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in what a person gave are no markup."""
    said = "strategy: found '[/b]', expected [one] :b:"
    monkeypatch.setattr(extra_params, "faults_of", lambda project: [said])

    _print(project, as_json=False)

    assert said in capsys.readouterr().err


def test_the_command_sets_and_shows(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = project.service.settings
    monkeypatch.setenv("NEXTSLICE_STORE", settings.store)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("NEXTSLICE_STRATEGY", "margin")
    load_settings.cache_clear()
    cli.load_commands()
    done = CliRunner().invoke(cli.app, ["project", "set", "7", "k=4", "pause=on"])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["k"] == ["4", "project"]
    assert rows["pause"] == ["true", "project"]
    assert rows["strategy"] == ["margin", "the", "environment"]
    shown = json.loads(CliRunner().invoke(cli.app, ["project", "show", "7", "--json"]).stdout)
    assert {"setting": "k", "value": 4, "from": "project"} in shown["settings"]
    assert {"setting": "seed", "value": 0, "from": "default"} in shown["settings"]
    wrong = CliRunner().invoke(cli.app, ["project", "set", "7", "k"])
    assert "expected NAME=VALUE" in str(wrong.exception)
    load_settings.cache_clear()
