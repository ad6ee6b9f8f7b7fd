"""Where the advice is shown: page, /api/projects and `rounds list`, of records in a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ml_backend.cli.rounds_list import show
from ml_backend.rounds.artefacts import FURTHER, FURTHER_WEIGHTS, METRICS, ROUND
from ml_backend.rounds.effort import opened_with_mask
from ml_backend.rounds.overview import project_overview
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import EffortRecord, FurtherRecord, MetricsRecord, RoundRecord
from ml_backend.settings import Settings
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.served import client, look_each_time

SAID = (
    "The next 3 slices will probably change the mIoU of 0.750 by +0.002 (roughly −0.006 to "
    "+0.009). Stopping before them probably loses little. Corrected pixels fell from 3.1 % to "
    "1.2 % of a slice. Not judged, as no held-out label has it: implant."
)
"""0.11 × 0.25 × ln(43 / 40) = 0.00199, and 0.25 × √(3 / 40) = 0.06847, of which 0.11 below and 0.1
above."""


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    look_each_time(monkeypatch)


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    return phantom_project(server, make_settings, REDIS_URL=redis_url)


def effort(corrected: int, version: str | None) -> EffortRecord:
    return EffortRecord(
        task=1, annotation=1, model_version=version, pixels=1000, corrected=corrected
    )


def keep(project: ConnectedProject, number: int, labels: int, metrics: MetricsRecord) -> None:
    folder = project.folder.round(number)
    folder.save(METRICS, metrics)
    folder.save(
        ROUND,
        RoundRecord(
            round=number, model_version=f"nextslice-r{number:03d}-abcdef", fingerprint="f",
            classes=["background", "bone", "implant"], annotated=labels,
        ),
    )  # fmt: skip


def three_rounds(project: ConnectedProject) -> None:
    iou = {"background": 0.9, "bone": 0.6, "implant": None}
    shown = (("nextslice-r000-abcdef", 400), ("nextslice-r001-abcdef", 31))
    keep(project, 1, 24, MetricsRecord(miou=0.6, iou=iou, validation=[1, 2, 3, 4]))
    second = [effort(corrected, version) for version, corrected in shown]
    keep(project, 2, 32, MetricsRecord(miou=0.7, iou=iou, validation=range(6), effort=second))
    third = [effort(12, "nextslice-r002-abcdef"), effort(900, None)]
    keep(project, 3, 40, MetricsRecord(miou=0.75, iou=iou, validation=range(8), effort=third))


def test_blank_slices_are_told_from_those_with_a_mask() -> None:
    versions = (None, "", "nextslice-pending", "nextslice-r000-abcdef", "nextslice-r0001-a", "unet")
    found = opened_with_mask(effort(1, version) for version in versions)
    assert [one.model_version for one in found] == ["nextslice-r0001-a", "unet"]


def test_before_a_training_nothing_is_said(project: ConnectedProject) -> None:
    assert project_overview(project).advice is None
    assert "Is another round worth it?" not in _page(project)


def test_it_stands_beside_the_curve(project: ConnectedProject) -> None:
    three_rounds(project)
    page = _page(project)
    assert f"<strong>Is another round worth it?</strong> {SAID}</p>" in page
    assert page.index('id="live-curve"') < page.index(SAID) < page.index('id="live-queue"')


def test_it_is_json_for_programs(project: ConnectedProject) -> None:
    three_rounds(project)
    found = client(project).get("/api/projects/7").get_json()["advice"]
    assert (found["says"], found["verdict"]) == (SAID, "little")
    assert (found["labels"], found["held_out"]) == (3, 8)
    assert found["gain"] == pytest.approx(0.00199, abs=1e-5)
    assert (found["corrected_before"], found["corrected"]) == (0.031, 0.012)


def test_rounds_list_says_it(project: ConnectedProject, capsys: pytest.CaptureFixture[str]) -> None:
    three_rounds(project)
    show(project, project_overview(project))
    assert SAID in " ".join(capsys.readouterr().err.split())


def test_it_is_of_the_better_weights_that_are_served_by_now(
    project: ConnectedProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the training that went on after the round."""
    three_rounds(project)
    folder = project.folder.round(3)
    better = folder.need(METRICS).model_copy(update={"miou": 0.85, "published_miou": 0.75})
    version = "nextslice-r003-fedcba"
    folder.save(FURTHER, FurtherRecord(tries=1, model_version=version, metrics=better))
    assert project.published is not None
    project.folder.published = project.published.model_copy(
        update={"round": 3, "weights": folder.relative(FURTHER_WEIGHTS), "model_version": version}
    )
    found = project_overview(project)
    assert [one.miou for one in found.rounds] == [None, 0.6, 0.7, 0.85]
    assert found.advice is not None
    assert " the mIoU of 0.850 by " in found.advice.says
    show(project, found)
    row = next(line for line in capsys.readouterr().out.splitlines() if "r003-abcdef" in line)
    assert "0.850" in row


def test_no_more_is_promised_than_there_are_slices(
    project: ConnectedProject, server: HttpStudio
) -> None:
    """K is 3 of 12 slices, 3 of which are labelled: with 20 wanted, 9 and these 3 are left."""
    three_rounds(project)
    settings = project.service.settings.model_copy(update={"k": 20})
    project.service.settings = settings
    found = project_overview(ConnectedProject(project.service, project.key)).advice
    assert found is not None
    assert found.labels == 12


def _page(project: ConnectedProject) -> str:
    return client(project).get("/projects/7", headers={"Accept": "text/html"}).text
