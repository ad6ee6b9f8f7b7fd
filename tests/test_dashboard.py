"""The pages: what they show and what can be done on them, of a real round. In a browser:
`test_dashboard_browser`."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from redis.exceptions import ConnectionError as RedisConnectionError

from ml_backend.api.dashboard import thumbnails
from ml_backend.api.dashboard.answers import legend
from ml_backend.api.dashboard.curve import learning_curve
from ml_backend.api.dashboard.forms import settings_form
from ml_backend.api.dashboard.thumbnails import thumbnail
from ml_backend.api.dashboard.views import VolumeView
from ml_backend.app import create_app
from ml_backend.embedded.processes import free_port
from ml_backend.rounds import reconcile
from ml_backend.rounds.artefacts import QUEUE, ROUND
from ml_backend.rounds.overview import (
    HeldSetting,
    RoundSummary,
    held_settings,
    project_overview,
)
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from ml_backend.studio.task_order import queue_length
from tests.bucket import Bucket, NoAnswer
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.served import client, look_each_time
from tests.volume_project import predict

HTML = {"Accept": "text/html"}


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.memory.fields["title"] = "Explant <7>"
        yield server


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    look_each_time(monkeypatch)


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    return phantom_project(server, make_settings, REDIS_URL=redis_url)


def again(project: ConnectedProject) -> ConnectedProject:
    return ConnectedProject(project.service, project.key)


def test_the_root_is_a_page_for_browsers_and_health_for_programs(project: ConnectedProject) -> None:
    asked = client(project)
    assert asked.get("/").get_json() == {"status": "UP", "model_class": "nextslice"}
    assert asked.get("/", headers={"Accept": "*/*"}).is_json
    page = asked.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.mimetype == "text/html"
    assert "Explant &lt;7&gt;" in page.text
    assert "No gpu worker listens." in page.text
    assert 'data-copy="nextslice worker gpu"' in page.text


def test_pages_load_nothing_from_elsewhere_and_say_so(project: ConnectedProject) -> None:
    asked = client(project)
    for path in ("/", "/projects/7"):
        page = asked.get(path, headers=HTML)
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self' http://127.0.0.1:9090;" in policy
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page.text)
        assert loaded
        assert all(url.startswith(("/", "data:,")) for url in loaded)
        assert "style=" not in page.text
        files = [url for url in loaded if url.startswith("/dashboard/")]
        assert all(asked.get(url).status_code == 200 for url in files)


def test_a_project_page_says_where_it_stands(project: ConnectedProject) -> None:
    page = client(project).get("/projects/7", headers=HTML).text
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Labels to the next round 3 of 3" in text
    assert "Labelled 3 slices" in text
    assert "9 in the pool" in text
    assert "Nothing is measured yet" in text
    assert "Evenly spaced between what is labelled: slice " in text
    assert "nextslice export 7 --out labels-7" in text
    assert client(project).get("/projects/8", headers=HTML).status_code == 404


def test_a_training_that_is_asked_for_before_there_is_a_label_is_not_forgotten(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> None:
    project = phantom_project(server, make_settings, (), REDIS_URL=redis_url)
    asked = client(project)
    assert asked.post("/projects/7/train").status_code == 303
    page = asked.get("/projects/7?done=train", headers=HTML).text
    assert "Nobody has labelled a slice yet: it begins with the first one." in page
    project.request_start()  # as the job that the page has asked for
    reconcile.count(project)
    assert project.schedule.round_progress() is None
    page = asked.get("/projects/7", headers=HTML).text
    assert "is asked for: it begins as soon as a look finds an annotated slice." in page


def text_of(project: ConnectedProject, path: str) -> str:
    page = client(project).get(path, headers=HTML).text
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_labels_that_no_round_has_read_are_somebodys(project: ConnectedProject) -> None:
    text = text_of(project, "/projects/7")
    assert "Labelled 3 slices" in text
    assert "Nobody has labelled yet" not in text
    assert "No round has read the labels yet" in text


def test_the_first_page_says_once_when_a_round_begins(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> None:
    given: dict[str, Any] = {"REDIS_URL": redis_url, "NEXTSLICE_K": 8}
    given |= {"NEXTSLICE_EARLY_ROUNDS": "1,2,4"}
    project = phantom_project(server, make_settings, (), **given)
    text = text_of(project, "/")
    assert re.findall("begins at [^,]+", text) == ["begins at a new annotation"]


def test_moments_on_a_page_are_all_local_time(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = time.time()
    project.update(lambda record: record.attempt_began(moment, 1))
    project.update(lambda record: record.attempt_failed(moment, "StudioError: 500"))
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "UTC-9")
            time.tzset()
            text = text_of(project, "/projects/7")
    finally:
        time.tzset()
    east = timezone(timedelta(hours=9))
    committed = datetime.fromisoformat(project.folder.round(0).need(ROUND).committed_at)
    assert f" {committed.astimezone(east):%Y-%m-%d %H:%M} " in text
    following = datetime.fromtimestamp(moment + 60, east)
    assert f"It is tried again from {following:%Y-%m-%d %H:%M:%S} on" in text
    assert "Times are those of the backend's zone, UTC+09:00." in text


def test_what_people_skipped_is_not_next_in_the_queue(
    project: ConnectedProject, server: HttpStudio
) -> None:
    before = [place.task for place in project_overview(project).queue]
    for task in before[:3]:
        server.memory.skip(task)
    assert [place.task for place in project_overview(project).queue] == before[3:]
    version = project.published.model_version  # type: ignore[union-attr]  # it is published
    assert queue_length(project.studio, 7, version) == len(before) - 3
    page = client(project).get("/projects/7", headers=HTML).text
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert f"Left {len(before) - 3} in the queue, 6 in the pool (3 skipped)" in text


def test_train_now_asks_for_a_training(project: ConnectedProject) -> None:
    answer = client(project).post("/projects/7/train")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/projects/7?done=train"
    schedule = project.service.schedule
    assert schedule.job(project.schedule.job_id("start")) is not None
    page = client(project).get("/projects/7?done=train", headers=HTML)
    assert "A training is asked for." in page.text
    change_settings(project, {"pause": "true"})  # by somebody else, while the page is open
    page = client(project).get("/projects/7?done=train", headers=HTML)
    assert "is asked for. It begins when the project, which is paused, goes on." in page.text
    wrong = type(project.service.settings.label_studio_api_key)("wrong")
    page = client(project, label_studio_api_key=wrong).get("/projects/7?done=train", headers=HTML)
    assert "is asked for. When it begins is not known: Label Studio did not tell" in page.text
    gone = client(project, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    answer = gone.post("/projects/7/train")
    assert answer.status_code == 503
    assert "Nothing was asked for: Redis does not answer" in answer.text
    assert "secret" not in answer.text
    assert client(project).post("/projects/8/train").status_code == 404


@pytest.mark.parametrize(
    ("headers", "obeyed"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "http://localhost"}, True),
        ({}, True),
    ],
)
def test_a_form_that_another_site_sends_is_not_obeyed(
    project: ConnectedProject, headers: dict[str, str], obeyed: bool
) -> None:
    answer = client(project).post("/projects/7/settings", data={"k": "5"}, headers=headers)
    assert answer.status_code == (303 if obeyed else 403)
    assert again(project).record.settings == ({"k": 5} if obeyed else {})


def test_settings_are_kept_and_taken_back(project: ConnectedProject) -> None:
    asked = client(project)
    answer = asked.post("/projects/7/settings", data={"k": "5", "pause": "true", "seed": ""})
    assert answer.status_code == 303
    assert again(project).record.settings == {"k": 5, "pause": True}
    page = asked.get("/projects/7", headers=HTML).text
    assert "The project is paused" in page
    assert "it begins when that is over" in page
    assert "disabled" not in page
    assert 'name="k" value="5"' in page
    asked.post("/projects/7/settings", data={"k": "", "pause": ""})
    assert again(project).record.settings == {}


@pytest.mark.parametrize("form", ["train", "settings"])
def test_what_is_asked_for_while_an_object_store_is_away_is_answered_with_the_reason(
    server: HttpStudio,
    make_settings: Callable[..., Settings],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    settings: dict[str, Any] = {"REDIS_URL": redis_url, "NEXTSLICE_STORE": "bucket://lab/pages"}
    asked = client(phantom_project(server, make_settings, **settings))
    monkeypatch.setattr(Bucket, "refuses", NoAnswer("Could not connect to the endpoint URL"))
    shown = asked.get("/projects/7", headers=HTML)
    assert (shown.status_code, "Project 7 cannot be shown" in shown.text) == (503, True)
    answer = asked.post(f"/projects/7/{form}", data={"k": "4", "was-k": ""})
    assert answer.status_code == 503
    assert "Nothing was changed" in answer.text
    assert "Could not connect to the endpoint URL. Is its server up" in answer.text


def test_what_is_said_of_settings_is_so_where_redis_goes_away(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = client(project, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    answer = gone.post("/projects/7/settings", data={"k": "5"})
    assert answer.status_code == 503
    assert "The settings cannot be kept: Error 111" in answer.text
    assert "secret" not in answer.text
    assert again(project).record.settings == {}

    def away(_: object) -> None:
        raise RedisConnectionError("Error 111")

    monkeypatch.setattr(type(project.schedule), "count", away)  # as it goes after they are written
    answer = client(project).post("/projects/7/settings", data={"k": "5"})
    assert answer.headers["Location"] == "/projects/7?done=settings"
    assert again(project).record.settings == {"k": 5}
    text = " ".join(re.sub(r"<[^>]+>", " ", gone.get(answer.headers["Location"]).text).split())
    assert "The settings are kept. Redis does not answer: a look at the project" in text


def test_a_setting_that_cannot_be_used_changes_nothing_and_stays_in_the_form(
    project: ConnectedProject,
) -> None:
    answer = client(project).post("/projects/7/settings", data={"k": "<b>", "seed": "3"})
    assert answer.status_code == 400
    assert "Nothing was changed. k: found &#39;&lt;b&gt;&#39;" in answer.text
    assert 'name="k" value="&lt;b&gt;"' in answer.text
    assert again(project).record.settings == {}


def test_who_has_the_page_is_not_sent_it_again(project: ConnectedProject) -> None:
    asked = client(project)
    first = asked.get("/projects/7", headers=HTML)
    known = {"If-None-Match": first.headers["ETag"]}
    again_ = asked.get("/projects/7", headers=HTML | known)
    assert (again_.status_code, again_.data) == (304, b"")
    assert "Content-Security-Policy" in again_.headers
    change_settings(project, {"k": "5"})
    assert asked.get("/projects/7", headers=HTML | known).status_code == 200


def test_the_address_of_a_form_leads_to_the_project(project: ConnectedProject) -> None:
    for path in ("/projects/7/settings", "/projects/7/train"):
        answer = client(project).get(path, headers=HTML)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/projects/7")
    assert project.service.schedule.job(project.schedule.job_id("start")) is None


class Form(HTMLParser):
    """What a browser sends of the settings as they stand on a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sent: dict[str, str] = {}
        self._inside = False
        self._select = ""
        self._chosen = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = said["action"].endswith("/settings")
        elif self._inside and tag == "input":
            self.sent[said["name"]] = said["value"]
        elif self._inside and tag == "select":
            self._select = said["name"]
            self.sent[self._select] = ""
        elif tag == "option":
            self._chosen = "selected" in said

    def handle_data(self, data: str) -> None:
        if self._inside and self._chosen:
            self.sent[self._select] = data
            self._chosen = False


def test_a_page_that_was_opened_long_ago_changes_what_was_changed_on_it_alone(
    project: ConnectedProject,
) -> None:
    asked = client(project)
    change_settings(project, {"reserve": "4", "strategy": "entropy", "seed": "2"})
    opened = Form(asked.get("/projects/7", headers=HTML).text).sent
    assert (opened["reserve"], opened["strategy"], opened["k"]) == ("4", "entropy", "")
    elsewhere = {"pause": "true", "k": "5", "reserve": "", "strategy": "margin"}
    change_settings(again(project), elsewhere)
    wrong = asked.post("/projects/7/settings", data=opened | {"train_steps": "many", "seed": ""})
    assert wrong.status_code == 400
    shown = Form(wrong.text).sent
    assert (shown["train_steps"], shown["was-train_steps"]) == ("many", "")
    assert (shown["seed"], shown["was-seed"]) == ("", "2")
    assert (shown["k"], shown["was-k"]) == ("5", "5")
    answer = asked.post("/projects/7/settings", data=opened | {"train_steps": "77", "seed": ""})
    assert answer.status_code == 303
    settings = {"pause": True, "k": 5, "strategy": "margin", "train_steps": 77}
    assert again(project).record.settings == settings


def test_the_form_offers_what_may_be_chosen(project: ConnectedProject) -> None:
    change_settings(project, {"k": "5"})
    fields = {field.name: field for field in settings_form(held_settings(again(project)))}
    assert "entropy" in fields["strategy"].choices
    assert "worst_iou" not in fields["strategy"].choices
    assert set(fields["cold_start"].choices) == {"random", "strided"}
    assert fields["pause"].choices == ("true", "false")
    assert fields["unlabelled"].choices == ("auto", "ignore", "background")
    assert (fields["k"].own, fields["k"].number) == ("5", True)
    assert fields["reserve"].own == ""
    empty = HeldSetting(name="crop", value=None, source="default", says="")
    assert settings_form([empty])[0].held == "by device and data"


def test_pictures_are_of_the_slice_and_its_mask(
    project: ConnectedProject, server: HttpStudio
) -> None:
    asked = client(project)
    answer = asked.get("/projects/7/slices/5.png")
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.data)).size == (80, 64)
    assert asked.get("/projects/7/slices/999.png").status_code == 404
    assert asked.get("/projects/8/slices/5.png").status_code == 404
    server.fault = lambda path: 404 if path == "/6.png" else None
    gone = asked.get("/projects/7/slices/6.png")
    assert gone.status_code == 503
    assert b"/6.png" in gone.data


def test_a_picture_without_its_mask_is_not_kept(
    project: ConnectedProject, server: HttpStudio
) -> None:
    version = predict(server, project, [])
    pending: dict[str, Any] = {"task": 5, "model_version": version, "result": [], "score": 0}
    server.memory.imported.append(pending)
    asked = client(project)
    before = asked.get("/projects/7/slices/5.png")
    assert before.headers["Cache-Control"] == "private, no-cache"
    predict(server, project, [5])
    server.memory.imported.remove(pending)
    after = asked.get("/projects/7/slices/5.png")
    assert after.data != before.data
    assert after.headers["Cache-Control"] == "private, max-age=300"
    server.memory.imported.clear()
    assert asked.get("/projects/7/slices/5.png").data == after.data


def test_a_picture_of_background_alone_is_kept_once_its_mask_is_no_longer_to_come(
    project: ConnectedProject, server: HttpStudio
) -> None:
    folder = project.folder.round(0)
    queue = folder.need(QUEUE)
    task = queue.entries[0].task
    queue.model_version = predict(server, project, [])
    server.memory.imported.append(
        {"task": task, "model_version": queue.model_version, "result": [], "score": 0}
    )
    asked = client(project)

    def kept() -> bool:
        answer = asked.get(f"/projects/7/slices/{task}.png")
        return answer.headers["Cache-Control"] == "private, max-age=300"

    queue.pending = [task]
    folder.save(QUEUE, queue)
    assert not kept()
    queue.pending = []
    folder.save(QUEUE, queue)
    assert kept()
    server.fault = lambda path: 404 if path == f"/{task}.png" else None
    assert kept(), "without another look at it"


def test_pictures_wait_for_label_studio_in_a_few_threads_alone(
    project: ConnectedProject, server: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes then is told to come again; what is kept already is shown."""
    monkeypatch.setattr(thumbnails, "PICTURES", 2)
    app = create_app(project.service.settings)
    kept = app.test_client().get("/projects/7/slices/4.png")
    asked, answer_now = threading.Semaphore(0), threading.Event()

    def hang(path: str) -> None:
        if path.endswith(".png"):
            asked.release()
            answer_now.wait(60)

    server.fault = hang
    pictures = [f"/projects/7/slices/{task}.png" for task in (5, 6)]
    with ThreadPoolExecutor(2) as browser:
        slow = browser.map(lambda path: app.test_client().get(path).status_code, pictures)
        try:
            assert all(asked.acquire(timeout=30) for _ in pictures)
            for path in ("/projects/7/slices/7.png", "/projects/7/slices/7.png?show=uncertainty"):
                answer = app.test_client().get(path)
                assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1"), path
                assert b"2 pictures are asked for at once" in answer.data
            assert app.test_client().get("/projects/7/slices/4.png").data == kept.data
        finally:
            answer_now.set()
        assert list(slow) == [200, 200]


def test_classes_are_painted_over_the_slice() -> None:
    image = np.linspace(0, 4000, 600 * 300).reshape(600, 300)
    mask = np.zeros((600, 300), np.uint8)
    mask[300:, :150] = 1
    mask[300:, 150:] = 255
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(image, mask))))
    assert shown.shape == (256, 128, 3)
    red, green, blue = shown[200, 20].astype(int)
    assert red > green > blue, "orange"
    assert len(set(shown[200, 100].tolist())) == 1, "nobody labelled it"
    assert len(set(shown[20, 20].tolist())) == 1, "background"


def summary(number: int, labels: int, miou: float | None, **more: Any) -> RoundSummary:
    iou = {} if miou is None else {"background": 0.9, "bone": miou, "implant": None}
    return RoundSummary(
        round=number, model_version=f"r{number}", labels=labels, strategy="entropy", miou=miou,
        iou=iou, **more,
    )  # fmt: skip


def test_the_curve_lies_between_its_axes_and_marks_what_is_flagged() -> None:
    rounds = [
        summary(0, 0, None),
        summary(1, 10, 0.0),
        summary(2, 20, 1.0, flagged="worse"),
    ]
    curve = learning_curve(rounds, ["background", "bone", "implant"])
    assert curve is not None
    assert [line.name for line in curve.lines] == ["background", "bone", "mean"]
    first, last = curve.lines[-1].marks
    assert (first.y, last.y) == (curve.bottom, curve.top)
    assert last.x == curve.right
    assert [mark.flagged for mark in curve.lines[-1].marks] == [False, True]
    one = learning_curve([summary(1, 1, 0.5)], ["bone"])
    assert one is not None
    (single,) = one.lines[0].marks
    assert single.says == "Round 1, 1 label: bone 0.500"
    assert last.says == "Round 2, 20 labels: mean 1.000, not served: worse"
    assert curve.lines[-1].path == f"M{first.x} {first.y} L{last.x} {last.y}"
    assert learning_curve([summary(0, 0, None)], ["background"]) is None


def test_lines_of_seven_classes_are_dashed_apart_and_the_last_tick_has_room(
    project: ConnectedProject,
) -> None:
    sheet = client(project).get("/dashboard/dashboard.css").text
    dashes = re.findall(r"\.line\.c(\d) path \{ stroke-dasharray: ([^;]+);", sheet)
    assert [kind for kind, _ in dashes] == list("123456"), "the first is not dashed"
    assert len({dash for _, dash in dashes}) == 6
    curve = learning_curve([summary(1, 2400, 0.5)], ["background", "bone"])
    assert curve is not None
    x, text = curve.x_ticks[-1]
    assert text == "2400"
    assert x + 5 * 7 / 2 <= curve.width, "room for a digit more, of 7 px"


def test_each_class_has_the_colour_that_it_has_in_label_studio() -> None:
    classes = ["background", *(f"class {number}" for number in range(1, 13))]
    tags = ElementTree.fromstring(bitmask_config(classes[1:])).iter("Label")
    wanted = {tag.attrib["value"]: tag.attrib["background"] for tag in tags}
    assert len(set(wanted.values())) == 12
    assert dict(legend(classes)) == wanted
    measured = summary(1, 10, 0.5).model_copy(update={"iou": dict.fromkeys(classes, 0.5)})
    curve = learning_curve([measured], classes)
    assert curve is not None
    assert {line.name: line.colour for line in curve.lines if line.colour} == wanted
    view = VolumeView("phantom", "z", (), tuple(classes), None)
    assert view.colours == list(wanted.values())
    mask = np.repeat(np.arange(13, dtype=np.uint8), 4)[np.newaxis].repeat(8, axis=0)
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(np.zeros_like(mask), mask))))
    assert len({tuple(shown[4, 4 * value + 2]) for value in range(13)}) == 13


def test_pages_and_their_files_are_behind_the_login(project: ConnectedProject) -> None:
    password = type(project.service.settings.basic_auth_pass)("secret")
    locked = client(project, basic_auth_user="ann", basic_auth_pass=password)
    for path in ("/", "/projects/7", "/projects/7/slices/5.png", "/dashboard/dashboard.css"):
        assert locked.get(path, headers=HTML).status_code == 401, path
        assert locked.get(path, headers=HTML, auth=("ann", "secret")).status_code == 200, path
    assert locked.post("/projects/7/train").status_code == 401
