"""A real Label Studio, Redis, backend and workers, once per test session; a project per test.

Slices are tiny and trainings a few steps long: what is tested here is the loop, not the network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests

from ml_backend.embedded.annotator import Annotator
from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import ProcessGroup, free_port, wait_until
from ml_backend.embedded.stack import (
    Stack,
    settings_from,
    start_backend,
    start_stack,
    start_worker,
)
from ml_backend.embedded.uploads import UploadedSlice, create_project
from ml_backend.rounds.artefacts import SELECTION
from ml_backend.rounds.project import ConnectedProject, find_project
from ml_backend.rounds.records import Published, SelectionRecord
from ml_backend.rounds.service import Service
from ml_backend.studio.client import not_annotated
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.projects import register_backend
from ml_backend.studio.task_order import BackendLink

K = 3
RESERVE = 4
SIDE = 64
CLASSES = ["bone", "implant"]
PUBLISHED_TTL_S = 0.2
FAST = {
    "NEXTSLICE_K": str(K),
    "NEXTSLICE_EARLY_ROUNDS": "off",
    "NEXTSLICE_OPEN_MINUTES": "0",
    "NEXTSLICE_RESERVE": str(RESERVE),
    "NEXTSLICE_TRAIN_STEPS": "4",
    "NEXTSLICE_TRAIN_NICE": "0",
    "NEXTSLICE_CROP": "64",
    "NEXTSLICE_PRETRAINED": "false",
    "NEXTSLICE_RECONCILE_S": "5",
    "NEXTSLICE_CLAIM_TTL_S": "20",
    "NEXTSLICE_PUBLISHED_TTL_S": str(PUBLISHED_TTL_S),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
ROUND_S = 600


def disc(z: int, side: int = SIDE) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A slice of a cone in a tube and its label map: 0 background, 1 bone, 2 implant."""
    y, x = np.mgrid[:side, :side] - side / 2
    radius = np.hypot(y, x)
    mask = np.zeros((side, side), np.uint8)
    mask[(radius > side * 0.30) & (radius < side * 0.42)] = 1
    mask[radius < 4 + (z % 16)] = 2
    noise = np.random.default_rng(z).normal(0, 8, mask.shape)
    image = np.array([40, 120, 210])[mask] + noise
    return np.clip(image, 0, 255).astype(np.uint8), mask


def truth(data: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return disc(int(data["z"]))[1]


@pytest.fixture(scope="session")
def home() -> Path:
    """Where Label Studio is installed: shared with `make demo`."""
    given = os.environ.get("NEXTSLICE_HOME")
    return Path(given) if given else Path(__file__).resolve().parents[2] / ".nextslice"


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessGroup]:
    with ProcessGroup(tmp_path_factory.mktemp("logs")) as group:
        yield group


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the backend and the workers serve volumes from."""
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="session")
def stack(
    group: ProcessGroup, home: Path, volumes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stack:
    env = {**FAST, "NEXTSLICE_VOLUMES": f"scans={volumes}"}
    with pytest.MonkeyPatch.context() as shell:  # of one who works with a real server
        for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "REDIS_URL", "PUBLIC_URL"):
            shell.setenv(name, "http://elsewhere.invalid")
            shell.setenv(f"NEXTSLICE_{name}", "http://elsewhere.invalid")
        return start_stack(group, tmp_path_factory.mktemp("stack"), home, env=env)


@pytest.fixture(scope="session")
def session(stack: Stack) -> Session:
    server = stack.label_studio
    return Session(server.url, server.email, server.password)


@pytest.fixture(scope="session")
def service(stack: Stack) -> Service:
    return Service(stack.settings())


@contextmanager
def another_service(
    stack: Stack, group: ProcessGroup, name: str, **env: str
) -> Iterator[tuple[Service, str]]:
    """A backend with workers and a store of its own on the same Label Studio, and its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {
        **stack.env,
        "NEXTSLICE_BACKEND_URL": url,
        "NEXTSLICE_QUEUE_PREFIX": name,
        "NEXTSLICE_STORE": f"{stack.env['NEXTSLICE_STORE']}-{name}",
        **env,
    }
    with ProcessGroup(group.logs / name) as processes:
        start_backend(processes, port, own)
        for kind in ("control", "gpu"):
            start_worker(processes, kind, own)
        yield Service(settings_from(own)), url


class LiveProject(ConnectedProject):
    """A project of one test, and what tests ask of it."""

    def __init__(self, service: Service, key: str, session: Session) -> None:
        super().__init__(service, key)
        self.session = session

    def seen_by(self, service: Service) -> LiveProject:
        """The same project, looked after by another service."""
        return LiveProject(service, self.key, self.session)

    @property
    def published(self) -> Published:
        found = self.folder.published
        assert found is not None
        return found

    def selection(self) -> SelectionRecord:
        return self.folder.round(self.published.round).need(SELECTION)

    def annotator(self, session: Session | None = None) -> Annotator:
        config = parse_label_config(self.in_studio().label_config)
        return Annotator(session or self.session, self.number, config, truth)

    def wait_for_round(self, number: int, timeout_s: float = ROUND_S) -> Published:
        """Until round ``number`` or a later one is published and its queue is filled up."""

        def arrived() -> bool:
            record = self.record
            assert not record.last_error, record.last_error
            found = self.folder.published
            return found is not None and found.round >= number

        wait_until(arrived, f"round {number} of project {self.number}", timeout_s)
        return self.published

    def label_round(self) -> list[int]:
        """One annotator labels K slices; returns the tasks, in order."""
        annotator = self.annotator()
        handed = [annotator.label_next() for _ in range(K)]
        return [int(task["id"]) for task in handed if task is not None]


def versions_agree(project: LiveProject, stack: Stack) -> bool:
    """Title, project, /setup and published.json all name the same version."""
    live = project.in_studio()
    backend = project.studio.find_backend(project.number, stack.backend_url)
    answer = requests.post(
        f"{stack.backend_url}/setup",
        json={"project": project.key, "schema": live.label_config},
        timeout=60,
    ).json()
    names = {
        live.model_version,
        backend.title if backend else None,
        answer["model_version"],
        project.published.model_version,
    }
    return len(names) == 1


def invite(session: Session, names: list[str]) -> list[Session]:
    stamp = f"{time.time():.3f}"
    return [session.invite(f"{name}-{stamp}@nextslice.local", "password-8") for name in names]


def build_project(
    service: Service,
    session: Session,
    slices: int = 24,
    *,
    connect: bool = True,
    config: str | None = None,
    title: str = "integration",
) -> LiveProject:
    """A project with ``slices`` tiny slices; connected and adopted unless told otherwise."""
    rows = (
        UploadedSlice(f"z{z:03d}", disc(z)[0], {"volume": "cone", "z": z}) for z in range(slices)
    )
    number = create_project(service.studio, title, config or bitmask_config(CLASSES), rows)
    project = LiveProject(service, find_project(service, number).key, session)
    if connect:
        register_backend(service.studio, number, BackendLink(service.settings.backend_url))
        project.wait_for_round(0)
    return project


@pytest.fixture
def make_project(service: Service, session: Session) -> Iterator[Callable[..., LiveProject]]:
    """`build_project`; what it built is deleted after the test, or reconcile would look at it."""
    made: list[int] = []

    def make(*arguments: Any, **options: Any) -> LiveProject:
        project = build_project(service, session, *arguments, **options)
        made.append(project.number)
        return project

    yield make
    for number in made:
        session.call("DELETE", f"/api/projects/{number}/")


@pytest.fixture(scope="module")
def after_a_round(service: Service, session: Session) -> Iterator[LiveProject]:
    """A project whose round 1 is published, for tests that only look at it."""
    project = build_project(service, session)
    task = next(iter(service.studio.tasks(project.number, [not_annotated()]))).id
    service.studio.sdk.predictions.create(task=task, model_version="sam", score=0.5, result=[])
    project.label_round()
    project.wait_for_round(1)
    yield project
    session.call("DELETE", f"/api/projects/{project.number}/")
