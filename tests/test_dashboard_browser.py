"""The pages as people meet them: headless Chromium on a real round, judged by axe-core.

``data/axe.min.js`` is axe-core 4.10.3 of Deque Systems as npm has it (MPL-2.0), unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.redis_server import start_redis
from ml_backend.rounds.artefacts import METRICS, ROUND
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.extra_params import follow
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.schedule import CONTROL
from ml_backend.studio.client import Backend
from tests.chromium import look, new_page
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.served import settings_in, web_process

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = pytest.mark.browser

AXE = (Path(__file__).parent / "data" / "axe.min.js").read_text(encoding="utf-8")
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


class Loop:
    """A backend that serves the pages of one project after its first training."""

    def __init__(self, server: HttpStudio, project: ConnectedProject, url: str) -> None:
        self.server, self.project, self.url = server, project, url

    @property
    def page_url(self) -> str:
        return f"{self.url}/projects/7"

    def again(self) -> ConnectedProject:
        return ConnectedProject(self.project.service, self.project.key)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("dashboard")

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ProcessGroup(folder / "logs") as group, phantom_server() as server:
        server.memory.fields["title"] = "Explant 7, week 4"
        _people(server)
        redis = start_redis(group, folder)
        project = phantom_project(
            server, settings_in(folder), REDIS_URL=redis, NEXTSLICE_BACKEND_URL=url
        )
        loop = Loop(server, project, url)
        _of_two(server)
        said = {"reserve": 2, "strategie": "badge"}
        follow(loop.again(), Backend(id=1, url=url, extra_params=said))
        assert attempt(loop.again(), "3 new annotations") is not None
        _measured(loop.again())
        queue = project.service.schedule.queue(CONTROL)
        worker = Worker([queue], connection=queue.connection, serializer=JSONSerializer)
        worker.register_birth()
        with web_process(create_app(project.service.settings), port):
            yield loop


def _people(server: HttpStudio) -> None:
    """Somebody with a name whose draft is new, for a day, and somebody without."""
    server.memory.users = [
        {"id": 1, "email": "anna@lab.example", "first_name": "Anna", "last_name": "Ames"},
        {"id": 2, "email": "ben.with.a.long.address@radiology.lab.example"},
    ]
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    server.memory.drafts[7] = [{"user": "anna@lab.example", "updated_at": soon}]


def _of_two(server: HttpStudio) -> None:
    """Who submitted the labels that are there, and how long it took them."""
    for task, (who, seconds) in {0: (1, 95.0), 1: (2, 4000.0), 2: (2, None)}.items():
        (found,) = next(iter(server.memory.full_tasks_by_id(7, [task])))["annotations"]
        found |= {"completed_by": who, "lead_time": seconds}


def _measured(project: ConnectedProject) -> None:
    """Three labels are too few to hold some out: as if round 1 had, and a flagged round 2."""
    first, second = project.folder.round(1), project.folder.round(2)
    metrics, record = first.need(METRICS), first.need(ROUND)
    metrics.miou, metrics.validation = 0.61, [0, 1, 2]
    metrics.iou = {"background": 0.9, "bone": 0.55, "implant": 0.38}
    first.save(METRICS, metrics)
    second.save(METRICS, metrics.model_copy(update={"miou": 0.5}))
    flag = "0.500 on 3 slices, 0.610 before"
    second.save(ROUND, record.model_copy(update={"round": 2, "annotated": 6, "flagged": flag}))


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """A page at an address; what it asked for is kept, and its last sight where
    NEXTSLICE_SCREENSHOTS names a folder."""
    opened: list[Page] = []

    def open_(url: str, **options: Any) -> Page:
        page = new_page(browser, **options)
        opened.append(page)
        page.goto(url)
        return page

    yield open_
    for number, page in enumerate(opened):
        look(page, f"{request.node.name}-{number}", full_page=True)
        page.context.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds: WCAG 2.1 A and AA, and its best practices."""
    page.evaluate(AXE)  # past the page's policy, which lets no script of others in
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:120]}: {node.get('failureSummary', '')}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(
    "path", ["/", "/projects/7", "/projects/7?show=uncertainty", "/projects/8"]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_everybody_can_read_it(
    loop: Loop, open_page: Callable[..., Page], path: str, scheme: str, size: dict[str, int]
) -> None:
    page = open_page(f"{loop.url}{path}", color_scheme=scheme, viewport=size)
    assert violations(page) == []
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= size["width"], "a phone would have to be scrolled sideways"
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") is (scheme == "light")


def test_nothing_comes_from_another_host_and_no_error_is_logged(
    loop: Loop, browser: Browser
) -> None:
    page = new_page(browser)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(f"{loop.url}/")
    expect(page.get_by_text("This browser reaches")).to_be_visible()
    page.goto(loop.page_url)
    page.locator(".queue img").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.queue img').naturalWidth > 0")
    assert {url for url in asked if not url.startswith((loop.url, "data:"))} == set()
    # what is looked for at PUBLIC_URL is no slice: 404, and that is an answer
    assert [error for error in errors if "404" not in error] == []
    page.context.close()


@pytest.mark.parametrize("late", [False, True], ids=["script first", "script last"])
def test_a_picture_that_finds_no_place_is_asked_for_again(
    loop: Loop, browser: Browser, late: bool
) -> None:
    page = new_page(browser)
    asked: list[str] = []
    script: list[Route] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if asked.count(route.request.url) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body="all places are taken")
        else:
            route.continue_()

    page.route("**/slices/*.png*", answer)
    if late:
        page.route("**/dashboard.js", lambda route: script.append(route))
    page.goto(loop.page_url, wait_until="commit")
    if late:
        page.wait_for_function("() => document.querySelector('.queue img')?.complete")
        script.pop().continue_()
    page.locator(".queue img").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.queue img').naturalWidth > 0")
    assert asked.count(asked[0]) == 2
    page.context.close()


def test_pictures_are_asked_for_again_however_long_they_failed(
    loop: Loop, browser: Browser
) -> None:
    page = new_page(browser)
    page.add_init_script(  # half a minute in half a second
        "{ const real = setTimeout; window.setTimeout = (then, ms) => real(then, ms / 60); }"
    )
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if asked.count(route.request.url) <= 7:
            route.abort("connectionrefused")
        else:
            route.continue_()

    page.route("**/slices/*.png*", answer)
    page.goto(loop.page_url)
    page.locator(".queue img").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.queue img').naturalWidth > 0")
    page.context.close()


def focused(page: Page) -> str:
    found: str = page.evaluate(
        "() => document.activeElement.innerText || document.activeElement.id"
    )
    return found.strip()


def tab_to(page: Page, wanted: str) -> None:
    for _ in range(120):
        page.keyboard.press("Tab")
        if focused(page) == wanted:
            return
    raise AssertionError(f"{wanted} is not reached with the Tab key")


def test_the_keyboard_is_enough(loop: Loop, open_page: Callable[..., Page]) -> None:
    page = open_page(loop.page_url)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    tab_to(page, "Train now")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("A training is asked for.")
    tab_to(page, "s-k")
    page.keyboard.press("Control+A")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("The settings are kept.")
    assert loop.again().settings.k == 5
    change_settings(loop.again(), {"k": ""})


def test_masks_and_uncertainty_are_changed_by_keyboard_and_stay(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    page = open_page(loop.page_url)
    tab_to(page, "Uncertainty")
    page.keyboard.press("Enter")
    shown = page.locator(".queue img").first
    expect(shown).to_have_attribute("alt", re.compile("^Uncertainty of slice z = "))
    expect(page.get_by_role("heading", level=1)).to_have_text("Explant 7, week 4")
    loop.server.memory.fields["title"] = "Explant 9"  # seen when the page has kept itself fresh
    page.wait_for_function("() => document.title.startsWith('Explant 9')")
    expect(shown).to_have_attribute("alt", re.compile("^Uncertainty"))
    tab_to(page, "Masks")
    page.keyboard.press("Enter")
    expect(page.locator(".queue img").first).to_have_attribute("alt", re.compile("^Slice"))


def test_a_mistake_in_a_form_is_said_and_changes_nothing(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    page = open_page(loop.page_url)
    page.get_by_label("train_steps").fill("many")
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was changed. train_steps: found")
    assert page.get_by_label("train_steps").input_value() == "many"
    assert violations(page) == []
    assert loop.again().record.settings == {}
    assert page.url == loop.page_url
    before = loop.server.memory.fields["title"]
    loop.server.memory.fields["title"] = "Explant 10"
    try:
        page.wait_for_function("() => document.title.startsWith('Explant 10')")
        assert page.get_by_label("train_steps").input_value() == "many"
        page.reload()
        expect(page.get_by_role("alert")).to_have_count(0)
    finally:
        loop.server.memory.fields["title"] = before


def test_the_page_keeps_itself_fresh_but_for_who_is_in_it(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    page = open_page(loop.page_url)
    page.get_by_label("train_steps").fill("77")
    loop.server.memory.fields["title"] = "Explant 8"
    change_settings(loop.again(), {"pause": "true"})
    try:
        expect(page.get_by_text("no round begins")).to_be_visible(timeout=20_000)
        assert page.title().startswith("Explant 8")
        assert page.get_by_label("train_steps").input_value() == "77"
        page.get_by_role("button", name="Keep").click()
        expect(page.get_by_role("status")).to_contain_text("The settings are kept.")
        assert loop.again().record.settings == {"pause": True, "train_steps": 77}
        assert page.url == loop.page_url, "what was done is said once"
        page.reload()
        expect(page.get_by_role("status")).to_have_count(0)
        paused = page.get_by_text("it begins when that is over")
        expect(paused).to_be_visible()
        change_settings(loop.again(), {"pause": ""})
        expect(paused).to_have_count(0)
    finally:
        change_settings(loop.again(), {"pause": "", "train_steps": ""})


def test_a_click_into_a_table_does_not_stop_it_and_who_is_at_a_link_keeps_it_for_a_minute(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    page = open_page(loop.page_url, viewport=PHONE)
    table = page.get_by_role("region", name="Rounds")
    shown = table.get_by_text("0.777")
    table.get_by_role("cell").first.click()
    table.evaluate("one => { one.scrollLeft = 30; }")
    second = loop.again().folder.round(2)
    metrics = second.need(METRICS)
    second.save(METRICS, metrics.model_copy(update={"miou": 0.777}))
    try:
        expect(shown).to_be_visible(timeout=20_000)
        assert page.evaluate("() => document.activeElement.ariaLabel") == "Rounds"
        assert table.evaluate("one => one.scrollLeft") == 30
        page.locator("#live-people a, #live-queue a").first.focus()
        page.keyboard.press("Shift")
        kept = page.evaluate_handle("() => document.activeElement")
        page.evaluate("() => { document.activeElement.closest('[data-live]').append('!'); }")
        second.save(METRICS, metrics.model_copy(update={"miou": 0.778}))
        page.wait_for_timeout(5_000)
        assert page.evaluate("one => one === document.activeElement", kept)
        page.evaluate("() => { const now = Date.now; Date.now = () => now() + 61000; }")
        page.wait_for_function("one => !one.isConnected", arg=kept)
        assert page.evaluate("one => one.href === document.activeElement.href", kept)
    finally:
        second.save(METRICS, metrics)


def test_a_page_that_has_not_changed_is_not_sent_again(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    page = open_page(loop.page_url)
    page.wait_for_event("response", lambda one: one.status == 304)
    expect(page.get_by_text("Not fresh since")).to_be_hidden()


def test_a_backend_that_does_not_answer_is_said_until_it_does(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    for path in ("/", "/projects/7"):
        page = open_page(f"{loop.url}{path}")
        said = page.get_by_text("Not fresh since")
        page.route(f"{loop.url}{path}", lambda route: route.abort())
        expect(said).to_contain_text("this backend does not answer.")
        assert violations(page) == []
        page.unroute(f"{loop.url}{path}")
        page.route(f"{loop.url}{path}", lambda route: route.fulfill(status=401))
        expect(said).to_contain_text("answers 401. Load the page again.")
        page.unroute(f"{loop.url}{path}")
        expect(said).to_be_hidden(timeout=20_000)


def test_a_refresh_that_is_cut_is_asked_for_again(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    app = create_app(loop.project.service.settings)
    cut: list[bool] = []

    def on_a_bad_line(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        body = b"".join(app(environ, start))
        if environ["PATH_INFO"] != "/projects/7" or b"it begins when that is over" not in body:
            return [body]
        cut.append(len(cut) == 0)
        return [body[: len(body) // 2] if cut[-1] else body]

    with web_process(on_a_bad_line) as url:
        page = open_page(f"{url}/projects/7")
        page.wait_for_event("response", lambda one: one.status == 304)
        change_settings(loop.again(), {"pause": "true"})
        try:
            expect(page.get_by_text("it begins when that is over")).to_be_visible(timeout=30_000)
            assert cut[0]
        finally:
            change_settings(loop.again(), {"pause": ""})


def test_another_page_in_place_of_a_refresh_is_not_taken_for_it(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    """As of a single sign-on that has ended, or of a proxy's maintenance."""
    page = open_page(loop.page_url)
    title = page.title()
    login = {"content_type": "text/html", "body": "<!doctype html><title>Sign in</title>"}
    page.route(loop.page_url, lambda route: route.fulfill(**login))
    said = page.get_by_text("Not fresh since")
    expect(said).to_contain_text("another page answers in its place. Load the page again.")
    assert page.title() == title
    page.unroute(loop.page_url)
    expect(said).to_be_hidden(timeout=20_000)


def test_a_public_url_that_this_browser_does_not_reach_is_named(
    loop: Loop, open_page: Callable[..., Page]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    changed = loop.project.service.settings.model_copy(update={"public_url": nowhere})
    with web_process(create_app(changed)) as url:
        page = open_page(url)
        said = page.locator("[data-public-url]")
        expect(said).to_contain_text(f"This browser does not reach {nowhere}")
        expect(said).to_contain_text("To mend it: PUBLIC_URL")


def test_one_request_that_is_lost_is_no_wrong_public_url(loop: Loop, browser: Browser) -> None:
    page = new_page(browser)
    lost: list[str] = []

    def answer(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.request.url)
            route.abort("connectionreset")

    page.route("**/slices/", answer)
    page.goto(loop.url)
    expect(page.locator("[data-public-url]")).to_contain_text(f"This browser reaches {loop.url}")
    assert len(lost) == 1
    page.context.close()
