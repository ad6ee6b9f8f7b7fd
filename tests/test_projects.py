"""Projects, tasks and files on a Label Studio that fails half-way, as SQLite's does under load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from ml_backend.studio import projects
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.projects import create_project, import_tasks, upload_images
from ml_backend.studio.task_order import QueuedPrediction, store_predictions
from tests.http_server import serving

CONFIG = "<View/>"


@dataclass
class Row:
    """A project: its creator, and what it holds."""

    title: str = "scan.tif"
    config: str = CONFIG
    creator: int = 1
    tasks: list[dict[str, Any]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """Projects alone. ``failures``: (status, whether the project is made all the same) of the next
    attempts; ``patient``: the server repeats an attempt that failed, as on a locked SQLite.
    ``beside``: a project that somebody else makes during the next attempt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: dict[int, Row] = {}
        self.asked = 0
        self.failures: list[tuple[int, bool]] = []
        self.patient = False
        self.beside: Row | None = None

    def add(self, row: Row) -> int:
        number = max(self.rows, default=0) + 1
        self.rows[number] = row
        return number

    def attempt(self, fields: dict[str, Any]) -> tuple[int, int]:
        """Status and number of the project."""
        if self.beside is not None:
            self.add(self.beside)
            self.beside = None
        status, made = self.failures.pop(0) if self.failures else (201, True)
        number = self.add(Row(fields["title"], fields["label_config"])) if made else 0
        return self.attempt(fields) if self.patient and status == 500 else (status, number)


class Answering(BaseHTTPRequestHandler):
    """Answers in JSON."""

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Handler(Answering):
    server: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.strip("/") == "api/tasks":
            number = int(query.partition("project=")[2].partition("&")[0])
            tasks = self.server.rows[number].tasks
            self.answer(200, {"tasks": tasks, "total": len(tasks), "total_annotations": 0})
            return
        one = path.strip("/").removeprefix("api/projects").strip("/")
        rows = [self.project(number) for number in self.server.rows]
        listed = {"count": len(rows), "next": None, "previous": None, "results": rows}
        self.answer(200, self.project(int(one)) if one else listed)

    def do_POST(self) -> None:
        fields = self.body()
        self.server.asked += 1
        status, number = self.server.attempt(fields)
        self.answer(status, self.project(number) if status == 201 else {"detail": "locked"})

    def do_DELETE(self) -> None:
        del self.server.rows[int(self.path.strip("/").rpartition("/")[2])]
        self.answer(200, {})

    def project(self, number: int) -> dict[str, Any]:
        row = self.server.rows[number]
        return {
            "id": number, "title": row.title, "label_config": row.config,
            "created_by": {"id": row.creator}, "created_at": "2026-11-26T18:17:57Z",
        }  # fmt: skip


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def studio(server: Server) -> Studio:
    return Studio(f"http://127.0.0.1:{server.server_port}", "a-legacy-token")


@pytest.mark.parametrize("patient", [False, True], ids=["the SDK repeats", "the server repeats"])
def test_what_failed_attempts_left_is_deleted(
    server: Server, studio: Studio, patient: bool
) -> None:
    server.add(Row())  # one of that title was there before
    server.failures, server.patient = [(500, True), (500, True)], patient

    assert create_project(studio, "scan.tif", CONFIG).id == 4

    assert sorted(server.rows) == [1, 4]
    assert server.asked == (1 if patient else 3)


@pytest.mark.parametrize(
    "beside", [Row(creator=2), Row(config="<View> </View>"), Row(tasks=[{"id": 1}]), Row("other")]
)
def test_what_others_make_at_that_moment_stays(server: Server, studio: Studio, beside: Row) -> None:
    for task in beside.tasks:
        task |= {"data": {}, "updated_at": "2026-11-26T18:17:57Z"}
    server.beside = beside

    assert create_project(studio, "scan.tif", CONFIG).id == 2

    assert sorted(server.rows) == [1, 2]


def test_a_request_that_made_nothing_is_made_again(server: Server, studio: Studio) -> None:
    server.failures = [(503, False), (500, False)]

    assert create_project(studio, "scan.tif", CONFIG).id == 1

    assert list(server.rows) == [1]


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (500, 3)])
def test_what_stays_refused_is_said(
    server: Server, studio: Studio, status: int, asked: int
) -> None:
    server.failures = [(status, False)] * 9

    with pytest.raises(StudioError, match=f"answered {status} to POST api/projects/"):
        create_project(studio, "scan.tif", CONFIG)

    assert (server.rows, server.asked) == ({}, asked)


def test_blanks_around_a_title_do_not_count(server: Server, studio: Studio) -> None:
    """Label Studio drops them."""
    server.add(Row())
    assert [project.id for project in projects.projects_called(studio, " scan.tif\n")] == [1]
    assert projects.projects_called(studio, "scan .tif") == []


# -- what is stored of what is sent


class Forgetful(ThreadingHTTPServer):
    """Project 1 of a Label Studio that answers 201 and has not stored all of it.

    ``lost``: for each of the next imports, what of it is lost: "annotations" of all tasks, the last
    "task", the last "prediction", the last "file"; after that, nothing is. "answer": all is stored,
    and as the answer is lost, it is stored once more; with "annotations and answer", bare at first.
    ``drafted``: tasks on which somebody keeps a draft. ``meanwhile`` is called after the first of
    two such attempts.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Forgetting)
        self.tasks: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.lost: list[str] = []
        self.drafted: set[int] = set()
        self.meanwhile: Callable[[], None] = lambda: None

    def loses(self) -> str:
        return self.lost.pop(0) if self.lost else ""


class Forgetting(Answering):
    server: Forgetful

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith("file-uploads"):
            rows = [{"id": i, "file": file} for i, file in enumerate(self.server.files)]
            self.answer(200, rows)
            return
        asked = json.loads(parse_qs(query)["query"][0])
        found = [self.listed(task) for task in self.server.tasks]
        found = [task for task in found if meets(task, asked.get("filters"))]
        if asked["ordering"] == ["-tasks:id"]:
            found = found[::-1]
        shown = found[: int(parse_qs(query)["page_size"][0])]
        self.answer(200, {"tasks": shown, "total": len(found), "total_annotations": 0})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.endswith("annotations"):
            self.annotate(int(path.split("/")[2]), self.body())
        elif path.endswith("predictions"):
            self.predict(self.body())
        elif "commit_to_project=false" in self.path:
            self.upload()
        else:
            self.add(self.body())

    def do_DELETE(self) -> None:
        task = int(self.path.strip("/").rpartition("/")[2])
        self.server.tasks[:] = [row for row in self.server.tasks if row["id"] != task]
        self.answer(204, None)

    def add(self, rows: list[dict[str, Any]]) -> None:
        lost = self.server.loses()
        bare = [{"data": row["data"]} for row in rows]
        if lost.endswith("answer"):
            self.store(bare if lost.startswith("annotations") else rows)
            self.server.meanwhile()
        if lost == "task":
            rows = rows[:-1]
        new = self.store(bare if lost == "annotations" else rows)
        counted = sum(len(task["annotations"]) for task in new)
        ids = [task["id"] for task in new]
        self.answer(201, {"task_count": len(new), "annotation_count": counted, "task_ids": ids})

    def listed(self, task: dict[str, Any]) -> dict[str, Any]:
        """As the Data Manager has it: annotations that were imported have been saved by nobody, and
        what this server has counted is wrong."""
        annotations = [{"updated_by": None, **one} for one in task["annotations"]]
        drafted = task["id"] in self.server.drafted
        return {**task, "annotations": annotations, "draft_exists": drafted}

    def store(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        new = []
        for row in rows:
            task = {
                "id": 1 + max((task["id"] for task in self.server.tasks), default=0),
                "data": row["data"],
                "predictions": [],
                "annotations": list(row.get("annotations", ())),
                "updated_at": "2026-11-26T18:17:57Z",
            }
            self.server.tasks.append(task)
            new.append(task)
        return new

    def annotate(self, task: int, annotation: dict[str, Any]) -> None:
        if self.server.loses() != "annotations":
            self.server.tasks[task - 1]["annotations"].append(annotation)
        self.answer(201, annotation)

    def predict(self, rows: list[dict[str, Any]]) -> None:
        rows = rows[:-1] if self.server.loses() == "prediction" else rows
        for row in rows:
            self.server.tasks[row["task"] - 1]["predictions"].append(row)
        self.answer(201, {"created": len(rows)})

    def upload(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).count(b"filename=")
        count = sent - 1 if self.server.loses() == "file" else sent
        first = len(self.server.files)
        self.server.files += [f"upload/1/{first + i}.png" for i in range(count)]
        self.answer(201, {"file_upload_ids": list(range(first, first + count))})


def meets(task: dict[str, Any], filters: dict[str, Any] | None) -> bool:
    """Whether the Data Manager lists the task: of what we ask for here."""
    for condition in filters["items"] if filters else ():
        field, value = condition["filter"].rpartition(":")[2], condition["value"]
        if field == "id" and condition["operator"] == "in":
            met = value["min"] <= task["id"] <= value["max"]
        elif field == "id" and condition["operator"] == "greater":
            met = task["id"] > value
        elif field == "id":
            met = task["id"] in value
        elif field == "predictions_model_versions":
            met = any(p["model_version"] in value for p in task["predictions"])
        elif field == "draft_exists":
            met = task["draft_exists"] == (value == "True")
        else:
            met = field == "total_annotations" and not task["annotations"]
        if not met:
            return False
    return True


@pytest.fixture
def forgetful() -> Iterator[Forgetful]:
    with serving(Forgetful()) as running:
        yield running


@pytest.fixture
def talking(forgetful: Forgetful) -> Studio:
    return Studio(f"http://127.0.0.1:{forgetful.server_port}", "a-legacy-token")


ROWS = [
    {"data": {"image": f"http://h/{z}.png", "z": z}, "annotations": [{"result": [{"z": z}]}]}
    for z in range(6)
]


@pytest.mark.parametrize(
    "lost", [[], ["annotations"], ["annotations", "annotations"], ["task"], ["task", "annotations"]]
)
def test_what_label_studio_did_not_store_of_an_import_is_sent_again(
    forgetful: Forgetful, talking: Studio, lost: list[str]
) -> None:
    import_tasks(talking, 1, [{"data": {"image": "http://h/before.png"}}])
    forgetful.lost = list(lost)

    import_tasks(talking, 1, ROWS)

    stored = [(task["data"], task["annotations"]) for task in forgetful.tasks[1:]]
    assert stored == [(row["data"], row["annotations"]) for row in ROWS]
    assert forgetful.tasks[0]["annotations"] == []


def test_what_somebody_submits_before_annotations_are_sent_again_counts(
    forgetful: Forgetful, talking: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects, "ANNOTATED_AT_ONCE", 2)
    forgetful.lost = ["annotations"]
    request, drawn = talking.request, {"result": [{"drawn": "by a person"}]}

    def beside(method: str, path: str, **options: Any) -> Any:
        if path.endswith("tasks/1/annotations/"):
            forgetful.tasks[5]["annotations"].append(drawn)
        return request(method, path, **options)

    monkeypatch.setattr(talking, "request", beside)
    import_tasks(talking, 1, ROWS)

    stored = [task["annotations"] for task in forgetful.tasks]
    assert stored == [*(row["annotations"] for row in ROWS[:5]), [drawn]]


@pytest.mark.parametrize("lost", ["answer", "annotations and answer"])
def test_tasks_that_an_attempt_left_are_deleted(
    forgetful: Forgetful, talking: Studio, lost: str
) -> None:
    forgetful.lost = [lost]

    import_tasks(talking, 1, ROWS)

    stored = [(task["data"], task["annotations"]) for task in forgetful.tasks]
    assert stored == [(row["data"], row["annotations"]) for row in ROWS]


@pytest.mark.parametrize("lost", ["answer", "annotations and answer"])
@pytest.mark.parametrize(
    "annotation",
    [
        {"result": [{"drawn": "by a person"}], "updated_by": 2},
        {"result": [], "was_cancelled": True, "updated_by": 2},
        {"result": [{"z": 2}], "updated_by": 2},  # the imported one, approved as it is
        {"result": [{"z": 1}]},  # of another import
        None,
    ],
    ids=["submitted", "skipped", "approved", "imported", "begun"],
)
def test_a_task_of_an_attempt_that_somebody_has_touched_stays(
    forgetful: Forgetful,
    talking: Studio,
    lost: str,
    annotation: dict[str, Any] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever Label Studio has counted: here, nothing."""

    def person() -> None:
        if annotation is None:
            forgetful.drafted.add(3)
        else:
            forgetful.tasks[2]["annotations"] = [annotation]

    forgetful.lost, forgetful.meanwhile = [lost], person

    import_tasks(talking, 1, ROWS)

    assert [task["id"] for task in forgetful.tasks] == [3, *range(7, 13)]
    assert annotation is None or forgetful.tasks[0]["annotations"] == [annotation]
    assert "project 1: task 3 is a double that an attempt" in caplog.text


def test_a_person_is_seen_until_right_before_a_task_is_deleted(
    forgetful: Forgetful, talking: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful.lost = ["answer"]
    request, drawn = talking.request, {"result": [], "updated_by": 2}

    def beside(method: str, path: str, **options: Any) -> Any:
        if (method, path) == ("DELETE", "api/tasks/1/"):
            forgetful.tasks[1]["annotations"] = [drawn]
        return request(method, path, **options)

    monkeypatch.setattr(talking, "request", beside)

    import_tasks(talking, 1, ROWS)

    assert [task["id"] for task in forgetful.tasks] == [2, *range(7, 13)]


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("annotations", r"Missing are the annotation of task 1, .* and 1 more\. .*Import again"),
        ("task", r'Missing are the task of \{"image": "http://h/5\.png", "z": 5\}'),
    ],
)
def test_what_label_studio_never_stores_is_named(
    forgetful: Forgetful, talking: Studio, lost: str, named: str
) -> None:
    forgetful.lost = [lost] * 99
    with pytest.raises(StudioError, match=named):
        import_tasks(talking, 1, ROWS)


def test_predictions_that_label_studio_did_not_store_are_sent_again_or_named(
    forgetful: Forgetful, talking: Studio
) -> None:
    import_tasks(talking, 1, [{"data": row["data"]} for row in ROWS])
    version = "nextslice-r001-abcdef"
    wanted = [QueuedPrediction(task, task / 100, []) for task in range(1, 7)]

    forgetful.lost = ["prediction"]
    assert store_predictions(talking, 1, version, wanted[:3]) == 3
    forgetful.lost = ["prediction"] * 9
    with pytest.raises(StudioError, match=r"did not store those of 1 tasks .*task 4 and"):
        store_predictions(talking, 1, version, [wanted[3]])

    scores = {task["id"]: [p["score"] for p in task["predictions"]] for task in forgetful.tasks}
    assert scores == {1: [0.01], 2: [0.02], 3: [0.03], 4: [], 5: [], 6: []}


def test_pictures_that_label_studio_did_not_store_are_named(
    forgetful: Forgetful, talking: Studio
) -> None:
    files = [(f"{i}.png", b"png") for i in range(3)]
    assert len(upload_images(talking, 1, files)) == 3
    forgetful.lost = ["file"]
    with pytest.raises(StudioError, match=r"stored 2 of 3 pictures .*0\.png"):
        upload_images(talking, 1, files)
