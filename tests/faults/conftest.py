"""The rig that a cell of the fault matrix breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import Cell, Rig, closing
from tests.faults.studio import FaultyStudio, faulty_studio

MakeRig = Callable[..., Rig]


@pytest.fixture
def studio() -> Iterator[FaultyStudio]:
    with faulty_studio() as running:
        yield running


@pytest.fixture
def make_rig(tmp_path: Path, studio: FaultyStudio, redis_url: str) -> Iterator[MakeRig]:
    with ExitStack() as stack:

        def make(**options: Any) -> Rig:
            return stack.enter_context(
                closing(Rig(tmp_path, studio, **{"redis_url": redis_url, **options}))
            )

        yield make


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Callable[[Rig, str], Cell]:
    """A cell of this test."""
    test = request.node.nodeid.removeprefix("tests/faults/")
    return lambda rig, fault: Cell(rig, fault, test)
