"""`MemoryStudio` behind HTTP: what the real client, its token and its downloads are tested on.

Personal tokens buy access tokens that live for ``life_s`` by a clock that is ``ahead_s`` ahead of
ours, as Label Studio's may be.
"""

from __future__ import annotations

import json
import re
import threading
import time
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt

from ml_backend.rounds import reconcile
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import Backend, Filter
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.http_server import serving
from tests.memory_studio import MemoryStudio
from tests.segmentation_phantom import CLASSES, Phantom

__all__ = [
    "CONFIG",
    "PHANTOM",
    "SLICES",
    "HttpStudio",
    "personal_token",
    "phantom_project",
    "phantom_server",
]

CONFIG = bitmask_config(CLASSES[1:])
SLICES = 12
PHANTOM = Phantom(SLICES)
_SIGNED_WITH = "the secret of a Label Studio in a test"


def personal_token(expires_in_s: float = 1e8) -> str:
    """A personal access token, as Label Studio hands them out."""
    claims = {"token_type": "refresh", "exp": int(time.time() + expires_in_s)}
    return jwt.encode(claims, _SIGNED_WITH, algorithm="HS256")


class HttpStudio(ThreadingHTTPServer):
    """Label Studio at ``url``; its project is that of ``memory``.

    ``fault``: is asked before each image is answered, with its path: a status instead, or None.
    ``refused``: path of the API → status that it is answered with.
    ``posix``: its database knows POSIX classes in patterns, as all but SQLite do.
    ``moved``: path → address that it redirects to. ``seen``: method, path and status of each
    answer. ``shown``: the Authorization headers of requests. ``renewals``: access tokens given out.
    """

    daemon_threads = True

    def __init__(self, memory: MemoryStudio, life_s: float = 300.0, ahead_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.memory, self.life_s, self.ahead_s = memory, life_s, ahead_s
        self.key = personal_token()
        self.fault: Callable[[str], int | None] = lambda path: None
        self.refused: dict[str, int] = {}
        self.posix = False
        self.moved: dict[str, str] = {}
        self.seen: list[tuple[str, str, int]] = []
        self.shown: list[str | None] = []
        self.renewals = 0
        self.renewable = True
        self.good: set[str] = set()
        self.alone = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def now(self) -> float:
        return time.time() + self.ahead_s

    def access(self) -> str:
        """A new access token."""
        with self.alone:
            self.renewals += 1
            claims = {"token_type": "access", "iat": self.now(), "exp": self.now() + self.life_s,
                      "jti": str(self.renewals)}  # fmt: skip
            token = jwt.encode(claims, _SIGNED_WITH, algorithm="HS256")
            self.good.add(token)
        return token

    def lets_in(self, header: str | None) -> bool:
        token = (header or "").removeprefix("Bearer ")
        if token not in self.good:
            return False
        claims = jwt.decode(token, options={"verify_signature": False})
        return bool(self.now() < claims["exp"])

    def count(self, status: int) -> int:
        """How many requests were answered so."""
        return sum(found == status for _, _, found in self.seen)


class _Handler(BaseHTTPRequestHandler):
    server: HttpStudio

    def do_GET(self) -> None:
        self.route()

    do_POST = do_PATCH = do_DELETE = do_GET

    def route(self) -> None:
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        path = parts.path.strip("/")
        self.server.shown.append(self.headers.get("Authorization"))
        if f"/{path}" in self.server.moved:
            self.answer(307, b"", Location=self.server.moved[f"/{path}"])
        elif path == "api/token/refresh":
            good = body["refresh"] == self.server.key and self.server.renewable
            self.reply({"access": self.server.access()} if good else {}, 200 if good else 401)
        elif path == "api/version":
            self.reply({"release": "1.23.2"})
        elif not self.server.lets_in(self.headers.get("Authorization")):
            self.reply({"detail": "Given token not valid for any token type"}, 401)
        elif path in self.server.refused:
            self.reply({"detail": "as the test wants it"}, self.server.refused[path])
        elif path == "api/projects/999":
            answer = {"id": "7f", "status_code": 404, "version": "1.23.2", "exc_info": None,
                      "detail": "No Project matches the given query."}  # fmt: skip
            self.reply(answer, 404)
        elif path.startswith("api/"):
            with self.server.alone:
                answer = self.api(path, parse_qs(parts.query), body)
            self.reply(answer)
        else:
            self.image(f"/{path}")

    def api(self, path: str, query: dict[str, list[str]], body: Any) -> Any:
        memory = self.server.memory
        if path == "api/webhooks":
            return []
        if path == "api/ml":
            if self.command == "POST":
                memory.backend = Backend(id=1, url=body["url"], title=body.get("title"))
                return memory.backend.model_dump()
            backend = memory.backend
            return [backend.model_dump()] if backend else []
        if path.startswith("api/ml/"):
            memory.sdk.ml.update(int(path.rpartition("/")[2]), **body)
            return {}
        if path == "api/tasks":
            return self.tasks(json.loads(query["query"][0]), query)
        if path == "api/current-user/whoami":
            return {"email": "somebody@lab.example"}
        if path == "api/projects":
            return {"results": [memory.project(7).model_dump(mode="json")], "next": None}
        if path == "api/users":
            return memory.users
        number = int(path.split("/")[2])
        if path.startswith("api/tasks/") and self.command == "PATCH":
            answer = memory.request("PATCH", path, json=body)
            return answer | {"updated_at": answer["updated_at"].isoformat()}
        if path.endswith("/drafts"):
            return memory.drafts.get(number, [])
        if path.startswith("api/predictions/"):
            if self.command == "DELETE":
                memory.delete_prediction(number)
            else:
                memory.draw_prediction(number, body["result"])
            return {"id": number}
        if path.endswith("import/predictions"):
            memory.import_predictions(number, body)
            return {"created": len(body)}
        if self.command == "PATCH":
            memory.update_project(number, **body)
        return memory.project(number).model_dump(mode="json")

    def tasks(self, asked: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
        conditions: list[Filter] = asked.get("filters", {}).get("items", [])
        patterns = [c["value"] for c in conditions if c["operator"] == "regex"]
        conditions = [c for c in conditions if c["operator"] != "regex"]
        after = [c["value"] for c in conditions if c["operator"] == "greater" and _of_id(c)]
        ids = [set(c["value"]) for c in conditions if c["operator"] == "in_list" and _of_id(c)]
        rest = [c for c in conditions if not _of_id(c)]
        rows = [row for row in self.server.memory.full_tasks(0, rest)
                if all(row["id"] in wanted for wanted in ids)
                and all(row["id"] > last for last in after)
                and all(self.matches(pattern, str(row["id"])) for pattern in patterns)]  # fmt: skip
        ordering = asked["ordering"][0]
        for row in rows:
            done = self.server.memory.completed_at(row)
            row["completed_at"] = None if done is None else done.isoformat()
            row["annotators"] = [a.get("completed_by", 1) for a in row["annotations"]]
        rows.sort(key=lambda row: row[ordering.rpartition(":")[2]], reverse=ordering[0] == "-")
        first = (int(query["page"][0]) - 1) * int(query["page_size"][0])
        page = rows[first : first + int(query["page_size"][0])]
        tasks = [row | self.server.memory.counters(row)
                 | {"updated_at": row["updated_at"].isoformat()} for row in page]  # fmt: skip
        if query.get("resolve_uri") != ["false"]:
            tasks = [task | {"data": _for_browsers(task)} for task in tasks]
        annotations = sum(self.server.memory.counters(row)["total_annotations"] for row in rows)
        return {"total": len(rows), "total_annotations": annotations, "tasks": tasks}

    def matches(self, pattern: str, text: str) -> bool:
        if self.server.posix:
            pattern = pattern.replace("[:digit:]", "0-9")
        with warnings.catch_warnings():  # Python's, of what looks like a POSIX class
            warnings.simplefilter("ignore", FutureWarning)
            return re.search(pattern, text) is not None

    def image(self, path: str) -> None:
        status = self.server.fault(path)
        if status is not None:
            self.reply({"detail": "as the test wants it"}, status)
            return
        self.answer(200, self.server.memory.download(path, int(path[1:].partition(".")[0])))

    def reply(self, body: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(body).encode())

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.server.seen.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _of_id(condition: Filter) -> bool:
    return bool(condition["filter"].endswith(":id"))


def _for_browsers(task: dict[str, Any]) -> dict[str, Any]:
    """The task's data, where addresses of storages lead through Label Studio."""
    return {
        name: f"/tasks/{task['id']}/resolve/?fileuri={urlsafe_b64encode(value.encode()).decode()}"
        if isinstance(value, str) and value.startswith("s3://")
        else value
        for name, value in task["data"].items()
    }


@contextmanager
def phantom_server(**options: float) -> Iterator[HttpStudio]:
    """A server whose project shows a phantom; it answers until the end of the block."""
    memory = MemoryStudio(CONFIG, SLICES, lambda i: PHANTOM.image(PHANTOM.ids[i]))
    with serving(HttpStudio(memory, **options)) as server:
        yield server


def phantom_project(
    server: HttpStudio,
    make_settings: Callable[..., Settings],
    labels: Iterable[int] = range(3),
    **variables: object,
) -> ConnectedProject:
    """The project of ``server``, connected: round 0 is published, ``labels`` are submitted."""
    fast = {
        "NEXTSLICE_QUEUE_PREFIX": "http", "NEXTSLICE_K": 3, "NEXTSLICE_RESERVE": 2,
        "NEXTSLICE_TRAIN_STEPS": 2, "NEXTSLICE_CROP": 32, "NEXTSLICE_PRETRAINED": "false",
        "NEXTSLICE_TRAIN_DEVICE": "cpu", "NEXTSLICE_ARCHITECTURE": "hrnet_w18_small",
        "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.key,
    }  # fmt: skip
    settings = make_settings(**{**fast, **variables})
    project = ConnectedProject(Service(settings), server.memory.project(7).key)
    project.update(lambda record: None, adopting=True)
    reconcile.count(project)
    config = parse_label_config(CONFIG)
    for task in labels:
        server.memory.submit(task, regions(PHANTOM.mask(PHANTOM.ids[task]), config))
    return project
