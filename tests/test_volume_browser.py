"""A volume as people meet it: Chromium with WebGL drawn by the CPU, and without any."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from ml_backend.api.dashboard import volumes
from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.redis_server import start_redis
from tests.chromium import CHROMIUM, FLAGS, look, new_page
from tests.http_studio import SLICES, HttpStudio, phantom_server
from tests.served import settings_in, web_process
from tests.test_dashboard_browser import LAPTOP, PHONE, violations
from tests.volume_project import NAME, predict, volume_project

pytestmark = pytest.mark.browser

WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def drawn(page: Page, kind: str) -> tuple[float, float]:
    """The shares of a view's pixels that are grey and coloured."""
    seen = Image.open(io.BytesIO(page.locator(f"#view-{kind}").screenshot())).convert("RGB")
    pixels = np.asarray(seen, np.int16)
    apart = pixels.max(axis=2) - pixels.min(axis=2)
    grey = (apart < 10) & (pixels.max(axis=2) > 30)
    return float(grey.mean()), float((apart > 40).mean())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, HttpStudio]]:
    """The backend's address and its Label Studio: slices 2, 5, 9 are labelled, 3, 4 predicted;
    people see the slices turned over along z."""
    folder = tmp_path_factory.mktemp("volume")

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ProcessGroup(folder / "logs") as group, phantom_server() as server:
        server.memory.fields["title"] = "Explant 7, week 4"
        redis = start_redis(group, folder)
        project = volume_project(
            server,
            settings_in(folder),
            folder,
            flip="z",
            REDIS_URL=redis,
            NEXTSLICE_BACKEND_URL=url,
        )
        predict(server, project, (3, 4), flip="z")
        with web_process(create_app(project.service.settings), port):
            yield url, server


@pytest.fixture(scope="module")
def served(site: tuple[str, HttpStudio]) -> tuple[str, str]:
    """Addresses of the backend and of its Label Studio."""
    url, server = site
    return url, server.url


@pytest.fixture(scope="module")
def drawing(browser: Browser) -> Iterator[Browser]:
    """Another browser, that has WebGL."""
    flags = [flag for flag in FLAGS if flag != "--disable-gpu"] + WEBGL
    another = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    yield another
    another.close()


@dataclass
class Heard:
    """What pages complained of, and what they asked for."""

    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def open_volume(
    request: pytest.FixtureRequest, served: tuple[str, str], heard: Heard
) -> Iterator[Callable[..., Page]]:
    opened: list[Page] = []

    def open_(browser: Browser, failing: str = "", **options: Any) -> Page:
        page = new_page(browser, **options)
        opened.append(page)
        page.on(
            "console", lambda said: heard.errors.append(said.text) if said.type == "error" else None
        )
        page.on("pageerror", lambda error: heard.errors.append(str(error)))
        page.on("request", lambda one: heard.asked.append(one.url))
        if failing:
            refused = {"status": 503, "body": "no answer.", "content_type": "text/plain"}
            page.route(failing, lambda one: one.fulfill(**refused))
        page.goto(f"{served[0]}/projects/7/volumes/{NAME}/")
        page.locator("#volume[data-ready]").wait_for()
        return page

    yield open_
    for page in opened:
        look(page, request.node.name, full_page=True)
        page.context.close()


def test_the_three_views_are_drawn_and_a_click_leads_to_the_task(
    open_volume: Callable[..., Page], drawing: Browser, served: tuple[str, str], heard: Heard
) -> None:
    url, studio = served
    page = open_volume(drawing, viewport=LAPTOP)
    link = page.locator("#open")
    # the first labelled slice is where it begins
    expect(link).to_have_text("Open slice 2 in Label Studio")
    expect(link).to_have_attribute("href", f"{studio}/projects/7/data?task=2")
    expect(page.locator("#state")).to_have_text("z = 2: labelled, not predicted.")
    grey, coloured = drawn(page, "scan")
    assert grey > 0.1
    assert coloured == 0
    grey, coloured = drawn(page, "labels")
    assert grey > 0.1
    assert coloured > 0.01
    # the coronal plane is above the axial one: z runs down it, as numbers in the file do
    box = page.locator("#view-scan").bounding_box()
    assert box is not None
    seen = set()
    for part in (4, 5, 6, 10):
        page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * part / 20)
        text = link.inner_text()
        seen.add(text)
        number = int(text.split()[2])
        assert link.get_attribute("href") == f"{studio}/projects/7/data?task={number}"
        # people see the slices turned over along z
        assert int(page.locator("#at-z").input_value()) == SLICES - 1 - number
        assert page.locator("#is-z").inner_text() == str(number)
    assert len(seen) > 2, "clicks across the planes lead to several slices"
    assert {one for one in heard.asked if not one.startswith((url, "data:", "blob:"))} == set()
    assert heard.errors == []


def test_the_keyboard_is_enough(
    open_volume: Callable[..., Page], drawing: Browser, served: tuple[str, str]
) -> None:
    page = open_volume(drawing, viewport=LAPTOP)
    page.locator("#at-z").focus()
    _, before = drawn(page, "prediction")
    for _ in range(2):  # up in the file, down in the numbers that people see
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#open")).to_have_text("Open slice 4 in Label Studio")
    expect(page.locator("#state")).to_have_text("z = 4: not labelled, predicted.")
    expect(page.locator("#at-z")).to_have_attribute("aria-valuetext", "4")
    expect(page.locator("#is-z")).to_have_attribute("aria-live", "off")
    assert drawn(page, "prediction")[1] > before
    page.keyboard.press("Home")
    expect(page.locator("#open")).to_have_text(f"Open slice {SLICES - 1} in Label Studio")


def test_labels_that_cannot_be_had_leave_scan_and_prediction(
    open_volume: Callable[..., Page], drawing: Browser
) -> None:
    page = open_volume(drawing, failing="**/labels.nii.gz*", viewport=PHONE)
    says = "The labels cannot be shown: no answer. Load the page again."
    expect(page.locator("#says")).to_have_text(says)
    expect(page.locator("#view-labels")).to_be_hidden()
    expect(page.locator("#keys")).to_be_visible()
    page.locator("#at-z").focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert drawn(page, "scan")[0] > 0.1
    assert drawn(page, "prediction")[1] > 0.01


def test_what_a_cut_line_has_lost_is_asked_for_again(
    served: tuple[str, str], drawing: Browser
) -> None:
    """A scan of up to 16 MB goes over it, and is what the page is about."""
    page = new_page(drawing)
    cut: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url in cut:
            route.continue_()
        else:
            cut.append(route.request.url)
            route.abort("connectionreset")

    page.route(re.compile(r"/(scan|labels|prediction)\.nii\.gz|/api/"), answer)
    page.goto(f"{served[0]}/projects/7/volumes/{NAME}/")
    page.locator("#volume[data-ready]").wait_for()
    assert len(cut) == 4
    expect(page.locator("#says")).to_be_hidden()
    page.context.close()


PAGE = "text/html; charset=utf-8"
ANOTHER = "another page answers in its place."


@pytest.mark.parametrize(
    ("asked", "answer", "why"),
    [
        (
            "**/api/**",
            {"status": 400, "json": {"error": "project 7 has no such volume"}},
            "project 7 has no such volume.",
        ),
        (
            "**/api/**",
            {"status": 400, "body": "<h1>Bad</h1>", "content_type": PAGE},
            "this backend answers 400.",
        ),
        ("**/api/**", {"body": "<title>Sign in</title>", "content_type": PAGE}, ANOTHER),
        ("**/scan.nii.gz*", {"body": "<title>Sign in</title>", "content_type": PAGE}, ANOTHER),
        ("**/niivue.umd.js", {"status": 404}, "the script that draws it has not come."),
    ],
)
def test_why_a_volume_cannot_be_shown_is_a_sentence(
    served: tuple[str, str], drawing: Browser, asked: str, answer: dict[str, Any], why: str
) -> None:
    page = new_page(drawing)
    page.route(asked, lambda one: one.fulfill(**answer))
    page.goto(f"{served[0]}/projects/7/volumes/{NAME}/")
    says = f"The volume cannot be shown: {why} Load the page again."
    expect(page.locator("#says")).to_have_text(says)
    page.context.close()


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        ("<title>Sign in</title>", PAGE, ANOTHER),
        ("no volume", "application/gzip", "Failed to parse NIfTI file mask.nii.gz."),
    ],
)
def test_a_mask_that_cannot_be_drawn_leaves_the_other(
    served: tuple[str, str], drawing: Browser, body: str, kind: str, why: str
) -> None:
    page = new_page(drawing)
    page.route("**/labels.nii.gz*", lambda one: one.fulfill(body=body, content_type=kind))
    page.goto(f"{served[0]}/projects/7/volumes/{NAME}/")
    page.locator("#volume[data-ready]").wait_for()
    says = f"The labels cannot be shown: {why} Load the page again."
    expect(page.locator("#says")).to_have_text(says)
    expect(page.locator("#view-labels")).to_be_hidden()
    page.locator("#at-z").focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert drawn(page, "prediction")[1] > 0.01
    page.context.close()


def test_where_label_studio_goes_away_nothing_is_called_unlabelled(
    site: tuple[str, HttpStudio], drawing: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the page and what its script asks for."""
    url, server = site
    monkeypatch.setattr(volumes, "_FRESH_S", 0.0)
    page = new_page(drawing)

    def away(route: Route) -> None:
        monkeypatch.setattr(server, "refused", {"api/projects/7": 500, "api/tasks": 500})
        route.continue_()

    page.route("**/api/**", away)
    page.goto(f"{url}/projects/7/volumes/{NAME}/")
    page.locator("#volume[data-ready]").wait_for()
    expect(page.locator("#says")).to_contain_text("Label Studio did not tell what is labelled: ")
    expect(page.locator("#says")).to_contain_text("Load the page again.")
    unknown = "z = 5: whether it is labelled or predicted is not known."
    page.locator("#at-z").fill(str(SLICES - 1 - 5))
    expect(page.locator("#state")).to_have_text(unknown)
    page.context.close()


def test_while_the_scan_loads_sliders_number_and_link_are_of_one_slice(
    served: tuple[str, str], drawing: Browser
) -> None:
    page = new_page(drawing)
    held: list[Route] = []
    pictures: list[str] = []
    page.on("request", lambda one: pictures.append(one.url) if "/slices/" in one.url else None)
    page.route("**/scan.nii.gz*", lambda one: held.append(one))
    page.goto(f"{served[0]}/projects/7/volumes/{NAME}/")
    expect(page.locator(".sliders")).to_be_visible()
    expect(page.locator("#open")).to_have_text("Open slice 2 in Label Studio")
    expect(page.locator("#is-z")).to_have_text("2")
    expect(page.locator("#at-z")).to_have_value(str(SLICES - 1 - 2))
    page.locator("#at-z").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#open")).to_have_text("Open slice 3 in Label Studio")
    held.pop().continue_()
    page.locator("#volume[data-ready]").wait_for()
    expect(page.locator("#open")).to_have_text("Open slice 3 in Label Studio")
    assert pictures == [], "nobody sees them"
    page.context.close()


def test_the_addresses_at_full_resolution_are_copied_by_keyboard(
    open_volume: Callable[..., Page], drawing: Browser, served: tuple[str, str]
) -> None:
    page = open_volume(drawing, viewport=PHONE, permissions=["clipboard-read", "clipboard-write"])
    section = page.get_by_role("region", name="At full resolution")
    copies = section.get_by_role("button")
    expect(copies).to_have_count(4)  # scan, labels and prediction for neuroglancer; napari
    copied = []
    for button in copies.all():
        button.focus()
        page.keyboard.press("Enter")
        expect(button).to_contain_text("Copied")
        copied.append(page.evaluate("() => navigator.clipboard.readText()"))
    scan = copied[0].removeprefix("zarr2://")
    assert copied[1:] == [
        f"zarr2://{scan}/labels/labels",
        f"zarr2://{scan}/labels/prediction",
        f"napari --plugin napari-ome-zarr {scan}",
    ]
    for image in (scan, f"{scan}/labels/labels", f"{scan}/labels/prediction"):
        array = requests.get(f"{image}/0/.zarray", timeout=30).json()
        assert array["shape"] == [SLICES, 64, 80]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_everybody_can_read_it(
    open_volume: Callable[..., Page], drawing: Browser, scheme: str, size: dict[str, int]
) -> None:
    page = open_volume(drawing, color_scheme=scheme, viewport=size)
    page.get_by_text("with links into Label Studio").click()
    assert violations(page) == []
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= size["width"], "a phone would have to be scrolled sideways"


def test_without_webgl_it_says_so_and_shows_slices(
    open_volume: Callable[..., Page], browser: Browser, served: tuple[str, str]
) -> None:
    without = browser.browser_type.launch(
        executable_path=CHROMIUM, args=[*FLAGS, "--disable-3d-apis"]
    )
    page = open_volume(without, viewport=PHONE)
    expect(page.locator("#says")).to_contain_text("This browser has no WebGL 2")
    expect(page.locator("canvas").first).to_be_hidden()
    page.wait_for_function("() => document.getElementById('picture').naturalWidth > 0")
    expect(page.locator("#open")).to_have_attribute("href", f"{served[1]}/projects/7/data?task=2")
    assert violations(page) == []
    # the browser keeps it for minutes: that of another version is another picture
    picture = page.locator("#picture")
    about = f"{served[0]}/api/projects/7/volumes/{NAME}"
    version = requests.get(about, timeout=30).json()["model_version"]
    expect(picture).to_have_attribute("src", re.compile(rf"/slices/2\.png\?v={version}$"))
    held: list[Route] = []
    page.route("**/slices/*.png*", lambda one: held.append(one))
    page.locator("#at-z").fill(str(SLICES - 1 - 5))
    expect(picture).to_have_attribute("alt", "Slice 5 with the published mask")
    assert picture.evaluate("one => one.naturalWidth") == 0, "that of the slice before"
    held.pop().continue_()
    page.wait_for_function("() => document.getElementById('picture').naturalWidth > 0")
