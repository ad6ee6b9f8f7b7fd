"""What a person sees: add the URL, press Label All Tasks, correct the mask, submit.

Headless Chromium against the real Label Studio. The network's masks are looked at where a person
looks: at the pixels of the page.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page

from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import wait_until
from ml_backend.embedded.stack import Stack
from ml_backend.import_volume import ImportRequest, import_volume
from ml_backend.rounds.project import find_project
from ml_backend.rounds.service import Service
from ml_backend.studio.label_config import bitmask_config, brush_config
from ml_backend.studio.masks import decode_bitmask
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import VolumeSpec
from tests.chromium import logged_in, look
from tests.integration.conftest import CLASSES, LiveProject, disc

pytestmark = [pytest.mark.integration, pytest.mark.browser]


@pytest.fixture
def page(browser: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A logged-in page; its last sight is kept when NEXTSLICE_SCREENSHOTS names a folder."""
    with logged_in(browser, stack.label_studio, stack.backend_url) as page:
        yield page
        look(page, request.node.name)


def connect_model(page: Page, stack: Stack, project: int) -> None:
    """Settings → Model → Connect Model → Validate and Save."""
    page.goto(f"{stack.label_studio.url}/projects/{project}/settings/ml")
    page.get_by_text("Connect Model", exact=True).click()
    page.fill("input[name=title]", "nextslice")
    page.fill("input[name=url]", stack.backend_url)
    page.get_by_text("Validate and Save", exact=True).click()
    page.get_by_text("Connected", exact=True).first.wait_for()


def opened_task(page: Page, action: Callable[[], Any]) -> int:
    """Do ``action`` and tell which task Label Studio hands out for it."""
    with page.expect_response(lambda answer: "id=next_task" in answer.url) as handed_out:
        action()
    assert handed_out.value.status == 200, handed_out.value.text()
    number = int(handed_out.value.json()["id"])
    page.locator("canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)  # the mask is drawn after the image, without a sign in the DOM
    return number


def canvas(page: Page) -> np.ndarray[Any, np.dtype[np.int16]]:
    """(H, W, 3): the annotator's image area as it is shown."""
    shot = page.screenshot(clip=largest_canvas(page))
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(np.int16)


def largest_canvas(page: Page) -> FloatRect:
    boxes = [box for c in page.locator("canvas").all() if (box := c.bounding_box()) is not None]
    return max(boxes, key=lambda box: box["width"] * box["height"])


def coloured(pixels: np.ndarray[Any, np.dtype[np.int16]]) -> float:
    """Part of the pixels that have a colour: the slice is grey, a mask is not."""
    return float(np.mean(pixels.max(-1) - pixels.min(-1) > 25))


def test_the_page_says_why_one_gets_the_slice(
    make_project: Callable[..., LiveProject], page: Page, stack: Stack
) -> None:
    project = make_project(20, config=bitmask_config(CLASSES, why=True), title="browser why")
    project.wait_for_round(0)
    first = project.selection().chosen[0]
    service = Service(stack.settings())
    wait_until(
        lambda: any("why" in row.data for row in service.studio.tasks(project.number)), "why", 240
    )
    page.goto(f"{stack.label_studio.url}/projects/{project.number}/data")
    label_all = page.get_by_text("Label All Tasks", exact=True)
    assert opened_task(page, label_all.click) == first
    page.get_by_text("Place 1 of ").first.wait_for()
    assert "Evenly spaced between what is labelled" in page.content()
    look(page, "why")
    # Sentence, classes and slice are seen at once: nobody scrolls for the classes.
    said = ("Place 1 of ", CLASSES[0], "Submit")
    boxes = [page.get_by_text(text).first.bounding_box() for text in said]
    sentence, label, submit = (box["y"] for box in boxes if box is not None)
    area = largest_canvas(page)
    assert sentence < label < area["y"] < area["y"] + area["height"] < submit + 10


@pytest.mark.parametrize("config", [bitmask_config, brush_config], ids=["bitmask", "brush"])
def test_a_person_adds_the_url_and_follows_the_queue(
    make_project: Callable[..., LiveProject],
    page: Page,
    stack: Stack,
    request: pytest.FixtureRequest,
    config: Callable[[list[str]], str],
) -> None:
    kind = request.node.callspec.id
    project = make_project(20, connect=False, config=config(CLASSES), title=f"browser {kind}")
    connect_model(page, stack, project.number)
    project.wait_for_round(0)
    look(page, f"{kind}-1-settings")

    data = f"{stack.label_studio.url}/projects/{project.number}/data"
    page.goto(data)
    label_all = page.get_by_text("Label All Tasks", exact=True)
    assert opened_task(page, label_all.click) == project.selection().chosen[0]
    look(page, f"{kind}-2-cold-start")
    bare = coloured(canvas(page))

    project.label_round()
    project.wait_for_round(1)
    chosen = project.selection().chosen
    page.goto(data)
    assert opened_task(page, label_all.click) == chosen[0]
    look(page, f"{kind}-3-predicted")
    wait_until(lambda: coloured(canvas(page)) > bare + 0.02, "the predicted mask", 60)

    submit = page.get_by_text("Submit", exact=True)
    assert opened_task(page, submit.click) == chosen[1]
    look(page, f"{kind}-4-next")
    wait_until(lambda: bool(annotation(project, chosen[0])), "the annotation", 120)
    submitted = annotation(project, chosen[0])
    predicted = prediction(project, chosen[0])
    assert [r["value"][f"{kind}labels"] for r in submitted] == [
        r["value"][f"{kind}labels"] for r in predicted
    ]


def test_a_slice_rendered_on_demand_is_shown_and_painted_on(
    service: Service, session: Session, volumes: Path, page: Page, stack: Stack
) -> None:
    """`nextslice import`, then a person: the browser fetches the slice from the backend itself."""
    grey = np.stack([disc(z)[0] for z in range(12)]).astype(np.uint16) * 200
    path = volumes / "painted.tif"
    write_volume(path, iter(grey), VolumeSpec(grey.shape, grey.dtype))  # type: ignore[arg-type]
    report = import_volume(service, ImportRequest(path, labels=tuple(CLASSES)))
    key = find_project(service, report.project).key
    project = LiveProject(service, key, session)
    project.wait_for_round(0)
    data = f"{stack.label_studio.url}/projects/{project.number}/data"
    page.goto(data)

    with page.expect_response(lambda answer: "/slices/" in answer.url) as served:
        label_all = page.get_by_text("Label All Tasks", exact=True)
        task = opened_task(page, label_all.click)
    assert served.value.status == 200
    assert task == project.selection().chosen[0]
    z = service.studio.sdk.tasks.get(id=str(task)).data["z"]
    wait_until(lambda: bool(np.ptp(canvas(page).max(-1)) > 150), "the slice to be seen", 60)
    bare = coloured(canvas(page))

    page.get_by_text(CLASSES[0], exact=True).first.click()
    box = largest_canvas(page)
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    for step in range(1, 12):
        page.mouse.move(middle[0] + 6 * step, middle[1] + 2 * step)
    page.mouse.up()
    wait_until(lambda: coloured(canvas(page)) > bare + 0.002, "the stroke to be seen", 60)
    look(page, "painted-on-demand")
    page.get_by_text("Submit", exact=True).click()
    wait_until(lambda: bool(annotation(project, task)), "the annotation", 120)

    (region,) = annotation(project, task)
    assert region["value"]["bitmasklabels"] == [CLASSES[0]]
    assert (region["original_height"], region["original_width"]) == grey[z].shape
    painted = decode_bitmask(region["value"]["imageDataURL"]) >= 128
    assert 10 < np.count_nonzero(painted) < painted.size / 2
    session.call("DELETE", f"/api/projects/{project.number}/")


def annotation(project: LiveProject, task: int) -> list[dict[str, Any]]:
    found = project.session.call("GET", f"/api/tasks/{task}/annotations/").json()
    result: list[dict[str, Any]] = found[-1]["result"] if found else []
    return result


def prediction(project: LiveProject, task: int) -> list[dict[str, Any]]:
    version = project.published.model_version
    found = project.session.call("GET", f"/api/predictions/?task={task}").json()
    result: list[dict[str, Any]] = next(p["result"] for p in found if p["model_version"] == version)
    return result
