"""A private Label Studio lets people in also in a shell that is set for a lab's server."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from ml_backend.embedded.label_studio import Session, install_label_studio, start_label_studio
from ml_backend.embedded.processes import ProcessGroup
from tests.test_own_label_studio import THE_LABS


@pytest.mark.integration
def test_people_get_in_at_its_address(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = install_label_studio(home)
    for name, value in THE_LABS.items():
        monkeypatch.setenv(name, value)
    with ProcessGroup(tmp_path / "logs") as group:
        server = start_label_studio(group, command, tmp_path / "label-studio")
        first = Session(server.url, server.email, server.password)
        second = first.invite("second@lab.example", "a-password-of-theirs")
        assert second.json("GET", "/api/current-user/whoami")["email"] == "second@lab.example"
        cookies = {cookie.name: cookie for cookie in first.http.cookies}
        for name in ("sessionid", "csrftoken"):
            assert not cookies[name].secure
        assert not cookies["csrftoken"].has_nonstandard_attr("HttpOnly")  # the pages read it
        assert "static.lab" not in first.call("GET", "/projects/").text
        assert "/user/signup" in requests.get(f"{server.url}/user/login/", timeout=30).text
