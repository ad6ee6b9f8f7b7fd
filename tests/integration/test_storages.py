"""Slices in a storage of Label Studio's: S3, as a bucket that is served here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from label_studio_sdk import LabelStudio

from ml_backend.export import export_studio_json
from ml_backend.pictures import encode_png
from ml_backend.studio.images import decode_image
from ml_backend.studio.label_config import WHY
from ml_backend.studio.projects import import_tasks, set_data
from tests.http_server import serving
from tests.integration.conftest import LiveProject, disc

pytestmark = pytest.mark.integration

KEY = "a~~~.png"
"""Its base64 has a +, which a query does not keep."""
URL = f"s3://scans/{KEY}"
SLICE = disc(5)[0]


class Bucket(BaseHTTPRequestHandler):
    """``scans``, which holds one slice."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).rstrip("/")
        found = {"/scans": b"", f"/scans/{KEY}": encode_png(SLICE)}.get(path)
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        self.send_header("ETag", '"slice"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found or b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stored(make_project: Callable[..., LiveProject]) -> Iterator[LiveProject]:
    """A project with one annotated task, whose slice is in a bucket."""
    project = make_project(slices=0, connect=False)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Bucket)) as server:
        fields = {
            "project": project.number, "bucket": "scans", "presign": False,
            "aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "eu",
            "s3_endpoint": f"http://127.0.0.1:{server.server_port}",
        }  # fmt: skip
        answer = project.session.call("POST", "/api/storages/s3/", json=fields)
        assert answer.status_code == 201, answer.text
        annotation: dict[str, Any] = {"result": []}
        row = {"data": {"image": URL}, "annotations": [annotation]}
        import_tasks(project.studio, project.number, [row])
        yield project


def test_tasks_are_listed_exported_and_changed_with_the_address_that_they_have(
    stored: LiveProject, tmp_path: Path
) -> None:
    """As Label Studio's own export names them, and what it asks a backend of."""
    (row,) = stored.studio.tasks(stored.number)
    export_studio_json(stored, tmp_path / "a.json")
    (exported,) = json.loads((tmp_path / "a.json").read_text())
    sdk = LabelStudio(base_url=stored.studio.url, api_key="", httpx_client=stored.studio._http)
    (own,) = sdk.projects.exports.as_json(stored.number)
    assert row.data == exported["data"] == own["data"] == {"image": URL}

    assert set_data(stored.studio, stored.number, row.id, {WHY: "Place 1 of 3."})
    (own,) = sdk.projects.exports.as_json(stored.number)
    assert own["data"] == {"image": URL, WHY: "Place 1 of 3."}


def test_slices_are_read_whatever_their_key(stored: LiveProject) -> None:
    (row,) = stored.studio.tasks(stored.number)
    data = stored.studio.download(URL, row.id)
    np.testing.assert_array_equal(decode_image(data, "the slice"), SLICE)
