"""Headless Chromium for the tests of pages, and a picture of what it saw.

Importing this skips a module by name where there is no chromium, unless
``NEXTSLICE_REQUIRE_BROWSER`` says that this is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ml_backend.embedded.label_studio import LabelStudioServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and not os.environ.get("NEXTSLICE_REQUIRE_BROWSER"):
    pytest.skip("browser tests: no chromium on PATH", allow_module_level=True)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)  # else 5 s, whatever a page's own default is


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser of the fixture ``browser``."""
    assert CHROMIUM is not None, "NEXTSLICE_REQUIRE_BROWSER is set, but there is no chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def new_page(browser: Browser, **options: Any) -> Page:
    """A page of a context of its own, with ``options``, that is waited for as long as all else."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(TIMEOUT_MS)
    return page


@contextmanager
def logged_in(browser: Browser, server: LabelStudioServer, backend_url: str) -> Iterator[Page]:
    """A page of Label Studio, of the user that it was started with."""
    page = new_page(browser, viewport={"width": 1400, "height": 900})
    # Only the server itself: hosts that cannot be reached would be waited for.
    ours = (server.url, backend_url)
    page.route(lambda url: not url.startswith(ours), lambda route: route.abort())
    page.goto(f"{server.url}/user/login/")
    page.fill("input[name=email]", server.email)
    page.fill("input[name=password]", server.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    yield page
    page.context.close()


def look(page: Page, name: str, *, full_page: bool = False) -> None:
    """Keep what ``page`` shows, where ``NEXTSLICE_SCREENSHOTS`` names a folder."""
    folder = os.environ.get("NEXTSLICE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / f"{name.replace('/', '_')}.png"
        page.screenshot(path=str(path), full_page=full_page)
