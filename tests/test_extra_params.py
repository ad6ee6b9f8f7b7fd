"""Settings given as extra params of the ML backend in Label Studio: obeyed, or named."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from al_strategies import base
from ml_backend import cli
from ml_backend.rounds import extra_params
from ml_backend.rounds.extra_params import SOURCE, faults_of, follow, usable
from ml_backend.rounds.held_settings import held_settings
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.records import ProjectRecord, TriedNetwork
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, SettingsError, load_settings
from ml_backend.studio.client import Backend

KEY = "7.1763865028"


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="extra", NEXTSLICE_SEED=3)
    project = ConnectedProject(Service(settings), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    return project


def backend(said: Any) -> Backend:
    return Backend(id=1, url="http://127.0.0.1:9090", extra_params=said)


def again(project: ConnectedProject) -> ConnectedProject:
    return ConnectedProject(project.service, project.key)


@pytest.mark.parametrize("said", [
    {"k": 4, "strategy": "badge", "spacing": False, "train_minutes": 1.5},
    '{"k": "4", "NEXTSLICE_STRATEGY": "badge", "spacing": "false", "train-minutes": "1.5"}',
])  # fmt: skip
def test_they_lie_over_the_settings_of_the_service(project: ConnectedProject, said: Any) -> None:
    assert project.settings.k == 8
    follow(project, backend(said))
    for found in (project, again(project)):
        held = found.settings
        assert (held.k, held.strategy, held.spacing, held.train_minutes) == (4, "badge", False, 1.5)
        assert held.seed == 3
    assert faults_of(project) == []
    sources = {one.name: one.source for one in held_settings(again(project))}
    assert (sources["k"], sources["warm_start"]) == (SOURCE, "default")


def test_a_setting_of_the_projects_own_lies_over_them_and_that_is_said(
    project: ConnectedProject,
) -> None:
    change_settings(project, {"k": "5", "seed": "9"})
    follow(project, backend({"k": 4, "seed": 9, "reserve": 6}))
    held = again(project).settings
    assert (held.k, held.seed, held.reserve) == (5, 9, 6)
    (said,) = faults_of(again(project))
    assert "k=4, since the project's own is 5" in said
    assert "nextslice project set 7 k=" in said
    change_settings(again(project), {"k": ""})
    assert again(project).settings.k == 4


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"strategie": "badge"}, "'strategie' is no setting of a project: is strategy meant?"),
        ({"queue_prefix": "x"}, "is a setting of the service, not of a project"),
        ({"k": 0}, "k: found '0': Input should be greater than or equal to 1"),
        ({"k": [4]}, "k: found [4], expected a text, a number or a bool"),
        ("k=4", "found 'k=4', expected a JSON object"),
        ("[" * 5000, "expected a JSON object"),
        ([1], "found [1], expected a JSON object"),
        ({"seed": "9" * 10_000}, "found 10,01"),
    ],
)
def test_what_cannot_be_used_is_named_and_the_rest_is_obeyed(
    project: ConnectedProject, said: Any, wanted: str
) -> None:
    if isinstance(said, dict) and "seed" not in said:
        said = {**said, "reserve": 6}
    found, faults = usable(project.service.settings, said)
    assert found == ({"reserve": 6} if isinstance(said, dict) and "seed" not in said else {})
    (fault,) = faults
    assert fault.startswith("Extra params in Label Studio, not obeyed: ")
    assert wanted in fault


@pytest.mark.parametrize("said", [None, "", "  ", "null", {}, {"k": None}, {"k": ""}])
def test_nothing_is_nothing(project: ConnectedProject, said: Any) -> None:
    assert usable(project.service.settings, said) == ({}, [])


def test_what_is_taken_away_there_holds_no_more(project: ConnectedProject) -> None:
    follow(project, backend({"k": 4, "nothing": 1}))
    assert again(project).record.extra_faults
    follow(again(project), backend(None))
    assert again(project).settings.k == 8
    assert faults_of(again(project)) == []
    follow(again(project), backend({"k": 4}))
    follow(again(project), None)
    assert again(project).settings.k == 8


def test_they_are_written_where_they_are_new_and_not_else(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(project, backend({"k": 4}))
    writes: list[object] = []
    monkeypatch.setattr(ConnectedProject, "update", lambda self, change: writes.append(change))
    follow(again(project), backend({"k": 4}))
    assert writes == []


@pytest.fixture
def of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Installs the strategy ``mine`` when it is called."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    cls = type(base.get_strategy("random"))
    return lambda: base._REGISTRY.update(mine=cls)


def test_one_that_was_refused_holds_once_it_can_be_used(
    project: ConnectedProject, of_a_plugin: Callable[[], object]
) -> None:
    said = backend({"k": 4, "strategy": "mine"})
    follow(project, said)
    assert (again(project).settings.k, again(project).settings.strategy) == (4, "entropy")
    assert "'mine'" in faults_of(again(project))[0]
    of_a_plugin()
    follow(again(project), said)
    assert again(project).settings.strategy == "mine"
    assert faults_of(again(project)) == []


def test_one_that_was_taken_and_can_be_used_no_more_stops_the_project_for_one_look_at_most(
    project: ConnectedProject, of_a_plugin: Callable[[], object]
) -> None:
    said = backend({"k": 4, "strategy": "mine"})
    of_a_plugin()
    follow(project, said)
    assert again(project).settings.strategy == "mine"
    del base._REGISTRY["mine"]
    with pytest.raises(SettingsError, match=r"extra params of project 7 .*'mine'.*Edit them under"):
        _ = again(project).settings
    follow(again(project), said)
    assert (again(project).settings.k, again(project).settings.strategy) == (4, "entropy")
    assert "'mine'" in faults_of(again(project))[0]


def test_a_network_that_cannot_be_built_is_named_and_the_rest_is_obeyed(
    project: ConnectedProject,
) -> None:
    follow(project, backend({"architecture": "unet:nothing", "reserve": 6}))
    assert again(project).record.extra_settings == {"reserve": 6}
    (fault,) = faults_of(again(project))
    assert fault.startswith("Extra params in Label Studio, not obeyed: architecture is 'unet:noth")
    assert "which cannot be built" in fault


class Building:
    """Stands in for the process that builds a network: ends as ``ends`` says, and counts."""

    def __init__(self) -> None:
        self.ends: int | Exception = 0
        self.begun = 0

    def __call__(self, argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.begun += 1
        if isinstance(self.ends, Exception):
            raise self.ends
        said = "architecture is 'unet', which cannot be built (no memory)"
        return subprocess.CompletedProcess(argv, self.ends, said if self.ends == 2 else "", "")


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Building:
    building = Building()
    monkeypatch.setattr(extra_params.subprocess, "run", building)
    return building


@pytest.mark.parametrize("changed", ["nextslice", "torch", "timm", "segmentation-models-pytorch"])
def test_others_that_build_it_judge_a_network_anew_and_each_once(
    project: ConnectedProject, building: Building, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    said = backend({"architecture": "unet"})
    building.ends = 2
    for _ in range(3):
        follow(again(project), said)
    assert (building.begun, again(project).settings.architecture) == (1, "auto")
    building.ends = 0
    if changed == "nextslice":
        monkeypatch.setattr(extra_params, "__version__", "99")
    else:
        real = extra_params.version
        monkeypatch.setattr(
            extra_params, "version", lambda name: "99" if name == changed else real(name)
        )
    for _ in range(3):
        follow(again(project), said)
    assert (building.begun, again(project).settings.architecture) == (2, "unet")
    assert faults_of(again(project)) == []


def hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3601)


def test_a_network_that_was_refused_is_tried_again_after_an_hour_until_it_is_built(
    project: ConnectedProject, building: Building, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = backend({"architecture": "unet", "k": 4})
    building.ends = 2
    follow(project, said)
    building.ends = 0
    follow(again(project), said)
    assert (building.begun, again(project).settings.architecture) == (1, "auto")
    assert "no memory" in faults_of(again(project))[0]
    for _ in range(2):
        hour_later(monkeypatch)
        follow(again(project), said)
        assert (building.begun, again(project).settings.architecture) == (2, "unet")
        assert faults_of(again(project)) == []


@pytest.mark.parametrize(
    "unknown",
    [1, -9, OSError("Cannot allocate memory"), subprocess.TimeoutExpired("python", 120)],
    ids=["traceback", "killed", "no process", "too slow"],
)
def test_a_network_of_which_nothing_is_known_holds_and_is_tried_again_after_an_hour(
    project: ConnectedProject,
    building: Building,
    monkeypatch: pytest.MonkeyPatch,
    unknown: int | Exception,
) -> None:
    said = backend({"architecture": "unet", "k": 4})
    building.ends = unknown
    for _ in range(2):
        follow(again(project), said)
        assert (building.begun, again(project).settings.architecture) == (1, "unet")
    building.ends = 2
    hour_later(monkeypatch)
    follow(again(project), said)
    assert (building.begun, again(project).settings.architecture) == (2, "auto")
    assert "no memory" in faults_of(again(project))[0]
    building.ends = unknown
    hour_later(monkeypatch)
    follow(again(project), said)
    assert (building.begun, again(project).settings.architecture) == (3, "auto")
    assert "no memory" in faults_of(again(project))[0]


@pytest.mark.parametrize(("first", "then"), [(0, 2), (2, 0), (2, -9)])
def test_what_is_known_of_a_network_outlives_a_change_of_other_settings(
    project: ConnectedProject, building: Building, first: int, then: int
) -> None:
    """One in use was built anew at each change, and refused where memory was short just then; one
    that was refused was taken."""
    building.ends = first
    follow(project, backend({"architecture": "unet", "k": 4}))
    known = again(project).settings.architecture, faults_of(again(project))
    assert known[0] == ("auto" if first else "unet")
    building.ends = then
    follow(again(project), backend({"architecture": "unet", "k": 5}))
    settings = again(project).settings
    assert (settings.architecture, faults_of(again(project))) == known
    assert (settings.k, building.begun) == (5, 1)
    follow(again(project), backend({"architecture": "fpn", "k": 5}))
    assert building.begun == 2


def test_own_settings_that_cannot_be_used_are_named_before_extra_params(
    project: ConnectedProject,
) -> None:
    project.update(lambda record: record.extra_read("", {"strategy": "gone"}, [], TriedNetwork()))
    project.update(lambda record: record.given_settings({"cold_start": "gone"}, ()))
    with pytest.raises(SettingsError, match=r"nextslice project set 7 cold_start=$"):
        _ = again(project).settings


def test_show_says_where_they_come_from_and_what_is_wrong(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(project, backend({"k": 4, "strategie": "badge"}))
    monkeypatch.setattr("ml_backend.rounds.project.known_project", lambda *_: again(project))
    monkeypatch.setattr(Service, "from_environment", lambda: project.service)
    load_settings.cache_clear()
    text = CliRunner().invoke(cli.app, ["project", "show", "7"]).output
    assert SOURCE in next(line for line in text.splitlines() if line.startswith("k "))
    assert "is strategy meant?" in " ".join(text.split())
    found = json.loads(CliRunner().invoke(cli.app, ["project", "show", "7", "--json"]).stdout)
    assert len(found["warnings"]) == 1
