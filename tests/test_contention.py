"""Two backends that switch one project to and fro: each waits longer before the next time.

On a real Redis and stores; an hour passes by what is noted growing older.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ml_backend.rounds import reconcile, switching
from ml_backend.rounds.contention import FIGHT, fight, next_switch_at
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord, SwitchBack
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"
LOOK_S = 120
MINUTE = 60


class Backend(ConnectedProject):
    """One of two that look after the same project, with a store of its own."""

    def __init__(self, settings: Settings, studio: MemoryStudio) -> None:
        super().__init__(Service(settings, studio=studio), KEY)  # type: ignore[arg-type]
        self.update(lambda record: None, adopting=True)
        reconcile.count(self)

    @property
    def version(self) -> str:
        assert self.published is not None
        return self.published.model_version

    def look(self) -> None:
        switching.repair(self, self.in_studio())

    def later(self, seconds: float) -> None:
        """So much time passes."""

        def older(record: ProjectRecord) -> None:
            record.switched_back = [
                back.model_copy(update={"moment": back.moment - seconds})
                for back in record.switched_back
            ]

        self.update(older)


@pytest.fixture
def studio() -> MemoryStudio:
    return MemoryStudio(bitmask_config(["bone"]), 6, lambda _: np.zeros((8, 9)))


@pytest.fixture
def both(
    make_settings: Callable[..., Settings], redis_url: str, studio: MemoryStudio, tmp_path: object
) -> list[Backend]:
    return [
        Backend(
            make_settings(
                REDIS_URL=redis_url,
                NEXTSLICE_QUEUE_PREFIX=f"contention-{seed}",
                NEXTSLICE_STORE=f"{tmp_path}/store-{seed}",
                NEXTSLICE_COLD_START="random",
                NEXTSLICE_SEED=seed,
                NEXTSLICE_K=3,
            ),
            studio,
        )
        for seed in (1, 2)
    ]


def fought(ours: Backend, theirs: Backend, studio: MemoryStudio) -> None:
    """They switch the project away as often as makes a fight, and we switch it back."""
    for _ in range(FIGHT):
        studio.update_project(7, model_version=theirs.version)
        ours.look()


def test_two_backends_that_fight_wait_longer_and_longer(
    both: list[Backend], studio: MemoryStudio
) -> None:
    assert both[0].version != both[1].version
    switches: list[int] = []
    for look in range(3 * 3600 // LOOK_S):
        for backend in both:
            before = studio.fields["model_version"]
            backend.look()
            if studio.fields["model_version"] != before:
                switches.append(look)
            backend.later(LOOK_S)
    per_hour = [sum(look * LOOK_S // 3600 == hour for look in switches) for hour in range(3)]
    assert per_hour[0] <= 2 * 8
    assert per_hour[2] <= 2 * 2, "each an hour apart"
    assert switches[: 2 * FIGHT] == [0, 0, 1, 1, 2, 2], "the first ones at once"


def test_it_is_said_until_when_nothing_is_switched_back(
    both: list[Backend], studio: MemoryStudio, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = both
    for _ in range(FIGHT):
        studio.update_project(7, model_version=theirs.version)
        ours.look()
        assert studio.fields["model_version"] == ours.version, "at once"
    studio.update_project(7, model_version=theirs.version)

    ours.look()

    assert studio.fields["model_version"] == theirs.version
    (said,) = [c.says for c in project_status(ours).conditions if c.state == "contended"]
    assert "It is not switched back before " in said
    assert "it is not switched back in the next 5 minutes" in caplog.text
    ours.later(4 * MINUTE)
    ours.look()
    assert studio.fields["model_version"] == theirs.version
    ours.later(2 * MINUTE)
    ours.look()
    assert studio.fields["model_version"] == ours.version


def test_after_a_fight_single_switches_are_put_back_at_once(
    both: list[Backend], studio: MemoryStudio
) -> None:
    ours, theirs = both
    fought(ours, theirs, studio)
    ours.later(60 * MINUTE)
    assert not project_status(ours).has("contended")

    studio.update_project(7, model_version=theirs.version)
    ours.look()
    assert studio.fields["model_version"] == ours.version
    studio.update_project(7, model_version=theirs.version)
    ours.look()
    assert studio.fields["model_version"] == ours.version


def test_a_clock_that_was_put_back_holds_up_no_switch(
    both: list[Backend], studio: MemoryStudio
) -> None:
    ours, theirs = both
    for _ in range(FIGHT):
        studio.update_project(7, model_version=theirs.version)
        ours.look()
        ours.later(-60 * MINUTE)
        studio.update_project(7, model_version=theirs.version)
        ours.look()
        assert studio.fields["model_version"] == ours.version


def test_a_pause_that_is_over_is_not_spoken_of(both: list[Backend], studio: MemoryStudio) -> None:
    ours, theirs = both
    fought(ours, theirs, studio)
    ours.later(6 * MINUTE)

    (said,) = [c.says for c in project_status(ours).conditions if c.state == "contended"]
    assert "3 times in the last 10 minutes" in said
    assert "not switched back before" not in said


@pytest.mark.parametrize(
    ("moments", "pause", "count"),
    [
        ([], 0, 0),
        ([0], 0, 0),
        ([0, 30], 0, 0),
        ([0, 3000, 6000, 9000], 0, 0),
        ([0, 30, 60], 300, 3),
        ([0, 30, 60, 400], 600, 4),
        ([0, 30, 60, 400, 1100], 1200, 5),
        ([0, 30, 60, 400, 1100, 2400, 5000, 8700], 3600, 8),
        ([0, 30, 60, 4000], 0, 0),
    ],
)
def test_pauses_grow_while_it_is_the_same_fight(
    moments: list[float], pause: float, count: int
) -> None:
    record = ProjectRecord(project=7, key=KEY)
    record.switched_back = [SwitchBack(moment=moment, found="other") for moment in moments]

    last = moments[-1] if moments else 0.0
    assert next_switch_at(record) == last + pause
    assert fight(record, last + 1) == count
