"""A Label Studio that refuses private addresses, as it does by default since 1.23.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_backend.embedded.label_studio import (
    LabelStudioServer,
    install_label_studio,
    start_label_studio,
)
from ml_backend.embedded.processes import ProcessGroup
from ml_backend.embedded.uploads import create_project
from ml_backend.studio.client import Studio
from ml_backend.studio.label_config import bitmask_config
from tests.test_cli import nextslice


@pytest.fixture
def guarded(home: Path, tmp_path: Path) -> Iterator[LabelStudioServer]:
    command = install_label_studio(home)
    with ProcessGroup(tmp_path / "logs") as group:
        yield start_label_studio(
            group, command, tmp_path / "label-studio", allow_private_addresses=False
        )


@pytest.mark.integration
def test_connect_names_the_two_settings_to_change(
    guarded: LabelStudioServer, tmp_path: Path
) -> None:
    studio = Studio(guarded.url, guarded.token)
    project = create_project(studio, "guarded", bitmask_config(["bone"]), [])
    done = nextslice(
        "connect",
        str(project),
        LABEL_STUDIO_URL=guarded.url,
        LABEL_STUDIO_API_KEY=guarded.token,
        NEXTSLICE_BACKEND_URL="http://127.0.0.1:9090",
        NEXTSLICE_STORE=str(tmp_path / "store"),
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 69
    assert "http://127.0.0.1:9090" in said
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in said
    assert "Traceback" not in said
    assert not (tmp_path / "store").exists()
