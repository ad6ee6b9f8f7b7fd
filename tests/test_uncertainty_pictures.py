"""Pictures of what the published network is uncertain of: kept by rounds, shown on the page."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from al_strategies.learner import Prediction
from ml_backend.rounds import uncertainty_pictures
from ml_backend.rounds.artefacts import ROUND, UNCERTAINTY, WEIGHTS
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published, RoundRecord
from ml_backend.rounds.store import ProjectStore, Store, StoreFault
from ml_backend.rounds.uncertainty_pictures import KeptPictures, kept_tasks, picture_name
from ml_backend.settings import Settings
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.served import client, look_each_time

HTML = {"Accept": "text/html"}
VERSION = "nextslice-r001-0abc"


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return Store(str(tmp_path)).project("host", "7.1")


def published(version: str = VERSION, weights: str | None = "round-0001/w") -> Published:
    return Published(
        round=1, model_version=version, classes=["bone"], fingerprint="", weights=weights
    )


def believed(grey: int) -> Prediction:
    mask = np.zeros((8, 8), np.uint8)
    return Prediction(mask, 1.0, np.full((4, 4), grey, np.uint8))


def test_pictures_are_those_of_the_version_that_is_served(store: ProjectStore) -> None:
    pictures = KeptPictures(store.round(1), VERSION)
    pictures.keep(5, believed(255))
    pictures.keep(6, Prediction(np.zeros((8, 8), np.uint8), 1.0))
    assert kept_tasks(store, published()) == {5}
    assert kept_tasks(store, published("nextslice-r001-1abc")) == set()
    assert kept_tasks(store, published(weights=None)) == set(), "retired: its masks are not shown"
    assert kept_tasks(store, None) == set()
    assert (store.round(1).need(UNCERTAINTY[picture_name(VERSION, 5)]) == 255).all()


def test_their_bytes_are_bounded(
    store: ProjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uncertainty_pictures, "MOST_PICTURES", 3)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    pictures = KeptPictures(store.round(1), VERSION)
    for task in range(5):
        pictures.keep(task, Prediction(np.zeros((8, 8), np.uint8), 1.0, noise))
    assert kept_tasks(store, published()) == {0, 1, 2}
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.png")]
    assert max(sizes) < 67_000


def test_a_store_that_refuses_one_costs_nothing_else(
    store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = store.round(1), []

    def full(*_: object) -> None:
        asked.append(1)
        fault = StoreFault("No space left on device")
        fault.errno = errno.ENOSPC
        raise fault

    monkeypatch.setattr(folder, "save", full)
    pictures = KeptPictures(folder, VERSION)
    for task in range(4):
        pictures.keep(task, believed(0))
    assert len(asked) == 1


def test_pruning_takes_those_of_rounds_before(store: ProjectStore) -> None:
    for number in (1, 2):
        folder = store.round(number)
        folder.write(WEIGHTS, b"weights")
        folder.save(ROUND, RoundRecord(
            round=number, model_version=VERSION, classes=["bone"], fingerprint="",
            weights=folder.relative(WEIGHTS)))  # fmt: skip
        KeptPictures(folder, VERSION).keep(5, believed(9))
    weights = store.round(2).relative(WEIGHTS)
    store.published = published(weights=weights).model_copy(update={"round": 2})
    assert store.prune() == 2
    assert not store.round(1).has(UNCERTAINTY[picture_name(VERSION, 5)])
    assert kept_tasks(store, store.published) == {5}


# -- of a real round


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.posix = True
        yield server


def test_a_round_keeps_them_and_the_page_shows_them(
    server: HttpStudio,
    make_settings: Callable[..., Settings],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_each_time(monkeypatch)
    project = phantom_project(
        server, make_settings, REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="uncertainty"
    )
    before = client(project).get("/projects/7?show=uncertainty", headers=HTML).text
    assert "Of none of these slices a picture is kept" in before
    assert attempt(ConnectedProject(project.service, project.key), "3 new annotations") is not None
    asked = client(project)
    places = asked.get("/api/projects/7").get_json()["queue"]
    assert [place["uncertainty"] for place in places] == [True] * len(places)
    task = places[0]["task"]
    data = asked.get(f"/projects/7/slices/{task}.png?show=uncertainty").data
    shown = np.asarray(Image.open(io.BytesIO(data)))
    found = project.published
    assert found is not None
    kept = UNCERTAINTY[picture_name(found.model_version, task)]
    np.testing.assert_array_equal(shown, project.folder.round(1).need(kept))
    assert shown.std() > 0

    project.folder.round(1).remove(kept)
    answer = asked.get(f"/projects/7/slices/{task}.png?show=uncertainty")
    assert answer.status_code == 404
    assert "no picture is kept" in answer.text
    page = asked.get("/projects/7?show=uncertainty", headers=HTML).text
    assert page.count("it joined the queue after its round") == 1
    assert 'aria-current="true">Uncertainty' in page
    assert 'aria-current="true">Masks' in asked.get("/projects/7", headers=HTML).text
